"""The service survives what the scorecard lists; on demand, `test_rollout.py` is in every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayhmr.benchmark_chaos_serve import figures_of, row_of
from rayhmr.chaos.lab import Record
from rayhmr.chaos.serve_lab import ServeLab, serve_lab
from rayhmr.chaos.serve_scenarios import SERVE_SCENARIOS, played_on_service


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeLab]:
    with serve_lab(tmp_path_factory.mktemp("chaos-serve"), load_s=12.0) as lab:
        yield lab


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("scenario", SERVE_SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_service_survives(scenario, lab):
    record = played_on_service(scenario, lab)
    assert record.survived, record.note


def test_figures_count_what_was_survived():
    records = [
        Record(scenario="a", survived=True, note="", seconds=(1.0,)),
        Record(scenario="b", survived=False, note="lost", seconds=()),
        Record(scenario="c", survived=True, note="", seconds=(4.0, 5.0)),
    ]
    assert figures_of(records) == {"survived": 2, "tried": 3, "longest_wait_s": 4.0}
    assert figures_of([])["longest_wait_s"] == 0.0
    row = row_of(records[1], "R22", "1 of 200 failed")
    assert (row["survived"], row["stock Ray 2.60"]) == ("NO", "1 of 200 failed")
