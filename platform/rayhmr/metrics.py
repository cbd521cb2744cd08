"""What sets the jobs' series for Prometheus, which `rayhmr.metric_series` declares.

Jobs hand numbers to Ray, whose agent on each node shows them at its metrics port, with `ray_`
before the name. Training and search are told by their driver, from the facts that it shows to
people anyway; only rows are counted where they are used. The service shows its own at `/metrics`
(`rayhmr.serve.metrics`). Nothing that goes wrong here reaches a run.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import ray
from ray.util import metrics as ray_metrics

from rayhmr.log import say
from rayhmr.metric_series import JOBS
from rayhmr.storage import split

if TYPE_CHECKING:
    from hmr.structures import Batch
    from hmr.train_context import TrainData
    from rayhmr.search import Search

TRIAL_LABEL = "trial "
"""Stands before the id of a trial in a fact's label."""
REFRESH_S = 5.0
"""Ray forgets a gauge that is not set again within two of its exports, 20 s; it exports every 10 s
what was set since the export before."""


class Metrics:
    """Sets the series of `JOBS` from a process that is connected to Ray; without one, nothing.

    labels: those that are the same for all numbers. A label that a series has and nobody gives is
    empty. What cannot be set is lost, and said once. Gauges keep their values for as long as the
    object is there.
    """

    def __init__(self, **labels: str) -> None:
        self._labels, self._failed = labels, False
        self._made: dict[str, Any] = {}
        self._gauges: dict[tuple[str, tuple[str, ...]], float] = {}
        self._thread: threading.Thread | None = None

    def set(self, name: str, value: float, **labels: str) -> None:
        """A gauge's new value."""
        self._record(name, "set", value, labels)
        if self._thread is None:
            self._thread = threading.Thread(
                target=_keep_fresh, args=(weakref.ref(self),), name="metrics", daemon=True
            )
            self._thread.start()

    def refresh(self) -> None:
        """Set all gauges again."""
        for (name, values), value in list(self._gauges.items()):
            self._record(name, "set", value, dict(zip(JOBS[name].labels, values, strict=True)))

    def add(self, name: str, value: float, **labels: str) -> None:
        """A counter's growth; nothing below or at zero."""
        if value > 0:
            self._record(name, "inc", value, labels)

    def _record(self, name: str, how: str, value: float, labels: Mapping[str, str]) -> None:
        if self._failed or not ray.is_initialized():
            return
        try:
            series, given = JOBS[name], self._labels | dict(labels)
            if name not in self._made:
                kind = {"counter": ray_metrics.Counter, "gauge": ray_metrics.Gauge}[series.kind]
                self._made[name] = kind(name, series.help, series.labels)
            tags = {label: given.get(label, "") for label in series.labels}
            getattr(self._made[name], how)(float(value), tags)
            if how == "set":
                self._gauges[name, tuple(tags.values())] = float(value)
        except Exception as error:  # numbers to look at are worth less than a run
            self._failed = True
            say(f"{name}: metrics are lost from here on ({error!r}); the job goes on")


def _keep_fresh(metrics: weakref.ref[Metrics]) -> None:
    """A thread's work until nobody needs the gauges."""
    while True:
        time.sleep(REFRESH_S)
        alive = metrics()
        if alive is None:
            return
        alive.refresh()
        del alive


class DataMetrics:
    """What `jobs/prepare.py` has made. dataset: the name of its folder."""

    def __init__(self, location: str) -> None:
        self._metrics = Metrics(dataset=split(location)[1])

    def keep(self, note: Mapping[str, Any]) -> None:
        """A file was written. note: of `rayhmr.data.parts`."""
        rows, reasons = note["file"]["rows"], Counter(row[1] for row in note["rejected"])
        self._metrics.add("rayhmr_data_rows_read_total", rows + reasons.total())
        self._metrics.add("rayhmr_data_rows_written_total", rows, split=note["split"])
        for reason, count in reasons.items():
            self._metrics.add("rayhmr_data_rows_rejected_total", count, reason=reason)


