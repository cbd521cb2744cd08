"""What every reader of a data set yields: a person as the data set describes it, uncropped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hmr.crops import box_xyxy_to_square


@dataclass(frozen=True, kw_only=True)
class RawPerson:
    """One labelled person in its frame. Pixels are those of the upright frame.

    image: path below the source's image root, or the encoded picture itself. quarter_turns: how
    often the stored picture must be turned clockwise to be upright. center: (2,) pixels and scale =
    side / 200 of the person's box. keypoints_2d: (49, 3) pixels, confidence. keypoints_3d: (49, 4)
    metres, camera axes, any common origin; confidence. pose: (72,) axis-angle, joint 0 in the
    camera frame, and betas: (10,); none without SMPL labels. transl: (3,) metres, added to the body
    it places it before the camera; intrinsics: (4,) fx, fy, cx, cy; none when unknown.

    unlabelled: the source has no labels at all, so none is missing. whole_frame: the box is the
    square around the picture, whatever its size; center and scale are not read. frame_size: width
    and height of the frame in which the labels were made, where the source says so. exif_ignored:
    the labels were made on pictures as they are stored, whatever their EXIF orientation says.
    subject: empty when the source does not say who it is.
    """

    sample_id: str
    image: str | bytes
    center: np.ndarray
    scale: float
    keypoints_2d: np.ndarray
    keypoints_3d: np.ndarray
    pose: np.ndarray | None = None
    betas: np.ndarray | None = None
    transl: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    gender: str = "neutral"
    subject: str = ""
    split: str = "train"
    quarter_turns: int = 0
    unlabelled: bool = False
    whole_frame: bool = False
    frame_size: tuple[int, int] | None = None
    exif_ignored: bool = False


@dataclass(frozen=True, kw_only=True)
class RejectedRow:
    """A row that cannot become a person. reason: a short stable code; detail: a sentence."""

    sample_id: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of a source that one task reads: rows start..stop-1 of a file.

    file: path below the label root. split: where its people go.
    """

    split: str
    file: str
    start: int
    stop: int


def cut(split: str, file: str, count: int, rows_per_file: int) -> list[Unit]:
    """Units of nearly equal size, none above rows_per_file, that cover `count` rows once."""
    pieces = math.ceil(count / rows_per_file)
    edges = [count * i // pieces for i in range(pieces + 1)] if pieces else [0]
    return [
        Unit(split=split, file=file, start=start, stop=stop)
        for start, stop in itertools.pairwise(edges)
    ]


def box_id(name: str, image: str, center: np.ndarray, scale: float) -> str:
    """An id for formats without one: two rows with the same box in the same picture are one."""
    x, y = (float(number) for number in center)
    return f"{name}/{image}/{x:.2f}_{y:.2f}_{200 * float(scale):.2f}"


def square_box(box: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and scale of the field's box around a tight one (x1, y1, x2, y2): 1.2 times its longer
    side, / 200; the scale is 0 for a box without an inside."""
    center, side = box_xyxy_to_square(box)
    return center, 0.0 if (box[2:] <= box[:2]).any() else side / 200


class Source(Protocol):
    """A reader of one format. Small and picklable: it travels to the tasks."""

    @property
    def name(self) -> str:
        """Name of the data set, as in the column `source`."""
        ...

    def units(self, rows_per_file: int) -> list[Unit]:
        """All pieces, in a fixed order; reads no more than the files' headers."""
        ...

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """The rows of one piece, in order: each exactly once, as a person or as a rejection."""
        ...
