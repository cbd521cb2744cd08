"""Errors on held-out people: a perfect answer has none, and the mean pose is measured rightly."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.checkpoint import load_bundle
from hmr.errors import DataError
from hmr.structures import Parameters, Prediction
from rayhmr.config import EvaluateJob
from rayhmr.data.batches import read_batches
from rayhmr.data.schema import read_info
from rayhmr.evaluate import baseline_means, evaluate, evaluate_samples, mean_pose, summary


@pytest.fixture(scope="module")
def shards(write_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    return write_shards(folder, rows_per_file=16, image_size=32, train=30, val=12, test=24)


@pytest.fixture(scope="module")
def body():
    return Body.embedded()


def batches(shards, size=10):
    return list(read_batches(read_info(shards), "test", batch_size=size, image_size=32))


class Knows:
    """A model that has seen the answers; `turn` radians away from them about the camera's x."""

    def __init__(self, wanted, turn=0.0):
        self.wanted, self.turn = iter(wanted), turn

    def __call__(self, images):
        batch = next(self.wanted)
        rotmats = batch.rotmats.clone()
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turned = torch.tensor([[1, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float32)
        rotmats[:, 0] = turned @ rotmats[:, 0]
        cam = torch.zeros(len(batch), 3)
        start = torch.eye(3).expand(len(batch), 24, 3, 3)
        return Prediction(
            iterations=(
                Parameters(rotmats=start, betas=batch.betas, pred_cam=cam),
                Parameters(rotmats=rotmats, betas=batch.betas, pred_cam=cam),
            )
        )


def test_a_perfect_answer_has_no_error(shards, body):
    wanted = batches(shards)
    errors = evaluate_samples(Knows(wanted), wanted, body, mean_pose(read_info(shards)))
    assert errors.positions.tolist() == list(range(24))
    for name in ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm"):
        assert errors.by_iteration[name][1].max() < 0.01
        assert errors.by_iteration[name][0].min() > 1, "the start is no answer"


def test_only_the_aligned_error_forgives_a_turned_person(shards, body):
    wanted = batches(shards)
    errors = evaluate_samples(Knows(wanted, 0.5), wanted, body, mean_pose(read_info(shards)))
    assert errors.by_iteration["pa_mpjpe_mm"][1].max() < 0.01
    assert errors.by_iteration["mpjpe_mm"][1].min() > 20


def test_people_without_labels_are_left_out_and_keep_their_place(shards, body):
    wanted = batches(shards)
    hidden = [replace(b, has_smpl=torch.arange(len(b)) % 2 == 1) for b in wanted]
    mean = mean_pose(read_info(shards))
    some = evaluate_samples(Knows(wanted, 0.5), hidden, body, mean)
    everybody = evaluate_samples(Knows(wanted, 0.5), wanted, body, mean)
    assert some.positions.tolist() == list(range(1, 24, 2))
    for name, values in some.by_iteration.items():
        torch.testing.assert_close(values, everybody.by_iteration[name][:, 1::2])
    nobody = [replace(b, has_smpl=torch.zeros(len(b), dtype=torch.bool)) for b in wanted]
    with pytest.raises(DataError, match="none of the 24 people has SMPL labels"):
        evaluate_samples(Knows(wanted), nobody, body, mean)


def test_the_mean_pose_is_that_of_the_training_people(shards, body):
    info = read_info(shards)

    def joints_of(split):
        found = read_batches(info, split, batch_size=64, image_size=32)
        joints = torch.cat([body(b.rotmats, b.betas).joints for b in found])
        return joints - joints[:, :1]

    mean = joints_of("train").mean(0)
    expected = 1000 * (joints_of("test") - mean).norm(dim=-1).mean()
    assert baseline_means(info, "test", body)["mpjpe_mm"] == pytest.approx(
        float(expected), rel=1e-4
    )


def test_the_table_agrees_with_the_model_asked_for_fewer_steps(shards, bundle, tmp_path, body):
    job = EvaluateJob(model=str(bundle), data=shards, output=str(tmp_path / "out"), batch_size=7)
    results = evaluate(job)
    assert (results["count"], results["n_iter"]) == (24, 3)
    predictor = load_bundle(bundle)
    info = read_info(shards)
    for row in results["by_iteration"]:
        steps = row["n_iter"]
        errors = evaluate_samples(
            lambda images, steps=steps: Prediction(
                iterations=predictor.predict_crops(images).iterations[: steps + 1]
            ),
            batches(shards, 24), body, mean_pose(info),
        )  # fmt: skip
        assert summary(errors)["pa_mpjpe_mm"] == pytest.approx(row["pa_mpjpe_mm"], rel=1e-3)
        assert row["pa_mpjpe_ratio"] == pytest.approx(
            row["pa_mpjpe_mm"] / results["baseline_pa_mpjpe_mm"]
        )
    ranked = errors.ranked()
    final = errors.by_iteration["pa_mpjpe_mm"][-1]
    assert final[ranked[0]] == final.min()
    assert final[ranked[-1]] == final.max()
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == results
    lines = (tmp_path / "out/by_iteration.csv").read_text().splitlines()
    assert len(lines) == 1 + 4


def test_a_folder_that_is_no_data_set_and_a_model_of_another_body_are_refused(
    shards, bundle, tmp_path
):
    (tmp_path / "nothing").mkdir()
    job = EvaluateJob(model=str(bundle), data=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"make it with `python jobs/prepare\.py"):
        evaluate(job)
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    manifest = json.loads((copy / "dataset.json").read_text())
    manifest["body"]["hash"] = "0" * 64
    (copy / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="its labels belong to the body"):
        evaluate(EvaluateJob(model=str(bundle), data=str(copy)))
