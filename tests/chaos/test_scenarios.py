"""Training survives what the scorecard lists: some of it in every test run, all of it on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayhmr.benchmark_chaos import SCENARIOS
from rayhmr.chaos.damage import damaged_files
from rayhmr.chaos.lab import Lab
from rayhmr.chaos.scenarios import played

IN_EVERY_RUN = [damaged_files]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with Lab(tmp_path_factory.mktemp("chaos")) as lab:
        yield lab


@pytest.fixture(scope="module")
def small_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """With runs that are just long enough for what is in every test run."""
    with Lab(tmp_path_factory.mktemp("chaos-small"), epochs=2) as lab:
        yield lab


def survives(scenario, lab):
    record = played(scenario, lab)
    if record.note.startswith("not tried"):
        pytest.skip(record.note)
    assert record.survived, record.note
    print(record)  # noqa: T201
    return record


@pytest.mark.ray
def test_two_workers_train_on_two_nodes(small_lab):
    first, second = small_lab.undisturbed().nodes
    assert first != second


@pytest.mark.ray
@pytest.mark.parametrize("scenario", IN_EVERY_RUN, ids=lambda scenario: scenario.__name__)
def test_a_run_survives(scenario, small_lab):
    survives(scenario, small_lab)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize(
    "scenario", [s for s in SCENARIOS if s not in IN_EVERY_RUN], ids=lambda s: s.__name__
)
def test_a_run_survives_that_takes_its_time(scenario, lab):
    survives(scenario, lab)
