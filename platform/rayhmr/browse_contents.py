"""What a browser page shows, and the small pieces of HTML that its parts share."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hmr.crops import encode_jpeg
from rayhmr.browse_charts import Measure, Rows
from rayhmr.browse_overlap import Overlaps
from rayhmr.browse_people import People
from rayhmr.browse_shards import Rejected

QUALITY = 80
LAYERS = {
    "photo": "photo", "truth": "ground truth", "joints": "labelled joints",
    "prediction": "prediction", "side": "from the side", "error": "error of each vertex",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Everything that the page shows.

    pictures: row to name of a layer (LAYERS) to an encoded JPEG. tags: row to the tags of its
    card. sheet: rows with a card, in order. worst: rows from the worst. shown: groups of doubles
    with pictures, each with its tag. findings: sentences as HTML.
    """

    title: str
    lead: str
    people: People
    rejected: Sequence[Rejected]
    overlaps: Overlaps
    measures: Sequence[Measure]
    rows: Sequence[Rows]
    sheet: Sequence[int]
    worst: Sequence[int]
    tags: Mapping[int, Sequence[str]]
    pictures: Mapping[int, Mapping[str, bytes]]
    across: Sequence[tuple[str, Sequence[int]]] = ()
    within: Sequence[tuple[str, Sequence[int]]] = ()
    findings: Sequence[str] = field(default_factory=tuple)


def encoded(panels: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """The panels of a person as JPEG."""
    return {name: encode_jpeg(panel, QUALITY) for name, panel in panels.items()}


def link(tag: str, label: str, text: str) -> str:
    """A link that shows the cards with a tag."""
    return (
        f'<a href="#sheet" data-tag="{html.escape(tag)}" data-label="{html.escape(label)}">'
        f"{html.escape(text)}</a>"
    )


def picture(content: bytes, alt: str, kind: str = "") -> str:
    """An encoded JPEG inside the page. kind: its class."""
    data = base64.b64encode(content).decode()
    name = f' class="{kind}"' if kind else ""
    return f'<img{name} alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">'


def metric_name(metric: str) -> str:
    """`pa_mpjpe_mm` as papers write it."""
    return metric.removesuffix("_mm").replace("_", "-").upper()


def amount(value: float, unit: str) -> str:
    """A rounded number with its unit, or a dash."""
    return f"{value:.0f}{'' if unit == '°' else ' '}{unit}" if np.isfinite(value) else "–"


def attribute(value: float) -> str:
    """Of an element, empty where unknown."""
    return f"{value:.2f}" if np.isfinite(value) else ""


def select(name: str, label: str, options: Mapping[str, str]) -> str:
    """A labelled choice; options: value to text."""
    inside = "".join(
        f'<option value="{html.escape(value)}">{html.escape(text)}</option>'
        for value, text in options.items()
    )
    return f'<label>{label}<select name="{name}">{inside}</select></label>'
