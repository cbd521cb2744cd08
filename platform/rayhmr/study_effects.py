"""How much of the difference between trials each searched setting explains by itself.

A functional analysis of variance in its simplest form: the main effect of a setting is the share of
the variance of the trials' ranks that a parabola over its values, or the means of its choices,
explain. A search has few trials, so every share is shown beside the share that chance alone
reaches. (PED-ANOVA and forests need more: with 24 trials, and one setting that moves the error by
five times the noise, PED-ANOVA's value for it lay inside what shuffled scores give.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayhmr.config import Dimension, TuneJob
from rayhmr.study import TrialRecord
from rayhmr.study_statistics import SEED
from rayhmr.train import score_of

LEAST_TRIALS = 8
"""Fewer trials say nothing: with seven, chance alone explains most of the variance."""
CHANCE = 0.05
"""Probability that any setting without effect passes its level of chance."""
SHUFFLES = 2000


@dataclass(frozen=True, kw_only=True)
class Effect:
    """share: of the variance of the ranks, 0..1. chance: the share that a setting without effect
    stays below with probability 1 − CHANCE / number of settings."""

    path: str
    share: float
    chance: float

    @property
    def clear(self) -> bool:
        """Whether the share is more than chance."""
        return self.share > self.chance


def ranking(records: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """Trials that ended in order, best first: who was trained longer stands before who was stopped
    earlier, because halving kept them; equals by their last error."""
    ended = [
        record
        for record in records
        if record.status in ("finished", "stopped")
        and record.history
        and math.isfinite(record.history[-1].get(metric, math.nan))
    ]
    return sorted(ended, key=lambda r: (-r.epochs, r.history[-1][metric], r.number))


def sampled(records: Sequence[TrialRecord], metric: str) -> list[TrialRecord]:
    """The ranking without the trial of the default settings, which nobody drew."""
    return [record for record in ranking(records, metric) if record.settings]


def main_effects(records: Sequence[TrialRecord], job: TuneJob) -> list[Effect]:
    """The effect of each searched setting, strongest first; seeds are no setting.

    Empty below LEAST_TRIALS sampled trials that ended.
    """
    ranked = sampled(records, score_of(job.trial))
    paths = [path for path in job.space if path != SEED]
    if len(ranked) < LEAST_TRIALS:
        return []
    ranks = np.arange(len(ranked), dtype=float)
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(ranks) for _ in range(SHUFFLES)], axis=1)
    effects = []
    for path in paths:
        basis = _basis([record.settings.get(path) for record in ranked], job.space[path])
        level = 100 * (1 - CHANCE / len(paths))
        effects.append(
            Effect(
                path=path, share=float(_explained(basis, ranks[:, None])[0]),
                chance=float(np.percentile(_explained(basis, shuffled), level)),
            )
        )  # fmt: skip
    return sorted(effects, key=lambda effect: -effect.share)


def _explained(basis: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Share of the variance of each column of `ranks` (N, K) inside the basis (N, D), (K,)."""
    centred = ranks - ranks.mean(axis=0)
    inside: np.ndarray = ((basis.T @ centred) ** 2).sum(axis=0) / (centred**2).sum(axis=0)
    return inside


def _basis(values: Sequence[Any], dimension: Dimension) -> np.ndarray:
    """Orthonormal columns (N, D) without the constant, for the values of one setting."""
    kinds = sorted(set(values), key=str)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in kinds)
    if numbers and len(kinds) > 3:
        places = np.array(values, dtype=float)
        if dimension.log:
            places = np.log(places)
        places = (places - places.mean()) / places.std()
        columns = np.stack([places, places**2], axis=1)
    else:
        columns = np.array([[value == kind for kind in kinds] for value in values], dtype=float)
    columns = columns - columns.mean(axis=0)
    left, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    kept: np.ndarray = left[:, sizes > 1e-9 * max(sizes.max(), 1.0)]
    return kept
