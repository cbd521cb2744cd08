"""What the report of a study says in words: how far it is, who is best, and whether that is shown.

Every sentence is made of the records; where they do not allow a claim, it says so.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rayhmr.chart import number
from rayhmr.config import TuneJob
from rayhmr.study import TrialRecord
from rayhmr.study_statistics import (
    SEED,
    Comparison,
    Interval,
    Method,
    best_interval,
    compare,
    default_record,
    score,
)
from rayhmr.train import score_of

LABELS = {"pa_mpjpe_mm": "PA-MPJPE", "mpjpe_mm": "MPJPE", "pve_mm": "PVE"}


def label_of(job: TuneJob) -> str:
    """The papers' name of the error that is searched by."""
    return LABELS[job.trial.select_by]


def counts(records: Sequence[TrialRecord], planned: int) -> str:
    """How many trials there are of how many, and how they ended."""
    found: Counter[str] = Counter(record.status for record in records)
    words = {"finished": "trained to the end", "stopped": "stopped early", "failed": "failed",
             "running": "not ended"}  # fmt: skip
    parts = [f"{found[status]} {word}" for status, word in words.items() if found[status]]
    begun = f"{len(records)} of {planned}" if len(records) != planned else f"{planned}"
    open_end = " The study is not complete; this page is made anew as it goes on."
    complete = len(records) == planned and not found["running"]
    trials = "trial" if planned == 1 else "trials"
    return f"{begun} {trials}: {', '.join(parts) or 'none begun'}." + ("" if complete else open_end)


def settings_in_words(settings: Mapping[str, object]) -> str:
    """`path = value` of each, or that they are the default ones."""
    parts = [
        f"{path} = {number(value) if isinstance(value, float) else value}"
        for path, value in settings.items()
    ]
    return ", ".join(parts) or "the default settings"


def spread(interval: Interval) -> str:
    """A mean in mm with its interval."""
    return f"{interval.value:.1f} mm (95 % interval {interval.low:.1f} to {interval.high:.1f})"


def how(method: Method, count: int, split: str) -> str:
    """Which interval it is, and of what."""
    if method == "seeds":
        return f"t interval over {count} seeds, on the validation split"
    return f"bootstrap over {count} people of the {split} split"


def summary(
    records: Sequence[TrialRecord], job: TuneJob, best: TrialRecord | None,
    people: Mapping[str, Sequence[float]], split: str, planned: int,
) -> list[str]:  # fmt: skip
    """Sentences: how far, who is best, and whether it beats the default settings."""
    said = [counts(records, planned)]
    if best is None:
        return [*said, "No trial was trained to its end, so there is no best one: what a stopped "
                "trial reached early says little."]  # fmt: skip
    label, final = label_of(job), score(best, score_of(job.trial))
    said.append(
        f"Best trial: {best.trial}, {label} {final:.1f} mm on the validation split after "
        f"{best.epochs} epochs, with {settings_in_words(best.settings)}."
    )
    lowest = min(best.history, key=lambda row: row.get(score_of(job.trial), math.inf))
    if lowest["epoch"] < best.epochs:
        said[-1] += (
            f" Its lowest was {lowest[score_of(job.trial)]:.1f} mm after epoch "
            f"{lowest['epoch']:.0f}, whose checkpoint is the one that is kept as the model."
        )
    found = best_interval(records, job, best, people)
    if found is None:
        said.append(
            "There is no interval: it was trained with one seed, and no errors of single people "
            f"were measured. Search {SEED} too to get one."
        )
    else:
        method, interval = found
        said.append(f"{label} of its settings: {spread(interval)}; "
                    f"{how(method, interval.count, split)}.")  # fmt: skip
    finished = sum(score(record, score_of(job.trial)) is not None for record in records)
    if finished > 1:
        said.append(
            f"The validation split chose it from {finished} trials trained to the end, so its "
            "error there is a little lower than on people nobody chose by."
        )
    return [*said, against_default(records, job, best, people, split)]


def against_default(
    records: Sequence[TrialRecord], job: TuneJob, best: TrialRecord,
    people: Mapping[str, Sequence[float]], split: str,
) -> str:  # fmt: skip
    """Whether the best settings beat the default ones by more than the interval."""
    default = default_record(records, job)
    if default is None:
        return (
            "Whether the best settings beat the default ones is not known: no trial had the "
            "default ones (compare_default=true adds it)."
        )
    if default.trial == best.trial:
        return "No settings that were tried beat the default ones: they are the best."
    theirs = score(default, score_of(job.trial))
    if theirs is None:
        return (
            "Whether the best settings beat the default ones is not known: the trial with the "
            f"default ones, {default.trial}, is {default.status}."
        )
    found = compare(records, job, best, default, people)
    if found is None:
        ours = score(best, score_of(job.trial)) or 0.0
        return (
            f"The best trial's error is {theirs - ours:.1f} mm below that of the default settings "
            f"({theirs:.1f} mm) on the validation split. That is one training of each: without "
            "several seeds or errors of single people there is no interval, so it is not shown "
            "that the settings are better."
        )
    return verdict(found, split)


def verdict(found: Comparison, split: str) -> str:
    """The comparison in words, with what its interval does not hold."""
    gain, low, high = -found.difference.value, -found.difference.high, -found.difference.low
    count = found.difference.count
    pairs = f"{count} seeds" if found.method == "seeds" else f"{count} people of the {split} split"
    kind = "paired t interval over" if found.method == "seeds" else "paired bootstrap over"
    figures = f"95 % interval {low:.1f} to {high:.1f}; {kind} {pairs}"
    sides = f"{found.best.value:.1f} mm against {found.default.value:.1f} mm"
    limits = (
        "" if found.method == "seeds" else
        " These are two trained models; how much another seed would change is not in the interval."
    )  # fmt: skip
    if found.verdict == "better":
        return (
            f"The best settings beat the default ones by more than the interval: by {gain:.1f} mm "
            f"({figures}), {sides}.{limits}"
        )
    if found.verdict == "worse":
        return (
            f"The best settings are worse than the default ones, by {-gain:.1f} mm (their gain "
            f"has the {figures}), {sides}: the validation split chose them by luck.{limits}"
        )
    return (
        "It is not shown that the best settings beat the default ones: the gain is "
        f"{gain:.1f} mm ({figures}), {sides}, and no gain lies inside that interval.{limits}"
    )
