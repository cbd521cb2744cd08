"""What every reader of a data set yields: a person as the data set describes it, uncropped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class RawPerson:
    """One labelled person in its frame. Pixels are those of the upright frame.

    image: path below the source's image root, or the encoded picture itself. quarter_turns: how
    often the stored picture must be turned clockwise to be upright. center: (2,) pixels and scale =
    side / 200 of the person's box. keypoints_2d: (49, 3) pixels, confidence. keypoints_3d: (49, 4)
    metres, camera axes, any common origin; confidence. pose: (72,) axis-angle, joint 0 in the
    camera frame, and betas: (10,); none without SMPL labels. transl: (3,) metres, added to the body
    it places it before the camera; intrinsics: (4,) fx, fy, cx, cy; none when unknown.
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


class Source(Protocol):
    """A reader of one format. Small and picklable: it travels to the tasks."""

    name: str

    def units(self, rows_per_file: int) -> list[Unit]:
        """All pieces, in a fixed order; reads no more than the files' headers."""
        ...

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """The rows of one piece, in order: each exactly once, as a person or as a rejection."""
        ...
