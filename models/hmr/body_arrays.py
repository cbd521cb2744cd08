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

from hmr.body_checks import NUM_BETAS, NUM_JOINTS, check_body
from hmr.body_landmarks import extra_joint_regressor
from hmr.body_skinning import SkinningBasis, landmarks_numpy, lbs_numpy, skinning_basis
from hmr.errors import BodyError
from hmr.npz import read_npz
from hmr.skeleton import SMPL_VERTEX_IDS

__all__ = [
    "EMBEDDED_VERSION",
    "BodyArrays",
    "body_from_path",
    "landmarks_numpy",
    "lbs_numpy",
    "load_body",
    "save_body",
]

EMBEDDED_VERSION = 1
"""Raised with every change of the numbers of the embedded body; models refuse another body."""

# A file's keys, each with the other names it is known by.
_FILE_KEYS: dict[str, tuple[str, ...]] = {
    "v_template": ("v_template",),
    "shapedirs": ("shapedirs",),
    "posedirs": ("posedirs",),
    "J_regressor": ("J_regressor",),
    "lbs_weights": ("weights", "lbs_weights"),
    "parents": ("kintree_table", "parents"),
    "faces": ("f", "faces"),
}


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
    `hmr.body_landmarks`; landmark_vertices (21,), else SMPL's vertex numbers.

    BodyError names the file, the rule it breaks, and the cure.
    """
    source = Path(path)
    values = _read_npz(source)
    arrays: dict[str, Any] = {}
    for key, names in _FILE_KEYS.items():
        found = next((name for name in names if name in values), None)
        if found is None:
            raise BodyError(
                f"{source}: the key {names[0]!r} is missing (found: {', '.join(sorted(values))}). "
                "A body file needs v_template, shapedirs, posedirs, J_regressor, weights, "
                "kintree_table and f: convert the SMPL file again."
            )
        arrays[key] = _numeric(source, found, values[found])
    arrays["shapedirs"] = _first_betas(source, arrays["shapedirs"])
    arrays["parents"] = _parents(source, arrays["parents"])
    arrays["faces"] = _whole_numbers(source, "f", arrays["faces"])
    if "landmark_vertices" in values:
        numbers = _numeric(source, "landmark_vertices", values["landmark_vertices"])
        arrays["landmark_vertices"] = _whole_numbers(source, "landmark_vertices", numbers)
    if "J_regressor_extra" in values:
        extra = _numeric(source, "J_regressor_extra", values["J_regressor_extra"])
    else:
        extra = _stand_in(source, arrays)
    return BodyArrays(name=source.stem, J_regressor_extra=extra, **arrays).checked(str(source))


def body_from_path(path: str | os.PathLike[str]) -> BodyArrays:
    """`"embedded"` gives the body of this package, anything else is read as a body file."""
    if str(path) == "embedded":
        # Imported late: building the body needs this module.
        from hmr.embedded_body import embedded_body

        return embedded_body()
    return load_body(path)


def _read_npz(source: Path) -> dict[str, np.ndarray]:
    if not source.is_file():
        raise BodyError(
            f"{source}: there is no such body file. Give 'embedded' for the built-in body, or an "
            ".npz with SMPL arrays."
        )
    try:
        return read_npz(source)
    except ValueError as error:
        raise BodyError(
            f"{source}: not a plain .npz of numbers ({error}). Pickled files can run code and are "
            "never loaded; convert an SMPL .pkl into an .npz once, then use that."
        ) from error


def _numeric(source: Path, key: str, value: np.ndarray) -> np.ndarray:
    """float64; float32 for posedirs, by far the largest array."""
    if value.dtype.kind not in "fiu" or value.ndim == 0:
        raise BodyError(
            f"{source}: {key} has the type {value.dtype} and the shape {value.shape}, it must be "
            "an array of numbers. Convert the original SMPL file again."
        )
    return value.astype(np.float32 if key == "posedirs" else np.float64, copy=False)


def _whole_numbers(source: Path, key: str, values: np.ndarray) -> np.ndarray:
    """int64; `values` are the float64 numbers of a file."""
    # Beyond 2**53 the cast would be undefined; NaN compares as false.
    whole = (values == np.round(values)) & (np.abs(values) < 2.0**53)
    if not whole.all():
        wrong = values[~whole][0]
        raise BodyError(
            f"{source}: {key} holds {wrong:.6g}, it must hold whole numbers. "
            "Convert the original SMPL file again."
        )
    return values.astype(np.int64)


def _first_betas(source: Path, shapedirs: np.ndarray) -> np.ndarray:
    if shapedirs.ndim != 3 or shapedirs.shape[2] < NUM_BETAS:
        raise BodyError(
            f"{source}: shapedirs has the shape {shapedirs.shape}, it must be (V, 3, 10 or more). "
            "Use a body file with at least 10 shape directions."
        )
    return np.ascontiguousarray(shapedirs[:, :, :NUM_BETAS])


def _parents(source: Path, kintree: np.ndarray) -> np.ndarray:
    parents = np.atleast_2d(kintree)[0]
    if parents.shape != (NUM_JOINTS,) or not np.isfinite(parents).all():
        raise BodyError(
            f"{source}: kintree_table has the shape {kintree.shape}, it must be (2, 24). "
            "Only SMPL bodies with 24 joints are supported, not SMPL+H or SMPL-X."
        )
    # Files spell the root's missing parent as 2**32 - 1 or as -1.
    return _whole_numbers(source, "kintree_table", np.concatenate([[-1.0], parents[1:]]))


def _stand_in(source: Path, arrays: dict[str, Any]) -> np.ndarray:
    template, regressor = arrays["v_template"], arrays["J_regressor"]
    expected = (NUM_JOINTS, len(template))
    if template.shape != (len(template), 3) or len(template) == 0 or regressor.shape != expected:
        raise BodyError(
            f"{source}: v_template {template.shape} and J_regressor {regressor.shape} must be "
            "(V, 3) and (24, V). Convert the original SMPL file again."
        )
    if not (np.isfinite(template).all() and np.isfinite(regressor).all()):
        raise BodyError(
            f"{source}: v_template or J_regressor holds NaN or infinite numbers. "
            "Convert the original SMPL file again."
        )
    return extra_joint_regressor(template, regressor @ template)
