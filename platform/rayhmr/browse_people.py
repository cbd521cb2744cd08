"""What a data set or a prediction says about its people, as columns of numbers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hmr.pose_prior import rodrigues
from hmr.skeleton import SMPL_JOINT_NAMES
from rayhmr.picture_hash import Prints
from rayhmr.telemetry import say

SHOWN_EVERY_S = 3.0
BODY_JOINTS = SMPL_JOINT_NAMES[1:]


@dataclass(frozen=True, kw_only=True)
class People:
    """N people in the order of their files.

    ids, sources, splits, subjects: (N,) text; a subject is empty when unknown, a split when there
    are none. box_px: (N,) side of the person's box in the frame. angles: (N, 23) degrees by which
    each of BODY_JOINTS is turned from rest. betas: (N, 10). heading: (N,) degrees, 0 faces the
    camera, 90 the right side of the picture. lean: (N,) degrees between the person's upward axis
    and the picture's. Numbers of people without SMPL labels are NaN. pictures: (N,) which of
    `prints` shows them, -1 where it could not be decoded. errors: name to (N,), NaN where unknown.
    """

    ids: np.ndarray
    sources: np.ndarray
    splits: np.ndarray
    subjects: np.ndarray
    box_px: np.ndarray
    angles: np.ndarray
    betas: np.ndarray
    heading: np.ndarray
    lean: np.ndarray
    pictures: np.ndarray
    prints: Prints
    errors: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bend(self) -> np.ndarray:
        """(N,) degrees: mean over the joints of their angles from rest."""
        mean: np.ndarray = self.angles.mean(1)
        return mean

    @property
    def ranked_by(self) -> str | None:
        """The error by which people are ranked: PA-MPJPE where it is known."""
        order = sorted(self.errors, key=lambda name: (name != "pa_mpjpe_mm", name))
        return order[0] if order else None

    @property
    def error(self) -> np.ndarray:
        """(N,) that error; NaN without any."""
        name = self.ranked_by
        return np.full(len(self), np.nan) if name is None else self.errors[name]


def angles_from_rest(pose: np.ndarray) -> np.ndarray:
    """(N, 23) degrees in 0..180: rotations of joints 1 to 23, of (N, 72) axis-angles."""
    angle = np.linalg.norm(pose.reshape(-1, 24, 3)[:, 1:], axis=2) % (2 * np.pi)
    degrees: np.ndarray = np.rad2deg(np.minimum(angle, 2 * np.pi - angle))
    return degrees


def facing(root: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heading and lean in degrees of (N, 3) axis-angles of the root, camera axes (x right, y down,
    z forward); a body at rest looks along +z with +y upwards."""
    turns = rodrigues(root.astype(np.float64))
    forward, up = turns[:, :, 2], turns[:, :, 1]
    heading = np.rad2deg(np.arctan2(forward[:, 0], -forward[:, 2]))
    lean = np.rad2deg(np.arccos((-up[:, 1]).clip(-1, 1)))
    return heading, lean


@dataclass
class Gatherer:
    """People from batches of columns, as they are read."""

    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    prints: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    count: int = 0

    def add(
        self, *, ids: Sequence[str], sources: Sequence[str], splits: Sequence[str],
        subjects: Sequence[str], box_px: np.ndarray, pose: np.ndarray, betas: np.ndarray,
        labelled: np.ndarray, pictures: np.ndarray,
    ) -> None:  # fmt: skip
        """pose: (n, 72) and betas: (n, 10), of which the `labelled` (n,) count."""
        unknown = ~np.asarray(labelled, bool)
        heading, lean = facing(pose[:, :3])
        angles, shape = angles_from_rest(pose), betas.astype(np.float32).copy()
        for numbers in (heading, lean, angles, shape):
            numbers[unknown] = np.nan
        row = {
            "ids": np.array(ids, object), "sources": np.array(sources, object),
            "splits": np.array(splits, object), "subjects": np.array(subjects, object),
            "box_px": box_px.astype(np.float32), "angles": angles.astype(np.float32),
            "betas": shape, "heading": heading.astype(np.float32),
            "lean": lean.astype(np.float32), "pictures": pictures.astype(np.int64),
        }  # fmt: skip
        for name, values in row.items():
            self.columns.setdefault(name, []).append(values)
        self.count += len(ids)

    def people(self) -> People:
        """All of them; there must be at least one."""
        joined: dict[str, Any] = {
            name: np.concatenate(parts) for name, parts in self.columns.items()
        }
        return People(**joined, prints=Prints.of(self.prints))


class Progress:
    """A line now and then about how far the work has come."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self._start = self._shown = time.perf_counter()

    def add(self, count: int) -> None:
        """So many more are done."""
        self.done += count
        now = time.perf_counter()
        if now - self._shown > SHOWN_EVERY_S or self.done == self.total:
            self._shown = now
            rate = self.done / max(now - self._start, 1e-9)
            left = (self.total - self.done) / max(rate, 1e-9)
            say(f"{self.what} {self.done} of {self.total} people, {rate:.0f}/s, eta {left:.0f} s")
