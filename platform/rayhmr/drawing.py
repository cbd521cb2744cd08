"""Figures of pictures, boxes, arrows and text, written as SVG and as PNG from one description.

Lengths are pixels of the drawing, y points down, text is placed by its baseline. The SVG keeps text
and lines as such and holds the pictures as JPEG inside. Text is as wide as Pillow's own font makes
it in both, whatever font the reader of the SVG has, so that nothing is clipped.
"""

from __future__ import annotations

import base64
import functools
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hmr.crops import encode_jpeg

INK, SOFT, LINE, PALE = "#1c2330", "#4a5463", "#8a94a3", "#eef2f8"
Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]
_PIL_ANCHORS: dict[str, str] = {"start": "ls", "middle": "ms", "end": "rs"}
SMOOTH = 3
"""The PNG is drawn at this many times its size and averaged."""
HEAD = 11.0
"""Length of an arrow's head; its width is 1.1 times as much."""
JPEG_QUALITY = 88
SHARP = 2
"""Pixels of an SVG's picture for each pixel of the drawing, at most."""


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which needs no file of the system."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # with a size it is the scalable one
    return font


def text_width(text: str, size: float) -> float:
    """Pixels of a line of text."""
    return float(_font(100).getlength(text)) * size / 100


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    text: str
    size: float
    anchor: Anchor
    color: str

    def svg(self) -> str:
        width = text_width(self.text, self.size)
        return (
            f'<text x="{self.x:g}" y="{self.y:g}" font-size="{self.size:g}" fill="{self.color}" '
            f'text-anchor="{self.anchor}" textLength="{width:.1f}" '
            f'lengthAdjust="spacingAndGlyphs">{html.escape(self.text)}</text>'
        )

    def paint(self, canvas: Image.Image) -> None:
        ImageDraw.Draw(canvas).text(
            (self.x * SMOOTH, self.y * SMOOTH), self.text, fill=self.color,
            font=_font(self.size * SMOOTH), anchor=_PIL_ANCHORS[self.anchor],
        )  # fmt: skip


