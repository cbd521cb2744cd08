"""Who is who in a video: boxes of one frame after the other become tracks of persons.

Boxes are paired with the tracks by overlap, all at once, so that the sum of the overlaps is the
largest possible. A track that nobody matches waits, moving on as it last moved, and ends after
`max_gap` frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hmr.assignment import assign
from hmr.errors import DataError

_SPEED_MEMORY = 0.5
"""Share of a track's former speed in its present one: a box jitters, a person does not."""


def box_overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes, (N, 4) and (M, 4) xyxy to (N, M) in 0..1."""
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1][None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


@dataclass
class _Track:
    """box: where the person was last seen, in which frame; speed: (2,) pixels per frame."""

    number: int
    frame: int
    box: np.ndarray
    speed: np.ndarray
    seen: int = 1

    def expected(self, frame: int) -> np.ndarray:
        """The box in another frame, had the person gone on."""
        return self.box + np.tile(self.speed, 2) * (frame - self.frame)

    def see(self, frame: int, box: np.ndarray) -> None:
        """The person's box in a later frame."""
        moved = (box - self.box).reshape(2, 2).mean(0) / (frame - self.frame)
        share = _SPEED_MEMORY if self.seen > 1 else 0.0
        self.speed = share * self.speed + (1 - share) * moved
        self.frame, self.box, self.seen = frame, box, self.seen + 1


class BoxTracker:
    """Numbers for the persons of one video, from 0, in the order in which they appear.

    min_iou: least overlap of a box with a track, in 0..1. max_gap: frames for which a person may
    be missing. The numbers do not depend on the order of the boxes in a frame.
    """

    def __init__(self, min_iou: float = 0.3, max_gap: int = 10) -> None:
        self.min_iou, self.max_gap = min_iou, max_gap
        self._tracks: list[_Track] = []
        self._count, self._frame = 0, -1

    def update(self, frame: int, boxes: np.ndarray) -> np.ndarray:
        """Track numbers (N,) of a frame's boxes (N, 4), x1, y1, x2, y2.

        DataError when the frame is not behind the one before.
        """
        if frame <= self._frame:
            raise DataError(f"frame {frame} after frame {self._frame}: give them in order of time")
        self._frame = frame
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        self._tracks = [t for t in self._tracks if frame - t.frame <= self.max_gap + 1]
        numbers = np.full(len(boxes), -1)
        expected = np.array([track.expected(frame) for track in self._tracks]).reshape(-1, 4)
        overlaps = box_overlaps(expected, boxes)
        overlaps[overlaps < self.min_iou] = 0  # such pairs must not decide about the others
        for row, column in zip(*assign(-overlaps), strict=True):
            if overlaps[row, column] > 0:
                self._tracks[row].see(frame, boxes[column])
                numbers[column] = self._tracks[row].number
        # From left to right, then from the top: whatever the order in which they came.
        strangers = np.flatnonzero(numbers < 0)
        for place in sorted(strangers, key=lambda place: tuple(boxes[place])):
            self._tracks.append(_Track(self._count, frame, boxes[place], np.zeros(2)))
            numbers[place] = self._count
            self._count += 1
        return numbers
