"""The weak-perspective camera that puts a body with known pose onto its 2D keypoints."""

from __future__ import annotations

import torch
from torch import Tensor

from hmr.camera import FOCAL_LENGTH

_ROUNDS = 4
"""Each leaves about a hundredth of the error: a body is a metre deep and 50 m and more away."""


def fit_weak_camera(
    points: Tensor, keypoints: Tensor, confidence: Tensor, crop_size: float
) -> Tensor:
    """(B, 3) camera (s, tx, ty) under which the points fall nearest to the keypoints.

    points: (B, N, 3) metres, camera axes. keypoints: (B, N, 2) in [-1, 1] over the crop.
    confidence: (B, N), weights of the squared distances; 0 and less: unknown. crop_size: pixels.

    Without perspective, x = s (X + tx) is linear in s and s tx, and the least squares have a closed
    form. Perspective is the factor d / (Z + d) on the right side, with the distance d = 2 f /
    (crop_size s); moved to the left side, with the distance of the round before, it keeps the
    closed form. Not a number where fewer than two places are known, or only s <= 0 would fit.
    """
    weights = confidence.clamp_min(0).double()[..., None]
    known = weights > 0
    points = torch.where(known, points.double(), 0.0)
    keypoints = torch.where(known, keypoints.double(), 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    plane, depth = points[..., :2], points[..., 2:]
    centre = (weights * plane).sum(1, keepdim=True)
    spread = (weights * (plane - centre).square()).sum((1, 2))
    factor = torch.ones_like(depth)
    for _ in range(_ROUNDS):
        seen = keypoints * factor
        middle = (weights * seen).sum(1, keepdim=True)
        scale = (weights * (plane - centre) * (seen - middle)).sum((1, 2)) / spread
        factor = 1 + depth * (crop_size * scale / (2 * FOCAL_LENGTH))[:, None, None]
    shift = middle[:, 0] / scale[:, None] - centre[:, 0]
    camera = torch.cat([scale[:, None], shift], dim=1).float()
    return torch.where((scale > 0)[:, None], camera, torch.nan)
