"""A trial that Tune starts again after a failure of its driver has not failed."""

from __future__ import annotations

from types import SimpleNamespace

from rayhmr.tune_bridge import TRIAL, StudyScheduler


def test_only_the_failure_that_ends_a_trial_is_one(tmp_path):
    ends = []
    scheduler = StudyScheduler(SimpleNamespace(end=lambda *said: ends.append(said)))
    error = tmp_path / "error.txt"
    error.write_text("Traceback\n  somewhere\nOSError: no space left\n\n")
    failures = 0

    def fail():
        trial = SimpleNamespace(
            config={TRIAL: "t0003"}, error_file=str(error), should_recover=lambda: failures <= 1
        )
        scheduler.on_trial_error(None, trial)

    failures = 1
    fail()
    assert ends == []
    failures = 2
    fail()
    assert ends == [("t0003", "OSError: no space left")]
