"""What is measured once a study's trials have ended: its models on people that no trial has seen.

The search chose by the validation split, whose best value flatters the chosen; so the best and the
default settings are compared on the test split, person by person. A model can refine with another T
than it was trained with: the start of a long refinement is a short one, and one pass gives all.
"""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hmr.body import Body
from hmr.checkpoint import load_model_weights
from hmr.model import HMR, build_model
from rayhmr.config import TuneJob
from rayhmr.data.batches import read_batches
from rayhmr.data.schema import DatasetInfo
from rayhmr.iterations_table import iterations_table
from rayhmr.people_errors import PeopleErrors, evaluate_samples
from rayhmr.run_checkpoints import best_epoch
from rayhmr.storage import Folder
from rayhmr.study import TRIALS, TrialRecord
from rayhmr.study_report import Measured
from rayhmr.study_sections import CrossIteration
from rayhmr.study_space import with_settings
from rayhmr.study_statistics import compare, default_record
from rayhmr.study_words import label_of
from rayhmr.telemetry import say
from rayhmr.train import score_of

CROSS, TABLE = "cross_iterations.csv", "iterations.md"
BATCH_SIZE = 128


def held_out_split(info: DatasetInfo) -> str:
    """`test`; `val` for a data set without one."""
    return "test" if info.files.get("test") else "val"


def trained_model(job: TuneJob, folder: Folder, record: TrialRecord) -> HMR:
    """The model of a trial as its best epoch left it."""
    trial = with_settings(job.trial, record.settings)
    checkpoint, _ = best_epoch(Folder(folder.at(f"{TRIALS}/{record.trial}")), score_of(trial))
    model = build_model(trial.model)
    load_model_weights(checkpoint, model)
    return model.eval()


def people_errors(
    model: HMR, body: Body, info: DatasetInfo, split: str, n_iter: int
) -> PeopleErrors:
    """Errors of every labelled person of a split at each of `n_iter` steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, body = model.to(device), body.to(device)
    batches = read_batches(info, split, batch_size=BATCH_SIZE, image_size=model.image_size)
    return evaluate_samples(
        lambda images: model(images, n_iter), (batch.to(device) for batch in batches), body, None
    )


def measure_study(
    job: TuneJob, folder: Folder, records: Sequence[TrialRecord], best: TrialRecord,
    info: DatasetInfo,
) -> Measured:  # fmt: skip
    """Per-person errors of the best and the default trial, and those of every finished one at other
    T where `evaluate_iterations` asks for it, which become cross_iterations.csv and iterations.md.
    """
    split, body = held_out_split(info), Body.from_config(job.trial.body)
    metric = job.trial.select_by
    compared = {best.trial}
    if (default := default_record(records, job)) is not None and default.status == "finished":
        compared.add(default.trial)
    finished = [r for r in records if r.status == "finished"]
    wanted = [r for r in finished if job.evaluate_iterations or r.trial in compared]
    say(f"measuring {len(wanted)} models on {info.rows(split)} people of the {split} split")
    people: dict[str, list[float]] = {}
    cross: list[CrossIteration] = []
    for record in wanted:
        model = trained_model(job, folder, record)
        trained = model.regressor.n_iter
        errors = people_errors(
            model, body, info, split, max(trained, *job.evaluate_iterations, 1)
        ).by_iteration[metric]
        if record.trial in compared:
            people[record.trial] = errors[trained].tolist()
        cross += [
            CrossIteration(
                trial=record.trial, trained=trained, evaluated=used,
                error_mm=float(errors[used].double().mean()),
            )
            for used in job.evaluate_iterations
        ]  # fmt: skip
    if cross:
        folder.write(CROSS, _csv(cross, metric, split))
        note = _budget(job, info, split, finished)
        folder.write(TABLE, f"{iterations_table(cross)}\n\n{note}\n".encode())
    return Measured(people=people, split=split, cross=cross, hardware=hardware())


def held_out(
    job: TuneJob, records: Sequence[TrialRecord], best: TrialRecord, measured: Measured
) -> dict[str, Any]:
    """The best trial against the default settings, as the report says it; for scripts."""
    found: dict[str, Any] = {"split": measured.split, "metric": job.trial.select_by}
    for name, errors in measured.people.items():
        found[name] = round(float(np.mean(errors)), 3)
    default = default_record(records, job)
    if default is None or default.trial == best.trial:
        return found
    compared = compare(records, job, best, default, measured.people)
    if compared is None:
        return found
    gap = compared.difference
    return found | {
        "default": default.trial, "paired_by": compared.method, "verdict": compared.verdict,
        "difference_mm": [round(value, 3) for value in (gap.value, gap.low, gap.high)],
    }  # fmt: skip


def _csv(cross: Sequence[CrossIteration], metric: str, split: str) -> bytes:
    content = io.StringIO()
    writer = csv.writer(content)
    writer.writerow(["trial", "trained_n_iter", "n_iter", "split", metric])
    writer.writerows(
        [entry.trial, entry.trained, entry.evaluated, split, entry.error_mm] for entry in cross
    )
    return content.getvalue().encode()


def _budget(job: TuneJob, info: DatasetInfo, split: str, finished: Sequence[TrialRecord]) -> str:
    """What the table is about, and what it cost."""
    trial, seconds = job.trial, sum(record.seconds for record in finished)
    return (
        f"{label_of(job)} in mm on {info.rows(split)} {info.source} people of the {split} "
        f"split; mean ± 95 % t interval over trainings. Each: {trial.model.encoder} encoder at "
        f"{trial.model.image_size} px, {trial.train.epochs} epochs of "
        f"{info.rows('train', trial.data.train_fraction)} people, {seconds / len(finished):.0f} s. "
        f"Hardware: {hardware()}."
    )


def hardware() -> str:
    """What this machine is, in a few words."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join([*gpus, f"{os.cpu_count()} CPU cores", platform.machine()])
