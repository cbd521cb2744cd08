"""The errors of each person of a split at every iteration, and what is averaged over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmr.body import Body
from hmr.errors import DataError
from hmr.metric_extras import ErrorTable, acceleration_errors, bootstrap_interval
from hmr.metrics import METRICS, MM, MeanPoseBaseline
from hmr.protocol_errors import Yardstick, protocol_errors
from hmr.protocols import METRIC_UNITS, Protocol, places
from hmr.structures import Batch, Prediction

BASELINE_METRICS = METRICS[:2]
_BASELINE, _JOINTS = "_baseline_", "_joints_"


@dataclass(frozen=True, kw_only=True)
class PeopleErrors:
    """Errors of each of N people in the units of METRIC_UNITS, in the order of the split.

    positions: (N,) which row of the split; people without the labels the protocol asks for are
    left out. by_iteration: metric name to (T+1, N); row 0 is the start, before any refinement.
    baseline: metric name to (N,), of the mean pose; empty without one. joints: (N, J, 3) root
    joints `pred` and `truth` of the last iteration in metres, where a metric needs whole videos.
    sample_ids: of these people.
    """

    positions: Tensor
    by_iteration: dict[str, Tensor]
    baseline: dict[str, Tensor]
    joints: dict[str, Tensor] = field(default_factory=dict)
    sample_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def ranked(self, metric: str = "pa_mpjpe_mm") -> list[int]:
        """Rows of the split from the best to the worst final `metric`."""
        order = self.by_iteration[metric][-1].argsort(stable=True)
        return [int(position) for position in self.positions[order]]


def evaluate_samples(
    predict: Callable[[Tensor], Prediction],
    batches: Iterable[Batch],
    body: Body | Yardstick,
    baseline: MeanPoseBaseline | None,
    genders: Sequence[str] = (),
) -> PeopleErrors:
    """Errors of every labelled person of `batches`.

    predict: images (B, 3, S, S) uint8 to the prediction of every iteration. body: the body, for
    the protocol `synthetic`, or the whole yardstick. genders: of all people of the batches, where
    the yardstick has bodies for them. DataError when nobody is labelled.
    """
    yardstick = body if isinstance(body, Yardstick) else Yardstick(body=body)
    table, seen = ErrorTable(), 0
    for batch in batches:
        start, seen = seen, seen + len(batch)
        with torch.inference_mode():
            rows, truth = yardstick.truth(batch, genders[start:seen])
            if len(rows) == 0:
                continue
            steps = [step[rows].float() for step in predict(batch.images).iterations]
            points = [yardstick.points(step.rotmats, step.betas) for step in steps]
            errors = [protocol_errors(yardstick.protocol, each, truth) for each in points]
            values = {name: torch.stack([e[name] for e in errors], dim=1) for name in errors[0]}
            if baseline is not None:
                means = baseline.errors(truth.joints)
                values |= {f"{_BASELINE}{name}": value for name, value in means.items()}
            if "accel_mm" in yardstick.protocol.metrics:
                for name, side in (("pred", points[-1]), ("truth", truth)):
                    values[f"{_JOINTS}{name}"] = side.joints - side.root[:, None]
        table.update(start + rows, values)
    if table.empty:
        raise DataError(_nobody(yardstick.protocol, seen))
    return _people_errors(table)


def _nobody(protocol: Protocol, seen: int) -> str:
    missing = "has SMPL labels (has_smpl)"
    if protocol.truth == "keypoints":
        missing = f"has all the 3D joints of protocol {protocol.name!r} (confidence > 0)"
    return (
        f"none of the {seen} people {missing}, so there is no truth to "
        "measure against; evaluate on a split with labels"
    )


def _people_errors(table: ErrorTable) -> PeopleErrors:
    positions, values = table.rows()

    def named(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}

    return PeopleErrors(
        positions=positions,
        by_iteration={n: v.T.contiguous() for n, v in values.items() if not n.startswith("_")},
        baseline=named(_BASELINE),
        joints=named(_JOINTS),
    )


def summary(errors: PeopleErrors) -> dict[str, Any]:
    """Means over people, their ratios to the mean pose's if known, and a row for each iteration."""
    baseline = {name: float(values.double().mean()) for name, values in errors.baseline.items()}
    table = []
    for number in range(len(next(iter(errors.by_iteration.values())))):
        row: dict[str, Any] = {"n_iter": number}
        for name, values in errors.by_iteration.items():
            row[name] = float(values[number].double().mean())
        for name, value in baseline.items():
            row[name.replace("_mm", "_ratio")] = row[name] / value
        table.append(row)
    final = {name: value for name, value in table[-1].items() if name != "n_iter"}
    return {
        "count": len(errors),
        "n_iter": table[-1]["n_iter"],
        **final,
        **{f"baseline_{name}": value for name, value in baseline.items()},
        "by_iteration": table,
    }


def intervals(errors: PeopleErrors, protocol: Protocol) -> dict[str, dict[str, Any]]:
    """For each metric of the protocol: `value` of the final iteration, `low` and `high` of its
    95 % bootstrap interval, `unit`, `count` of the rows averaged, `groups` drawn (videos, or
    people where each is independent). Without rows there is no value, without two groups no
    interval.
    """
    videos, tracks, frames = places(errors.sample_ids)
    groups = videos if protocol.video else np.arange(len(errors))
    measured = {}
    for name in protocol.metrics:
        rows = np.arange(len(errors))
        if name == "accel_mm":
            pred, truth = MM * errors.joints["pred"], MM * errors.joints["truth"]
            rows, values = acceleration_errors(pred, truth, tracks, frames)
        else:
            values = errors.by_iteration[name][-1]
        count = len(np.unique(groups[rows]))
        low, high = bootstrap_interval(values, groups[rows]) if count > 1 else (None, None)
        measured[name] = {
            "value": float(values.double().mean()) if count else None, "low": low, "high": high,
            "unit": METRIC_UNITS[name][1], "count": len(rows), "groups": count,
        }  # fmt: skip
    return measured


def people_rows(errors: PeopleErrors) -> list[dict[str, Any]]:
    """One row a person: `sample_id` and the errors of the last iteration."""
    final = {name: values[-1].tolist() for name, values in errors.by_iteration.items()}
    return [
        {"sample_id": sample_id} | {name: values[row] for name, values in final.items()}
        for row, sample_id in enumerate(errors.sample_ids)
    ]
