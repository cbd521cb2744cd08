"""The parts of a study's page that show the records: charts, tables, and what they rest on.

What the records do not show is not drawn, and the part says why.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rayhmr.chart import Chart
from rayhmr.config import TuneJob
from rayhmr.halving import rungs
from rayhmr.report import html_table
from rayhmr.study import TrialRecord
from rayhmr.study_charts import (
    Iterations,
    Path,
    curves_chart,
    effects_chart,
    iterations_chart,
    matrix_chart,
    parallel_chart,
)
from rayhmr.study_effects import CHANCE, LEAST_TRIALS, main_effects, sampled
from rayhmr.study_statistics import (
    SEED,
    default_record,
    mean_interval,
    resolved,
    score,
    scores_by_seed,
)
from rayhmr.study_words import label_of
from rayhmr.train import score_of

ITERATIONS = "model.n_iter"


@dataclass(frozen=True, kw_only=True)
class CrossIteration:
    """Error in mm of one finished trial, trained with one T and evaluated with another."""

    trial: str
    trained: int
    evaluated: int
    error_mm: float


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page. chart: also written as plots/<name>.png."""

    heading: str
    text: str
    name: str = ""
    chart: Chart | None = None

    def html(self) -> str:
        drawn = f'<div class="wide">{self.chart.inline()}</div>' if self.chart else ""
        return drawn + self.text


def paragraph(text: str) -> str:
    """A sentence or more as HTML."""
    return f"<p>{html.escape(text)}</p>"


