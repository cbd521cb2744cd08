"""The state of a search, without Ray: which trial comes next, when one is stopped, what is kept.

Every change is in the ledger before it has effects, so a study goes on from there after any end of
its driver: unfinished trials first, under their old ids and from their own checkpoints, and no
ended one again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hmr.errors import ConfigError
from rayhmr.halving import Verdict, verdicts
from rayhmr.study import Ledger, TrialRecord, trial_id
from rayhmr.suggestions import Suggest
from rayhmr.telemetry import say


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """What a search is to do.

    trials: in all. epochs: of each. score: the metric to lower. rungs: epochs after which weak
    trials are stopped, none for no stopping; factor: one in so many goes on. keep_first: the first
    trial is never stopped.
    """

    trials: int
    epochs: int
    score: str
    rungs: Sequence[int]
    factor: int
    keep_first: bool


class Search:
    """A search in its ledger. suggest: settings of a new trial. recover: what the checkpoints of a
    trial know of its epochs, also of those that nobody heard of. changed: called after each change.

    ConfigError when more trials were begun than there are to be.
    """

    def __init__(
        self, plan: SearchPlan, ledger: Ledger, suggest: Suggest,
        recover: Callable[[str], Sequence[Mapping[str, float]]],
        *, clock: Callable[[], float] = time.monotonic,
        changed: Callable[[Search], None] = lambda search: None,
    ) -> None:  # fmt: skip
        self.plan, self.closed, self._changed = plan, False, changed
        self._ledger, self._suggest, self._recover, self._clock = ledger, suggest, recover, clock
        self._records = {record.trial: record for record in ledger.records()}
        self._waiting = [r for r in self.records if r.status == "running"]
        self._started: dict[str, tuple[float, float]] = {}
        if len(self._records) > plan.trials:
            raise ConfigError(
                f"trials={plan.trials}: {len(self._records)} were begun already; give at least "
                "that number, or another name for another study"
            )
        self._ended_before, self._began = self.spent, clock()

    @property
    def records(self) -> list[TrialRecord]:
        """All records by number."""
        return sorted(self._records.values(), key=lambda record: record.number)

    @property
    def left(self) -> int:
        """Trials that are not ended, begun or not."""
        ended = sum(record.status != "running" for record in self.records)
        return self.plan.trials - ended

    @property
    def spent(self) -> int:
        """Epochs trained in all trials."""
        return sum(record.epochs for record in self.records)

    @property
    def best(self) -> TrialRecord | None:
        """The finished trial with the lowest score; an early score of a stopped one says little."""
        finished = [r for r in self.records if r.status == "finished"]
        scores = {r.number: r.history[-1].get(self.plan.score, math.nan) for r in finished}
        known = [r for r in finished if math.isfinite(scores[r.number])]
        return min(known, key=lambda r: (scores[r.number], r.number), default=None)

    def close(self) -> None:
        """Begin no more trials; those that end from now on are to go on later."""
        self.closed = True

    def begin(self) -> TrialRecord | None:
        """The next trial to run; none when all are begun, or the search is closed."""
        while not self.closed:
            if self._waiting:
                record = self._begin_again(self._waiting.pop(0))
                if record.status != "running":
                    continue  # it had ended, and only its record had not
                how = f"goes on after epoch {record.epochs}"
            elif (number := len(self._records)) < self.plan.trials:
                settings = self._suggest(number, self.records)
                record = TrialRecord(
                    number=number, trial=trial_id(number), settings=settings, status="running"
                )
                self._put(record)
                self._started[record.trial] = (self._clock(), 0.0)
                how = "starts"
            else:
                return None
            said = ", ".join(f"{path}={value}" for path, value in record.settings.items())
            say(f"trial {record.trial} {how}: {said or 'the default settings'}")
            return record
        return None

    def report(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        """Keep what a trial has measured; whether it goes on."""
        record = self._records[trial]
        # An epoch may be told of again after a new start; it was judged the first time.
        if record.status == "running" and metrics["epoch"] > record.epochs:
            record = self._after_epoch(record, metrics, self._seconds(record))
            self._put(record)
        return record.status in ("running", "finished")

    def end(self, trial: str, error: str | None = None) -> None:
        """A trial runs no longer. error: why it failed."""
        record = self._records[trial]
        if record.status == "running":
            record = self._with_recovered(record)
        if record.status == "running":
            record = replace(record, seconds=self._seconds(record))
            if error is None and not self.closed:
                error = f"it ended after epoch {record.epochs} of {self.plan.epochs}"
            if error is not None and not self.closed:
                record = replace(record, status="failed", reason=error)
        if record != self._records[trial]:
            self._put(record)
        if record.status != "running":
            self._say_end(record)

    def fail(self, trial: str, reason: str) -> None:
        """A trial cannot go on, and would not if it were started again."""
        record = self._records[trial]
        if record.status == "running":
            seconds = self._seconds(record)
            self._put(replace(record, status="failed", reason=reason, seconds=seconds))

    def progress(self) -> str:
        """A line for people: trials, best score, the share of the full grid's epochs, time left."""
        plan, records = self.plan, self.records
        counts = {
            status: sum(record.status == status for record in records)
            for status in ("running", "finished", "stopped", "failed")
        }
        parts = [", ".join(f"{count} {status}" for status, count in counts.items())
                 + f" of {plan.trials} trials"]  # fmt: skip
        if (best := self.best) is not None:
            parts.append(f"best {best.trial} {best.history[-1][plan.score]:.1f}mm")
        grid = plan.trials * plan.epochs
        parts.append(f"{self.spent} of {grid} trial-epochs ({self.spent / grid:.0%} of the grid)")
        if (left := self._seconds_left()) is not None:
            parts.append(f"about {left / 60:.0f} min left" if left >= 90 else
                         f"about {left:.0f} s left")  # fmt: skip
        return "study: " + "; ".join(parts)

    def _seconds_left(self) -> float | None:
        """From the speed of this start, as if trials to come were as long as those that ended."""
        trained = self.spent - self._ended_before
        ended = [record.epochs for record in self.records if record.status != "running"]
        if not trained or not ended or self.left == 0:
            return None
        usual = sum(ended) / len(ended)
        running = [record.epochs for record in self.records if record.status == "running"]
        begun = sum(max(usual - epochs, 1.0) for epochs in running)
        to_come = (self.plan.trials - len(self._records)) * usual
        return (self._clock() - self._began) * (begun + to_come) / trained

    def _begin_again(self, record: TrialRecord) -> TrialRecord:
        self._started[record.trial] = (self._clock(), record.seconds)
        found = self._with_recovered(record)
        if found != record:
            self._put(found)
        if found.status != "running":
            self._say_end(found)
        return found

    def _with_recovered(self, record: TrialRecord) -> TrialRecord:
        """With the epochs that were trained and kept, but not heard of before an end."""
        for metrics in self._recover(record.trial):
            if record.status == "running" and metrics["epoch"] > record.epochs:
                record = self._after_epoch(record, metrics, self._seconds(record))
        return record

    def _after_epoch(
        self, record: TrialRecord, metrics: Mapping[str, Any], seconds: float
    ) -> TrialRecord:
        row = {k: float(v) for k, v in metrics.items() if k.startswith("val/")}
        row |= {"epoch": float(metrics["epoch"]), "seconds": round(seconds, 2)}
        record = replace(record, history=(*record.history, row), seconds=row["seconds"])
        if record.epochs >= self.plan.epochs:
            return replace(record, status="finished")
        if (verdict := self._stopping(record)) is not None:
            return replace(record, status="stopped", reason=self._words(verdict))
        return record

    def _stopping(self, record: TrialRecord) -> Verdict | None:
        """The verdict that stops the trial at its newest epoch, if one does."""
        if self.plan.keep_first and record.number == 0:
            return None
        others = [r.history for r in self.records if r.number != record.number]
        said = verdicts(
            record.history, others, rungs=self.plan.rungs, factor=self.plan.factor,
            score=self.plan.score,
        )  # fmt: skip
        return next((verdict for verdict in said if not verdict.goes_on), None)

    def _words(self, verdict: Verdict) -> str:
        return (
            f"rung of epoch {verdict.rung}: {self.plan.score} {verdict.score:.2f}, the best "
            f"1/{self.plan.factor} of {verdict.seen} trials there end at {verdict.limit:.2f}"
        )

    def _seconds(self, record: TrialRecord) -> float:
        if record.trial not in self._started:
            return record.seconds
        start, before = self._started[record.trial]
        return before + self._clock() - start

    def _put(self, record: TrialRecord) -> None:
        self._ledger.put(record)
        self._records[record.trial] = record
        self._changed(self)

    def _say_end(self, record: TrialRecord) -> None:
        score = record.history[-1].get(self.plan.score) if record.history else None
        figure = "" if score is None else f", {score:.1f}mm"
        why = f" ({record.reason})" if record.reason else ""
        say(f"trial {record.trial} {record.status} after epoch {record.epochs}{figure}{why}")
        say(self.progress())
