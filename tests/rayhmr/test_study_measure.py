"""Models of a study at other T than trained, and the table of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hmr.body import Body
from hmr.config import ModelConfig
from hmr.model import build_model
from rayhmr.data.schema import read_info
from rayhmr.iterations_table import iterations_table
from rayhmr.study_measure import held_out_split, people_errors
from rayhmr.study_sections import CrossIteration
from rayhmr.study_statistics import mean_interval


@pytest.fixture(scope="module")
def info(write_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("people") / "shards"
    return read_info(write_shards(folder, rows_per_file=8, image_size=32, train=8, val=8, test=12))


def test_the_beginning_of_a_long_refinement_is_a_short_one(info):
    torch.manual_seed(0)
    model = build_model(ModelConfig(image_size=32, encoder_width=4, hidden=16)).eval()
    with torch.no_grad():
        model.regressor.decpose.weight.mul_(20)
    body = Body.embedded()
    long = people_errors(model, body, info, "test", 4).by_iteration["pa_mpjpe_mm"]
    for steps in (1, 3):
        short = people_errors(model, body, info, "test", steps).by_iteration["pa_mpjpe_mm"]
        assert torch.equal(short, long[: steps + 1])
    assert long.shape == (5, 12)
    assert (long[1] - long[4]).abs().mean() > 1e-3, "each step changes something"


def test_people_are_held_out_of_training_and_choice_where_there_are_such(info):
    assert held_out_split(info) == "test"
    without = replace(info, files=info.files | {"test": []})
    assert held_out_split(without) == "val"


def cross(trial, trained, errors):
    return [
        CrossIteration(trial=trial, trained=trained, evaluated=used, error_mm=error)
        for used, error in errors.items()
    ]


def test_the_table_has_means_intervals_and_the_lowest_of_each_row():
    entries = [
        *cross("a", 1, {1: 70.0, 2: 80.0}),
        *cross("b", 1, {1: 72.0, 2: 90.0}),
        *cross("c", 2, {1: 95.0, 2: 60.0}),
    ]
    half = mean_interval([70.0, 72.0]).high - 71.0
    assert iterations_table(entries).splitlines() == [
        "| trained T | used T = 1 | used T = 2 | trainings |",
        "| --- | --- | --- | --- |",
        f"| 1 | **71.0 ± {half:.1f}** | 85.0 | 2 |",
        "| 2 | 95.0 | **60.0** | 1 |",
    ]
