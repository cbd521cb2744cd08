"""Self-contained HTML pages: tables, pictures and line charts, without an outside address."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hmr.crops import encode_jpeg

PALETTE = {
    "ink": ("#1c2330", "#e6eaf0"), "soft": ("#5c6675", "#9aa5b4"), "line": ("#d9dee6", "#333c49"),
    "mute": ("#b3bac5", "#566072"), "paper": ("#fbfcfd", "#14181e"), "s1": ("#2a6fbb", "#6aa9e9"),
    "s2": ("#c8651b", "#e69a5c"), "s3": ("#3d8f5a", "#71c290"), "s4": ("#8a5bb5", "#bb96dd"),
}  # fmt: skip
"""Each colour of a page on light and on dark paper; in a page its name is a CSS variable."""


def _variables(which: int) -> str:
    return " ".join(f"--{name}: {colors[which]};" for name, colors in PALETTE.items())


_STYLE = f"""
:root {{ color-scheme: light dark; {_variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(1)} }} }}
"""
_STYLE += """
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 72rem; background: var(--paper);
  color: var(--ink); font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; } .lead, figcaption { color: var(--soft); }
.wide { overflow-x: auto; } figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
svg { max-width: 100%; height: auto; }
.wide svg { display: block; }
.lines text { fill: var(--soft); font: 12px system-ui, sans-serif; }
svg .axis { stroke: var(--line); } code { font: .92em ui-monospace, monospace; }
pre { overflow-x: auto; padding: .8rem 1rem; border: 1px solid var(--line); border-radius: 6px; }
"""


def format_cell(value: Any) -> str:
    """Text of one table cell: four significant digits for floats, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as an aligned plain-text table with a header."""
    if not rows:
        return "(empty)"
    header = list(rows[0])
    cells = [header, *[[format_cell(row.get(key)) for key in header] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = []
    for line in cells:
        first = line[0].ljust(widths[0])
        lines.append(
            "  ".join([first, *[c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]])
        )
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The same as an HTML table."""
    if not rows:
        return "<p>(empty)</p>"
    head = "".join(f"<th>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(format_cell(row.get(key)))}</td>" for key in rows[0])
        + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def html_picture(image: np.ndarray, caption: str, *, quality: int = 88) -> str:
    """An (H, W, 3) uint8 RGB image inside the page."""
    data = base64.b64encode(encode_jpeg(image, quality)).decode()
    alt = html.escape(caption)
    return (
        f'<figure><img alt="{alt}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{alt}</figcaption></figure>"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside a range, about `count` of them."""
    raw = (high - low) / max(count - 1, 1) or 1.0
    magnitude = 10 ** np.floor(np.log10(raw))
    step = magnitude * min((1, 2, 2.5, 5, 10), key=lambda m: abs(m * magnitude - raw))
    # Multiples of the step, so that zero is 0 and not -1e-16.
    first, last = np.ceil(low / step), np.floor(high / step + 1e-6)
    return [number * float(step) for number in range(int(first), int(last) + 1)]


def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    y_label: str,
    width: int = 560,
    height: int = 300,
) -> str:
    """Lines of (x, y) points as inline SVG, each labelled at its right end."""
    points = [p for line in series.values() for p in line if np.isfinite(p[1])]
    if not points:
        return "<p>(no points)</p>"
    xs, ys = np.array(points, dtype=float).T
    x0, x1 = xs.min(), xs.max() if xs.max() > xs.min() else xs.min() + 1
    margin = 0.06 * (ys.max() - ys.min() or 1)
    y0, y1 = ys.min() - margin, ys.max() + margin
    longest = max(len(f"{tick:g}") for tick in ticks(y0, y1))
    left, right, top, bottom = 30 + 7 * longest, 130, 14, 42

    def place(x: float, y: float) -> tuple[float, float]:
        px = left + (x - x0) / (x1 - x0) * (width - left - right)
        return px, height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

    parts = [
        f'<svg class="lines" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{html.escape(y_label)} against {html.escape(x_label)}">'
    ]
    for tick in ticks(y0, y1):
        _, py = place(x0, tick)
        parts.append(
            f'<line class="axis" x1="{left}" x2="{width - right}" y1="{py:.1f}" '
            f'y2="{py:.1f}"/><text x="{left - 6}" y="{py + 4:.1f}" '
            f'text-anchor="end">{tick:g}</text>'
        )
    for tick in ticks(x0, x1, 7):
        px, _ = place(tick, y0)
        parts.append(
            f'<text x="{px:.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick:g}</text>'
        )
    for number, (name, line) in enumerate(series.items()):
        colour = f"var(--s{number % 4 + 1})"
        kept = [place(x, y) for x, y in line if np.isfinite(y)]
        if not kept:
            continue
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in kept)
        dots = "".join(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{colour}"/>' for px, py in kept
        )
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'
        )
        end_x, end_y = kept[-1]
        parts.append(
            f'<text x="{end_x + 8:.1f}" y="{end_y + 4:.1f}" style="fill:{colour}">'
            f"{html.escape(name)}</text>"
        )
    middle = left + (width - left - right) / 2
    parts.append(
        f'<text x="{middle}" y="{height - 6}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    parts.append(
        f'<text transform="translate(13 {height / 2 - 10}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(y_label)}</text></svg>'
    )
    return "".join(parts)


def page(
    title: str, lead: str, sections: Sequence[tuple[str, str]], *, style: str = "", script: str = ""
) -> str:
    """A page of (heading, HTML) sections. style, script: added to the page's own."""
    body = "".join(
        f"<section><h2>{html.escape(h)}</h2>{content}</section>" for h, content in sections
    )
    script = f"<script>{script}</script>" if script else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>"
        f'<h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{body}{script}'
        "</body></html>"
    )


def write_page(path: Path, title: str, lead: str, sections: Sequence[tuple[str, str]]) -> None:
    """Such a page as a file; written beside the target, then renamed."""
    partial = path.with_suffix(".partial")
    partial.write_text(page(title, lead, sections), encoding="utf-8")
    partial.replace(path)
