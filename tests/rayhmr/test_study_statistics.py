"""Intervals and effects against scipy and against trials whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hmr.errors import DataError
from rayhmr.config import TuneJob
from rayhmr.study import TrialRecord, trial_id
from rayhmr.study_effects import LEAST_TRIALS, main_effects, ranking
from rayhmr.study_statistics import (
    best_interval,
    best_record,
    compare,
    default_record,
    mean_interval,
    people_interval,
    resolved,
    scores_by_seed,
    t_quantile,
)

METRIC = "val/pa_mpjpe_mm"
SPACE = {
    "model.n_iter": {"choice": [1, 2, 3, 4, 5, 6]},
    "train.losses.pose": {"low": 0.2, "high": 10.0, "log": True},
    "model.encoder": {"choice": ["small", "resnet18"]},
}


def study(space=SPACE, **trial):
    return TuneJob.model_validate({"trials": 24, "space": space, "trial": trial})


def record(number, chosen, errors, status="finished"):
    history = tuple({"epoch": e + 1, METRIC: v} for e, v in enumerate(errors))
    return TrialRecord(number=number, trial=trial_id(number), settings=chosen, status=status,
                       history=history)  # fmt: skip


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29, 100, 1001])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_quantiles_are_those_of_students_distribution(freedom, level):
    assert t_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom))


@given(st.lists(st.floats(20, 200), min_size=2, max_size=12))
@settings(deadline=None)
def test_the_interval_over_seeds_is_scipys(values):
    found = mean_interval(values)
    if (spread := stats.sem(values)) > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), spread)
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.low <= found.value <= found.high
    assert found.count == len(values)


def test_one_value_has_no_interval():
    with pytest.raises(DataError, match="at least 2"):
        mean_interval([60.0])


def test_the_interval_over_people_is_close_to_scipys_bootstrap():
    errors = np.random.default_rng(1).gamma(4, 15, 300)
    found = people_interval(errors.tolist())
    other = stats.bootstrap((errors,), np.mean, method="percentile", n_resamples=4000, rng=0)
    width = found.high - found.low
    assert found.low == pytest.approx(other.confidence_interval.low, abs=0.15 * width)
    assert found.high == pytest.approx(other.confidence_interval.high, abs=0.15 * width)
    assert found.value == pytest.approx(errors.mean())


def test_an_early_value_never_makes_a_trial_the_best():
    records = [
        record(0, {}, [90, 80]),
        record(1, {"model.n_iter": 2}, [10], "stopped"),
        record(2, {"model.n_iter": 3}, [20, 20], "running"),
        record(3, {"model.n_iter": 4}, [5], "failed"),
        record(4, {"model.n_iter": 5}, [95, 79]),
        record(5, {"model.n_iter": 1}, [1, float("nan")]),
    ]
    assert best_record(records, METRIC).number == 4
    assert default_record(records, study()).number == 0
    assert best_record(records[1:4], METRIC) is None
    assert default_record([records[1], records[3]], study()) is None
    defaults = {path: resolved(records[0], study())[path] for path in SPACE}
    assert default_record([records[1], record(7, defaults, [80])], study()).number == 7


def seeds(n_iter, scores, first=1):
    return [record(first + i, {"model.n_iter": n_iter, "train.seed": i}, [s])
            for i, s in enumerate(scores)]  # fmt: skip


SEEDED = {"model.n_iter": {"choice": [2, 3]}, "train.seed": {"choice": [0, 1, 2]}}


def test_trials_are_paired_by_seed_and_the_default_is_counted_once():
    job = study(SEEDED, model={"n_iter": 3}, train={"seed": 0})
    ours, theirs = [60.0, 61.0, 59.5], [64.0, 65.5, 63.0]
    records = [record(0, {}, [64.0]), *seeds(2, ours), *seeds(3, theirs, first=4)]
    best, default = best_record(records, METRIC), default_record(records, job)
    assert scores_by_seed(records, job, default) == {0: 64.0, 1: 65.5, 2: 63.0}
    found = compare(records, job, best, default, {})
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.method == "seeds"
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high))
    assert found.verdict == "better"
    assert best_interval(records, job, best, {})[1] == mean_interval(ours)


def test_people_are_compared_person_by_person():
    # The people differ by far more than the two models do: only pairs can show it.
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 15, 200)
    default = base + rng.normal(0, 1, 200)
    records = [record(0, {}, [70]), record(1, {"model.n_iter": 2}, [69])]
    for shift, verdict in ((-1.0, "better"), (0.0, "open"), (1.0, "worse")):
        people = {"t0000": default, "t0001": base + shift + rng.normal(0, 1, 200)}
        people = {trial: values.tolist() for trial, values in people.items()}
        found = compare(records, study(), records[1], records[0], people)
        assert (found.method, found.verdict) == ("people", verdict)
        difference = np.subtract(people["t0001"], people["t0000"])
        assert found.difference == people_interval(difference.tolist())
        assert found.best.count == 200
    method, interval = best_interval(records, study(), records[1], people)
    assert (method, interval) == ("people", people_interval(people["t0001"]))


def test_without_seeds_or_people_there_is_no_interval():
    records = [record(0, {}, [70]), record(1, {"model.n_iter": 2}, [60])]
    assert compare(records, study(), records[1], records[0], {}) is None
    assert best_interval(records, study(), records[1], {}) is None
    with pytest.raises(DataError, match="same people"):
        compare(records, study(), records[1], records[0], {"t0000": [1, 2], "t0001": [1, 2, 3]})


def drawn(count, error, seed):
    rng = np.random.default_rng(seed)
    records = []
    for number in range(count):
        chosen = {"model.n_iter": int(rng.integers(1, 7)),
                  "train.losses.pose": float(np.exp(rng.uniform(np.log(0.2), np.log(10)))),
                  "model.encoder": str(rng.choice(["small", "resnet18"]))}  # fmt: skip
        records.append(record(number + 1, chosen, [error(chosen) + rng.normal()]))
    return records


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("model.n_iter", lambda s: 5 * abs(s["model.n_iter"] - 3)),
        ("train.losses.pose", lambda s: 4 * np.log(s["train.losses.pose"]) ** 2),
        ("model.encoder", lambda s: 6 * (s["model.encoder"] == "small")),
    ],
)
def test_the_setting_that_decides_is_found_and_the_others_are_called_chance(path, error):
    effects = main_effects(drawn(24, error, seed=5), study())
    assert effects[0].path == path
    assert effects[0].share > 0.6
    assert [e.path for e in effects if e.clear] == [path]


def test_settings_without_effect_rarely_pass_for_one():
    passed = sum(
        any(e.clear for e in main_effects(drawn(16, lambda _: 0.0, seed), study()))
        for seed in range(40)
    )
    assert passed <= 6, "5 % of 40, and room for luck"


def test_few_trials_have_no_effects():
    few = drawn(LEAST_TRIALS - 1, lambda s: s["model.n_iter"], seed=0)
    assert main_effects(few, study()) == []
    # Neither the default trial nor those that are running or failed are evidence.
    more = [*few, record(90, {}, [1.0]), record(91, few[0].settings, [1.0], "running"),
            record(92, few[0].settings, [1.0], "failed")]  # fmt: skip
    assert main_effects(more, study()) == []


def test_a_setting_that_took_one_value_explains_nothing():
    records = [record(i, {"model.n_iter": 3}, [50.0 + i]) for i in range(1, 12)]
    (effect,) = main_effects(records, study({"model.n_iter": {"choice": [3, 4]}}))
    assert (effect.share, effect.clear) == (0.0, False)


def test_who_was_kept_longer_ranks_before_who_was_stopped():
    records = [
        record(1, {"a": 1}, [50], "stopped"),
        record(2, {"a": 1}, [90, 80, 70]),
        record(3, {"a": 1}, [95, 60], "stopped"),
        record(4, {"a": 1}, [95, 60, 71]),
        record(5, {"a": 1}, [45], "stopped"),
    ]
    assert [r.number for r in ranking(records, METRIC)] == [2, 4, 3, 5, 1]
