"""Errors of a model on held-out people by a protocol, at every number of iterations.

Beside them stand those of the mean pose of the training people, where the protocol scores SMPL's
24 joints. Without them an error says nothing: a constant answer already reaches about 140 mm of
PA-MPJPE on varied poses.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from hmr.body import Body
from hmr.errors import DataError
from hmr.metrics import MeanPoseBaseline
from hmr.predictor import Predictor
from hmr.protocol_errors import Yardstick
from hmr.protocols import JOINT_SETS, PROTOCOLS
from rayhmr.config import EvaluateJob
from rayhmr.data.batches import decoded_ahead, read_tables, smpl_labels, to_batch
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.paper_table import markdown, metric_rows
from rayhmr.people_errors import (
    BASELINE_METRICS,
    PeopleErrors,
    evaluate_samples,
    intervals,
    people_rows,
    summary,
)
from rayhmr.pinned_model import PinnedModel
from rayhmr.storage import Folder
from rayhmr.telemetry import say

EVALUATION, PEOPLE_ERRORS = "evaluation.json", "people.csv"


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


def _write(output: Folder, results: dict[str, Any], tables: Mapping[str, list[Any]]) -> None:
    output.write(EVALUATION, (json.dumps(results, indent=2) + "\n").encode())
    for name, rows in tables.items():
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        output.write(name, text.getvalue().encode())


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
    predictor: Predictor,
    info: DatasetInfo,
    split: str,
    *,
    batch_size: int,
    yardstick: Yardstick | None = None,
) -> PeopleErrors:
    """Errors of every person of a split who takes part in the protocol and has its labels."""
    yardstick = yardstick or Yardstick(body=predictor.body)
    facts = pa.concat_tables(read_tables(info, split, 10_000, ("sample_id", "gender")))
    sample_ids, genders = facts["sample_id"].to_pylist(), facts["gender"].to_pylist()
    takes_part = yardstick.protocol.takes_part(sample_ids)
    chosen = np.flatnonzero(takes_part)
    batches = decoded_ahead(
        _of_those(read_tables(info, split, batch_size), takes_part),
        lambda table: to_batch(table, predictor.image_size), threads=2, ahead=2,
    )  # fmt: skip
    known = yardstick.protocol.joints == "smpl24" and info.statistics["labelled"]
    errors = evaluate_samples(
        predictor.predict_crops,
        (batch.to(predictor.device) for batch in batches),
        yardstick,
        mean_pose(info) if known else None,
        [genders[row] for row in chosen],
    )
    positions = torch.from_numpy(chosen)[errors.positions]
    names = tuple(sample_ids[row] for row in positions.tolist())
    return replace(errors, positions=positions, sample_ids=names)


def _of_those(tables: Iterable[pa.Table], takes_part: np.ndarray) -> Iterator[pa.Table]:
    """The rows that take part; a table without any is left out."""
    start = 0
    for table in tables:
        wanted = takes_part[start : start + len(table)]
        start += len(table)
        if wanted.any():
            yield table if wanted.all() else table.filter(pa.array(wanted))


def yardstick_of(job: EvaluateJob, predictor: Predictor) -> Yardstick:
    """How the job measures; BodyError for a body that is none."""
    h36m = predictor.body.arrays.J_regressor_h36m
    return Yardstick(
        body=predictor.body,
        protocol=PROTOCOLS[job.protocol],
        regressor=None if h36m is None else torch.tensor(h36m, device=predictor.device),
        truth_bodies={
            gender: Body.from_file(path).to(predictor.device)
            for gender, path in job.truth_bodies.items()
        },
    )


def evaluate(job: EvaluateJob) -> dict[str, Any]:
    """Measure a model on a split, in this process and on its GPU when it has one.

    BundleError for a model that is none, DataError for a data set that does not fit it.
    """
    info = read_info(job.data)
    rows = info.rows(job.split)
    pinned, predictor = open_model(job, info)
    yardstick = yardstick_of(job, predictor)
    say(f"{rows} people of the {job.split} split of {job.data}; model {pinned.reference}")
    start = time.perf_counter()
    errors = measure(predictor, info, job.split, batch_size=job.batch_size, yardstick=yardstick)
    seconds = time.perf_counter() - start
    joints, root = yardstick.joints_used
    results = summary(errors) | {
        "model": pinned.reference, "model_sha256": pinned.sha256, "split": job.split,
        "data": info.location, "data_fingerprint": info.fingerprint, "protocol": job.protocol,
        "joints": joints, "joint_names": list(JOINT_SETS[yardstick.protocol.joints]), "root": root,
        "truth": yardstick.truth_used, "metrics": intervals(errors, yardstick.protocol),
        "images_per_s": round(len(errors) / seconds, 1),
    }  # fmt: skip
    say(markdown(results))
    if job.output is not None:
        tables = {
            "by_iteration.csv": results["by_iteration"], "table.csv": metric_rows(results),
            PEOPLE_ERRORS: people_rows(errors),
        }  # fmt: skip
        output = Folder(job.output)
        _write(output, results, tables)
        say(f"wrote {output.location}")
    return results
