"""A sheet that shows what a body can do: known poses, and every direction of shape."""

from __future__ import annotations

import numpy as np

from hmr.body_arrays import BodyArrays, lbs_numpy
from hmr.pose_prior import ARCHETYPES, rodrigues
from hmr.render import grid, portrait

POSES = ("tpose", "walk", "sit", "up")
SHAPES = 8
STRENGTH = 3.0
"""Standard deviations of shape on either side."""
LEGEND = (
    "above: T-pose, walking, sitting, arms up, each from the front and from the right; below: the "
    f"first {SHAPES} shape directions at +{STRENGTH:g} and -{STRENGTH:g}"
)
_FLIP = np.diag([1.0, -1.0, -1.0])
"""From SMPL's axes (y up, z forward) to the camera's (y down, z away)."""


def posed(body: BodyArrays, pose: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """(V, 3) vertices in camera axes. pose: (72,) axis-angle; betas: (10,)."""
    rotmats = rodrigues(pose.reshape(1, 24, 3))
    vertices, _ = lbs_numpy(body, rotmats, betas[None])
    assert vertices is not None
    turned: np.ndarray = vertices[0] @ _FLIP
    return turned


def body_sheet(body: BodyArrays, side: int = 160) -> np.ndarray:
    """(H, W, 3) uint8, three rows of eight pictures in one scale; see LEGEND."""
    neutral = np.zeros(10)
    poses = [
        portrait(posed(body, ARCHETYPES[name], neutral), body.faces, side, degrees=turn,
                 height_m=2.4)
        for name in POSES
        for turn in (20, -90)
    ]  # fmt: skip
    rows = [poses]
    for sign in (STRENGTH, -STRENGTH):
        shapes = sign * np.eye(SHAPES, 10)
        rows.append(
            [
                portrait(posed(body, ARCHETYPES["apose"], betas), body.faces, side, degrees=15,
                         height_m=2.4)
                for betas in shapes
            ]
        )  # fmt: skip
    return grid(rows)
