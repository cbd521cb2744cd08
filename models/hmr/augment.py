"""Random changes of a training batch, on the device where it lies."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hmr.augment_colour import jitter_colour, occlude, scale_channels, to_bytes
from hmr.augment_cpu import change_one_by_one
from hmr.augment_draws import Changes, draw_changes
from hmr.augment_geometry import flip_labels, warp_images, warp_labels
from hmr.config import AugmentConfig
from hmr.structures import Batch


def augment(batch: Batch, config: AugmentConfig, generator: torch.Generator) -> Batch:
    """Every change of `config`, drawn for each person; what has the amount zero costs nothing.

    The order is SPIN's: turn, zoom and shift first, then the mirror image, then the colours. On a
    CPU the pictures are changed by OpenCV, elsewhere by torch: in flips and channel noise bit for
    bit the same, with a warp or colours within about one level. Labels are the same everywhere.

    generator: on the CPU, so that a seed draws the same on every device; the draws do not depend on
    `config`, so a changed strength leaves the rest as it was, in this and all later batches.
    """
    device = batch.images.device
    changes = draw_changes(config, len(batch), generator, device)
    change_pictures = change_one_by_one if device.type == "cpu" else change_together
    images = change_pictures(batch.images, changes)
    return replace(change_labels(batch, changes), images=images)


def change_labels(batch: Batch, changes: Changes) -> Batch:
    """The same pictures with the labels that they will have."""
    if changes.warp is not None:
        batch = warp_labels(batch, changes.warp)
    flipped = flip_labels(batch)
    return replace(
        batch,
        keypoints_2d=_chosen(changes.flipped, flipped.keypoints_2d, batch.keypoints_2d),
        keypoints_3d=_chosen(changes.flipped, flipped.keypoints_3d, batch.keypoints_3d),
        rotmats=_chosen(changes.flipped, flipped.rotmats, batch.rotmats),
    )


def change_together(images: Tensor, changes: Changes) -> Tensor:
    """(B, 3, H, W) uint8 to the same, all people at once and without a word to the host: for
    GPUs."""
    config = changes.config
    if changes.warp is not None:
        images = to_bytes(warp_images(images, changes.warp))
    if config.flip > 0:
        images = _chosen(changes.flipped, images.flip(-1), images)
    if config.channel_noise > 0:
        images = scale_channels(images, changes.channels, config.channel_noise)
    if config.colour > 0:
        images = jitter_colour(images, changes.light, config.colour)
    if config.occlusion > 0:
        images = occlude(images, changes.boxes, config.occlusion, config.occlusion_size)
    return images


def _chosen(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """The rows of one where the (B,) mask is true, elsewhere those of the other."""
    return torch.where(mask.view(-1, *[1] * (no.ndim - 1)), yes, no)
