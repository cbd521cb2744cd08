"""Mirror images, turns, zooms and shifts: the picture and every label move together.

A warp looks at the crop through another square box. Labels follow like this: 2D keypoints go
through the box's affine map; 3D keypoints and the root's rotation turn about the viewing axis;
metres, the other joints' rotations and betas stay. The map is that of `hmr.crops.box_to_affine`,
in coordinates that run over the crop from -1 to 1. What the crop does not hold is black, as beside
a frame.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hmr.config import AugmentConfig
from hmr.skeleton import JOINT49_FLIP, SMPL_FLIP
from hmr.structures import Batch


# Kept on the device: a table that travels from the host makes a GPU wait at every step.
@functools.cache
@torch.inference_mode(False)
def _index(table: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(table, device=device)


@functools.cache
@torch.inference_mode(False)
def _mirror_signs(device: torch.device) -> Tensor:
    mirror = torch.tensor([-1.0, 1.0, 1.0], device=device)
    return mirror[:, None] * mirror


def flip_rotations(rotmats: Tensor) -> Tensor:
    """(B, 24, 3, 3) of a person to those of the mirror image: left and right joints swap, and
    R becomes M R M with M = diag(-1, 1, 1); on axis-angles that negates y and z."""
    signs = _mirror_signs(rotmats.device).to(rotmats.dtype)
    return rotmats[:, _index(SMPL_FLIP, rotmats.device)] * signs


def flip_labels(batch: Batch) -> Batch:
    """Labels of every person as in the mirror image, where left is right; pictures stay."""
    order = _index(JOINT49_FLIP, batch.images.device)
    keypoints_2d = batch.keypoints_2d[:, order]
    keypoints_2d[..., 0].neg_()
    keypoints_3d = batch.keypoints_3d[:, order]
    keypoints_3d[..., 0].neg_()
    return replace(
        batch,
        keypoints_2d=keypoints_2d,
        keypoints_3d=keypoints_3d,
        rotmats=flip_rotations(batch.rotmats),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """The box through which each crop is looked at again.

    angle: (B,) radians by which the content turns, counter-clockwise on the screen.
    scale: (B,) the new box's side over the crop's; above 1 the person becomes smaller.
    shift: (B, 2) the new box's centre, x right and y down, in halves of the crop's side.
    """

    angle: Tensor
    scale: Tensor
    shift: Tensor


def draw_warp(config: AugmentConfig, chance: Tensor, normal: Tensor) -> Warp:
    """A warp for each person from (B,) uniform and (B, 4) normal numbers.

    The normal numbers are cut at one standard deviation for scale and shift and at two for the
    angle, as SPIN and HMR2 do.
    """
    degrees = config.rotation * normal[:, 0].clamp(-2, 2)
    turns = chance < config.rotation_probability
    once = normal[:, 1:].clamp(-1, 1)
    return Warp(
        angle=torch.where(turns, degrees * (math.pi / 180), 0.0),
        scale=1 + config.scale * once[:, 0],
        shift=2 * config.translation * once[:, 1:],
    )


def warp_labels(batch: Batch, warp: Warp) -> Batch:
    """Labels of every person as seen through the warp's box; pictures stay.

    Keypoints that leave the crop keep their confidence: neither SPIN nor HMR2 takes it away.
    """
    moved = batch.keypoints_2d.clone()
    moved[..., :2] -= warp.shift[:, None]
    moved = _turned(moved, warp.angle)
    moved[..., :2] /= warp.scale[:, None, None]
    rotmats = batch.rotmats.clone()
    # The columns of a rotation are points: those of the root turn with the keypoints.
    rotmats[:, 0] = _turned(batch.rotmats[:, 0].mT, warp.angle).mT
    return replace(
        batch,
        keypoints_2d=moved,
        keypoints_3d=_turned(batch.keypoints_3d, warp.angle),
        rotmats=rotmats,
    )


def _turned(points: Tensor, angle: Tensor) -> Tensor:
    """(B, N, C): x (right) and y (down), the first two numbers of each point, turned by (B,)
    radians counter-clockwise on the screen; the other numbers stay."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points[..., 0], points[..., 1]
    turned = torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1)
    return torch.cat([turned, points[..., 2:]], dim=-1)


def warp_images(images: Tensor, warp: Warp) -> Tensor:
    """(B, C, H, H) of any type to (B, C, H, H) float32: bilinear, and smoothed first where the
    warp shrinks, so that fine detail does not alias."""
    side = images.shape[-1]
    # Pictures arrive with interleaved channels; the smoothing is several times faster in planes.
    sharp = images.to(torch.float32, memory_format=torch.contiguous_format)
    # Everybody is smoothed: to ask who shrinks would make a GPU wait.
    strength = smoothing_strength(warp.scale)[:, None, None, None]
    smooth = torch.lerp(sharp, _smoothed(sharp), strength)
    line = (2 * torch.arange(side, device=images.device) + 1) / side - 1  # centres of pixels
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).flatten(0, 1)
    seen = _turned(grid * warp.scale[:, None, None], -warp.angle) + warp.shift[:, None]
    return F.grid_sample(smooth, seen.unflatten(1, (side, side)), align_corners=False)


def smoothing_strength(scale: Tensor) -> Tensor:
    """Share of the smoothed picture in the one that is warped: none without shrinking, and growing
    with it, so that a person who hardly shrinks stays sharp."""
    return (10 * (scale - 1)).clamp(0, 1)


SMOOTHING_TAPS = (-1 / 16, 4 / 16, 10 / 16, 4 / 16, -1 / 16)
"""Smoothing along one axis: a pixel less a sixteenth of its fourth difference. The response,
1 - sin(w / 2)^4, is the flattest of five taps that is zero for detail which alternates from pixel
to pixel."""


def _smoothed(images: Tensor) -> Tensor:
    """(B, C, H, W) through `SMOOTHING_TAPS` along both axes, the last pixel repeating beyond the
    border; by differences, which are several times faster than a convolution on a CPU."""
    for axis, border in ((-1, (2, 2, 0, 0)), (-2, (0, 0, 2, 2))):
        images = images - torch.diff(F.pad(images, border, mode="replicate"), n=4, dim=axis) / 16
    return images
