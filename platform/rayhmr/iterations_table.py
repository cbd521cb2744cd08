"""Accuracy against the number of refinement steps T, as Markdown for a paper or a README."""

from __future__ import annotations

from collections.abc import Sequence

from rayhmr.study_sections import CrossIteration
from rayhmr.study_statistics import mean_interval


def iterations_table(cross: Sequence[CrossIteration]) -> str:
    """A row for each T that models were trained with, a column for each T they were used with.

    Cells: mean error in mm over the trainings, and for the trained T also ± the half width of its
    95 % t interval where there are two trainings or more; the lowest of each row is bold.
    """
    used = sorted({entry.evaluated for entry in cross})
    lines = [
        ["trained T", *[f"used T = {number}" for number in used], "trainings"],
        ["---"] * (len(used) + 2),
    ]
    for trained in sorted({entry.trained for entry in cross}):
        row = [entry for entry in cross if entry.trained == trained]
        errors = {
            number: [entry.error_mm for entry in row if entry.evaluated == number]
            for number in used
        }
        means = {n: sum(values) / len(values) for n, values in errors.items() if values}
        lowest = min(means, key=lambda number: means[number])
        cells = []
        for number in used:
            text = f"{means[number]:.1f}" if number in means else "–"
            if number == trained and len(errors[number]) > 1:
                interval = mean_interval(errors[number])
                text += f" ± {interval.high - interval.value:.1f}"
            cells.append(f"**{text}**" if number == lowest else text)
        lines.append([str(trained), *cells, str(len({entry.trial for entry in row}))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