def _mm(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def iterations(records: Sequence[TrialRecord], job: TuneJob) -> list[Iterations]:
    """The finished trials of each T, rising; with intervals over seeds where all finished trials
    differ in nothing but T and the seed."""
    metric = score_of(job.trial)
    values = {r.trial: resolved(r, job) for r in records}
    others = {
        repr([v for path, v in values[r.trial].items() if path not in (ITERATIONS, SEED)])
        for r in records
        if score(r, metric) is not None
    }
    tried = {values[r.trial][ITERATIONS] for r in records}
    rows = []
    for n_iter in sorted(tried.union(job.space[ITERATIONS].choice or ())):
        here = [r for r in records if values[r.trial][ITERATIONS] == n_iter]
        done = [r for r in here if score(r, metric) is not None]
        seeds = list(scores_by_seed(records, job, done[0]).values()) if done else []
        rows.append(
            Iterations(
                n_iter=int(n_iter),
                scores={r.trial: s for r in done if (s := score(r, metric)) is not None},
                interval=mean_interval(seeds) if len(seeds) > 1 and len(others) == 1 else None,
                stopped=sum(r.status == "stopped" for r in here),
            )
        )
    return rows


def iterations_section(records: Sequence[TrialRecord], job: TuneJob) -> Section:
    """Error against T."""
    heading, label = f"{label_of(job)} against T", f"{label_of(job)}, mm"
    if ITERATIONS not in job.space:
        why = f"{ITERATIONS} was not searched: all trials have T = {job.trial.model.n_iter}."
        return Section(heading=heading, text=paragraph(why))
    rows = iterations(records, job)
    if not any(row.scores for row in rows):
        return Section(heading=heading, text=paragraph("No trial was trained to its end yet."))
    text = (
        "One point for each trial that was trained to its end, the best of each T filled. Other "
        "settings differ too, so this is no effect of T alone, and the best of many trials is "
        "lower by chance than the best of few. In brackets: trials that were stopped early."
    )
    over_seeds = any(row.interval for row in rows)
    if over_seeds:
        text = ("Mean and 95 % t interval over the seeds of each T; rings are single trainings. "
                "All other settings are the same.")  # fmt: skip
    table: list[dict[str, Any]] = []
    for row in rows:
        best = min(row.scores.values(), default=None)
        cells = {"T": row.n_iter, "n": len(row.scores), "stopped": row.stopped,
                 "best, mm": _mm(best)}  # fmt: skip
        if over_seeds:
            found = row.interval
            cells["mean, mm"] = _mm(found.value) if found else None
            cells["95 % interval"] = f"{found.low:.1f} to {found.high:.1f}" if found else None
        table.append(cells)
    chart = iterations_chart(rows, label)
    return Section(heading=heading, text=paragraph(text) + html_table(table), name="iterations",
                    chart=chart)  # fmt: skip


def cross_section(cross: Sequence[CrossIteration], job: TuneJob) -> Section:
    """The matrix of trained and used T."""
    cells: dict[tuple[int, int], list[float]] = {}
    for entry in cross:
        cells.setdefault((entry.trained, entry.evaluated), []).append(entry.error_mm)
    rows = []
    for here in sorted({trained for trained, _ in cells}):
        row: dict[str, Any] = {"trained T": here}
        for there in sorted({evaluated for _, evaluated in cells}):
            values = cells.get((here, there), [])
            text = f"{sum(values) / len(values):.1f}" if values else None
            if text and len(values) > 1:
                interval = mean_interval(values)
                text += f" ± {interval.high - interval.value:.1f}"
            row[f"T = {there}"] = text
        rows.append(row | {"n": len({e.trial for e in cross if e.trained == here})})
    text = (
        "Rows: the T a model was trained with. Columns: the T it was used with; the lowest of each "
        "row is framed. In the table ± is the 95 % t interval over n trainings."
    )
    return Section(
        heading="Other T than trained", text=paragraph(text) + html_table(rows),
        name="cross_iterations", chart=matrix_chart(cells, label_of(job)),
    )  # fmt: skip


def settings_section(records: Sequence[TrialRecord], job: TuneJob, best: str | None) -> Section:
    """Parallel coordinates of all trials."""
    heading = "Settings"
    space = {path: dimension for path, dimension in job.space.items() if path != SEED}
    if not space or not records:
        why = "No settings were searched." if records else "No trial was begun."
        return Section(heading=heading, text=paragraph(why))
    metric = score_of(job.trial)
    paths = [
        Path(trial=r.trial, settings=resolved(r, job), score=score(r, metric),
             best=r.trial == best)
        for r in records
    ]  # fmt: skip
    text = ("One line a trial, from blue (lowest error) to orange; the best is thick. Trials that "
            "were stopped, failed or have not ended are grey and end before the error, because "
            "they have no final one.")  # fmt: skip
    return Section(heading=heading, text=paragraph(text), name="settings",
                    chart=parallel_chart(paths, space, f"{label_of(job)}, mm"))  # fmt: skip


def effects_section(records: Sequence[TrialRecord], job: TuneJob) -> Section:
    """What each setting explains, or why that is not shown."""
    heading, count = "Which settings matter", len(sampled(records, score_of(job.trial)))
    effects = main_effects(records, job)
    if not effects:
        return Section(heading=heading, text=paragraph(
            f"Not shown: it would rest on {count} trials, and below {LEAST_TRIALS} chance explains "
            "as much as any setting."
        ))  # fmt: skip
    clear = [effect.path for effect in effects if effect.clear]
    found = (
        f"More than chance: {', '.join(clear)}." if clear else
        "No setting explains more than chance does; more trials may show what these do not."
    )  # fmt: skip
    text = (
        f"This rests on {count} trials that ended{', which is few' if count < 50 else ''}. "
        f"{found} A bar is the share of the trials' ranks that a setting explains by itself, "
        "as a parabola over its values or as means of its choices; trials stopped at a rung rank "
        "behind those that went on. The mark is the share that shuffled ranks stay below; "
        f"with probability {100 * CHANCE:.0f} % any of the settings passes its mark without an "
        "effect. A searcher that draws more often near good values makes the settings depend "
        "on one another, so effects can be shared."
    )
    return Section(
        heading=heading, text=paragraph(text), name="effects", chart=effects_chart(effects)
    )


def curves_section(records: Sequence[TrialRecord], job: TuneJob, best: str | None) -> Section:
    """Error by epoch."""
    heading, metric = "Learning curves", score_of(job.trial)
    known = [r for r in records if any(math.isfinite(e.get(metric, math.nan)) for e in r.history)]
    if not known:
        return Section(heading=heading, text=paragraph("No epoch has been validated yet."))
    epochs = job.trial.train.epochs
    marks = rungs(job.grace_epochs, job.reduction_factor, epochs) if job.scheduler == "asha" else []
    default = default_record(records, job)
    chart, limit = curves_chart(
        known, metric, f"{label_of(job)}, mm", epochs=epochs, rungs=marks, best=best,
        default=default.trial if default else None,
    )  # fmt: skip
    text = "Validation error after each epoch. Trials that were stopped or failed are grey."
    if marks:
        text += (f" Dashed: the rungs (epoch {', '.join(map(str, marks))}), where one trial in "
                 f"{job.reduction_factor} goes on.")  # fmt: skip
    if limit is not None:
        text += f" Errors above {limit:.0f} mm are drawn at the upper edge."
    return Section(heading=heading, text=paragraph(text), name="curves", chart=chart)


def cost(records: Sequence[TrialRecord], job: TuneJob) -> dict[str, float]:
    """Trial-epochs and seconds of trials so far, and of the full grid: each of these trials trained
    to its end. The grid's seconds are those of as many epochs at the study's own speed."""
    used = sum(record.epochs for record in records)
    full = len(records) * job.trial.train.epochs
    seconds = sum(record.seconds for record in records)
    return {"epochs": used, "full_epochs": full, "seconds": seconds,
            "full_seconds": seconds * full / used if used else math.nan}  # fmt: skip


def cost_section(records: Sequence[TrialRecord], job: TuneJob, hardware: str) -> Section:
    """What was trained, against the full grid."""
    found = cost(records, job)
    if not found["epochs"]:
        return Section(heading="Cost", text=paragraph("No epoch was trained yet."))
    share = found["epochs"] / found["full_epochs"]
    rows = [
        {"": "trial-epochs", "used": int(found["epochs"]), "full grid": int(found["full_epochs"]),
         "share": f"{100 * share:.0f} %"},
        {"": "seconds of trials", "used": round(found["seconds"]),
         "full grid": f"about {found['full_seconds']:.0f}", "share": f"{100 * share:.0f} %"},
    ]  # fmt: skip
    text = (f"The full grid is each of the {len(records)} trials trained for all "
            f"{job.trial.train.epochs} epochs; its seconds are an estimate at this study's seconds "
            "an epoch. Trials run side by side, so the clock showed less.")  # fmt: skip
    if hardware:
        text += f" Hardware: {hardware}."
    return Section(heading="Cost", text=html_table(rows) + paragraph(text))
