"""What Ray Tune tells of a trial reaches the search, and nothing else does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from rayhmr.search import Search, SearchPlan
from rayhmr.storage import Folder
from rayhmr.study import Ledger
from rayhmr.tune_bridge import GIVEN_UP, SETTINGS, TRIAL, StudyScheduler, StudySearcher, trial_name

SCORE = "val/pa_mpjpe_mm"


@pytest.fixture
def search(tmp_path):
    plan = SearchPlan(trials=3, epochs=2, score=SCORE, rungs=[1], factor=2, keep_first=False)
    return Search(
        plan, Ledger(Folder(str(tmp_path))), lambda number, records: {"model.n_iter": number + 1},
        lambda trial: [],
    )  # fmt: skip


def begun(search, count):
    """Trials as Tune has them."""
    searcher = StudySearcher(search)
    return [
        SimpleNamespace(
            config=searcher.suggest(f"random-{n}"), error_file=None, should_recover=lambda: False
        )
        for n in range(count)
    ]


def result(epoch, score):
    return {"epoch": float(epoch), SCORE: score, "training_iteration": 99}


def statuses(search):
    return [(record.status, record.reason) for record in search.records]


def test_a_searcher_hands_out_each_trial_once_under_our_id(search):
    searcher = StudySearcher(search)
    given = [searcher.suggest(f"random-{n}") for n in range(4)]
    assert given[:3] == [
        {TRIAL: f"t000{n}", SETTINGS: {"model.n_iter": n + 1}} for n in range(3)
    ]  # fmt: skip
    assert given[3] == Searcher.FINISHED
    assert trial_name(SimpleNamespace(config=given[2])) == "t0002"


def test_results_are_judged_by_epochs_and_weak_trials_stop(search):
    strong, weak = begun(search, 2)
    scheduler = StudyScheduler(search)
    assert scheduler.on_trial_result(None, strong, result(1, 80.0)) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, weak, result(1, 90.0)) == TrialScheduler.STOP
    scheduler.on_trial_complete(None, weak, {})
    assert scheduler.on_trial_result(None, strong, result(2, 70.0)) == TrialScheduler.CONTINUE
    # Tune passes the last result again when a trial ends, or none when there was none.
    assert scheduler.on_trial_result(None, strong, result(2, 70.0)) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, strong, {"done": True}) == TrialScheduler.CONTINUE
    scheduler.on_trial_complete(None, strong, {})
    assert [status for status, _ in statuses(search)] == ["finished", "stopped"]
    assert [record.epochs for record in search.records] == [2, 1]


def test_a_trial_that_gives_up_is_failed_with_its_reason_and_not_started_again(search):
    (trial,) = begun(search, 1)
    scheduler = StudyScheduler(search)
    told = {GIVEN_UP: "no finite gradients in 10 steps"}
    assert scheduler.on_trial_result(None, trial, told) == TrialScheduler.STOP
    scheduler.on_trial_complete(None, trial, told)
    assert statuses(search) == [("failed", "no finite gradients in 10 steps")]


def test_an_error_is_kept_by_its_last_line(search, tmp_path):
    first, second = begun(search, 2)
    scheduler = StudyScheduler(search)
    file = tmp_path / "error.txt"
    file.write_text("Traceback\n  File x\nOSError: no space left\n\n")
    first.error_file = str(file)
    scheduler.on_trial_error(None, first)
    scheduler.on_trial_error(None, second)
    assert statuses(search) == [
        ("failed", "OSError: no space left"), ("failed", "it failed without a message"),
    ]  # fmt: skip


def test_a_trial_that_tune_starts_again_goes_on(search):
    (trial,) = begun(search, 1)
    trial.should_recover = lambda: True
    StudyScheduler(search).on_trial_error(None, trial)
    assert statuses(search) == [("running", "")]
