"""The browser's page: findings, distributions, who is worst, doubles, rejections, pictures."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from hmr.crops import encode_jpeg
from hmr.render_errors import color_bar
from rayhmr.browse_cards import sheet
from rayhmr.browse_charts import histogram, row_chart
from rayhmr.browse_contents import LAYERS, Contents, link, metric_name, picture, select
from rayhmr.browse_drawn import HEAT_MM
from rayhmr.browse_shards import Rejected
from rayhmr.chart import Chart
from rayhmr.report import html_table, page


def _inline(chart: Chart) -> str:
    # Its bars are links, which an image would hide from a screen reader.
    svg = chart.inline().replace('role="img"', 'role="group"', 1)
    return f'<div class="wide">{svg}</div>'


def _worst(contents: Contents) -> tuple[str, str]:
    people, by = contents.people, contents.people.ranked_by
    if by is None:
        heading = f"The {len(contents.worst)} most unusual"
        text = (
            "No errors are known, so these are the people whose joints are turned farthest from "
            "rest: where predictions go wrong, many are here."
        )
    else:
        words = metric_name(by)
        heading, text = f"The worst {len(contents.worst)}", (
            f"By {words}. Blue is the prediction, green the ground truth; from the side both "
            "stand on one pelvis.")  # fmt: skip
        bar = np.rot90(color_bar(12, 240), -1)
        text += f" Errors from 0 to {HEAT_MM:.0f} mm: "
    scale = "" if by is None else picture(encode_jpeg(bar), "colours of errors", "scale")
    items = []
    for place, row in enumerate(contents.worst, 1):
        shown = contents.pictures[row]
        figures = "".join(
            f"<figure>{picture(shown[name], LAYERS[name])}<figcaption>{LAYERS[name]}</figcaption>"
            "</figure>"
            for name in ("photo", "prediction", "truth", "side", "error") if name in shown
        )  # fmt: skip
        numbers = [
            f"{metric_name(name)} {values[row]:.0f} mm"
            for name, values in people.errors.items()
            if np.isfinite(values[row])
        ]
        if by is None:
            numbers = [f"mean joint angle {people.bend[row]:.0f}°"]
        items.append(
            f"<li><h3>{place}. {link(f'row-{row}', people.ids[row], people.ids[row])}</h3>"
            f'<p class="lead">{html.escape(", ".join(numbers))}</p>'
            f'<div class="five">{figures}</div></li>'
        )
    return heading, (
        f'<div id="worst"><p>{html.escape(text)}{scale}</p><ol>{"".join(items)}</ol></div>'
    )


def _groups(contents: Contents, groups: Sequence[tuple[str, Sequence[int]]], total: int) -> str:
    parts = []
    for tag, rows in groups:
        pictured = [row for row in rows if row in contents.pictures]
        figures = "".join(
            f"<figure>{picture(contents.pictures[row]['photo'], 'photo')}"
            f"<figcaption>{html.escape(contents.people.ids[row])} "
            f"<b>{contents.people.splits[row]}</b></figcaption></figure>"
            for row in pictured
        )
        count = f"{len(rows)} pictures"
        parts.append(f'<li class="group">{link(tag, count + " that are the same", count)}'
                     f'<div class="strip">{figures}</div></li>')  # fmt: skip
    rest = f"<p>{total - len(groups)} more groups.</p>" if total > len(groups) else ""
    return f"<ul>{''.join(parts)}</ul>{rest}" if parts else ""


def _doubles(contents: Contents) -> str:
    found = contents.overlaps
    splits = set(contents.people.splits.tolist()) != {""}
    text = '<div id="doubles"></div>'
    if splits:
        text += (
            f"<h3>The same picture in several splits: {len(found.across)} groups</h3>"
            f"{_groups(contents, contents.across, len(found.across))}"
        )
    text += (
        f"<h3>The same picture {'within a split' if splits else 'again'}: "
        f"{len(found.within)} groups</h3>"
        f"{_groups(contents, contents.within, len(found.within))}"
    )
    if splits:
        text += f"<h3>Subjects in several splits: {len(found.subjects)}</h3>"
        if found.unnamed:
            text += f"<p>{found.unnamed} people have no subject and cannot be checked.</p>"
        table = []
        for number, ((source, subject), rows) in enumerate(found.subjects.items()):
            if number == 200:
                text += f"<p>The first 200 of {len(found.subjects)}.</p>"
                break
            counts = Counter(contents.people.splits[rows].tolist())
            table.append({"source": source, "subject": subject,
                          **{s: counts.get(s, 0) for s in ("train", "val", "test")}})  # fmt: skip
        text += html_table(table) if table else ""
    return text


def _rejections(rejected: Sequence[Rejected]) -> str:
    if not rejected:
        return '<div id="rejections"><p>Nothing was rejected.</p></div>'
    counts = Counter(row.reason for row in rejected)
    options = {"": f"all ({len(rejected)})"} | {r: f"{r} ({n})" for r, n in counts.most_common()}
    chosen = select("reason", "reason", options).replace("<select", '<select id="reason"')
    rows = "".join(
        f'<tr data-reason="{html.escape(r.reason)}"><td>{html.escape(r.id)}</td>'
        f"<td>{html.escape(r.reason)}</td><td>{html.escape(r.detail)}</td></tr>"
        for r in rejected
    )
    return (
        f'<div id="rejections"><form>{chosen}</form>'
        f'<p id="rejected-count" aria-live="polite">{len(rejected)} rows</p>'
        '<div class="rejected" tabindex="0" role="region" aria-label="rejected rows"><table>'
        "<thead><tr><th>id</th><th>reason</th><th>detail</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></div>"
    )


def _counts(contents: Contents) -> str:
    people = contents.people
    table = []
    for source, split in sorted(set(zip(people.sources, people.splits, strict=True))):
        here = (people.sources == source) & (people.splits == split)
        row = {"source": source, "split": split or "–", "people": int(here.sum()),
               "with SMPL labels": int(np.isfinite(people.heading[here]).sum()),
               "subjects": len(set(people.subjects[here]) - {""})}  # fmt: skip
        if people.ranked_by is not None:
            known = people.error[here & np.isfinite(people.error)]
            row["mean error, mm"] = float(known.mean()) if len(known) else None
        table.append(row)
    return html_table(table)


def browser_page(contents: Contents) -> str:
    """The whole page, which needs nothing from outside."""
    heading, worst = _worst(contents)
    drawn = "".join(
        f"<div><h3>{html.escape(m.title)}</h3>{_inline(histogram(m, contents.people))}</div>"
        for m in contents.measures
    ) + "".join(
        f"<div><h3>{html.escape(r.title)}</h3>{_inline(row_chart(r))}</div>" for r in contents.rows
    )
    parts = [
        ("Distributions", '<div id="distributions"></div><p>Of everybody, not of the sample. Press '
         f'a bar to see pictures of it.</p><div class="charts">{drawn}</div>'),
        (heading, worst),
        ("Doubles and leaks", _doubles(contents)),
        ("Rejected", _rejections(contents.rejected)),
        ("Pictures", sheet(contents)),
    ]  # fmt: skip
    names = ("distributions", "worst", "doubles", "rejections", "sheet")
    nav = "".join(f'<a href="#{name}">{html.escape(title)}</a>'
                  for name, (title, _) in zip(names, parts, strict=True))  # fmt: skip
    found = "".join(f"<li>{finding}</li>" for finding in contents.findings)
    overview = (
        f'<nav class="parts" aria-label="parts of the page">{nav}</nav>'
        f'<ul class="findings">{found}</ul>{_counts(contents)}'
    )
    static = files("rayhmr") / "static"
    return page(
        contents.title, contents.lead, [("What was found", overview), *parts],
        style=(static / "browse.css").read_text("utf-8"),
        script=(static / "browse.js").read_text("utf-8"),
    )  # fmt: skip
