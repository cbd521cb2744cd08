"""Rotations: axis-angle, matrices, and the network's 6D form. Any leading batch shape.

The 6D form is the first two columns of the matrix (Zhou et al., CVPR 2019) in SPIN's INTERLEAVED
layout: the (3, 2) block read row by row, so the identity is [1, 0, 0, 1, 0, 0]. HMR2's weights use
the block layout ([1, 0, 0, 0, 1, 0]); the two must never meet.

Every conversion is total: finite values and gradients at the identity and at half turns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IDENTITY_6D: tuple[float, ...] = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
"""The identity in the interleaved layout."""


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """(..., 6) interleaved 6D to (..., 3, 3): Gram-Schmidt on the two columns, cross product."""
    columns = rot6d.unflatten(-1, (3, 2))
    first = F.normalize(columns[..., 0], dim=-1)
    along = (first * columns[..., 1]).sum(-1, keepdim=True)
    second = F.normalize(columns[..., 1] - along * first, dim=-1)
    third = torch.linalg.cross(first, second, dim=-1)
    return torch.stack([first, second, third], dim=-1)


def matrix_to_rot6d(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 6) interleaved 6D: the first two columns, row by row."""
    return matrix[..., :2].flatten(-2)


def _sinc(angle_squared: Tensor) -> Tensor:
    """sin(a) / a as a smooth function of a^2 (power series near zero)."""
    small = angle_squared < 1e-4
    safe = torch.where(small, torch.ones_like(angle_squared), angle_squared)
    angle = safe.sqrt()
    series = 1 - angle_squared / 6 + angle_squared**2 / 120
    return torch.where(small, series, angle.sin() / angle)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis times angle in radians to (..., 3, 3), by Rodrigues' formula
    R = I + sin(a)/a [v] + (1 - cos(a))/a^2 [v]^2, whose factors are smooth at a = 0."""
    squared = (axis_angle * axis_angle).sum(-1)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    # (1 - cos a) / a^2 = (sin(a/2) / (a/2))^2 / 2
    half = _sinc(squared / 4)
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + _sinc(squared) * skew + 0.5 * half * half * (skew @ skew)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to unit quaternions (..., 4), w x y z with w >= 0.

    The largest of the four components is found first and the rest divided by it (Shepperd's
    method), so no small number is ever a divisor.
    """
    m = matrix.flatten(-2)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = m.unbind(-1)
    rows = torch.stack(
        [
            torch.stack([1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01], -1),
            torch.stack([m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20], -1),
            torch.stack([m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m12 + m21], -1),
            torch.stack([m10 - m01, m20 + m02, m21 + m12, 1 - m00 - m11 + m22], -1),
        ],
        dim=-2,
    )
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)
    chosen = rows.gather(-2, largest[..., None, None].expand(*largest.shape, 1, 4)).squeeze(-2)
    quaternion = F.normalize(chosen, dim=-1)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 3) with an angle in [0, pi]; total at the identity and at half turns."""
    quaternion = matrix_to_quaternion(matrix)
    w, vector = quaternion[..., :1], quaternion[..., 1:]
    squared = (vector * vector).sum(-1, keepdim=True)
    small = squared < 1e-8
    sine = torch.where(small, torch.ones_like(squared), squared).sqrt()
    half = torch.atan2(sine, w)
    # 2 asin(s) / s = 2 + s^2 / 3 + ..., where s = sin(angle / 2)
    factor = torch.where(small, 2 + squared / 3, 2 * half / sine)
    return factor * vector


def rotation_angle(first: Tensor, second: Tensor) -> Tensor:
    """(..., 3, 3) twice to (...): the angle between two rotations in radians, in [0, pi]."""
    return torch.linalg.vector_norm(matrix_to_axis_angle(first.mT @ second), dim=-1)


def nearest_rotation(matrix: Tensor) -> Tensor:
    """(..., 3, 3) any matrix to the rotation nearest in the Frobenius norm (never a reflection).

    The mean of rotations in this sense is the nearest rotation to their arithmetic mean.
    """
    u, _, vh = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vh)
    vh = torch.cat([vh[..., :2, :], vh[..., 2:, :] * sign[..., None, None]], dim=-2)
    return u @ vh
