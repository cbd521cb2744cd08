"""The sheet of pictures in a browser page: cards, their filters, and the enlarged view."""

from __future__ import annotations

import html

import numpy as np

from rayhmr.browse_contents import (
    LAYERS,
    Contents,
    amount,
    attribute,
    metric_name,
    picture,
    select,
)
from rayhmr.browse_people import People


def _facts(people: People, row: int) -> str:
    known = {
        "source": people.sources[row], "split": people.splits[row],
        "subject": people.subjects[row],
        **{metric_name(name): amount(values[row], "mm")
           for name, values in people.errors.items()},
        "box": amount(people.box_px[row], "px"), "heading": amount(people.heading[row], "°"),
        "lean": amount(people.lean[row], "°"),
        "mean joint angle": amount(people.bend[row], "°"),
    }  # fmt: skip
    return "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(text))}</dd>"
        for name, text in known.items() if str(text) not in ("", "–")
    )  # fmt: skip


def _card(contents: Contents, row: int) -> str:
    people, tags = contents.people, contents.tags.get(row, ())
    images = "".join(
        picture(content, LAYERS[name], name) for name, content in contents.pictures[row].items()
    )
    badges = [word for tag, word in (("across", "in two splits"), ("within", "double"),
                                     ("worst", "worst")) if tag in tags]  # fmt: skip
    error = people.error[row]
    line = [
        people.sources[row],
        people.splits[row],
        *([f"{error:.0f} mm"] if np.isfinite(error) else []),
    ]
    below = "".join(f' <b class="badge">{word}</b>' for word in badges)
    return (
        f'<li data-id="{html.escape(people.ids[row])}" '
        f'data-source="{html.escape(people.sources[row])}" data-split="{people.splits[row]}" '
        f'data-subject="{html.escape(people.subjects[row])}" data-error="{attribute(error)}" '
        f'data-box="{attribute(people.box_px[row])}" data-bend="{attribute(people.bend[row])}" '
        f'data-tags="{html.escape(" ".join(tags))}">'
        f'<button class="card" aria-label="{html.escape(people.ids[row])}, enlarge">{images}'
        f"<span>{html.escape(' · '.join(filter(None, line)))}{below}</span></button>"
        f"<template>{_facts(people, row)}</template></li>"
    )


def sheet(contents: Contents) -> str:
    """Everybody with a picture."""
    people = contents.people
    cards = contents.sheet
    layers = {name for row in cards for name in contents.pictures[row]}
    every = {"": "all"}
    sort = {"": "as drawn", "box": "largest box", "bend": "most bent"}
    slider = ""
    if people.ranked_by is not None:
        sort = {"": "as drawn", "error": "largest error", **sort}
        largest = int(np.ceil(np.nanmax(people.error[list(cards)], initial=1.0)))
        slider = (
            '<label><span id="least">at least 0 mm</span>'
            f'<input type="range" name="error" aria-label="error at least" min="0" '
            f'max="{largest}" value="0" step="1"></label>'
        )
    splits = {s: s for s in ("train", "val", "test") if (people.splits == s).any()}
    sources = {s: s for s in sorted(set(people.sources.tolist()))}
    first = [*[n for n in ("truth", "prediction") if n in layers], *LAYERS]
    shown = {name: LAYERS[name] for name in dict.fromkeys(first) if name in layers}
    return (
        '<div id="sheet"></div><p>A sample, evenly from each source and split, and whoever a '
        "finding or a bar leads to. Press a picture to enlarge it; the arrow keys go on.</p>"
        f'<form id="filters" class="filters">{select("layer", "show", shown)}'
        f"{select('source', 'source', every | sources)}{select('split', 'split', every | splits)}"
        f"{slider}{select('sort', 'order', sort)}"
        '<label>id or subject<input type="search" name="words"></label>'
        '<button type="button" id="clear" hidden>show all</button></form>'
        '<p id="count" tabindex="-1" aria-live="polite"></p>'
        f'<ul id="cards">{"".join(_card(contents, row) for row in cards)}</ul>'
        '<dialog id="large" aria-labelledby="name"><div class="bar"><strong id="name"></strong>'
        '<button type="button" id="before">← before</button>'
        '<button type="button" id="after">next →</button>'
        '<button type="button" id="close">close</button></div>'
        '<div id="big" class="big"></div><dl id="facts"></dl></dialog>'
    )
