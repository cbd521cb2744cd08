"""Motion without jitter: the one-euro filter on rotations and places, run both ways.

The filter (Casiez et al., CHI 2012) is a low-pass whose cutoff rises with speed: still people are
held still, fast ones followed. It lags behind a moving person; a whole track is known here, so it
runs from both ends, and the middle of both answers has no lag. Rotations are filtered on SO(3), by
the rotation vector from one to the next: signs, wraps and the choice of axes have no part in it.
Motion at a constant speed comes out as it went in.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from hmr.errors import DataError
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle

_SPEED_CUTOFF = 1.0
"""Hz, of the speed by which the cutoff is chosen; the authors' value."""
_FIRST_FRAMES = 8
"""Steps whose mean is the speed that a track starts with."""


def _share(cutoff: Tensor | float, fps: float) -> Tensor | float:
    """Weight of the newest sample in a first-order low-pass."""
    return 1 / (1 + fps / (2 * math.pi * cutoff))


def _log(rotations: Tensor) -> Tensor:
    return matrix_to_axis_angle(rotations)


def _one_way(rotations: Tensor, fps: float, min_cutoff: float, beta: float) -> Tensor:
    """(T, K, 3, 3) filtered from the first to the last."""
    steps = _log(rotations[:-1].mT @ rotations[1:])
    speed = steps[:_FIRST_FRAMES].mean(0) * fps
    speed_share = _share(_SPEED_CUTOFF, fps)
    share = _share(min_cutoff + beta * speed.norm(dim=-1, keepdim=True), fps)
    # As if the same motion had gone on for long: then the filter is this far behind.
    behind = (1 - share) / share * speed / fps
    now = rotations[0] @ axis_angle_to_matrix(-behind)
    answers = [now]
    for step, rotation in zip(steps, rotations[1:], strict=True):
        speed = speed + speed_share * (step * fps - speed)
        share = _share(min_cutoff + beta * speed.norm(dim=-1, keepdim=True), fps)
        now = now @ axis_angle_to_matrix(share * _log(now.mT @ rotation))
        answers.append(now)
    return torch.stack(answers)


def smooth_rotations(
    rotations: Tensor, fps: float, min_cutoff: float = 1.5, beta: float = 1.0
) -> Tensor:
    """(T, K, 3, 3) rotations of K joints in frames of equal distance, without jitter; float64.

    fps: frames a second. min_cutoff: Hz at rest, lower is smoother. beta: Hz for each rad/s, higher
    follows fast motion more closely. DataError for settings that are not above 0 (beta: below 0).
    """
    _check(fps, min_cutoff, beta)
    rotations = rotations.double()
    if len(rotations) < 3:
        return rotations.clone()
    forward = _one_way(rotations, fps, min_cutoff, beta)
    backward = _one_way(rotations.flip(0), fps, min_cutoff, beta).flip(0)
    return forward @ axis_angle_to_matrix(_log(forward.mT @ backward) / 2)


def _one_way_points(points: Tensor, fps: float, min_cutoff: float, beta: float) -> Tensor:
    steps = points[1:] - points[:-1]
    speed = steps[:_FIRST_FRAMES].mean(0) * fps
    speed_share = _share(_SPEED_CUTOFF, fps)
    share = _share(min_cutoff + beta * speed.norm(dim=-1, keepdim=True), fps)
    now = points[0] - (1 - share) / share * speed / fps
    answers = [now]
    for step, point in zip(steps, points[1:], strict=True):
        speed = speed + speed_share * (step * fps - speed)
        share = _share(min_cutoff + beta * speed.norm(dim=-1, keepdim=True), fps)
        now = now + share * (point - now)
        answers.append(now)
    return torch.stack(answers)


def smooth_points(points: Tensor, fps: float, min_cutoff: float = 1.5, beta: float = 1.0) -> Tensor:
    """(T, K, 3) places in metres, as `smooth_rotations`; beta: Hz for each m/s."""
    _check(fps, min_cutoff, beta)
    points = points.double()
    if len(points) < 3:
        return points.clone()
    forward = _one_way_points(points, fps, min_cutoff, beta)
    backward = _one_way_points(points.flip(0), fps, min_cutoff, beta).flip(0)
    return (forward + backward) / 2


def _check(fps: float, min_cutoff: float, beta: float) -> None:
    for name, value, least in (("fps", fps, 0), ("min_cutoff", min_cutoff, 0)):
        if not value > least:
            raise DataError(f"{name}={value}: must be above 0")
    if not beta >= 0:
        raise DataError(f"beta={beta}: must be 0 or above")


def fill_rotations(rotations: Tensor, frames: np.ndarray) -> Tensor:
    """(N, K, 3, 3) rotations of N frames, ascending, to those of every frame from the first to the
    last, (T, K, 3, 3): a gap is crossed on the shortest way at a constant speed."""
    before, share = _between(frames)
    step = _log(rotations[before].mT @ rotations[np.minimum(before + 1, len(frames) - 1)])
    return rotations[before] @ axis_angle_to_matrix(share.to(rotations)[:, None, None] * step)


def fill_points(points: Tensor, frames: np.ndarray) -> Tensor:
    """(N, K, 3) to (T, K, 3), as `fill_rotations`."""
    before, share = _between(frames)
    step = points[np.minimum(before + 1, len(frames) - 1)] - points[before]
    return points[before] + share.to(points)[:, None, None] * step


def _between(frames: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """For every frame from first to last the row at or before it, and how far it is to the next."""
    if (np.diff(frames) <= 0).any():
        raise DataError("frames are not in ascending order; sort them, each of them once")
    wanted = np.arange(frames[0], frames[-1] + 1)
    before = np.searchsorted(frames, wanted, side="right") - 1
    after = np.minimum(before + 1, len(frames) - 1)
    length = np.maximum(frames[after] - frames[before], 1)
    return before, torch.from_numpy((wanted - frames[before]) / length)