@dataclass(frozen=True)
class _Picture:
    x: float
    y: float
    width: float
    height: float
    pixels: np.ndarray

    def svg(self) -> str:
        pixels = self.pixels
        if pixels.shape[1] > SHARP * self.width:
            size = (round(SHARP * self.width), round(SHARP * self.height))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        data = base64.b64encode(encode_jpeg(pixels, JPEG_QUALITY)).decode()
        return (
            f'<image x="{self.x:g}" y="{self.y:g}" width="{self.width:g}" '
            f'height="{self.height:g}" preserveAspectRatio="none" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )

    def paint(self, canvas: Image.Image) -> None:
        size = (round(self.width * SMOOTH), round(self.height * SMOOTH))
        picture = Image.fromarray(self.pixels).resize(size, Image.Resampling.LANCZOS)
        canvas.paste(picture, (round(self.x * SMOOTH), round(self.y * SMOOTH)))


@dataclass(frozen=True)
class _Polygon:
    points: Sequence[Point]
    fill: str
    stroke: str
    width: float

    def svg(self) -> str:
        points = " ".join(f"{x:g},{y:g}" for x, y in self.points)
        return (
            f'<polygon points="{points}" fill="{self.fill}" stroke="{self.stroke}" '
            f'stroke-width="{self.width:g}" stroke-linejoin="round"/>'
        )

    def paint(self, canvas: Image.Image) -> None:
        points = [(x * SMOOTH, y * SMOOTH) for x, y in self.points]
        draw = ImageDraw.Draw(canvas)
        if self.fill != "none":
            draw.polygon(points, fill=self.fill)
        if self.stroke != "none":
            width = round(self.width * SMOOTH)
            draw.line([*points, points[0], points[1]], fill=self.stroke, width=width, joint="curve")


@dataclass(frozen=True)
class _Line:
    points: Sequence[Point]
    color: str
    width: float

    def svg(self) -> str:
        points = " ".join(f"{x:g},{y:g}" for x, y in self.points)
        return (
            f'<polyline points="{points}" fill="none" stroke="{self.color}" '
            f'stroke-width="{self.width:g}" stroke-linejoin="round"/>'
        )

    def paint(self, canvas: Image.Image) -> None:
        ImageDraw.Draw(canvas).line(
            [(x * SMOOTH, y * SMOOTH) for x, y in self.points], fill=self.color,
            width=round(self.width * SMOOTH), joint="curve",
        )  # fmt: skip


class Element(Protocol):
    """One thing of a drawing: as SVG, and painted on a canvas SMOOTH times the drawing's size."""

    def svg(self) -> str: ...

    def paint(self, canvas: Image.Image) -> None: ...


class Drawing:
    """What was added first lies below. title: what is shown, for those who cannot see it."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.elements: list[Element] = []

    def text(
        self, x: float, y: float, text: str, size: float, *, anchor: Anchor = "middle",
        color: str = INK, within: float | None = None,
    ) -> None:  # fmt: skip
        """A line of text with its baseline at y; smaller where it would be wider than `within`."""
        if within is not None:
            size *= min(1.0, within / text_width(text, size))
        self.elements.append(_Text(x, y, text, size, anchor, color))

    def picture(
        self, x: float, y: float, width: float, pixels: np.ndarray, *, framed: bool = True
    ) -> None:
        """(H, W, 3) uint8 in this width and in its own proportions; framed: with a thin line."""
        height = width * pixels.shape[0] / pixels.shape[1]
        self.elements.append(_Picture(x, y, width, height, pixels))
        if framed:
            self.box(x, y, width, height, fill="none", stroke=LINE, line=1)

    def polygon(
        self, points: Sequence[Point], *, fill: str = PALE, stroke: str = INK, line: float = 2
    ) -> None:
        """A filled outline; `none` leaves either out."""
        self.elements.append(_Polygon(points, fill, stroke, line))

    def box(
        self, x: float, y: float, width: float, height: float, *, fill: str = PALE,
        stroke: str = INK, line: float = 2,
    ) -> None:  # fmt: skip
        """A rectangle."""
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
        self.polygon(corners, fill=fill, stroke=stroke, line=line)

    def line(self, points: Sequence[Point], *, color: str = INK, width: float = 2) -> None:
        """Straight lines from point to point."""
        self.elements.append(_Line(points, color, width))

    def arrow(self, points: Sequence[Point], *, color: str = INK, width: float = 2.5) -> None:
        """The same with a head at the last point."""
        (x0, y0), (x1, y1) = np.array(points[-2:], float)
        along = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
        across = np.array([-along[1], along[0]])
        tip, base = np.array([x1, y1]), np.array([x1, y1]) - HEAD * along
        sides = [base + 0.55 * HEAD * across, base - 0.55 * HEAD * across]
        neck = base + 0.2 * HEAD * along
        self.line([*points[:-1], (float(neck[0]), float(neck[1]))], color=color, width=width)
        head = [(float(x), float(y)) for x, y in (tip, *sides)]
        self.polygon(head, fill=color, stroke="none")

    def svg(self) -> str:
        """The figure as an SVG document of its own."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            f'font-family="Aileron, Helvetica, Arial, sans-serif">'
            f"<title>{html.escape(self.title)}</title>"
            f'<rect width="{self.width}" height="{self.height}" fill="#ffffff"/>'
            + "".join(element.svg() for element in self.elements)
            + "</svg>\n"
        )

    def pixels(self) -> np.ndarray:
        """(height, width, 3) uint8."""
        canvas = Image.new("RGB", (self.width * SMOOTH, self.height * SMOOTH), "white")
        for element in self.elements:
            element.paint(canvas)
        return np.asarray(canvas.reduce(SMOOTH))

    def png(self) -> bytes:
        """The figure as a PNG file."""
        stream = io.BytesIO()
        Image.fromarray(self.pixels()).save(stream, "PNG", optimize=True)
        return stream.getvalue()
