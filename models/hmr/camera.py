"""Cameras: the weak-perspective camera of a crop, perspective projection, crop to full frame.

Axes are OpenCV's (x right, y down, z forward), lengths metres, pixels continuous (the centre of the
first pixel is (0.5, 0.5)). The crop's camera is (s, tx, ty) with an assumed focal length of 5000 px
at crop resolution, as in HMR, SPIN and CLIFF: distance is a convention there, not a measurement.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FOCAL_LENGTH = 5000.0
"""Assumed focal length of every crop, in crop pixels."""

_EPSILON = 1e-9


def default_focal(width: float, height: float) -> float:
    """Focal length in pixels when nothing is known: the image's diagonal (CLIFF), about 55 degrees
    of view."""
    return math.hypot(width, height)


def weak_to_translation(
    pred_cam: Tensor, crop_size: float, focal: float | Tensor = FOCAL_LENGTH
) -> Tensor:
    """(B, 3) weak camera (s, tx, ty) to the (B, 3) translation [tx, ty, 2 f / (crop_size s)].

    tx and ty are metres; focal is in pixels of the crop, whose side is crop_size.
    """
    scale, tx, ty = pred_cam.unbind(-1)
    return torch.stack([tx, ty, 2 * focal / (crop_size * scale + _EPSILON)], dim=-1)


def perspective_projection(
    points: Tensor,
    translation: Tensor,
    focal: Tensor | float,
    center: Tensor | tuple[float, float] | None = None,
) -> Tensor:
    """(B, N, 3) points, moved by (B, 3), to (B, N, 2) pixels: f (x, y) / z + center.

    focal: a number, (B,) or (B, 2) pixels. center: the principal point, (2,) or (B, 2) pixels;
    none: pixels are counted from it.
    """
    moved = points + translation[:, None]
    # A number becomes a tensor on the device: to copy one there, the host would wait.
    focal = focal.to(points) if isinstance(focal, Tensor) else points.new_full((), focal)
    if focal.ndim < 2:
        focal = focal.reshape(-1, 1)
    pixels = focal[:, None] * moved[..., :2] / moved[..., 2:]
    if center is None:
        return pixels
    center = torch.as_tensor(center, dtype=points.dtype, device=points.device).reshape(-1, 2)
    return pixels + center[:, None]


def project_weak(points: Tensor, pred_cam: Tensor, crop_size: float) -> Tensor:
    """(B, N, 3) points seen by the crop's camera, (B, N, 2) in [-1, 1] over the crop."""
    translation = weak_to_translation(pred_cam, crop_size)
    return perspective_projection(points, translation, 2 * FOCAL_LENGTH / crop_size)


def crop_to_full(
    pred_cam: Tensor, center: Tensor, box_size: Tensor, image_size: Tensor, focal: Tensor
) -> Tensor:
    """Weak camera of a crop to the (B, 3) translation before the full frame's camera (CLIFF).

    center: (B, 2) of the square box, box_size: (B,) its side, image_size: (B, 2) width and height,
    focal: (B,); all in pixels of the full frame, whose principal point is its middle.
    """
    scale, tx, ty = pred_cam.unbind(-1)
    # At the body's depth a metre covers half of this many pixels.
    twice_resolution = box_size * scale + _EPSILON
    offset = 2 * (center - image_size / 2) / twice_resolution[:, None]
    depth = 2 * focal / twice_resolution
    return torch.stack([tx + offset[:, 0], ty + offset[:, 1], depth], dim=-1)
