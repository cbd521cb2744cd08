"""Errors of a model on held-out people, at every number of iterations, beside the mean pose's.

The mean pose is fitted on the training split of the same data set. Without its error, that of a
model says nothing: a constant answer already reaches about 140 mm of PA-MPJPE on varied poses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hmr.body import Body
from hmr.errors import DataError
from hmr.metrics import METRICS, MeanPoseBaseline, person_errors
from hmr.structures import Batch, Prediction

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
