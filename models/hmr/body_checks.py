"""The rules that arrays must keep to be a body."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hmr.errors import BodyError
from hmr.skeleton import H36M17_NAMES, SMPL_VERTEX_IDS

if TYPE_CHECKING:
    from hmr.body_arrays import BodyArrays

NUM_JOINTS = 24
NUM_BETAS = 10
NUM_POSE_FEATURES = 207
"""9 numbers of (R_j - I) for each of the 23 joints below the root."""

# How far a row may be from sum 1; regressors of further joints are learned from marker data.
_SUM_TOLERANCES = {
    "J_regressor": 1e-3, "J_regressor_extra": 0.05, "J_regressor_h36m": 0.05, "lbs_weights": 1e-3,
}  # fmt: skip


def check_body(body: BodyArrays, source: str) -> None:
    """BodyError that begins with `source` and names the first broken rule, if there is one."""

    def require(condition: bool | np.bool_, rule: str) -> None:
        if not condition:
            raise BodyError(f"{source}: {rule}. Convert the original SMPL file again.")

    V = body.num_vertices
    shapes: dict[str, tuple[int | None, ...]] = {
        "v_template": (V, 3),
        "shapedirs": (V, 3, NUM_BETAS),
        "posedirs": (V, 3, NUM_POSE_FEATURES),
        "J_regressor": (NUM_JOINTS, V),
        "J_regressor_extra": (9, V),
        "lbs_weights": (V, NUM_JOINTS),
        "parents": (NUM_JOINTS,),
        "faces": (len(body.faces), 3),
        "landmark_vertices": (len(SMPL_VERTEX_IDS),),
    }
    tolerances = dict(_SUM_TOLERANCES)
    if body.J_regressor_h36m is None:
        del tolerances["J_regressor_h36m"]
    else:
        shapes["J_regressor_h36m"] = (len(H36M17_NAMES), V)
    for key, shape in shapes.items():
        array = getattr(body, key)
        require(array.shape == shape, f"{key} has the shape {array.shape}, it must have {shape}")
        require(np.isfinite(array).all(), f"{key} holds NaN or infinite numbers")
    for key, tolerance in tolerances.items():
        sums = getattr(body, key).sum(1)
        row = int(np.abs(sums - 1).argmax())
        require(
            abs(sums[row] - 1) < tolerance,
            f"row {row} of {key} sums to {sums[row]:.4g}, every row must sum to 1",
        )
    before = (body.parents[1:] >= 0) & (body.parents[1:] < np.arange(1, NUM_JOINTS))
    require(
        body.parents[0] == -1 and before.all(),
        "parents must be -1 for the root, and every other joint must come after its parent",
    )
    for key in ("faces", "landmark_vertices"):
        array = getattr(body, key)
        require(
            len(array) > 0 and array.min() >= 0 and array.max() < V,
            f"{key} runs from {array.min(initial=0)} to {array.max(initial=0)}, but the vertices "
            f"are numbered 0 to {V - 1}; a body with other vertex numbers needs its own {key}",
        )
    size = float(np.ptp(body.v_template, axis=0).max())
    require(0.3 < size < 3.5, f"the body measures {size:.4g}, but lengths are metres")
