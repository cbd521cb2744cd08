"""The changes of pictures on a CPU: one after the other, in bytes, by OpenCV.

torch makes the same changes for a whole batch in float32, as a GPU likes it; a core takes ten times
as long for that. The numbers that were drawn are the same, and so are the formulas: the results
differ by rounding, which comes after the smoothing here as well, and by OpenCV's fixed point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import Tensor

from hmr.augment_colour import LUMA, about_one, boxes_in_pixels, scale_channels
from hmr.augment_draws import Changes
from hmr.augment_geometry import SMOOTHING_TAPS, Warp, smoothing_strength

Step = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""One change of one person: its row, the (H, W, 3) uint8 picture so far, and where the changed one
may lie, which from the second change on can be the same array; gives the picture as it is then."""


def change_one_by_one(images: Tensor, changes: Changes) -> Tensor:
    """(B, 3, H, W) uint8 to the same, with interleaved channels in memory; in as many threads as
    torch has. What a person gets depends neither on them nor on the other people."""
    steps = _steps(changes, images.shape[-1])
    if not steps:
        return images
    pictures = images.permute(0, 2, 3, 1).contiguous().numpy()
    changed = np.empty_like(pictures)

    def work(people: Iterable[int]) -> None:
        for person in people:
            image, out = pictures[person], changed[person]
            for step in steps:
                image = step(person, image, out)
            if image is not out:
                out[:] = image

    threads = min(torch.get_num_threads(), len(images))
    if threads <= 1:
        work(range(len(images)))
    else:
        # OpenCV releases the interpreter lock.
        with ThreadPoolExecutor(threads, thread_name_prefix="augment") as pool:
            shares = [range(first, len(images), threads) for first in range(threads)]
            list(pool.map(work, shares))  # the list hands errors on
    return torch.from_numpy(changed).permute(0, 3, 1, 2)


def _steps(changes: Changes, side: int) -> list[Step]:
    """The changes that have an amount, in their order."""
    config, steps = changes.config, list[Step]()
    if changes.warp is not None:
        steps.append(_warping(changes.warp, changes.flipped, side))
    elif config.flip > 0:
        steps.append(_mirroring(changes.flipped))
    if config.channel_noise > 0:
        steps.append(_scaling(changes.channels, config.channel_noise))
    if config.colour > 0:
        steps.append(_mixing(changes.light, config.colour))
    if config.occlusion > 0:
        steps.append(_covering(changes, side))
    return steps


def _warping(warp: Warp, flipped: Tensor, side: int) -> Step:
    """The warp and the mirror image in one interpolation; smoothed first where it shrinks."""
    maps = pixel_maps(warp, flipped, side)
    strengths = smoothing_strength(warp.scale).tolist()

    def step(person: int, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        if strengths[person] > 0:
            image = _smoothed(image, strengths[person])
        return cv2.warpAffine(
            image, maps[person], (side, side), dst=out,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0),
        )  # fmt: skip

    return step


def pixel_maps(warp: Warp, flipped: Tensor, side: int) -> np.ndarray:
    """(B, 2, 3) float64 from pixels (column, row) of the changed picture to those of the one
    before: `Warp` in OpenCV's coordinates, where the first pixel's centre is (0, 0)."""
    angle, scale, shift = (t.double() for t in (warp.angle, warp.scale, warp.shift))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([cos, -sin, sin, cos], dim=-1).view(-1, 2, 2)
    linear[:, :, 0] *= 1 - 2 * flipped.double()[:, None]
    middle = torch.full((2,), (side - 1) / 2, dtype=torch.float64)
    offset = middle + shift * side / 2 - linear @ middle
    return torch.cat([linear, offset[..., None]], dim=-1).numpy()


_TAPS = np.array(SMOOTHING_TAPS, np.float32)


def _smoothed(image: np.ndarray, strength: float) -> np.ndarray:
    """The picture, to a share `strength` smoothed."""
    smooth = cv2.sepFilter2D(image, -1, _TAPS, _TAPS, borderType=cv2.BORDER_REPLICATE)
    return smooth if strength == 1 else cv2.addWeighted(image, 1 - strength, smooth, strength, 0)


def _mirroring(flipped: Tensor) -> Step:
    chosen = flipped.tolist()

    def step(person: int, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        return cv2.flip(image, 1, dst=out) if chosen[person] else image

    return step


def _scaling(uniform: Tensor, amount: float) -> Step:
    """`scale_channels` of all 256 levels, in a table for each person."""
    levels = torch.arange(256, dtype=torch.uint8).expand(len(uniform), 3, 1, 256)
    tables = scale_channels(levels, uniform, amount).permute(0, 2, 3, 1).contiguous().numpy()
    return lambda person, image, out: cv2.LUT(image, tables[person], dst=out)


def _mixing(uniform: Tensor, amount: float) -> Step:
    """`jitter_colour` as one matrix for each person.

    With brightness b, contrast c, saturation s, a pixel x, its luma l(x) and their mean m over the
    picture: the brightened and stretched pixel is y = c b x + (1 - c) b m, and the result
    l(y) + s (y - l(y)) = c b (s x + (1 - s) l(x)) + (1 - c) b m.
    """
    factors = about_one(uniform.double(), amount).numpy()
    luma = np.array(LUMA)

    def step(person: int, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        brightness, contrast, saturation = factors[person]
        mean = luma @ cv2.mean(image)[:3]
        mix = np.empty((3, 4))
        mix[:, :3] = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * luma)
        mix[:, 3] = (1 - contrast) * brightness * mean
        return cv2.transform(image, mix, dst=out)

    return step


def _covering(changes: Changes, side: int) -> Step:
    config = changes.config
    rows, columns, colours = (
        t.numpy()
        for t in boxes_in_pixels(
            changes.boxes, config.occlusion, config.occlusion_size, (side, side)
        )
    )

    def step(person: int, image: np.ndarray, out: np.ndarray) -> np.ndarray:
        high, wide = np.flatnonzero(rows[person]), np.flatnonzero(columns[person])
        if not len(high) or not len(wide):
            return image
        if image is not out:
            out[:] = image
        out[high[0] : high[-1] + 1, wide[0] : wide[-1] + 1] = colours[person]
        return out

    return step
