"""Errors of a model on held-out people, at every number of iterations, beside the mean pose's.

The mean pose is fitted on the training split of the same data set. Without its error, that of a
model says nothing: a constant answer already reaches about 140 mm of PA-MPJPE on varied poses.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hmr.body import Body
from hmr.errors import DataError
from hmr.metrics import METRICS, MeanPoseBaseline, person_errors
from hmr.predictor import Predictor
from hmr.structures import Batch, Prediction
from rayhmr.config import EvaluateJob
from rayhmr.data.batches import read_batches, read_tables, smpl_labels
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.pinned_model import PinnedModel
from rayhmr.report import text_table
from rayhmr.telemetry import say

BASELINE_METRICS = METRICS[:2]


@dataclass(frozen=True, kw_only=True)
class PeopleErrors:
    """Errors in millimetres of each of N people, in the order of the split.

    positions: (N,) which row of the split; people without SMPL labels are left out.
    by_iteration: metric name to (T+1, N); row 0 is the start, before any refinement.
    baseline: metric name to (N,), of the mean pose.
    """

    positions: Tensor
    by_iteration: dict[str, Tensor]
    baseline: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.positions)

    def ranked(self, metric: str = "pa_mpjpe_mm") -> list[int]:
        """Rows of the split from the best to the worst final `metric`."""
        order = self.by_iteration[metric][-1].argsort(stable=True)
        return [int(position) for position in self.positions[order]]


def evaluate_samples(
    predict: Callable[[Tensor], Prediction],
    batches: Iterable[Batch],
    body: Body,
    baseline: MeanPoseBaseline,
) -> PeopleErrors:
    """Errors of every labelled person of `batches`.

    predict: images (B, 3, S, S) uint8 to the prediction of every iteration. DataError when nobody
    is labelled.
    """
    positions, model_errors, mean_errors = [], [], []
    seen = 0
    for batch in batches:
        rows = batch.has_smpl.nonzero()[:, 0]
        positions.append(seen + rows)
        seen += len(batch)
        if len(rows) == 0:
            continue
        rotmats, betas = batch.rotmats[rows], batch.betas[rows]
        with torch.inference_mode():
            steps = [step[rows].float() for step in predict(batch.images).iterations]
            errors = [person_errors(step, rotmats, betas, body) for step in steps]
            mean_errors.append(baseline.errors(body.joints_only(rotmats, betas)))
        model_errors.append({name: torch.stack([e[name] for e in errors]) for name in METRICS})
    if not model_errors:
        raise DataError(
            f"none of the {seen} people has SMPL labels (has_smpl), so there is no truth to "
            "measure against; evaluate on a split with labels"
        )
    return PeopleErrors(
        positions=torch.cat(positions),
        by_iteration={n: torch.cat([e[n] for e in model_errors], dim=1) for n in METRICS},
        baseline={n: torch.cat([e[n] for e in mean_errors]) for n in BASELINE_METRICS},
    )


def summary(errors: PeopleErrors) -> dict[str, Any]:
    """Means over people, their ratios to the mean pose's, and one row for each iteration."""
    baseline = {name: float(values.double().mean()) for name, values in errors.baseline.items()}
    table = []
    for number in range(len(errors.by_iteration["mpjpe_mm"])):
        row: dict[str, Any] = {"n_iter": number}
        for name, values in errors.by_iteration.items():
            row[name] = float(values[number].double().mean())
        for name in BASELINE_METRICS:
            row[name.replace("_mm", "_ratio")] = row[name] / baseline[name]
        table.append(row)
    final = {name: value for name, value in table[-1].items() if name != "n_iter"}
    return {
        "count": len(errors),
        "n_iter": table[-1]["n_iter"],
        **final,
        **{f"baseline_{name}": value for name, value in baseline.items()},
        "by_iteration": table,
    }


def mean_pose(info: DatasetInfo) -> MeanPoseBaseline:
    """The mean joints of the data set's training people; DataError without SMPL labels."""
    if not info.statistics["labelled"]:
        raise DataError(
            f"{info.location}: no training person has SMPL labels, so there is no mean pose to "
            "compare with; prepare a data set with labels"
        )
    return MeanPoseBaseline([torch.tensor(info.statistics["mean_joints"])[None]])


def baseline_means(info: DatasetInfo, split: str, body: Body) -> dict[str, float]:
    """Mean errors in millimetres of the mean pose on a split; nothing without labelled people."""
    if not info.statistics["labelled"]:
        return {}
    baseline, accumulated, count = mean_pose(info), dict.fromkeys(BASELINE_METRICS, 0.0), 0
    for table in read_tables(info, split, 500):
        rotmats, betas = smpl_labels(table)
        if len(betas) == 0:
            continue
        errors = baseline.errors(body.joints_only(rotmats, betas))
        count += len(betas)
        for name in BASELINE_METRICS:
            accumulated[name] += float(errors[name].double().sum())
    return {name: total / count for name, total in accumulated.items()} if count else {}


def _write(output: Path, results: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rows = results["by_iteration"]
    with (output / "by_iteration.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def open_model(job: EvaluateJob, info: DatasetInfo) -> tuple[PinnedModel, Predictor]:
    """The model of the job, on a GPU when there is one; DataError when it has another body than
    the data set."""
    pinned = PinnedModel.of(job.model, job.body)
    predictor = pinned.load("cuda" if torch.cuda.is_available() else "cpu")
    ours = predictor.body.arrays.content_hash()
    if ours != info.body["hash"]:
        raise DataError(
            f"{job.data}: its labels belong to the body {info.body['name']!r} "
            f"({info.body['hash'][:12]}…), the model to {predictor.body.arrays.name!r} "
            f"({ours[:12]}…); evaluate on data prepared with the model's body"
        )
    return pinned, predictor


def measure(
    predictor: Predictor, info: DatasetInfo, split: str, *, batch_size: int
) -> PeopleErrors:
    """Errors of every labelled person of a split."""
    batches = read_batches(
        info, split, batch_size=batch_size, image_size=predictor.image_size, threads=2
    )
    on_device = (batch.to(predictor.device) for batch in batches)
    return evaluate_samples(predictor.predict_crops, on_device, predictor.body, mean_pose(info))


def evaluate(job: EvaluateJob) -> dict[str, Any]:
    """Measure a model on a split, in this process and on its GPU when it has one.

    BundleError for a model that is none, DataError for a data set that does not fit it.
    """
    info = read_info(job.data)
    rows = info.rows(job.split)
    pinned, predictor = open_model(job, info)
    say(f"{rows} people of the {job.split} split of {job.data}; model {pinned.reference}")
    start = time.perf_counter()
    errors = measure(predictor, info, job.split, batch_size=job.batch_size)
    seconds = time.perf_counter() - start
    results = summary(errors) | {
        "model": pinned.reference, "model_sha256": pinned.sha256, "split": job.split,
        "data_fingerprint": info.fingerprint, "joints": "smpl24",
        "images_per_s": round(rows / seconds, 1),
    }  # fmt: skip
    say(text_table(results["by_iteration"]))
    say(
        "mean pose of the training people: "
        + ", ".join(f"{name} {results[f'baseline_{name}']:.1f}" for name in BASELINE_METRICS)
    )
    if job.output is not None:
        _write(Path(job.output), results)
        say(f"wrote {Path(job.output).absolute()}")
    return results
