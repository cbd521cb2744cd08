"""From a full frame and boxes to what the model sees of every person, and where it lies.

Needs no model: a process without one cuts people out for one that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmr.camera import default_focal
from hmr.crops import (
    DEFAULT_PADDING,
    Frame,
    box_to_affine,
    box_xyxy_to_square,
    centre_box,
    crop_image,
)
from hmr.errors import DataError

MIN_OVERLAP_PX = 1.0
"""A box shares at least this much of each axis with its image."""
MAX_BOX_RATIO = 100.0
"""A box is at most this many times as long as its image."""

Boxes = np.ndarray | Sequence[Sequence[float]] | None


@dataclass(frozen=True, kw_only=True)
class PersonCrop:
    """One person to recover: a square of one image.

    pixels: (S, S, 3) uint8 RGB. box: (4,) x1, y1, x2, y2; center: (2,) and side of the square;
    size: width and height of the image; focal: focal length; all of them in the image's pixels.
    """

    pixels: np.ndarray
    box: np.ndarray
    center: np.ndarray
    side: float
    size: tuple[int, int]
    focal: float


def shortest_box(boxes: np.ndarray) -> float:
    """The least of the longer sides of (N, 4) boxes x1, y1, x2, y2, as `hmr.crops.decode_frame`
    takes it; 0 for boxes that are none."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1:] != (4,) or not np.isfinite(boxes).all():
        return 0.0
    return float((boxes[:, 2:] - boxes[:, :2]).max(1).min(initial=np.inf))


def person_crops(
    image: np.ndarray | Frame, boxes: Boxes = None, focal: float | None = None, *, image_size: int,
    padding: float = DEFAULT_PADDING,
) -> list[PersonCrop]:  # fmt: skip
    """The people of one upright image (H, W, 3) uint8 RGB, in the order of their boxes.

    image: its pixels, or fewer of them as a Frame. boxes: (N, 4) as x1, y1, x2, y2 in the image's
    pixels; none: one person, the whole image. focal: in pixels; none: the diagonal. image_size:
    side S of the crops. padding: side of the square over the longer side of the box.

    DataError names a box, an image or a focal length that breaks its rule.
    """
    frame = image if isinstance(image, Frame) else Frame(image)
    _check_image(frame.pixels)
    width, height = frame.size
    if focal is None:
        focal = default_focal(width, height)
    elif not (np.isfinite(focal) and focal > 0):
        raise DataError(f"focal={focal}: must be a finite number of pixels above 0")
    if boxes is None:
        squares = [(np.array([0, 0, width, height], np.float64), *centre_box(width, height))]
    else:
        squares = [
            (box, *box_xyxy_to_square(box, padding)) for box in _checked_boxes(boxes, width, height)
        ]
    return [
        PersonCrop(
            pixels=_square(frame, center, side, image_size),
            box=box, center=center, side=side, size=(width, height), focal=focal,
        )
        for box, center, side in squares
    ]  # fmt: skip


def _square(frame: Frame, center: np.ndarray, side: float, image_size: int) -> np.ndarray:
    affine = box_to_affine(center / frame.shrink, side / frame.shrink, image_size)
    return crop_image(frame.pixels, affine, image_size)


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"image is a {type(image).__name__}; it must be uint8 (H, W, 3), RGB: "
            "read it with hmr.crops.read_image"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(
            f"image is {image.dtype} {image.shape}; it must be uint8 (H, W, 3), RGB: "
            "read it with hmr.crops.read_image"
        )


def _checked_boxes(
    boxes: np.ndarray | Sequence[Sequence[float]], width: int, height: int
) -> np.ndarray:
    """(N, 4) float64; DataError names the first box that is no box of this image."""
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"boxes={boxes!r:.80}: give rows of 4 numbers, x1, y1, x2, y2") from error
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"boxes have the shape {array.shape}; give (N, 4) as x1, y1, x2, y2")
    for number, box in enumerate(array):
        if (rule := box_problem(box, width, height)) is not None:
            raise DataError(f"box {number} {box.tolist()}: {rule}")
    return array


def box_problem(box: np.ndarray, width: int, height: int) -> str | None:
    """The rule that a box x1, y1, x2, y2 of an image of this size breaks; none: it is a box."""
    x1, y1, x2, y2 = box
    inside_x, inside_y = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
    if not np.isfinite(box).all():
        return "every coordinate must be finite"
    if x2 <= x1 or y2 <= y1:
        return "x2 must be above x1 and y2 above y1; give corners, not width and height"
    if min(inside_x, inside_y) < MIN_OVERLAP_PX:
        return f"it must overlap the {width} x {height} image by {MIN_OVERLAP_PX:g} pixel or more"
    if max(x2 - x1, y2 - y1) > MAX_BOX_RATIO * max(width, height):
        return f"no side may be above {MAX_BOX_RATIO:g} times the {width} x {height} image's"
    return None