class TrainingMetrics:
    """The numbers in the facts of a run, or of all trials of a study. run: its name."""

    def __init__(self, run: str) -> None:
        self._metrics = Metrics(run=run)
        self._started: set[str] = set()
        self._waited: dict[str, Waited] = {}

    def keep(self, facts: Mapping[str, Any]) -> None:
        """One fact; those without numbers to look at are passed over."""
        trial = trial_of(facts)
        if facts["kind"] == "worker" and facts["rank"] == 0:
            self._metrics.add("rayhmr_train_restarts_total", trial in self._started, trial=trial)
            self._started.add(trial)
            self._waited.pop(trial, None)
        elif facts["kind"] == "step":
            self._step(facts, trial)
        elif facts["kind"] in ("epoch", "validation"):
            self._errors(facts, trial)
        elif facts["kind"] == "checkpoint":
            self._metrics.add("rayhmr_train_checkpoints_total", 1, trial=trial)
            self._metrics.add(
                "rayhmr_train_checkpoint_seconds_total", facts["seconds"], trial=trial
            )
        if facts["kind"] in ("resume", "step", "epoch"):
            waited = self._waited.setdefault(trial, Waited()).more(facts)
            self._metrics.add("rayhmr_train_data_wait_seconds_total", waited, trial=trial)

    def _step(self, facts: Mapping[str, Any], trial: str) -> None:
        for name, key in (
            ("rayhmr_train_step", "step"), ("rayhmr_train_steps_planned", "steps"),
            ("rayhmr_train_epoch", "epoch"), ("rayhmr_train_skipped_steps", "skipped_steps"),
            ("rayhmr_train_images_per_second", "images_per_s"),
        ):  # fmt: skip
            self._metrics.set(name, facts[key], trial=trial)
        for term, value in facts["losses"].items():
            term = "total" if term == "loss" else term
            self._metrics.set("rayhmr_train_loss", value, trial=trial, term=term)

    def _errors(self, facts: Mapping[str, Any], trial: str) -> None:
        for name, value in facts.items():
            error = name.removeprefix("val/").removesuffix("_mm")
            if name == f"val/{error}_mm":
                self._metrics.set("rayhmr_train_validation_mm", value, trial=trial, error=error)


def trial_of(facts: Mapping[str, Any]) -> str:
    """The id of the trial that a fact is of; empty for a run of its own."""
    return str(facts.get("label") or "").removeprefix(TRIAL_LABEL)


class Waited:
    """Seconds that rank 0 of one run has waited for data, from its facts.

    A line tells the share of the time since the line before it, an epoch that of all its steps but
    the first, whose batch is timed apart.
    """

    def __init__(self, first_step: int = 0) -> None:
        self._begin_at(first_step)

    def _begin_at(self, step: int) -> None:
        self._begin = self._line = step
        self._seconds = 0.0

    def more(self, facts: Mapping[str, Any]) -> float:
        """Seconds that a fact of kind resume, step or epoch adds."""
        step = int(facts["step"])
        if facts["kind"] == "resume":
            self._begin_at(step)
            return 0.0
        ends = facts["kind"] == "epoch"
        first, each, share = (
            facts[f"train/{name}" if ends else name]
            for name in ("first_batch_s", "step_s", "data_wait")
        )
        if ends:
            more = first + (step - self._begin - 1) * each * share - self._seconds
            self._begin_at(step)
            return max(more, 0.0)
        more = (step - max(self._line, self._begin + 1)) * each * share
        more += first if self._line == self._begin else 0.0
        self._line, self._seconds = step, self._seconds + more
        return float(more)


class SearchMetrics:
    """Where a study stands. run: its name."""

    def __init__(self, run: str) -> None:
        self._metrics = Metrics(run=run)

    def keep(self, search: Search) -> None:
        """Something has changed."""
        counts = Counter(record.status for record in search.records)
        for status in ("running", "finished", "stopped", "failed"):
            self._metrics.set("rayhmr_search_trials", counts[status], status=status)
        self._metrics.set("rayhmr_search_trial_epochs", search.spent)
        if (best := search.best) is not None:
            score = search.plan.score
            self._metrics.set("rayhmr_search_best_score", best.history[-1][score], score=score)


class Counted:
    """The data of a training worker, whose people are counted as they are used."""

    def __init__(self, data: TrainData, **labels: str) -> None:
        self._data, self._metrics = data, Metrics(**labels)
        self.steps_per_epoch, self.val_batches = data.steps_per_epoch, data.val_batches

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The same batches."""
        for batch in self._data.train_batches(epoch, first_step):
            self._metrics.add("rayhmr_data_rows_streamed_total", len(batch.images))
            yield batch
