"""Errors beyond MPJPE and PVE, tables of them that merge without loss, and bootstrap intervals.

Lengths are metres, as everywhere inside; `hmr.protocols` turns them into what papers report.
Shape letters: B people, J joints, V vertices, N people of a whole split.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hmr.errors import DataError
from hmr.metrics import pa_mpjpe

PCK_THRESHOLD = 0.15
"""Metres within which a joint counts as found (MPI-INF-3DHP)."""
AUC_THRESHOLDS = tuple(step * 0.005 for step in range(31))
"""0 to 150 mm in steps of 5 mm: the thresholds of MPI-INF-3DHP's own evaluation."""


def joint_distances(pred: Tensor, gt: Tensor, pred_root: Tensor, gt_root: Tensor) -> Tensor:
    """Distance of each joint after the roots were moved together.

    pred, gt: (B, J, 3). pred_root, gt_root: (B, 3), not necessarily joints. Returns (B, J), whose
    mean over joints is the MPJPE.
    """
    difference = (pred - gt) - (pred_root - gt_root)[:, None]
    return torch.linalg.vector_norm(difference, dim=-1)


def pa_pve(pred_vertices: Tensor, gt_vertices: Tensor) -> Tensor:
    """Mean vertex distance after the best similarity transform, (B, V, 3) twice to (B,).

    The transform is that of least squares over the vertices, so it never makes the root mean
    square worse; the mean distance falls with it except in constructed cases.
    """
    return pa_mpjpe(pred_vertices, gt_vertices)


def pck(distances: Tensor, threshold: float = PCK_THRESHOLD) -> Tensor:
    """Share of joints nearer than `threshold`, (B, J) distances to (B,) in 0..1 (float64).

    A joint exactly at the threshold is not found, as in MPI-INF-3DHP's evaluation.
    """
    return (distances < threshold).double().mean(-1)


def auc(distances: Tensor) -> Tensor:
    """Mean PCK over AUC_THRESHOLDS, (B, J) distances to (B,) in 0..1 (float64).

    The threshold 0, under which nothing is found, is one of the 31: a perfect answer has 30/31.
    """
    return torch.stack([pck(distances, threshold) for threshold in AUC_THRESHOLDS]).mean(0)


def v2v_l2(pred_vertices: Tensor, gt_vertices: Tensor) -> Tensor:
    """Mean squared difference over vertices and coordinates, (B, V, 3) twice to (B,), in m².

    The score of the ETH course project: nothing is aligned, because there the true translation is
    given to the model and cancels.
    """
    return (pred_vertices.double() - gt_vertices.double()).square().mean((1, 2))


def acceleration_errors(
    pred: Tensor, gt: Tensor, tracks: np.ndarray, frames: np.ndarray
) -> tuple[np.ndarray, Tensor]:
    """Error of the acceleration x[t-1] - 2 x[t] + x[t+1] (Kanazawa et al. 2019).

    pred, gt: (N, J, 3), rows in any order. tracks: (N,) whose row it is (a person of one video).
    frames: (N,) number of its frame. Returns the rows (M,) that have a frame before and after
    them in their track, by track and frame, and their errors (M,): the mean over joints of the
    distance between both accelerations, float64, in units of length per frame². A gap ends a
    stretch; a row that is first or last of its stretch has no error.
    """
    order = np.lexsort((frames, tracks))
    sequel = (np.diff(tracks[order]) == 0) & (np.diff(frames[order]) == 1)
    middle = 1 + np.flatnonzero(sequel[:-1] & sequel[1:])
    before, here, after = (torch.from_numpy(order[middle + shift]) for shift in (-1, 0, 1))
    difference = (pred - gt).double()
    bend = difference[before] - 2 * difference[here] + difference[after]
    return order[middle], torch.linalg.vector_norm(bend, dim=-1).mean(-1)


class ErrorTable:
    """What was measured of each person, by the number of the person's row.

    Nothing is summed before the rows are in order, so however the people were spread over batches
    and workers, the result is the same to the last bit. It can be pickled.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[dict[str, Tensor]] = []

    def update(self, keys: Tensor, values: Mapping[str, Tensor]) -> None:
        """Add people. keys: (B,) int64 numbers, each person's own. values: name to (B, ...)."""
        if self._values and set(values) != set(self._values[0]):
            raise DataError(
                f"these people have {sorted(values)}, earlier ones {sorted(self._values[0])}; "
                "measure all people of a table by the same protocol"
            )
        self._keys.append(keys.cpu())
        self._values.append({name: value.cpu() for name, value in values.items()})

    def merge(self, other: ErrorTable) -> None:
        """Add the people of another table."""
        for keys, values in zip(other._keys, other._values, strict=True):
            self.update(keys, values)

    @property
    def empty(self) -> bool:
        """Whether nobody was measured."""
        return not any(map(len, self._keys))

    def rows(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Keys (N,) in ascending order, and name to (N, ...).

        DataError when there is nobody, or a person was measured twice.
        """
        if self.empty:
            raise DataError(
                "nobody was measured, so there is no error to average; "
                "check that the split holds rows with the labels that the protocol asks for"
            )
        keys, order = torch.cat(self._keys).sort(stable=True)
        if (twice := keys[1:][keys[1:] == keys[:-1]]).numel():
            raise DataError(
                f"row {int(twice[0])} was measured twice; "
                "give every row to one worker only, without padding"
            )
        names = self._values[0]
        return keys, {name: torch.cat([v[name] for v in self._values])[order] for name in names}

    def compute(self) -> dict[str, float]:
        """Means over people of every value that is one number a person, and `count`."""
        keys, values = self.rows()
        means = {n: float(v.double().mean()) for n, v in values.items() if v.ndim == 1}
        return means | {"count": float(len(keys))}


def bootstrap_interval(
    values: Tensor,
    groups: np.ndarray | None = None,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean of `values` (N,).

    groups: (N,) numbers; values of one group are drawn together, because the frames of one video
    are hardly more evidence than one of them. Without it every value is a group. The same values
    and seed give the same interval. DataError for fewer than two groups.
    """
    labels = np.arange(len(values)) if groups is None else groups
    _, member = np.unique(labels, return_inverse=True)
    sums = np.bincount(member, weights=values.double().numpy())
    counts = np.bincount(member)
    if len(counts) < 2:
        raise DataError(
            f"{len(counts)} group of people: an interval needs at least 2 that are independent; "
            "report the mean alone"
        )
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for number in range(resamples):
        drawn = rng.integers(0, len(counts), len(counts))
        means[number] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
