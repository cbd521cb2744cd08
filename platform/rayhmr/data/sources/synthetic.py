"""Generated people with exact labels, see `hmr.synthetic`."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from hmr.body_arrays import BodyArrays
from hmr.synthetic import Generator
from rayhmr.config import SyntheticConfig
from rayhmr.data.person import LabelledPerson
from rayhmr.data.sources.bodies import shared_body
from rayhmr.data.sources.record import RejectedRow, Unit, cut

CHUNK = 50
"""People that are posed together."""


@functools.cache
def _generator(body: str, preset: str, image_size: int, seed: int, split: str) -> Generator:
    """One for each worker process: its backgrounds and noise are made once."""
    cv2.setNumThreads(1)  # the worker owns one core
    return Generator(shared_body(body), preset, image_size, seed, split)


@dataclass(frozen=True)
class SyntheticSource:
    """body: `embedded` or the path of a body file."""

    config: SyntheticConfig
    body: str

    def counts(self) -> dict[str, int]:
        """People of each split."""
        return {"train": self.config.train, "val": self.config.val, "test": self.config.test}

    def body_arrays(self) -> BodyArrays:
        """The body that the labels belong to."""
        return shared_body(self.body)

    def units(self, rows_per_file: int) -> list[Unit]:
        """Pieces of nearly equal size, split by split."""
        return [
            unit for split, count in self.counts().items()
            for unit in cut(split, "", count, rows_per_file)
        ]  # fmt: skip

    def read(self, unit: Unit) -> Iterator[LabelledPerson | RejectedRow]:
        """The people of a piece; those with too few joints in the picture are rejected."""
        for person in self.people(unit.split, unit.start, unit.stop):
            fault = person.rejection()
            if fault is None:
                yield person
            else:
                yield RejectedRow(sample_id=person.sample_id, reason=fault[0], detail=fault[1])

    def people(self, split: str, start: int, stop: int) -> Iterator[LabelledPerson]:
        """People start..stop-1 of a split; the same whoever asks, and in whatever portions."""
        c = self.config
        generator = _generator(self.body, c.preset, c.image_size, c.seed, split)
        for first in range(start, stop, CHUNK):
            numbers = range(first, min(first + CHUNK, stop))
            for number, person in zip(numbers, generator.samples(numbers), strict=True):
                side = c.image_size
                name = f"synthetic-{c.preset}-{c.seed}/{split}/{number:07d}"
                yield LabelledPerson(
                    sample_id=f"{name}/0", image=person.image, image_size=(side, side),
                    crop_to_frame=np.array([1, 0, 0, 0, 1, 0], np.float32),
                    center=np.array([side / 2, side / 2]), scale=side / 200,
                    keypoints_2d=person.keypoints_2d, keypoints_3d=person.keypoints_3d,
                    pose=person.pose, betas=person.betas, transl=person.transl,
                    intrinsics=np.array([person.focal, person.focal, side / 2, side / 2]),
                    gender="neutral", source="synthetic", split=split, subject=name,
                )  # fmt: skip
