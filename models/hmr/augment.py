"""Random changes of a training batch, on the device where it lies."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
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


def flip_batch(batch: Batch) -> Batch:
    """Every person of the batch, and its picture, mirrored left to right."""
    order = _index(JOINT49_FLIP, batch.images.device)
    keypoints_2d = batch.keypoints_2d[:, order]
    keypoints_2d[..., 0].neg_()
    keypoints_3d = batch.keypoints_3d[:, order]
    keypoints_3d[..., 0].neg_()
    return replace(
        batch,
        images=batch.images.flip(-1),
        keypoints_2d=keypoints_2d,
        keypoints_3d=keypoints_3d,
        rotmats=flip_rotations(batch.rotmats),
    )


def _choose(mask: Tensor, changed: Tensor, kept: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (kept.ndim - 1)), changed, kept)


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """Flips and channel noise, drawn for each person.

    generator: on the CPU, so that a seed draws the same on every device; the draws do not depend on
    `config`, so a changed strength leaves the rest as it was.
    """
    count, device = len(batch), batch.images.device
    draws = torch.rand(count, 4, generator=generator).to(device, non_blocking=True)
    mask = draws[:, 0] < config.flip
    flipped = flip_batch(batch)
    images = _choose(mask, flipped.images, batch.images)
    if config.channel_noise > 0:
        factors = 1 + config.channel_noise * (2 * draws[:, 1:, None, None] - 1)
        images = (images * factors).round_().clamp_(0, 255).to(torch.uint8)
    return replace(
        batch,
        images=images,
        keypoints_2d=_choose(mask, flipped.keypoints_2d, batch.keypoints_2d),
        keypoints_3d=_choose(mask, flipped.keypoints_3d, batch.keypoints_3d),
        rotmats=_choose(mask, flipped.rotmats, batch.rotmats),
    )
