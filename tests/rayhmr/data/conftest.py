"""People for shards, made without a renderer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rayhmr.data.person import LabelledPerson


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
