"""People for shards, made without a renderer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayhmr.data.person import LabelledPerson
from rayhmr.data.schema import DatasetInfo, encode_shard


@pytest.fixture(scope="session")
def make_person() -> Callable[..., LabelledPerson]:
    """A person of arbitrary numbers, different for each `number`; keywords change fields."""

    def make(number: int = 0, **changes: Any) -> LabelledPerson:
        rng = np.random.default_rng(number)
        colour = rng.integers(30, 220, 3, dtype=np.uint8)
        values: dict[str, Any] = {
            "sample_id": f"made/{number:05d}/0",
            "image": np.broadcast_to(colour, (32, 32, 3)).copy(),
            "image_size": (640, 480),
            "crop_to_frame": rng.normal(size=6),
            "center": rng.uniform(100, 300, 2),
            "scale": 1.25,
            "keypoints_2d": np.column_stack([rng.uniform(0, 32, (49, 2)), np.ones(49)]),
            "keypoints_3d": np.column_stack([rng.normal(size=(49, 3)), np.ones(49)]),
            "pose": 0.4 * rng.normal(size=72).astype(np.float32),
            "betas": rng.normal(size=10).astype(np.float32),
            "transl": rng.normal(size=3),
            "intrinsics": rng.uniform(500, 900, 4),
            "gender": "neutral",
            "source": "made",
            "split": "train",
            "subject": f"made/{number:05d}",
        }
        return LabelledPerson(**(values | changes))

    return make


@pytest.fixture(scope="session")
def write_numbered() -> Callable[..., DatasetInfo]:
    """Shards of people that are numbered through all files, the last one to validate."""

    def write(
        folder: Path, files: Sequence[tuple[str, int]], person: Callable[[int], LabelledPerson],
        image_size: int,
    ) -> DatasetInfo:  # fmt: skip
        number = 0
        for name, count in files:
            people = [person(n).row(90) for n in range(number, number + count)]
            (folder / name).write_bytes(encode_shard(people))
            number += count
        notes = [{"name": name, "rows": rows} for name, rows in files]
        return DatasetInfo(
            location=str(folder), fingerprint="f", source="made", image_size=image_size,
            files={"train": notes[:-1], "val": notes[-1:]}, statistics={}, rejected={}, body={},
        )  # fmt: skip

    return write
