"""A search as Ray Tune sees it: a searcher that hands out its trials and a scheduler that passes
results on. Both only translate; what happens is decided by `rayhmr.search`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rayhmr.search import Search

TRIAL, SETTINGS = "trial", "settings"
"""Keys of the configuration that Tune gives to a trial."""
GIVEN_UP = "given_up"
"""A trial reports under this name why it cannot go on; Tune would start one that raised again."""


def trial_name(trial: Trial) -> str:
    """Our id, which Tune's own tables and folders then show as well."""
    return str(trial.config[TRIAL])


class StudySearcher(Searcher):
    """Trials of the search, until all are begun. Tune's own ids are random, so ours travels in the
    configuration."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """See Searcher."""
        record = self._search.begin()
        if record is None:
            return Searcher.FINISHED
        return {TRIAL: record.trial, SETTINGS: dict(record.settings)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The scheduler tells the search."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save."""


class StudyScheduler(FIFOScheduler):
    """Tells the search what a trial measured and how it ended."""

    def __init__(self, search: Search) -> None:
        super().__init__()
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """See TrialScheduler."""
        name = trial_name(trial)
        if GIVEN_UP in result:
            self._search.fail(name, str(result[GIVEN_UP]))
            return TrialScheduler.STOP
        # Tune also tells of an end without a result, and of a last result twice.
        if "epoch" not in result or self._search.report(name, result):
            return TrialScheduler.CONTINUE
        return TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """See TrialScheduler; also of a trial that was stopped."""
        self._search.end(trial_name(trial))

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler."""
        self._search.end(trial_name(trial))

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """See TrialScheduler; Tune also tells of failures after which it starts it again."""
        if not trial.should_recover():
            self._search.end(trial_name(trial), _last_line(trial))


def _last_line(trial: Trial) -> str:
    """The end of the trial's traceback, which names the cause."""
    text = ""
    with suppress(OSError):
        text = Path(trial.error_file or "").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "it failed without a message"
