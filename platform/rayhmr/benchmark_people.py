"""The people that `jobs/benchmark.py data` reads: frames from a camera, and shards cut from them.

Both hold the same people, so that loaders of both can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from hmr.crops import encode_jpeg
from hmr.embedded_body import embedded_body
from hmr.synthetic import Generator
from rayhmr.data.cropping import crop_person
from rayhmr.data.person import LabelledPerson
from rayhmr.data.schema import DatasetInfo, encode_shard
from rayhmr.data.sources.record import RawPerson

FRAME_QUALITY = 89
"""Of a camera's JPEG, with half the colour resolution; crops have `jobs/prepare.py`'s 92."""
CROP_QUALITY = 92
PERSON = 0.48
"""Side of the square around a person over that of the frame."""


def make_frames(folder: Path, *, people: int, side: int) -> list[RawPerson]:
    """Frames of side x side pixels in a folder, with one person each, as a reader yields them."""
    small = round(PERSON * side)
    generator = Generator(embedded_body(), "medium", small, seed=0, split="train")
    rng = np.random.default_rng(0)
    found = []
    for number, person in enumerate(generator.samples(range(people))):
        x, y = (int(corner) for corner in rng.integers(0, side - small + 1, 2))
        frame = _scene(side, rng)
        part, alpha = frame[y : y + small, x : x + small], person.mask[..., None]
        part[:] = (alpha * person.image + (1 - alpha) * part).round().astype(np.uint8)
        name = f"frame-{number:05d}.jpg"
        (folder / name).write_bytes(encode_jpeg(frame, FRAME_QUALITY))
        found.append(
            RawPerson(
                sample_id=name, image=name, scale=small / 200,
                center=np.array([x + small / 2, y + small / 2]),
                keypoints_2d=person.keypoints_2d + np.array([x, y, 0], np.float32),
                keypoints_3d=person.keypoints_3d, pose=person.pose, betas=person.betas,
            )
        )  # fmt: skip
    return found


def _scene(side: int, rng: np.random.Generator) -> np.ndarray:
    """(side, side, 3) uint8: smooth colours, finer ones, and a camera's noise."""
    scene = np.full((side, side, 3), 120.0, np.float32)
    for cells, strength in ((5, 40.0), (max(side // 12, 2), 8.0), (max(side // 3, 2), 4.0)):
        noise = rng.standard_normal((cells, cells, 3)).astype(np.float32)
        scene += strength * cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC)
    return scene.round().clip(0, 255).astype(np.uint8)


def read_frame(folder: Path, person: RawPerson) -> np.ndarray:
    """(H, W, 3) uint8 RGB."""
    frame = cv2.imread(str(folder / str(person.image)), cv2.IMREAD_COLOR_RGB)
    assert frame is not None, person.image
    return frame


def make_shards(
    folder: Path, people: Sequence[RawPerson], *, image_size: int, copies: int, files: int
) -> DatasetInfo:
    """Crops of the people, each `copies` times, in `files` files of nearly equal size."""
    rows = []
    for person in people:
        frame = read_frame(folder, person)
        crop = crop_person(person, frame, size=image_size, padding=1.0, source="benchmark")
        assert isinstance(crop, LabelledPerson), crop
        rows.append(crop.row(CROP_QUALITY))
    copied = [
        row | {"sample_id": f"{row['sample_id']}/{copy}"} for copy in range(copies) for row in rows
    ]
    listed = []
    for number in range(files):
        part = copied[number::files]
        name = f"{image_size}-{number:03d}.parquet"
        (folder / name).write_bytes(encode_shard(part))
        listed.append({"name": name, "rows": len(part)})
    return DatasetInfo(
        location=str(folder), fingerprint="", source="benchmark", image_size=image_size,
        files={"train": listed}, statistics={}, rejected={}, body={},
    )  # fmt: skip
