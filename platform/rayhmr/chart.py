"""Charts that are drawn once: as SVG inside a page, in its colours, and as a PNG file."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from rayhmr.drawing import SMOOTH, Drawing, Point, text_width
from rayhmr.report import PALETTE, ticks

INK, SOFT, LINE, MUTE, PAPER, BLUE, ORANGE = (
    PALETTE[name][0] for name in ("ink", "soft", "line", "mute", "paper", "s1", "s2")
)
RAMP = ("#2166ac", "#8f63b3", "#e08214")
"""Good, middling and bad scores; readable on light and on dark paper."""
SMALL, NORMAL = 13.0, 14.0
"""Sizes of text in pixels."""
PRINT = 2
"""Pixels of a PNG file for each pixel of the chart."""
LEAST_SCALE = 0.62
"""A chart in a page is never smaller than this, so that its text has at least 8 pixels."""


@dataclass(frozen=True)
class _Dot:
    """A disk or a ring, with a hint for the pointer in the SVG."""

    x: float
    y: float
    radius: float
    fill: str
    stroke: str
    hint: str

    def svg(self) -> str:
        return (
            f'<circle cx="{self.x:.1f}" cy="{self.y:.1f}" r="{self.radius:g}" fill="{self.fill}" '
            f'stroke="{self.stroke}" stroke-width="1.6">'
            f"<title>{html.escape(self.hint)}</title></circle>"
        )

    def paint(self, canvas: Image.Image) -> None:
        ImageDraw.Draw(canvas).circle(
            (self.x * SMOOTH, self.y * SMOOTH), self.radius * SMOOTH, fill=self.fill,
            outline=self.stroke, width=round(1.6 * SMOOTH),
        )  # fmt: skip


@dataclass(frozen=True)
class _Hinted:
    """A line with a hint for the pointer in the SVG."""

    points: Sequence[Point]
    color: str
    width: float
    hint: str

    def svg(self) -> str:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)
        return (
            f'<polyline points="{points}" fill="none" stroke="{self.color}" '
            f'stroke-width="{self.width:g}" stroke-linejoin="round">'
            f"<title>{html.escape(self.hint)}</title></polyline>"
        )

    def paint(self, canvas: Image.Image) -> None:
        ImageDraw.Draw(canvas).line(
            [(x * SMOOTH, y * SMOOTH) for x, y in self.points], fill=self.color,
            width=round(self.width * SMOOTH), joint="curve",
        )  # fmt: skip


class Chart(Drawing):
    """A drawing whose colours are those of `rayhmr.report`."""

    def dot(
        self, at: Point, *, radius: float = 4, fill: str = BLUE, stroke: str | None = None,
        hint: str = "",
    ) -> None:  # fmt: skip
        """A disk; with another stroke a ring."""
        self.elements.append(_Dot(*at, radius, fill, stroke or fill, hint))

    def curve(
        self, points: Sequence[Point], *, color: str = BLUE, width: float = 2, hint: str = ""
    ) -> None:
        """Straight lines from point to point; a single point becomes a dot."""
        if len(points) == 1:
            self.dot(points[0], radius=max(width, 2.5), fill=color, hint=hint)
        elif points:
            self.elements.append(_Hinted(points, color, width, hint))

    def dashes(self, start: Point, end: Point, *, color: str = LINE, width: float = 1.5) -> None:
        """A dashed line."""
        a, b = np.array(start, float), np.array(end, float)
        pieces = max(1, round(float(np.hypot(*(b - a))) / 8))
        for piece in range(pieces):
            ends = [a + (b - a) * (piece + part) / pieces for part in (0.0, 0.5)]
            self.line([(float(x), float(y)) for x, y in ends], color=color, width=width)

    def pixels(self) -> np.ndarray:
        """(PRINT · height, PRINT · width, 3) uint8, for slides and papers."""
        canvas = Image.new("RGB", (self.width * SMOOTH, self.height * SMOOTH), "white")
        for element in self.elements:
            element.paint(canvas)
        size = (self.width * PRINT, self.height * PRINT)
        return np.asarray(canvas.resize(size, Image.Resampling.LANCZOS))

    def inline(self) -> str:
        """SVG for a page of `rayhmr.report`: on its paper, light and dark. It shrinks with the page
        as long as its text can be read, and is scrolled below that."""
        svg = self.svg().strip()
        paper = f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
        svg = svg.replace(paper, "", 1)
        least = f'<svg style="min-width: {self.width * LEAST_SCALE:.0f}px" '
        svg = svg.replace("<svg ", least, 1)
        for name, (light, _) in PALETTE.items():
            svg = svg.replace(f'"{light}"', f'"var(--{name})"')
        return svg


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Where values lie in a chart: a box in pixels, and the values at its edges."""

    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> Point:
        """Pixel of a value; what is outside the values lies on the edge."""
        across = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        up = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )

    def draw(
        self, chart: Chart, x_label: str, y_label: str, *, x_ticks: Sequence[float] | None = None
    ) -> None:
        """Grid lines of y, numbers at both axes, and their names."""
        for tick in ticks(*self.y):
            _, y = self.at(self.x[0], tick)
            chart.line([(self.left, y), (self.right, y)], color=LINE, width=1)
            chart.text(self.left - 8, y + 4, f"{tick:g}", SMALL, anchor="end", color=SOFT)
        for tick in ticks(*self.x, 7) if x_ticks is None else x_ticks:
            x, _ = self.at(tick, self.y[0])
            chart.text(x, self.bottom + 18, f"{tick:g}", SMALL, color=SOFT)
        middle = (self.left + self.right) / 2
        chart.text(middle, chart.height - 8, x_label, NORMAL, color=SOFT)
        # Above the axis, not along it: it reads without turning the head.
        chart.text(self.left - 8, self.top - 24, y_label, NORMAL, anchor="start", color=SOFT)


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of values with some room on both sides; never empty."""
    low, high = min(values), max(values)
    room = share * (high - low) or 0.5
    return low - room, high + room


def ramp(share: float) -> str:
    """Colour between good (0) and bad (1), as hex."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    number = min(int(place), len(RAMP) - 2)
    return blend(RAMP[number], RAMP[number + 1], place - number)


def blend(first: str, second: str, share: float) -> str:
    """`share` of the second colour in the first, as hex."""
    a, b = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in (first, second))
    return "#" + "".join(f"{round(v):02x}" for v in a + (b - a) * share)


def apart(places: Sequence[float], distance: float) -> list[float]:
    """Heights for labels that want to stand at `places`, moved so that none covers another."""
    order = np.argsort(places, kind="stable")
    moved = np.array(places, float)
    for before, after in itertools.pairwise(order):
        moved[after] = max(moved[after], moved[before] + distance)
    return [float(place) for place in moved]


def short(text: str, size: float, width: float) -> str:
    """`text`, or its end after an ellipsis where it is wider than `width` pixels."""
    while len(text) > 2 and text_width(text, size) > width:
        text = "…" + text.lstrip("…")[1:]
    return text


def number(value: float) -> str:
    """Three significant digits without an exponent where that is short."""
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:.2e}"
