"""Asynchronous successive halving by epoch (Li et al. 2020, "A System for Massively Parallel
Hyperparameter Tuning"), in the form that stops trials and never holds one up.

At each rung, after grace · η^k epochs, a trial goes on when it is among the best 1/η of all trials
seen there so far, and at least the best one does. What a rung has seen is read from the histories
of the trials, so nothing is forgotten by a new start. Low scores are good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

History = Sequence[Mapping[str, float]]
"""What was measured after each epoch, in order: "epoch" and the score among it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rung says about a trial.

    rung: epochs. seen: trials there so far, this one included. score: of the trial; limit: the
    worst score that goes on.
    """

    rung: int
    seen: int
    score: float
    limit: float
    goes_on: bool


def rungs(grace: int, factor: int, epochs: int) -> list[int]:
    """Epochs after which trials are compared; the end of a training is no rung."""
    found = []
    rung = grace
    while rung < epochs:
        found.append(rung)
        rung *= factor
    return found


def score_at(history: History, rung: int, score: str) -> float | None:
    """The trial's score at a rung: that of the first epoch there or past it, none before. What is
    no finite number is the worst."""
    for row in history:
        if row["epoch"] >= rung and score in row:
            return row[score] if math.isfinite(row[score]) else math.inf
    return None


def judge(value: float, others: Sequence[float], factor: int) -> tuple[bool, float]:
    """Whether a score is among the best 1/factor of itself and the others, and the worst score that
    is. Of equal scores the others' come first; an infinite one never goes on."""
    places = max(1, (len(others) + 1) // factor)
    better = sum(other <= value for other in others)
    limit = sorted([*others, value])[places - 1]
    return better < places and math.isfinite(value), limit


def verdicts(
    history: History, others: Sequence[History], *, rungs: Sequence[int], factor: int, score: str
) -> list[Verdict]:
    """What the rungs say that the newest epoch of a trial has reached; most epochs reach none.

    history: the trial's. others: those of all other trials of the study.
    """
    if not history:
        return []
    said = []
    for rung in rungs:
        value = score_at(history, rung, score)
        if value is None or score_at(history[:-1], rung, score) is not None:
            continue
        seen = [s for other in others if (s := score_at(other, rung, score)) is not None]
        goes_on, limit = judge(value, seen, factor)
        said.append(
            Verdict(rung=rung, seen=len(seen) + 1, score=value, limit=limit, goes_on=goes_on)
        )
    return said
