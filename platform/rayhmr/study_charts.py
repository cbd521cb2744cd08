"""The charts of a study's report, made of its records. Errors are validation errors in mm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayhmr.chart import (
    BLUE,
    INK,
    LINE,
    MUTE,
    NORMAL,
    ORANGE,
    PAPER,
    SMALL,
    SOFT,
    Axes,
    Chart,
    apart,
    blend,
    number,
    padded,
    ramp,
    short,
)
from rayhmr.config import Dimension
from rayhmr.study import TrialRecord
from rayhmr.study_effects import Effect
from rayhmr.study_statistics import Interval

WIDTH = 560
DARK = "#10151c"
"""Text on a pale field, which stays pale on dark paper."""


@dataclass(frozen=True, kw_only=True)
class Iterations:
    """The finished trials of one T. scores: of its trials, by trial. interval: over seeds, where
    they differ in nothing but the seed. stopped: trials that ended early."""

    n_iter: int
    scores: Mapping[str, float]
    interval: Interval | None
    stopped: int


def iterations_chart(rows: Sequence[Iterations], label: str) -> Chart:
    """Error against T: means with their intervals, joined by a line, where there are some; else
    every trial, the best filled, without a line: other settings differ too. T without a finished
    trial has its place, and no point."""
    chart = Chart(WIDTH, 390, f"{label} against the number of iterations T")
    values = [s for row in rows for s in row.scores.values()]
    values += [e for row in rows if row.interval for e in (row.interval.low, row.interval.high)]
    steps = [row.n_iter for row in rows]
    axes = Axes(
        left=64, right=WIDTH - 30, top=46, bottom=316,
        x=padded(steps, 0.1), y=padded(values),
    )  # fmt: skip
    axes.draw(chart, "T, iterations of the regressor", label,
              x_ticks=steps)  # fmt: skip
    line = []
    for row in rows:
        middle = axes.at(row.n_iter, axes.y[0])[0]
        count = f"n = {len(row.scores)}" + (f" (+{row.stopped})" if row.stopped else "")
        chart.text(middle, axes.bottom + 36, count, SMALL, color=SOFT)
        if row.interval is not None:
            line.append(axes.at(row.n_iter, row.interval.value))
    chart.curve(line, color=BLUE, width=2)
    for row in rows:
        _column(chart, axes, row)
    return chart


def _column(chart: Chart, axes: Axes, row: Iterations) -> None:
    best = min(row.scores.values(), default=0.0)
    for trial, value in row.scores.items():
        at, hint = axes.at(row.n_iter, value), f"{trial}: T = {row.n_iter}, {value:.1f} mm"
        if row.interval is None and value == best:
            chart.dot(at, radius=5, hint=hint)
        else:
            chart.dot(at, radius=3.5, fill=PAPER, stroke=BLUE, hint=hint)
    if row.interval is not None:
        low, high = (axes.at(row.n_iter, v) for v in (row.interval.low, row.interval.high))
        chart.line([low, high], color=BLUE, width=2)
        for x, y in (low, high):
            chart.line([(x - 7, y), (x + 7, y)], color=BLUE, width=2)
        chart.dot(
            axes.at(row.n_iter, row.interval.value), radius=5,
            hint=f"T = {row.n_iter}: {row.interval.value:.1f} mm, "
            f"95 % interval {row.interval.low:.1f} to {row.interval.high:.1f}",
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Path:
    """One trial across the axes. settings: every searched value. score: none unless finished."""

    trial: str
    settings: Mapping[str, Any]
    score: float | None
    best: bool


def parallel_chart(
    trials: Sequence[Path], space: Mapping[str, Dimension], label: str, *, least_gap: int = 104
) -> Chart:
    """One vertical axis a setting and one for the error; one line a trial, coloured by its error;
    trials without a final error end before its axis and are grey."""
    width = max(WIDTH, 136 + least_gap * len(space))
    chart = Chart(width, 380, "Settings of all trials, coloured by error")
    top, bottom, left, right = 62, 350, 66, width - 70
    gap = (right - left) / len(space)
    columns = [_Column(path, space[path], trials) for path in space]
    scores = [t.score for t in trials if t.score is not None]
    low, high = padded(scores) if scores else (0.0, 1.0)

    def height(share: float) -> float:
        return bottom - share * (bottom - top)

    for place, column in enumerate(columns):
        x = left + place * gap
        chart.line([(x, top), (x, bottom)], color=SOFT, width=1)
        parent, _, name = column.path.rpartition(".")
        chart.text(x, 22, short(parent, SMALL, gap - 10), SMALL, color=SOFT)
        chart.text(x, 38, short(name, NORMAL, gap - 10), NORMAL, color=INK)
    chart.line([(right, top), (right, bottom)], color=SOFT, width=1)
    chart.text(right, 38, label, NORMAL, color=INK, within=136)
    if scores:
        for value in (min(scores), max(scores)):
            y = height((value - low) / (high - low))
            chart.text(right + 8, y + 4, f"{value:.1f}", SMALL, anchor="start", color=SOFT)
    span = (max(scores) - min(scores)) or 1.0 if scores else 1.0
    # Grey below, then from bad to good, the best on top.
    for trial in sorted(trials, key=lambda t: (t.score is not None, -(t.score or 0.0), t.best)):
        points = [
            (left + place * gap, height(column.share(trial.settings[column.path])))
            for place, column in enumerate(columns)
        ]
        hint = ", ".join(f"{c.path} = {trial.settings[c.path]}" for c in columns)
        if trial.score is None:
            chart.curve(points, color=MUTE, width=1.2, hint=f"{trial.trial}: {hint}")
            continue
        points.append((right, height((trial.score - low) / (high - low))))
        color = ramp((trial.score - min(scores)) / span)
        chart.curve(
            points, color=color, width=4 if trial.best else 1.8,
            hint=f"{trial.trial}, {trial.score:.1f} mm: {hint}",
        )  # fmt: skip
    for place, column in enumerate(columns):  # above the lines, which are many
        for share, text in column.marks():
            chart.text(left + place * gap - 7, height(share) + 4, text, SMALL, anchor="end",
                       color=INK)  # fmt: skip
    return chart


BELOW = -0.05
"""Height of values that no range holds: none, and zero where the axis is logarithmic."""


class _Column:
    """Heights of the values of one setting, 0 at the foot of its axis and 1 at the top."""

    def __init__(self, path: str, dimension: Dimension, trials: Sequence[Path]) -> None:
        self.path = path
        tried = [trial.settings[path] for trial in trials]
        self._kinds: list[Any] | None = None
        if dimension.choice is not None:
            others = [value for value in tried if value not in dimension.choice]
            kinds = list(dict.fromkeys([*dimension.choice, *others]))
            numbers = all(isinstance(k, int | float) and not isinstance(k, bool) for k in kinds)
            self._kinds = sorted(kinds) if numbers else kinds
            return
        self._log = dimension.log
        # The default may lie outside the searched range; the axis then reaches to it if it can.
        self._below = [value for value in tried if not self._fits(value)]
        ends = [*filter(self._fits, tried), dimension.low, dimension.high]
        self._low, self._high = min(ends), max(ends)

    def share(self, value: Any) -> float:
        """Height of a value."""
        if self._kinds is not None:
            return (self._kinds.index(value) + 0.5) / len(self._kinds)
        if not self._fits(value):
            return BELOW
        low, high, value = (self._scaled(v) for v in (self._low, self._high, value))
        return (value - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        """Heights and texts of the numbers beside the axis."""
        if self._kinds is not None:
            return [(self.share(k), number(k) if isinstance(k, float) else str(k))
                    for k in self._kinds]  # fmt: skip
        ends = [(0.0, number(self._low)), (1.0, number(self._high))]
        kinds = dict.fromkeys("none" if value is None else number(value) for value in self._below)
        return [*ends, (BELOW, ", ".join(kinds))] if kinds else ends

    def _fits(self, value: float | None) -> bool:
        return value is not None and (not self._log or value > 0)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self._log else float(value)


def effects_chart(effects: Sequence[Effect]) -> Chart:
    """A bar for each setting; the mark is what chance alone reaches."""
    left, right, step = 200, WIDTH - 60, 34
    chart = Chart(WIDTH, 40 + step * len(effects), "Share of the ranks that settings explain")
    chart.text(left, 20, "share of the trials' ranks explained; | = chance", NORMAL,
               anchor="start", color=SOFT)  # fmt: skip
    for place, effect in enumerate(effects):
        y = 40 + place * step
        end, chance = (left + s * (right - left) for s in (effect.share, effect.chance))
        color = BLUE if effect.clear else MUTE
        chart.text(left - 10, y + 15, short(effect.path, NORMAL, left - 20), NORMAL, anchor="end",
                   color=INK)  # fmt: skip
        chart.box(left, y, max(end - left, 1), 20, fill=color, stroke="none")
        chart.line([(chance, y - 4), (chance, y + 24)], color=ORANGE, width=2.5)
        chart.text(right + 10, y + 15, f"{100 * effect.share:.0f} %", NORMAL, anchor="start",
                   color=INK)  # fmt: skip
    return chart


def curves_chart(
    records: Sequence[TrialRecord], metric: str, label: str, *, epochs: int,
    rungs: Sequence[int], best: str | None, default: str | None,
) -> tuple[Chart, float | None]:  # fmt: skip
    """Error by epoch of every trial. Returns the chart, and the error at its top edge where curves
    lie beyond it: the first epochs of bad trials would leave no room for the others."""
    chart = Chart(WIDTH, 420, f"{label} by epoch")
    lines = {r.trial: [(row["epoch"], row[metric]) for row in r.history
                       if math.isfinite(row.get(metric, math.nan))] for r in records}  # fmt: skip
    values = [y for line in lines.values() for _, y in line]
    # A trial that diverged must not flatten the others; nor may a bad first epoch.
    usual = [y for r in records if r.status != "failed" for _, y in lines[r.trial]] or values
    firsts = [line[0][1] for line in lines.values() if line]
    limit = min(max(usual), 2 * float(np.median(firsts)))
    low, high = padded([min(value, limit) for value in values])
    axes = Axes(left=64, right=WIDTH - 96, top=54, bottom=362, x=(1, max(epochs, 2)), y=(low, high))
    axes.draw(chart, "epoch", label, x_ticks=None if epochs > 9 else range(1, epochs + 1))
    free = 0.0
    for rung in rungs:
        x, _ = axes.at(rung, low)
        chart.dashes((x, axes.top), (x, axes.bottom), color=SOFT)
        if x >= free:
            chart.text(x, axes.top - 4, "rung", SMALL, color=SOFT, anchor="start")
            free = x + 36
    status = {record.trial: record.status for record in records}
    # Grey below, then the finished and running, the named ones on top.
    order = sorted(lines, key=lambda t: (t == best, t == default, status[t] not in _GREY, t))
    names = []
    for trial in order:
        points = [axes.at(x, y) for x, y in lines[trial]]
        color, width = _look(trial, status[trial], best, default)
        chart.curve(points, color=color, width=width, hint=f"{trial}, {status[trial]}")
        if points and trial in (best, default):
            names.append((points[-1], "best, default" if best == default else
                          "best" if trial == best else "default", color))  # fmt: skip
    heights = apart([point[1] for point, _, _ in names], 15)
    for (point, name, color), y in zip(names, heights, strict=True):
        chart.text(point[0] + 9, y + 4, name, NORMAL, anchor="start", color=color)
    return chart, limit if any(value > limit for value in values) else None


_GREY = ("stopped", "failed")


def _look(trial: str, status: str, best: str | None, default: str | None) -> tuple[str, float]:
    if trial == best:
        return BLUE, 4
    if trial == default:
        return ORANGE, 3
    return (MUTE, 1.4) if status in _GREY else (blend(BLUE, "#ffffff", 0.35), 1.6)


def matrix_chart(cells: Mapping[tuple[int, int], Sequence[float]], label: str) -> Chart:
    """Mean error in mm by (trained T, evaluated T); framed where each row is lowest."""
    trained, evaluated = (sorted({key[side] for key in cells}) for side in (0, 1))
    means = {key: float(np.mean(values)) for key, values in cells.items()}
    left, top, height = 110, 62, 42
    step = min(90.0, (WIDTH - left - 20) / len(evaluated))
    chart = Chart(WIDTH, round(top + height * len(trained) + 16), f"{label} by trained and used T")
    chart.text(left, 20, f"{label}: evaluated with T =", NORMAL, anchor="start", color=SOFT)
    chart.text(left - 24, top - 10, "trained", NORMAL, anchor="end", color=SOFT)
    low, span = min(means.values()), (max(means.values()) - min(means.values())) or 1.0
    for column, there in enumerate(evaluated):
        chart.text(left + (column + 0.5) * step, top - 10, str(there), NORMAL, color=INK)
    for row, here in enumerate(trained):
        y = top + row * height
        chart.text(left - 24, y + 26, f"T = {here}", NORMAL, anchor="end", color=INK)
        lowest = min((means[here, t] for t in evaluated if (here, t) in means), default=None)
        for column, there in enumerate(evaluated):
            if (value := means.get((here, there))) is None:
                continue
            pale = blend(ramp((value - low) / span), "#ffffff", 0.55)
            x = left + column * step
            frame = {"stroke": INK, "line": 2.5} if value == lowest else {"stroke": LINE, "line": 1}
            chart.box(x + 3, y + 3, step - 6, height - 6, fill=pale, **frame)  # type: ignore[arg-type]
            chart.text(x + step / 2, y + 26, f"{value:.1f}", NORMAL, color=DARK, within=step - 10)
    return chart
