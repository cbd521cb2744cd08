"""What is drawn for the people of a batch: the same numbers on every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hmr.augment_geometry import Warp, draw_warp
from hmr.config import AugmentConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What happens to each of B people, on the device of their pictures.

    config: the amounts; a change whose amount is zero is left out.
    warp: none where nobody moves. flipped: (B,) bool, after the warp.
    channels: (B, 3), light: (B, 3) and boxes: (B, 8) numbers in [0, 1) for the functions of
    `hmr.augment_colour`, in this order.
    """

    config: AugmentConfig
    warp: Warp | None
    flipped: Tensor
    channels: Tensor
    light: Tensor
    boxes: Tensor


def draw_changes(
    config: AugmentConfig, count: int, generator: torch.Generator, device: torch.device
) -> Changes:
    """Draws for `count` people, on the CPU; they do not depend on `config`, so a changed strength
    leaves the rest as it was, in this and all later batches."""
    draws = torch.rand(count, 4, generator=generator)
    further = _further_generator(draws)
    normal = torch.randn(count, 4, generator=further).to(device, non_blocking=True)
    uniform = torch.rand(count, 12, generator=further).to(device, non_blocking=True)
    draws = draws.to(device, non_blocking=True)
    moves = config.rotation > 0 or config.scale > 0 or config.translation > 0
    return Changes(
        config=config,
        warp=draw_warp(config, uniform[:, 0], normal) if moves else None,
        flipped=draws[:, 0] < config.flip,
        channels=draws[:, 1:],
        light=uniform[:, 1:4],
        boxes=uniform[:, 4:],
    )


def _further_generator(draws: Tensor) -> torch.Generator:
    """A generator that the first draws of a batch seed. A longer row of first draws would move
    those of all later batches, and with them the numbers of every training so far."""
    # A sum of multiples of 2^-24: exact in float64, whatever its order.
    return torch.Generator().manual_seed(int(draws.double().sum() * 2**24))
