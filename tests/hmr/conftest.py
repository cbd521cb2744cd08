"""Bodies for the tests: the embedded one, and a small one of random numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hmr.body import Body
from hmr.body_arrays import BodyArrays
from hmr.skeleton import SMPL_PARENTS

SMALL_VERTICES = 300


def random_arrays(vertices: int = SMALL_VERTICES, seed: int = 0) -> BodyArrays:
    """A body of random numbers the size of a person: every array is dense, so every path counts."""
    rng = np.random.default_rng(seed)

    def rows(*shape: int) -> np.ndarray:
        weights = rng.random(shape) ** 4
        return weights / weights.sum(1, keepdims=True)

    return BodyArrays(
        name="random",
        v_template=rng.uniform(-1, 1, (vertices, 3)) * [0.4, 0.85, 0.2],
        shapedirs=0.02 * rng.standard_normal((vertices, 3, 10)),
        posedirs=(0.01 * rng.standard_normal((vertices, 3, 207))).astype(np.float32),
        J_regressor=rows(24, vertices),
        J_regressor_extra=rows(9, vertices),
        lbs_weights=rows(vertices, 24),
        parents=np.array(SMPL_PARENTS, np.int64),
        faces=rng.integers(0, vertices, (2 * vertices, 3)),
        landmark_vertices=rng.choice(vertices, 21, replace=False),
    ).checked()


@pytest.fixture(scope="session")
def small_arrays() -> BodyArrays:
    """Read only: all tests share it."""
    return random_arrays()


@pytest.fixture(scope="session")
def small_body(small_arrays: BodyArrays) -> Body:
    """Read only: all tests share it."""
    return Body(small_arrays)


@pytest.fixture(scope="session")
def embedded_arrays() -> BodyArrays:
    """Read only: all tests share it."""
    return Body.embedded().arrays
