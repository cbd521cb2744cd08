"""From the values of a body file to the fields of `hmr.body_arrays.BodyArrays`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hmr.body_checks import NUM_BETAS, NUM_JOINTS
from hmr.body_landmarks import extra_joint_regressor
from hmr.errors import BodyError
from hmr.npz import read_npz

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


def read_values(source: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name; BodyError where there is no such file or it is no .npz."""
    if not source.is_file():
        raise BodyError(
            f"{source}: there is no such body file. Give 'embedded' for the built-in body, or an "
            ".npz with SMPL arrays."
        )
    try:
        return read_npz(source)
    except ValueError as error:
        raise BodyError(
            f"{source}: not a plain .npz of numbers ({error}). Convert an official SMPL file once "
            "with `python jobs/convert.py smpl --input <file> --output body.npz`, then use that."
        ) from error


def body_values(values: dict[str, np.ndarray], source: Path) -> dict[str, Any]:
    """The arguments of `BodyArrays` but its name; errors name `source`."""
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
        arrays["J_regressor_extra"] = extra
        arrays["extra_is_stand_in"] = "extra_is_stand_in" in values
    else:
        arrays["J_regressor_extra"] = _stand_in(source, arrays)
        arrays["extra_is_stand_in"] = True
    if "J_regressor_h36m" in values:
        h36m = _numeric(source, "J_regressor_h36m", values["J_regressor_h36m"])
        arrays["J_regressor_h36m"] = h36m
    return arrays


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
