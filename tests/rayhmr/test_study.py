"""A study without Ray: its ledger, what it suggests, and what it makes of every end of its driver.

`Driver` stands for Ray Tune: it runs trials by the search's word, and can be killed at any event.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Sequence
from contextlib import suppress

import pytest
from pydantic import ValidationError

from hmr.errors import ConfigError, DataError
from rayhmr.config import Dimension, TrainJob, TuneJob
from rayhmr.halving import rungs
from rayhmr.search import Search, SearchPlan
from rayhmr.storage import Folder
from rayhmr.study import Ledger, TrialRecord, trial_id, write_tables
from rayhmr.study_space import check_space, checked_suggester, trials_of
from rayhmr.suggestions import STARTUP_TRIALS, suggester, tpe

SCORE = "val/pa_mpjpe_mm"
POSE = "train.losses.pose"
SPACE = {
    "model.n_iter": Dimension(choice=[1, 2, 3, 4]),
    POSE: Dimension(low=0.1, high=10.0, log=True),
}


def job_of(**changes):
    return TuneJob.model_validate({"space": SPACE, "trials": 12, **changes})


def record(number, status="finished", settings=None, scores=(80.0,), **more):
    history = tuple(
        {"epoch": float(e), SCORE: s, "val/mpjpe_mm": 2 * s, "seconds": 10.0 * e}
        for e, s in enumerate(scores, start=1)
    )
    return TrialRecord(
        number=number, trial=trial_id(number), status=status, history=history,
        settings={"model.n_iter": 2, POSE: 1.0} if settings is None else settings,
        seconds=10.0 * len(scores), **more,
    )  # fmt: skip


# --- the ledger -----------------------------------------------------------------------------------


def test_a_ledger_gives_back_what_was_put(tmp_path):
    ledger = Ledger(Folder(str(tmp_path)))
    assert ledger.records() == []
    records = [record(number, scores=(90.0, 80.0 + 1 / 3)) for number in (10, 2, 0)]
    for one in records:
        ledger.put(one)
    (tmp_path / "trials" / "not-a-trial").mkdir()
    assert ledger.records() == records[::-1]
    assert (tmp_path / "trials/t0010/trial.json").is_file()
    changed = record(2, "stopped", reason="rung 1")
    ledger.put(changed)
    assert Ledger(Folder(str(tmp_path))).records()[1] == changed
    assert list((tmp_path / "trials/t0002").iterdir()) == [tmp_path / "trials/t0002/trial.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"history": [], "status": "running"}'])
def test_a_damaged_record_is_named(tmp_path, content):
    Ledger(Folder(str(tmp_path))).put(record(3))
    (tmp_path / "trials/t0003/trial.json").write_text(content)
    with pytest.raises(DataError, match=r"trials/t0003/trial\.json: is no record.*remove that"):
        Ledger(Folder(str(tmp_path))).records()


def test_a_status_that_nobody_knows_is_refused(tmp_path):
    Ledger(Folder(str(tmp_path))).put(record(3, "paused"))
    with pytest.raises(DataError, match="status 'paused' is none of"):
        Ledger(Folder(str(tmp_path))).records()


def test_the_tables_hold_every_trial_and_every_epoch(tmp_path):
    records = [
        record(0, settings={}, scores=(90.0, 70.0)),
        record(1, "stopped", scores=(95.0,), reason="rung of epoch 1, too weak"),
        record(2, "failed", scores=(), reason="diverged"),
    ]
    write_tables(Folder(str(tmp_path)), records, SPACE)
    trials = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    assert list(trials[0]) == [
        "trial", "number", "status", "epochs", "model.n_iter", POSE, "val/mpjpe_mm", SCORE,
        "seconds", "reason",
    ]  # fmt: skip
    assert [row["status"] for row in trials] == ["finished", "stopped", "failed"]
    assert [row[SCORE] for row in trials] == ["70.0", "95.0", ""]
    assert [row["model.n_iter"] for row in trials] == ["", "2", "2"]
    assert trials[1]["reason"] == "rung of epoch 1, too weak"
    curves = list(csv.DictReader(io.StringIO((tmp_path / "history.csv").read_text())))
    assert [(row["trial"], row["epoch"], row["val/mpjpe_mm"]) for row in curves] == [
        ("t0000", "1.0", "180.0"), ("t0000", "2.0", "140.0"), ("t0001", "1.0", "190.0"),
    ]  # fmt: skip


# --- the space ------------------------------------------------------------------------------------


def test_a_range_of_a_whole_setting_holds_whole_numbers():
    (axis,) = check_space(job_of(space={"model.n_iter": Dimension(low=1, high=4)}))
    assert axis.whole
    assert axis.default == TrainJob().model.n_iter
    suggest = suggester(job_of(searcher="random", seed=3), [axis], SCORE)
    values = [suggest(number, [])["model.n_iter"] for number in range(200)]
    assert all(type(value) is int for value in values)
    # Each of the four about 50 times: five standard deviations are 31.
    assert all(19 <= values.count(n) <= 81 for n in (1, 2, 3, 4))
    assert set(values) == {1, 2, 3, 4}


def test_a_logarithmic_range_is_sampled_evenly_in_its_logarithm():
    job = job_of(searcher="random")
    suggest = suggester(job, check_space(job), SCORE)
    values = [suggest(number, [])[POSE] for number in range(400)]
    assert all(0.1 <= value <= 10.0 for value in values)
    below = sum(value < 1.0 for value in values)
    assert abs(below - 200) < 50, "five standard deviations"
    assert all(value == float(f"{value:.4g}") for value in values), "four digits"


@pytest.mark.parametrize(
    ("path", "dimension", "words"),
    [
        ("model.n_itre", {"choice": [1]}, r"model\.n_itre: unknown key -- did you mean"),
        ("model.n_iter", {"choice": [1, 99]}, r"model\.n_iter.*got 99"),
        ("train.optimizer.lr", {"low": -1.0, "high": 1.0}, r"train\.optimizer\.lr"),
        ("name", {"choice": ["other"]}, r"space\.name: changes no model"),
        ("scaling.num_workers", {"choice": [1, 2]}, "changes no model"),
        ("train.epochs", {"choice": [1, 2]}, r"set trial\.train\.epochs for all"),
        ("data.path", {"choice": ["a", "b"]}, "other data cannot be compared"),
    ],
)
def test_a_searched_setting_must_exist_fit_and_be_comparable(path, dimension, words):
    with pytest.raises(ConfigError, match=words):
        check_space(job_of(space={path: dimension}))


def test_trials_that_do_not_validate_cannot_be_compared():
    with pytest.raises(ConfigError, match="set it to workers"):
        check_space(job_of(trial={"validate_in": "task"}))


def test_settings_that_do_not_fit_together_are_found_before_the_start():
    """Cached features are fine, pictures of people are fine, both are not."""
    off = dict.fromkeys(TrainJob().train.augment.model_dump(), 0.0) | {"occlusion_size": 0.1}
    space = {
        "data.cache": {"choice": ["none", "features"]},
        "train.pictures_every": {"choice": [1, 2]},
    }
    job = job_of(
        searcher="grid", trials=None, space=space,
        trial={"data": {"cache": "none"}, "train": {"freeze_encoder": True, "augment": off}},
    )  # fmt: skip
    axes = check_space(job)
    with pytest.raises(ConfigError, match=r"data\.cache=features with train\.pictures_every"):
        checked_suggester(job, axes, trials_of(job, axes))


# --- grid, random, TPE ----------------------------------------------------------------------------


def test_a_grid_is_every_combination_once_and_its_order_comes_from_the_seed():
    space = {"model.n_iter": {"choice": [1, 2, 3]}, "train.seed": {"choice": [0, 1]}}
    job = job_of(searcher="grid", trials=None, space=space, compare_default=True)
    axes = check_space(job)
    assert trials_of(job, axes) == 7
    suggest = checked_suggester(job, axes, 7)
    points = [suggest(number, []) for number in range(7)]
    assert points[0] == {}
    assert {(p["model.n_iter"], p["train.seed"]) for p in points[1:]} == set(
        itertools.product([1, 2, 3], [0, 1])
    )
    assert points == [suggest(number, [record(0)]) for number in range(7)]
    other = suggester(job.model_copy(update={"seed": 1}), axes, SCORE)
    assert [other(number, []) for number in range(7)] != points
    with pytest.raises(ConfigError, match=r"trials=8: the grid has 6 points.*at most 7"):
        trials_of(job.model_copy(update={"trials": 8}), axes)


def test_a_grid_needs_choices_and_only_a_grid_ends_by_itself():
    with pytest.raises(ValidationError, match=r"train\.losses\.pose has a range"):
        job_of(searcher="grid")
    with pytest.raises(ValidationError, match="searcher=random has no end"):
        job_of(searcher="random", trials=None)


def test_random_settings_depend_on_seed_and_number_alone():
    job = job_of(searcher="random")
    axes = check_space(job)
    suggest = suggester(job, axes, SCORE)
    backwards = suggester(job, axes[::-1], SCORE)
    drawn = [suggest(number, []) for number in range(20)]
    assert drawn == [backwards(number, [record(0)]) for number in range(20)]
    assert len({point[POSE] for point in drawn}) == 20
    assert suggester(job.model_copy(update={"seed": 1}), axes, SCORE)(0, []) != drawn[0]


def some_records(count, status="finished"):
    """Low weights of the pose are good."""
    axes = check_space(job_of())
    suggest = suggester(job_of(searcher="random", seed=5), axes, SCORE)
    records = []
    for number in range(count):
        settings = suggest(number, [])
        score = 70.0 + 10 * abs(math.log10(settings[POSE]) + 1)
        records.append(record(number, status, settings, scores=(score + 5, score)))
    return records


def test_tpe_suggests_the_same_after_a_new_start_whatever_the_order_of_the_records():
    axes, records = check_space(job_of()), some_records(12)
    first = tpe(axes, 12, 0, records, SCORE)
    assert first == tpe(axes, 12, 0, records[::-1], SCORE)
    assert first != tpe(axes, 13, 0, records, SCORE)
    assert first != tpe(axes, 12, 1, records, SCORE)


def test_tpe_learns_from_finished_trials():
    axes, records = check_space(job_of()), some_records(30)
    near = [tpe(axes, number, 0, records, SCORE)[POSE] for number in range(30, 50)]
    # At random half of them would be below 1.
    assert sum(value < 1.0 for value in near) >= 16


def test_an_early_score_of_a_stopped_trial_never_counts_as_final():
    """Optuna ranks pruned trials behind all that ended, however good they looked."""
    axes, finished = check_space(job_of()), some_records(20)
    good_early = [
        record(20 + i, "stopped", {"model.n_iter": 4, POSE: 9.0 + i / 10}, scores=(1.0,))
        for i in range(6)
    ]
    near = [tpe(axes, n, 0, [*finished, *good_early], SCORE)[POSE] for n in range(26, 36)]
    assert max(near) < 0.5, "where the finished ones are best"
    lying = [
        record(20 + i, "finished", {"model.n_iter": 4, POSE: 9.0 + i / 10}, scores=(1.0,))
        for i in range(6)
    ]
    misled = [tpe(axes, n, 0, [*finished, *lying], SCORE)[POSE] for n in range(26, 36)]
    assert min(misled) > 1.0, "as a final score it would count"


def test_tpe_takes_failed_unfinished_and_default_trials():
    axes = check_space(job_of())
    records = [
        record(0, settings={}), record(1, "failed", scores=()), record(2, "running", scores=()),
        record(3, scores=(math.nan,)), *some_records(9)[4:],
    ]  # fmt: skip
    assert set(tpe(axes, 9, 0, records, SCORE)) == set(SPACE)


def test_before_tpe_has_a_say_settings_are_random():
    assert STARTUP_TRIALS == 5
    axes, few = check_space(job_of()), some_records(4)
    assert tpe(axes, 4, 0, few, SCORE) == tpe(axes, 4, 0, [], SCORE)


# --- the search -----------------------------------------------------------------------------------


class Killed(BaseException):
    """The end of a driver."""


class Driver:
    """Runs trials as Tune does, `side_by_side` at a time. kept: epochs whose checkpoints survive.

    die_after: events after which it is killed, in the middle of what it does.
    """

    def __init__(self, folder, *, trials=12, epochs=8, searcher="random", factor=2, grace=1,
                 halving=True, compare_default=False, side_by_side=1, kept=None):  # fmt: skip
        job = job_of(searcher=searcher, trials=trials, compare_default=compare_default)
        self.plan = SearchPlan(
            trials=trials, epochs=epochs, score=SCORE, factor=factor,
            rungs=rungs(grace, factor, epochs) if halving else (), keep_first=compare_default,
        )  # fmt: skip
        self.suggest = suggester(job, check_space(job), SCORE)
        self.folder, self.side_by_side = Folder(str(folder)), side_by_side
        self.kept: dict[str, list[dict[str, float]]] = {} if kept is None else kept
        self.trained: list[tuple[str, int]] = []
        self.events = 0

    def search(self) -> Search:
        return Search(
            self.plan, Ledger(self.folder), self.suggest,
            lambda trial: self.kept.get(trial, []), clock=itertools.count().__next__,
        )  # fmt: skip

    def run(self, die_after=math.inf) -> list[TrialRecord]:
        search, running = self.search(), []

        def event():
            self.events += 1
            if self.events > die_after:
                raise Killed

        while True:
            while len(running) < self.side_by_side and (begun := search.begin()) is not None:
                running.append(begun)
                event()
            if not running:
                return search.records
            trial = running.pop(0)
            done = self.kept.setdefault(trial.trial, [])
            epoch = len(done) + 1
            self.trained.append((trial.trial, epoch))
            done.append({"epoch": float(epoch), SCORE: self.score(trial, epoch), "loss": 1.0})
            event()  # the epoch is in a checkpoint, and nobody knows of it
            goes_on = search.report(trial.trial, done[-1])
            event()
            if goes_on and epoch < self.plan.epochs:
                running.append(trial)
            else:
                search.end(trial.trial)
                event()

    @staticmethod
    def score(record: TrialRecord, epoch: int) -> float:
        """Falls with the epochs, to an end that depends on the settings."""
        weight = record.settings.get(POSE, 1.0)
        return 60 + 20 * abs(math.log10(weight)) + 40 / epoch


def facts(records: Sequence[TrialRecord]):
    return [
        (r.trial, r.status, r.settings, [(h["epoch"], h[SCORE]) for h in r.history])
        for r in records
    ]


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_a_driver_killed_at_any_event_changes_nothing(tmp_path, searcher):
    """The same trials end in the same way, and no epoch is trained twice."""
    whole = Driver(tmp_path / "whole", searcher=searcher, trials=7, epochs=4)
    expected = facts(whole.run())
    assert {status for _, status, *_ in expected} == {"finished", "stopped"}
    step = 1 if searcher == "random" else 7
    for moment in range(0, whole.events + 1, step):
        kept: dict[str, list[dict[str, float]]] = {}
        first = Driver(tmp_path / f"cut-{moment}", searcher=searcher, trials=7, epochs=4, kept=kept)
        with suppress(Killed):
            first.run(die_after=moment)
        again = Driver(tmp_path / f"cut-{moment}", searcher=searcher, trials=7, epochs=4, kept=kept)
        assert facts(again.run()) == expected, f"killed after {moment} events"
        trained = first.trained + again.trained
        assert len(trained) == len(set(trained)), f"an epoch twice, {moment}"


def test_a_driver_killed_again_and_again_side_by_side_loses_no_trial(tmp_path):
    """With trials side by side the order differs, but each ends once."""
    kept: dict[str, list[dict[str, float]]] = {}
    trained: list[tuple[str, int]] = []
    for moment in (3, 11, 2, 17, 6, 23, 9, math.inf):
        driver = Driver(tmp_path, side_by_side=3, kept=kept, halving=False, trials=6, epochs=5)
        ended = {r.trial for r in Ledger(driver.folder).records() if r.status != "running"}
        with suppress(Killed):
            driver.run(die_after=moment)
        assert ended.isdisjoint(trial for trial, _ in driver.trained), "no ended trial runs again"
        trained += driver.trained
    records = Ledger(driver.folder).records()
    assert [r.status for r in records] == ["finished"] * 6
    assert len(trained) == len(set(trained)) == 30
    assert [[h["epoch"] for h in r.history] for r in records] == [[1.0, 2.0, 3.0, 4.0, 5.0]] * 6


def test_a_study_is_extended_by_more_trials_and_cannot_shrink(tmp_path):
    first = Driver(tmp_path, trials=5)
    before = first.run()
    assert first.search().begin() is None
    longer = Driver(tmp_path, trials=9, kept=first.kept)
    after = longer.run()
    assert after[:5] == before
    assert {trial for trial, _ in longer.trained} == {trial_id(n) for n in range(5, 9)}
    assert facts(after) == facts(Driver(tmp_path / "at-once", trials=9).run())
    with pytest.raises(ConfigError, match="trials=8: 9 were begun already"):
        Driver(tmp_path, trials=8).search()


def test_stopped_trials_are_marked_stay_stopped_and_are_never_the_best(tmp_path):
    driver = Driver(tmp_path, trials=16)
    records = driver.run()
    stopped = [r for r in records if r.status == "stopped"]
    finished = [r for r in records if r.status == "finished"]
    assert len(stopped) >= 8
    assert all(r.epochs in (1, 2, 4) for r in stopped)
    for r in stopped:
        assert r.reason.startswith(f"rung of epoch {r.epochs}: {SCORE} {r.history[-1][SCORE]:.2f}")
    assert sum(r.epochs for r in records) <= 16 * 8 / 2, "half of the grid's epochs"
    # An early score below all final ones is no reason to be the best.
    Ledger(driver.folder).put(record(stopped[0].number, "stopped", scores=(1.0,)))
    search = driver.search()
    assert search.begin() is None
    assert search.best == min(finished, key=lambda r: r.history[-1][SCORE])


def test_the_default_settings_are_never_stopped(tmp_path):
    for protected in (True, False):
        driver = Driver(tmp_path / str(protected), trials=3, compare_default=protected)
        search = driver.search()
        trials = [search.begin() for _ in range(3)]
        assert (trials[0].settings == {}) is protected
        assert search.report("t0001", {"epoch": 1.0, SCORE: 80.0})
        assert not search.report("t0002", {"epoch": 1.0, SCORE: 81.0})
        assert search.report("t0000", {"epoch": 1.0, SCORE: 999.0}) is protected
    said = [Ledger(Folder(str(tmp_path / name))).records()[0] for name in ("True", "False")]
    assert [r.status for r in said] == ["running", "stopped"]


def test_all_errors_of_the_validation_are_kept_and_nothing_else(tmp_path):
    search = Driver(tmp_path).search()
    trial = search.begin().trial
    metrics = {
        "epoch": 1.0, SCORE: 80.0, "val/pve_mm": 99.0, "train/loss": 3.0, "step": 10.0,
        "trial_id": "x",
    }  # fmt: skip
    assert search.report(trial, metrics)
    (row,) = search.records[0].history
    assert row == {"epoch": 1.0, SCORE: 80.0, "val/pve_mm": 99.0, "seconds": row["seconds"]}
    assert search.report(trial, metrics | {SCORE: 1.0}), "the same epoch again says nothing new"
    assert search.records[0].history == (row,)


def test_ends_of_a_trial(tmp_path):
    search = Driver(tmp_path, halving=False, epochs=2).search()
    trials = [search.begin().trial for _ in range(4)]
    search.end(trials[0], "RuntimeError: no space left")
    search.fail(trials[1], "the training has diverged")
    search.end(trials[1])
    search.report(trials[2], {"epoch": 1.0, SCORE: 80.0})
    search.end(trials[2])
    search.report(trials[3], {"epoch": 2.0, SCORE: 80.0})
    search.end(trials[3], "the driver's actor died after the last epoch")
    assert [(r.status, r.reason) for r in search.records] == [
        ("failed", "RuntimeError: no space left"),
        ("failed", "the training has diverged"),
        ("failed", "it ended after epoch 1 of 2"),
        ("finished", ""),
    ]
    assert search.records == Ledger(Folder(str(tmp_path))).records()
    assert not search.report(trials[0], {"epoch": 1.0, SCORE: 1.0}), "it had ended"
    assert search.records[0].history == ()


def test_a_closed_search_leaves_its_trials_to_the_next_start(tmp_path):
    driver = Driver(tmp_path, trials=3, epochs=2)
    search = driver.search()
    trial = search.begin()
    search.report(trial.trial, {"epoch": 1.0, SCORE: 80.0})
    search.close()
    assert search.begin() is None
    search.end(trial.trial, "its workers were told to end")
    assert [r.status for r in Ledger(driver.folder).records()] == ["running"]
    again = driver.search()
    assert again.left == 3
    assert again.begin().trial == trial.trial
    assert again.begin().number == 1


def test_seconds_add_up_over_starts_and_the_line_says_where_a_study_stands(tmp_path):
    driver = Driver(tmp_path, trials=4, epochs=4, halving=False)
    search = driver.search()
    first = search.begin().trial  # each look at the clock is a second
    search.report(first, {"epoch": 1.0, SCORE: 80.0})
    before = search.records[0].seconds
    assert before > 0
    again = driver.search()
    again.begin()
    again.report(first, {"epoch": 2.0, SCORE: 79.0})
    assert again.records[0].seconds > before
    for epoch in (3.0, 4.0):
        again.report(first, {"epoch": epoch, SCORE: 70.0})
    again.end(first)
    again.begin()
    line = again.progress()
    assert "1 running, 1 finished, 0 stopped, 0 failed of 4 trials" in line
    assert "best t0000 70.0mm" in line
    assert "4 of 16 trial-epochs (25% of the grid)" in line
    assert line.endswith("s left")
    assert json.loads((tmp_path / "trials/t0000/trial.json").read_text())["status"] == "finished"
