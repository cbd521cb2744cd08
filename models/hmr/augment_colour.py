"""Changes of the picture alone: noise of the channels, light and colour, boxes in the way.

Every function takes and gives (B, 3, H, W) uint8 RGB, and draws nothing itself: its numbers in
[0, 1) come from the caller, a row for each person.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""Share of red, green and blue in the brightness of a pixel (ITU-R BT.601)."""


def to_bytes(images: Tensor) -> Tensor:
    """Rounded and clipped to uint8; may overwrite its argument."""
    return images.round_().clamp_(0, 255).to(torch.uint8)


def about_one(uniform: Tensor, amount: float) -> Tensor:
    """Numbers in [0, 1) to factors in 1 +- amount."""
    return 1 + amount * (2 * uniform - 1)


def scale_channels(images: Tensor, uniform: Tensor, amount: float) -> Tensor:
    """Each channel multiplied by a number in 1 +- amount, from (B, 3) uniform numbers."""
    return to_bytes(images * about_one(uniform[..., None, None], amount))


def jitter_colour(images: Tensor, uniform: Tensor, amount: float) -> Tensor:
    """Brightness, contrast and saturation, each multiplied by a number in 1 +- amount.

    uniform: (B, 3). Contrast is the distance from the picture's mean brightness, saturation the
    distance from the pixel's own.
    """
    factors = about_one(uniform[:, :, None, None, None], amount)
    brightness, contrast, saturation = factors.unbind(1)
    bright = images * brightness
    gray = _gray(bright).mean((2, 3), keepdim=True)
    bright = gray + contrast * (bright - gray)
    gray = _gray(bright)
    return to_bytes(gray + saturation * (bright - gray))


def _gray(images: Tensor) -> Tensor:
    """(B, 3, H, W) to the brightness (B, 1, H, W)."""
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def occlude(images: Tensor, uniform: Tensor, probability: float, size: float) -> Tensor:
    """With some probability one box of one colour before each person; the box may stick out.

    uniform: (B, 8) for: whether, width, height, x, y, red, green, blue. size: the largest side of
    the box over the picture's; every centre in the picture and every shorter side are as likely.
    """
    rows, columns, colour = boxes_in_pixels(
        uniform, probability, size, (images.shape[-2], images.shape[-1])
    )
    covered = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(covered, colour[..., None, None], images)


def boxes_in_pixels(
    uniform: Tensor, probability: float, size: float, shape: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """What `occlude` covers in pictures of (H, W) pixels: (B, H) rows and (B, W) columns as bool,
    and the (B, 3) uint8 colour. Nobody's rows: no box."""
    rows = _within(shape[0], uniform[:, 4], size * uniform[:, 2])
    columns = _within(shape[1], uniform[:, 3], size * uniform[:, 1])
    chosen = uniform[:, 0] < probability
    return rows & chosen[:, None], columns, (256 * uniform[:, 5:]).to(torch.uint8)


def _within(length: int, centre: Tensor, extent: Tensor) -> Tensor:
    """(B, length) whether each pixel's centre lies in an interval given by shares of the length."""
    pixels = (torch.arange(length, device=centre.device) + 0.5) / length
    return (pixels - centre[:, None]).abs() < extent[:, None] / 2
