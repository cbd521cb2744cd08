"""What is compared is the same trial; quotients are of their own parts."""

from __future__ import annotations

import pytest

from rayhmr.benchmark_tune import CANDIDATES, EPOCHS, Sizes, figures, trial_job

WALL = {
    "none": 12.0,
    "decoded": 6.0,
    "features": 1.5,
    "none_trained": 30.0,
    "decoded_trained": 20.0,
}


def test_candidates_are_the_same_trial_but_for_the_cache(tmp_path):
    jobs = {c.name: trial_job(c, Sizes(), tmp_path) for c in CANDIDATES}
    assert jobs.keys() == WALL.keys()
    for group in (("none", "decoded", "features"), ("none_trained", "decoded_trained")):
        settings = [jobs[name].model_dump() for name in group]
        assert [tree["data"].pop("cache") for tree in settings] == [
            name.partition("_")[0] for name in group
        ]
        assert all(tree == settings[0] for tree in settings)
    assert jobs["features"].train.freeze_encoder
    assert not jobs["none_trained"].train.freeze_encoder


def test_a_quotient_above_one_is_a_gain_over_the_same_encoder_without_a_cache():
    cpu = {name: value / 2 for name, value in WALL.items()} | {"features": 0.5}
    first = {name: value + 4 for name, value in WALL.items()}
    found = figures(WALL, cpu, dict.fromkeys(WALL, 7.0), {"decoded": 8.0, "features": 9.0}, first)
    assert found["decoded_over_none"] == 2
    assert found["features_over_none"] == 8
    assert found["features_over_none_cpu"] == 12
    assert found["decoded_trained_over_none_trained"] == 1.5
    assert found["features_s_per_trial_epoch"] == 1.5
    assert found["features_made_in_s"] == pytest.approx(EPOCHS * 4)
    assert (found["decoded_cache_mb"], found["decoded_peak_mb"]) == (8, 7)
