"""The settings of a study's trials. Each suggestion is a function of the seed, its number, and the
records of the trials before it, so a new start suggests what the old one would have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from hmr.errors import ConfigError
from rayhmr.config import Dimension, TuneJob
from rayhmr.study import TrialRecord

STARTUP_TRIALS = 5
"""Finished or stopped trials before TPE has a say; until then settings are random. Optuna's own ten
would be all of a small study."""
DIGITS = 4
"""Of a sampled number: what a table can print."""

Suggest = Callable[[int, Sequence[TrialRecord]], dict[str, Any]]
"""The settings of the trial with this number, given all records so far."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A searched setting. whole: its range holds whole numbers only. default: the setting that a
    trial with the default settings has."""

    path: str
    dimension: Dimension
    whole: bool
    default: Any

    @property
    def distribution(self) -> BaseDistribution:
        """As Optuna knows it."""
        dimension = self.dimension
        if dimension.choice is not None:
            return CategoricalDistribution(dimension.choice)
        low, high = self.bounds
        if self.whole:
            return IntDistribution(int(low), int(high), log=dimension.log)
        return FloatDistribution(low, high, log=dimension.log)

    @property
    def bounds(self) -> tuple[float, float]:
        """Ends of the range."""
        low, high = self.dimension.low, self.dimension.high
        if low is None or high is None:
            raise ConfigError(f"space.{self.path}: has no range; give low and high")
        return low, high

    def sample(self, random: np.random.Generator) -> Any:
        """A value, evenly over the choices, the range, or its logarithm."""
        if self.dimension.choice is not None:
            return self.dimension.choice[int(random.integers(len(self.dimension.choice)))]
        low, high = self.bounds
        if self.whole:
            # Each whole number holds the place from half below to half above it.
            low, high = low - 0.5, high + 0.5
        if self.dimension.log:
            return self.tidy(math.exp(random.uniform(math.log(low), math.log(high))))
        return self.tidy(random.uniform(low, high))

    def tidy(self, value: Any) -> Any:
        """A sampled value with few digits, inside the range."""
        if self.dimension.choice is not None:
            return value
        low, high = self.bounds
        if self.whole:
            return int(min(max(round(value), low), high))
        return min(max(float(f"{value:.{DIGITS}g}"), low), high)


def suggester(job: TuneJob, axes: Sequence[Axis], score: str) -> Suggest:
    """How `job.searcher` finds settings. score: the metric to lower."""
    first = int(job.compare_default)  # the number of the first trial that is searched
    ordered = sorted(axes, key=lambda axis: axis.path)

    def suggest(number: int, records: Sequence[TrialRecord]) -> dict[str, Any]:
        if number < first:
            return {}
        if job.searcher == "grid":
            return grid_point(axes, number - first, job.seed)
        if job.searcher == "random":
            random = np.random.default_rng([job.seed, number])
            return {axis.path: axis.sample(random) for axis in ordered}
        return tpe(ordered, number, job.seed, records, score)

    return suggest


def grid_size(axes: Sequence[Axis]) -> int:
    """Points of the grid of all choices."""
    return math.prod(len(axis.dimension.choice or ()) for axis in axes)


def grid_point(axes: Sequence[Axis], index: int, seed: int) -> dict[str, Any]:
    """The index-th point of the grid, in an order shuffled by the seed: a part of the grid has
    points from everywhere."""
    place = int(np.random.default_rng(seed).permutation(grid_size(axes))[index])
    points = itertools.product(*[axis.dimension.choice or () for axis in axes])
    point = next(itertools.islice(points, place, None))
    return {axis.path: value for axis, value in zip(axes, point, strict=True)}


def tpe(
    axes: Sequence[Axis], number: int, seed: int, records: Sequence[TrialRecord], score: str
) -> dict[str, Any]:
    """What Optuna's multivariate TPE suggests after these records.

    Optuna is told of all of them each time. Stopped trials are pruned ones to it, with what they
    had reached, so that an early error never counts as a final one; running ones keep others away
    from their place.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    state = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(
        seed=state, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True
    )
    study = optuna.create_study(sampler=sampler, direction="minimize")
    for record in sorted(records, key=lambda record: record.number):
        if (known := _as_optuna(record, axes, score)) is not None:
            study.add_trial(known)
    values = study.ask({axis.path: axis.distribution for axis in axes}).params
    return {axis.path: axis.tidy(values[axis.path]) for axis in axes}


_STATES = {
    "finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL,
    "running": TrialState.RUNNING,
}  # fmt: skip


def _as_optuna(record: TrialRecord, axes: Sequence[Axis], score: str) -> FrozenTrial | None:
    """The record for Optuna; none for default settings outside the space."""
    settings = record.settings or {axis.path: axis.default for axis in axes}
    distributions = {axis.path: axis.distribution for axis in axes}
    if not all(_holds(distributions[path], value) for path, value in settings.items()):
        return None
    values = {int(r["epoch"]): r[score] for r in record.history if score in r}
    finite = {epoch: value for epoch, value in values.items() if math.isfinite(value)}
    status = record.status
    if status == "finished" and record.epochs not in finite:
        status = "failed"  # it ended without a number
    return optuna.trial.create_trial(
        state=_STATES[status], value=finite[record.epochs] if status == "finished" else None,
        params=settings, distributions=distributions, intermediate_values=finite,
    )  # fmt: skip


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False
