"""SMPL-structured arrays of a body, their files, and linear blend skinning in numpy.

Shape letters: B batch, V vertices, F faces. Lengths are metres; axes are SMPL's: x to the person's
left, y up, z forward. numpy only: data workers use this module without torch.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hmr.body_checks import NUM_JOINTS, check_body
from hmr.body_landmarks import h36m_joint_regressor
from hmr.body_skinning import SkinningBasis, landmarks_numpy, lbs_numpy, skinning_basis
from hmr.body_values import body_values, read_values
from hmr.skeleton import EXTRA_JOINT_NAMES, H36M17_NAMES, SMPL_VERTEX_IDS

__all__ = [
    "EMBEDDED_VERSION",
    "BodyArrays",
    "body_from_arrays",
    "body_from_path",
    "landmarks_numpy",
    "lbs_numpy",
    "load_body",
    "save_body",
]

EMBEDDED_VERSION = 1
"""Raised with every change of the numbers of the embedded body; models refuse another body."""


@dataclass(frozen=True, eq=False)
class BodyArrays:
    """The arrays that define a body model.

    name: what people call it; "embedded" or the stem of a user's file.
    v_template: (V, 3) rest pose, betas zero. shapedirs: (V, 3, 10) metres per unit of beta.
    posedirs: (V, 3, 207) float32, metres per unit of vec(R_1..23 - I), row-major.
    J_regressor: (24, V). J_regressor_extra: (9, V) right hip, left hip, neck, head top, pelvis,
    thorax, spine, jaw, head. lbs_weights: (V, 24), rows sum to 1.
    parents: (24,) int64, -1 for the root, parents before children. faces: (F, 3) int64, seen from
    outside counter-clockwise.
    licence: "project" for the body computed by this package, "user" for a body from a file.
    landmark_vertices: (21,) int64 vertex numbers of nose, eyes, ears, feet and finger tips in the
    order of `hmr.skeleton.SMPL_VERTEX_IDS`, whose values are the default.
    J_regressor_h36m: (17, V) Human3.6M's joints in the order of `hmr.skeleton.H36M17_NAMES`, None
    where the file lacks it; `h36m_regressor` is always there.
    extra_is_stand_in: J_regressor_extra was not in the file, but computed.
    """

    name: str
    v_template: np.ndarray
    shapedirs: np.ndarray
    posedirs: np.ndarray
    J_regressor: np.ndarray
    J_regressor_extra: np.ndarray
    lbs_weights: np.ndarray
    parents: np.ndarray
    faces: np.ndarray
    licence: str = "user"
    landmark_vertices: np.ndarray = field(
        default_factory=lambda: np.array(list(SMPL_VERTEX_IDS.values()), np.int64)
    )
    J_regressor_h36m: np.ndarray | None = None
    extra_is_stand_in: bool = False

    @property
    def num_vertices(self) -> int:
        """V."""
        return len(self.v_template)

    @cached_property
    def rest_joints(self) -> np.ndarray:
        """(24, 3) joints of the rest pose at betas zero."""
        joints: np.ndarray = self.J_regressor @ self.v_template
        return joints

    @cached_property
    def joint_shapedirs(self) -> np.ndarray:
        """(24, 3, 10) motion of the rest joints per unit of beta."""
        return np.einsum("jv,vck->jck", self.J_regressor, self.shapedirs, optimize=True)

    @cached_property
    def extra_support(self) -> np.ndarray:
        """(N,) numbers of the vertices that `J_regressor_extra` reads."""
        return np.flatnonzero(self.J_regressor_extra.any(0))

    @cached_property
    def h36m_regressor(self) -> np.ndarray:
        """(17, V) `J_regressor_h36m`, or its stand-in of `hmr.body_landmarks`."""
        if self.J_regressor_h36m is not None:
            return self.J_regressor_h36m
        return h36m_joint_regressor(self.v_template, self.rest_joints, self.J_regressor_extra)

    @property
    def stand_ins(self) -> tuple[str, ...]:
        """Names of the joints that stand-ins place: extra_..., and Human3.6M's as h36m_..."""
        computed = self.extra_is_stand_in or self.licence == "project"
        extra = EXTRA_JOINT_NAMES if computed else ()
        h36m = H36M17_NAMES if self.J_regressor_h36m is None else ()
        return (*extra, *(f"h36m_{name}" for name in h36m))

    def content_hash(self) -> str:
        """Hex sha256 that tells whether two bodies are the same one.

        A body from a file is known by its arrays in float32 and int32. The body of this package is
        computed, and machines round differently in the last digit: it is known by its name, its
        version, its faces and its landmarks.
        """
        digest = hashlib.sha256(f"{self.licence}:{self.num_vertices}".encode())
        if self.licence == "project":
            digest.update(f"{self.name}:{EMBEDDED_VERSION}".encode())
        else:
            for array in (self.v_template, self.shapedirs, self.posedirs, self.J_regressor,
                          self.J_regressor_extra, self.lbs_weights):  # fmt: skip
                digest.update(array.astype(np.float32).tobytes())
        if self.J_regressor_h36m is not None:
            digest.update(self.J_regressor_h36m.astype(np.float32).tobytes())
        for array in (self.parents, self.faces, self.landmark_vertices):
            digest.update(array.astype(np.int32).tobytes())
        return digest.hexdigest()

    def checked(self, source: str | None = None) -> BodyArrays:
        """These arrays if they form a body; otherwise BodyError that begins with `source`."""
        check_body(self, source or f"body {self.name!r}")
        return self

    @cached_property
    def skinning_basis(self) -> SkinningBasis:
        """What `lbs_numpy` multiplies with."""
        return skinning_basis(self)

    def __getstate__(self) -> dict[str, Any]:
        # Without what is cached: it would double the bytes that travel between processes.
        return {f.name: getattr(self, f.name) for f in fields(self)}


