"""All trials of a study as a table that a reader can sort, also without JavaScript readable."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from rayhmr.chart import number
from rayhmr.config import TuneJob
from rayhmr.study import TrialRecord
from rayhmr.study_statistics import best_record, resolved, score
from rayhmr.train import score_of

STYLE = """
.sort th button { all: unset; cursor: pointer; }
.sort th button:focus-visible { outline: 2px solid; }
.sort th[aria-sort=ascending] button::after { content: " ↑"; }
.sort th[aria-sort=descending] button::after { content: " ↓"; }
.sort th { white-space: normal; vertical-align: bottom; }
.sort .words { text-align: left; white-space: normal; min-width: 44rem; }
.sort .early { color: var(--soft); font-style: italic; } .sort .best { font-weight: 600; }
summary { cursor: pointer; color: var(--soft); }
"""

SORTING = """
for (const table of document.querySelectorAll("table.sort")) {
  const body = table.tBodies[0], heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value;
      body.append(...[...body.rows].sort((one, two) => {
        const a = key(one), b = key(two);
        if (a === "" || b === "") return (a === "") - (b === "");
        return sign * (isNaN(a - b) ? a.localeCompare(b) : a - b);
      }));
    });
  });
}
"""
"""Sorts by the column whose heading is pressed, once more for the other way; what is missing stays
at the end."""

_ORDER = {"finished": 0, "stopped": 1, "running": 2, "failed": 3}


def table_rows(records: Sequence[TrialRecord], job: TuneJob) -> list[dict[str, Any]]:
    """One row a trial: the finished ones from the best, then the stopped from the longest trained,
    then the others. Errors are those of the last epoch."""
    metric = score_of(job.trial)
    errors = sorted({name for r in records for row in r.history for name in row
                     if name.startswith("val/") and name.endswith("_mm") and "best" not in name},
                    key=lambda name: (name != metric, name))  # fmt: skip

    def place(record: TrialRecord) -> tuple[int, int, float, int]:
        last = record.history[-1].get(metric, math.inf) if record.history else math.inf
        last = last if math.isfinite(last) else math.inf
        return _ORDER[record.status], -record.epochs, last, record.number

    return [
        {"trial": r.trial, "status": r.status, "epochs": r.epochs}
        | {name.removeprefix("val/"): r.history[-1].get(name) if r.history else None
           for name in errors}
        | resolved(r, job)
        | {"seconds": r.seconds, "reason": r.reason or (
            "" if r.settings else "the default settings")}
        for r in sorted(records, key=place)
    ]  # fmt: skip


def trials_table(records: Sequence[TrialRecord], job: TuneJob) -> str:
    """The rows as HTML. The best trial is bold; errors of trials without a final one are slanted,
    because they are early ones."""
    rows = table_rows(records, job)
    if not rows:
        return "<p>No trial was begun.</p>"
    best = best_record(records, score_of(job.trial))
    final = {r.trial for r in records if score(r, score_of(job.trial)) is not None}
    head = "".join(
        f"<th{_kind(name)}>{html.escape(name).replace('.', '.<wbr>')}</th>" for name in rows[0]
    )
    body = "".join(
        f'<tr class="{"best" if best and row["trial"] == best.trial else ""}">'
        + "".join(_cell(name, value, row["trial"] in final) for name, value in row.items())
        + "</tr>"
        for row in rows
    )
    return (
        "<p>Press a heading to sort. Errors are those of the last epoch on the validation split, "
        "slanted where that is not the trial's end.</p>"
        f'<div class="wide"><table class="sort"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _kind(name: str) -> str:
    return ' class="words"' if name == "reason" else ""


def _cell(name: str, value: Any, final: bool) -> str:
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    if missing:
        text = "–"
    elif name.endswith("_mm"):
        text = f"{value:.1f}"
    elif name == "seconds":
        text = f"{value:.0f}"
    else:
        text = number(value) if isinstance(value, float) else str(value)
    attribute = ' class="early"' if name.endswith("_mm") and not final else _kind(name)
    key = "" if missing else html.escape(str(value))
    return f'<td{attribute} data-value="{key}">{html.escape(text)}</td>'
