"""Distributions as charts whose bars lead to pictures: each bar has a tag, and so has every card
that belongs to it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from rayhmr.browse_people import BODY_JOINTS, People
from rayhmr.chart import BLUE, INK, LINE, SMALL, SOFT, Axes, Chart
from rayhmr.drawing import SMOOTH
from rayhmr.report import PALETTE, ticks

BINS, WIDTH = 24, 520
FAR = 95
"""Percentile beyond which a joint or a coefficient counts as far out."""
SPLIT_COLORS = {"train": "s1", "val": "s2", "test": "s3", "": "s1"}


@dataclass(frozen=True)
class _Bar:
    """A rectangle that leads to the pictures with a tag."""

    box: tuple[float, float, float, float]
    fill: str
    tag: str
    label: str
    count: int

    def svg(self) -> str:
        x, y, width, height = self.box
        label = html.escape(self.label)
        return (
            f'<a class="bin" href="#sheet" data-tag="{html.escape(self.tag)}" '
            f'data-label="{label}" data-count="{self.count}" aria-label="{label}">'
            f"<title>{label}</title>"
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
            f'fill="{self.fill}"/></a>'
        )

    def paint(self, canvas: Image.Image) -> None:
        x, y, width, height = (v * SMOOTH for v in self.box)
        if self.fill != "transparent":
            ImageDraw.Draw(canvas).rectangle((x, y, x + width, y + height), fill=self.fill)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of every person. values: (N,), NaN where unknown. x: range of the axis; what is
    outside lies in the first or the last bin. ticks: with words where numbers alone say little."""

    key: str
    title: str
    label: str
    values: np.ndarray
    x: tuple[float, float]
    words: dict[float, str] | None = None

    @property
    def bins(self) -> np.ndarray:
        """(N,) number of each person's bin, -1 where unknown."""
        known = np.isfinite(self.values)
        low, high = self.x
        place = (np.where(known, self.values, low) - low) / (high - low) * BINS
        return np.where(known, np.floor(place).clip(0, BINS - 1), -1).astype(int)

    def span(self, number: int) -> str:
        """What a bin holds, in words."""
        low, high = self.x
        a, b = (low + (high - low) * (number + k) / BINS for k in (0, 1))
        first = "up to" if number == 0 and np.nanmin(self.values) < low else f"{a:.4g} to"
        last = " and more" if number == BINS - 1 and np.nanmax(self.values) > high else ""
        return f"{first} {b:.4g}{last}"


def _round_range(values: np.ndarray) -> tuple[float, float]:
    """From about the 0.5th to the 99.5th percentile, between round numbers."""
    low, high = np.nanpercentile(values, [0.5, 99.5])
    marks = ticks(float(low), float(high))
    step = marks[1] - marks[0] if len(marks) > 1 else max(abs(float(high)), 1.0) / 4
    first, last = np.floor(low / step) * step, np.ceil(high / step) * step
    return float(first), float(last if last > first else first + step)


def measures(people: People) -> list[Measure]:
    """The numbers with a histogram, of those that are known at all."""
    found: list[tuple[str, str, str, np.ndarray, Any, dict[float, str] | None]] = []
    name = people.ranked_by
    if name is not None:
        words = name.removesuffix("_mm").replace("_", "-").upper()
        found.append(("error", "Error", f"{words}, mm", people.error, None, None))
    found += [
        ("box", "Box size", "side of the box in the frame, pixels", people.box_px, None, None),
        ("heading", "Orientation", "heading, degrees", people.heading, (-180.0, 180.0),
         {-180: "away", -90: "left", 0: "to the camera", 90: "right", 180: "away"}),
        ("lean", "Lean", "degrees from upright; 90 lies", people.lean, (0.0, 180.0), None),
        ("bend", "Pose", "mean angle of the joints from rest, degrees", people.bend, None, None),
    ]  # fmt: skip
    return [
        Measure(key=key, title=title, label=label, values=values.astype(np.float64),
                x=x or _round_range(values), words=words)
        for key, title, label, values, x, words in found
        if np.isfinite(values).any()
    ]  # fmt: skip


