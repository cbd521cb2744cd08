"""The report of a study: one page that needs nothing from outside, and its charts as PNG files.

It is made of the records alone, so it can be written while the study runs and after its data are
gone.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rayhmr.config import TuneJob
from rayhmr.data.schema import DatasetInfo
from rayhmr.report import page
from rayhmr.storage import Folder
from rayhmr.study import TrialRecord
from rayhmr.study_sections import (
    CrossIteration,
    Section,
    cost_section,
    cross_section,
    curves_section,
    effects_section,
    iterations_section,
    paragraph,
    settings_section,
)
from rayhmr.study_space import check_space, trials_of, with_settings
from rayhmr.study_statistics import best_record
from rayhmr.study_table import SORTING, STYLE, trials_table
from rayhmr.study_words import label_of, settings_in_words, summary
from rayhmr.train import score_of

REPORT, PLOTS = "report.html", "plots"
SEARCHERS = {"optuna": "Optuna's TPE", "random": "random search", "grid": "a grid"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured after the search, if it was.

    people: trial to the error in mm of each person of `split`, the same people in the same order
    for the best and the default trial. cross: every trained model at other T. hardware: what the
    study ran on.
    """

    people: Mapping[str, Sequence[float]] = field(default_factory=dict)
    split: str = "test"
    cross: Sequence[CrossIteration] = ()
    hardware: str = ""


def best_yaml(job: TuneJob, settings: Mapping[str, Any]) -> str:
    """The settings of a trial as a file that jobs/train.py takes."""
    trial = with_settings(job.trial, dict(settings))
    tree = trial.model_dump(
        mode="json", include={"encoder_from", "data", "body", "model", "train", "scaling"}
    )
    return yaml.safe_dump(tree, sort_keys=False)


def _best(job: TuneJob, best: TrialRecord | None, folder: Folder) -> Section:
    heading = "Best settings"
    if best is None:
        return Section(heading=heading, text=paragraph("None yet."))
    command = f"python jobs/train.py --config {folder.location}/best.yaml name={job.name}-best"
    text = (f"best.yaml holds the whole configuration of trial {best.trial} "
            f"({settings_in_words(best.settings)}). This trains it:")  # fmt: skip
    return Section(heading=heading, text=(
        f"{paragraph(text)}<pre><code>{html.escape(command)}</code></pre>"
        f"<details open><summary>best.yaml</summary><pre><code>"
        f"{html.escape(best_yaml(job, best.settings))}</code></pre></details>"
    ))  # fmt: skip


def write_report(
    folder: Folder, records: Sequence[TrialRecord], job: TuneJob, info: DatasetInfo,
    measured: Measured | None = None,
) -> str:  # fmt: skip
    """Write report.html and plots/*.png into the study's folder; the page's place.

    It may be called at any time: a study that has not ended, or in which every trial failed, has a
    page too, which says so.
    """
    measured = measured or Measured()
    best = best_record(records, score_of(job.trial))
    name = best.trial if best else None
    planned = max(len(records), trials_of(job, check_space(job)))
    said = summary(records, job, best, measured.people, measured.split, planned)
    sections = [
        Section(heading="Summary", text="".join(map(paragraph, said))),
        iterations_section(records, job),
        *([cross_section(measured.cross, job)] if measured.cross else []),
        settings_section(records, job, name),
        effects_section(records, job),
        curves_section(records, job, name),
        Section(heading="All trials", text=trials_table(records, job)),
        cost_section(records, job, measured.hardware),
        _best(job, best, folder),
    ]
    lead = (
        f"Search by {label_of(job)} on the validation split: {info.rows('val')} people of "
        f"{info.source} data (fingerprint {info.fingerprint[:12]}); "
        f"{SEARCHERS[job.searcher]}, {'with' if job.scheduler == 'asha' else 'without'} early "
        "stopping by successive halving."
    )
    for section in sections:
        if section.chart is not None:
            folder.write(f"{PLOTS}/{section.name}.png", section.chart.png())
    content = page(
        f"Study {job.name}", lead, [(s.heading, s.html()) for s in sections], style=STYLE,
        script=SORTING,
    )  # fmt: skip
    folder.write(REPORT, content.encode())
    return folder.at(REPORT)
