"""What the trials of a search allow to be said: intervals, a comparison, and effects of settings.

Scores are validation errors in mm, lower is better. Only trials that were trained to their end have
one; what a stopped trial reached is an early value and is never compared with theirs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from hmr.errors import DataError
from hmr.metric_extras import bootstrap_interval
from rayhmr.config import TuneJob
from rayhmr.study import TrialRecord
from rayhmr.train import score_of

SEED = "train.seed"
LEVEL = 0.95
Method = Literal["seeds", "people"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean of `count` values and its 95 % interval."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best settings against the default ones, in mm. difference: best − default, of pairs.

    method: what was paired: trainings with the same `seeds`, or the same held-out `people`."""

    method: Method
    best: Interval
    default: Interval
    difference: Interval

    @property
    def verdict(self) -> Literal["better", "worse", "open"]:
        """Whether the whole interval of the difference lies on one side of zero."""
        if self.difference.high < 0:
            return "better"
        return "worse" if self.difference.low > 0 else "open"


def t_quantile(probability: float, freedom: int) -> float:
    """The t with P(|T| <= t) = `probability` for Student's distribution.

    The distribution function is the finite sum of Abramowitz & Stegun 26.7.3 and 26.7.4, inverted
    by bisection over the angle atan(t / sqrt(freedom)).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if _inside(middle, freedom) > probability else (middle, high)
    return math.sqrt(freedom) * math.tan(low)


def _inside(angle: float, freedom: int) -> float:
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values and its t interval; DataError for fewer than two."""
    count = len(values)
    if count < 2:
        raise DataError(f"{count} value: an interval needs at least 2; report the value alone")
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile(LEVEL, count - 1) * spread / math.sqrt(count)
    return Interval(value=mean, low=mean - half, high=mean + half, count=count)


def people_interval(errors: Sequence[float]) -> Interval:
    """Mean error of people and its bootstrap interval; DataError for fewer than two."""
    values = torch.tensor(errors, dtype=torch.float64)
    low, high = bootstrap_interval(values, level=LEVEL)
    return Interval(value=float(values.mean()), low=low, high=high, count=len(values))


def score(record: TrialRecord, metric: str) -> float | None:
    """The error after the last epoch of a finished trial; none for every other trial."""
    if record.status != "finished" or not record.history:
        return None
    value = record.history[-1].get(metric)
    return float(value) if value is not None and math.isfinite(value) else None


def best_record(records: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """The finished trial with the lowest error; none while there is none."""
    scored = [(s, r.number, r) for r in records if (s := score(r, metric)) is not None]
    return min(scored, key=lambda entry: entry[:2])[2] if scored else None


def default_record(records: Sequence[TrialRecord], job: TuneJob) -> TrialRecord | None:
    """The first trial with the settings of `job.trial` as they are, if the study has one: one of a
    grid's, or that of `compare_default`."""
    tree = job.trial.model_dump()
    wanted = {path: _at(tree, path) for path in job.space}
    return next((record for record in records if resolved(record, job) == wanted), None)


def resolved(record: TrialRecord, job: TuneJob) -> dict[str, Any]:
    """The value of every searched setting in a trial, defaults included."""
    tree = job.trial.model_dump()
    return {path: record.settings.get(path, _at(tree, path)) for path in job.space}


def _at(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def scores_by_seed(
    records: Sequence[TrialRecord], job: TuneJob, like: TrialRecord
) -> dict[Any, float]:
    """Seed to score of the finished trials that differ from `like` in nothing but the seed."""
    wanted = _without_seed(resolved(like, job))
    found: dict[Any, float] = {}
    for record in records:
        settings, value = resolved(record, job), score(record, score_of(job.trial))
        if value is not None and _without_seed(settings) == wanted:
            # The default trial may be one of the grid's once more: the same run counts once.
            found.setdefault(settings.get(SEED, job.trial.train.seed), value)
    return found


def _without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {path: value for path, value in settings.items() if path != SEED}


def best_interval(
    records: Sequence[TrialRecord],
    job: TuneJob,
    best: TrialRecord,
    people: Mapping[str, Sequence[float]],
) -> tuple[Method, Interval] | None:
    """Interval of the best settings: over seeds where they were trained with at least two, else
    over the held-out people whose errors are in `people`, by trial; none without either."""
    seeds = list(scores_by_seed(records, job, best).values())
    if len(seeds) > 1:
        return "seeds", mean_interval(seeds)
    if len(people.get(best.trial, ())) > 1:
        return "people", people_interval(people[best.trial])
    return None


def compare(
    records: Sequence[TrialRecord],
    job: TuneJob,
    best: TrialRecord,
    default: TrialRecord,
    people: Mapping[str, Sequence[float]],
) -> Comparison | None:
    """Best against default over the seeds that both have, if two or more; else over people.

    None where neither is possible. DataError when the two trials measured different people.
    """
    ours, theirs = (scores_by_seed(records, job, record) for record in (best, default))
    common = [seed for seed in ours if seed in theirs]
    if len(common) > 1:
        pairs = [[values[seed] for seed in common] for values in (ours, theirs)]
        return _paired("seeds", *pairs)
    first, second = people.get(best.trial, ()), people.get(default.trial, ())
    if len(first) != len(second) and first and second:
        raise DataError(
            f"trial {best.trial} has errors of {len(first)} people and {default.trial} of "
            f"{len(second)}; measure both on the same people, in the same order"
        )
    return _paired("people", first, second) if len(first) > 1 and len(second) > 1 else None


def _paired(method: Method, best: Sequence[float], default: Sequence[float]) -> Comparison:
    interval = mean_interval if method == "seeds" else people_interval
    difference = [a - b for a, b in zip(best, default, strict=True)]
    return Comparison(
        method=method, best=interval(best), default=interval(default),
        difference=interval(difference),
    )  # fmt: skip