def histogram(measure: Measure, people: People) -> Chart:
    """Counts of people, one colour for each split."""
    bins, splits = measure.bins, [s for s in SPLIT_COLORS if (people.splits == s).any()]
    counts = np.array([np.bincount(bins[(people.splits == s) & (bins >= 0)], minlength=BINS)
                       for s in splits])  # fmt: skip
    chart = Chart(WIDTH, 250, f"{measure.title}: {measure.label}")
    top = float(max(counts.sum(0).max(), 1))
    axes = Axes(left=54, right=WIDTH - 16, top=44, bottom=250 - (66 if measure.words else 50),
                x=measure.x, y=(0.0, top * 1.05))  # fmt: skip
    axes.draw(chart, measure.label, "people", x_ticks=sorted(measure.words or ()) or None)
    for value, word in (measure.words or {}).items():
        chart.text(axes.at(value, 0)[0], axes.bottom + 33, word, 12, color=SOFT)
    _legend(chart, splits)
    width = (axes.right - axes.left) / BINS
    for number in range(BINS):
        x, height = axes.left + number * width, 0.0
        label = f"{measure.title.lower()} {measure.span(number)}: {counts[:, number].sum()} people"
        for split, count in zip(splits, counts[:, number], strict=True):
            if count:
                tall = count / (top * 1.05) * (axes.bottom - axes.top)
                height += tall
                tag = f"{measure.key}-{number}"
                chart.elements.append(_Bar(
                    (x + 0.5, axes.bottom - height, width - 1, tall),
                    PALETTE[SPLIT_COLORS[split]][0], tag, label, int(count),
                ))  # fmt: skip
    chart.line([(axes.left, axes.bottom), (axes.right, axes.bottom)], color=SOFT, width=1)
    return chart


def _legend(chart: Chart, splits: Sequence[str]) -> None:
    if splits == [""]:
        return
    x = float(WIDTH - 16)
    for split in reversed(splits):
        chart.text(x, 20, split, SMALL, anchor="end", color=PALETTE[SPLIT_COLORS[split]][0])
        x -= 46


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Several numbers of every person beside each other. values: (N, K). two_sided: whether the
    smallest are far out, too."""

    key: str
    title: str
    label: str
    names: Sequence[str]
    values: np.ndarray
    two_sided: bool

    def far(self) -> list[tuple[str, str, np.ndarray]]:
        """For each row a tag, words, and the people beyond its percentile."""
        found = []
        for number, name in enumerate(self.names):
            column = self.values[:, number]
            distance = np.abs(column - np.nanmedian(column)) if self.two_sided else column
            limit = np.nanpercentile(distance, FAR)
            rows = np.flatnonzero(np.nan_to_num(distance, nan=-np.inf) >= limit)
            found.append((f"{self.key}-{number}", f"{name} far out ({100 - FAR} %)", rows))
        return found


def row_charts(people: People) -> list[Rows]:
    """Joints and shape, of data with SMPL labels."""
    if not np.isfinite(people.angles).any():
        return []
    return [
        Rows(key="joint", title="Pose, joint by joint", label="angle from rest, degrees",
             names=[n.replace("_", " ") for n in BODY_JOINTS], values=people.angles,
             two_sided=False),
        Rows(key="shape", title="Shape", label="coefficient, standard deviations",
             names=[f"beta {k}" for k in range(10)], values=people.betas, two_sided=True),
    ]  # fmt: skip


def row_chart(rows: Rows) -> Chart:
    """For each row a line from the 1st to the 99th percentile, a bar between the quartiles and a
    dot at the median."""
    step, top = 22, 44
    height = top + step * len(rows.names) + 54
    chart = Chart(WIDTH, height, f"{rows.title}: {rows.label}")
    quantiles = np.nanpercentile(rows.values, [1, 25, 50, 75, 99], axis=0)
    low, high = float(quantiles.min()), float(quantiles.max())
    low = min(low, 0.0)
    axes = Axes(left=126, right=WIDTH - 20, top=top, bottom=height - 50,
                x=(low - 0.02 * (high - low), high + 0.02 * (high - low) or 1.0),
                y=(0.0, float(len(rows.names))))  # fmt: skip
    for tick in ticks(*axes.x, 7):
        x = axes.at(tick, 0)[0]
        chart.line([(x, axes.top), (x, axes.bottom)], color=LINE, width=1)
        chart.text(x, axes.bottom + 18, f"{tick:g}", SMALL, color=SOFT)
    chart.text((axes.left + axes.right) / 2, height - 8, rows.label, 14, color=SOFT)
    chart.text(axes.right, 20, "1 – 25 – median – 75 – 99 % of people", SMALL, anchor="end",
               color=SOFT)  # fmt: skip
    for number, (tag, label, far) in enumerate(rows.far()):
        y = top + step * (number + 0.5)
        a, b, middle, c, d = (axes.at(float(q), 0)[0] for q in quantiles[:, number])
        chart.text(axes.left - 10, y + 5, rows.names[number], SMALL, anchor="end", color=INK)
        chart.line([(a, y), (d, y)], color=SOFT, width=1.5)
        chart.elements.append(_Bar(
            (b, y - 6, max(c - b, 2.0), 12), BLUE, tag, f"{label}: {len(far)} people", len(far)
        ))  # fmt: skip
        chart.dot((middle, y), radius=3.5, fill="#fbfcfd", stroke=INK)
    return chart
