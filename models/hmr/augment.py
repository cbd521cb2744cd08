"""Random changes of a training batch, on the device where it lies."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hmr.augment_colour import jitter_colour, occlude, scale_channels
from hmr.augment_geometry import draw_warp, flip_batch, warp_batch
from hmr.config import AugmentConfig
from hmr.structures import Batch


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """Every change of `config`, drawn for each person; what has the amount zero costs nothing.

    The order is SPIN's: turn, zoom and shift first, then the mirror image, then the colours.

    generator: on the CPU, so that a seed draws the same on every device; the draws do not depend on
    `config`, so a changed strength leaves the rest as it was, in this and all later batches.
    """
    device = batch.images.device
    draws = torch.rand(len(batch), 4, generator=generator)
    further = _further_generator(draws)
    normal = torch.randn(len(batch), 4, generator=further).to(device, non_blocking=True)
    uniform = torch.rand(len(batch), 12, generator=further).to(device, non_blocking=True)
    chance, light, boxes = uniform[:, 0], uniform[:, 1:4], uniform[:, 4:]
    draws = draws.to(device, non_blocking=True)
    if config.rotation > 0 or config.scale > 0 or config.translation > 0:
        batch = warp_batch(batch, draw_warp(config, chance, normal))
    batch = _flip_some(batch, draws[:, 0] < config.flip)
    images = batch.images
    if config.channel_noise > 0:
        images = scale_channels(images, draws[:, 1:], config.channel_noise)
    if config.colour > 0:
        images = jitter_colour(images, light, config.colour)
    if config.occlusion > 0:
        images = occlude(images, boxes, config.occlusion, config.occlusion_size)
    return replace(batch, images=images)


def _further_generator(draws: Tensor) -> torch.Generator:
    """A generator that the first draws of a batch seed. A longer row of first draws would move
    those of all later batches, and with them the numbers of every training so far."""
    # A sum of multiples of 2^-24: exact in float64, whatever its order.
    return torch.Generator().manual_seed(int(draws.double().sum() * 2**24))


def _flip_some(batch: Batch, mask: Tensor) -> Batch:
    """The people of the (B,) mask mirrored."""
    flipped = flip_batch(batch)

    def choose(name: str) -> Tensor:
        kept: Tensor = getattr(batch, name)
        return torch.where(mask.view(-1, *[1] * (kept.ndim - 1)), getattr(flipped, name), kept)

    return replace(
        batch,
        images=choose("images"),
        keypoints_2d=choose("keypoints_2d"),
        keypoints_3d=choose("keypoints_3d"),
        rotmats=choose("rotmats"),
    )