def save_body(path: str | os.PathLike[str], arrays: BodyArrays) -> None:
    """Write a plain .npz with smplx's keys, atomically, in float32 where that loses nothing."""
    target = Path(path)
    kintree = np.stack([arrays.parents, np.arange(NUM_JOINTS)])
    values = {
        "v_template": arrays.v_template,
        "shapedirs": arrays.shapedirs,
        "posedirs": arrays.posedirs,
        "J_regressor": arrays.J_regressor,
        "J_regressor_extra": arrays.J_regressor_extra,
        "weights": arrays.lbs_weights,
        "kintree_table": kintree,
        "f": arrays.faces.astype(np.int32),
        "landmark_vertices": arrays.landmark_vertices,
    }
    if arrays.J_regressor_h36m is not None:
        values["J_regressor_h36m"] = arrays.J_regressor_h36m
    if arrays.extra_is_stand_in:
        values["extra_is_stand_in"] = np.array(1, np.int8)
    for key, value in values.items():
        if value.dtype == np.float64 and (value.astype(np.float32) == value).all():
            values[key] = value.astype(np.float32)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: several processes may write the same body at once.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **values)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def load_body(path: str | os.PathLike[str]) -> BodyArrays:
    """Read a body from an .npz with the keys of smplx; nothing in it is ever unpickled.

    Keys: v_template, shapedirs (the first 10 directions are used), posedirs, J_regressor,
    weights, kintree_table, f. Optional: J_regressor_extra (9, V), else the stand-in of
    `hmr.body_landmarks`; J_regressor_h36m (17, V); landmark_vertices (21,), else SMPL's vertex
    numbers.

    BodyError names the file, the rule it breaks, and the cure.
    """
    source = Path(path)
    return body_from_arrays(read_values(source), source)


def body_from_arrays(values: dict[str, np.ndarray], source: Path) -> BodyArrays:
    """The body of arrays that have `load_body`'s names; errors and its name come from `source`."""
    return BodyArrays(name=source.stem, **body_values(values, source)).checked(str(source))


def body_from_path(path: str | os.PathLike[str]) -> BodyArrays:
    """`"embedded"` gives the body of this package, anything else is read as a body file."""
    if str(path) == "embedded":
        # Imported late: building the body needs this module.
        from hmr.embedded_body import embedded_body

        return embedded_body()
    return load_body(path)
