"""Official SMPL files, read without running anything in them and written as plain .npz.

    facts = convert_smpl("SMPL_python_v.1.1.0", "body.npz", gender="neutral")
    body = Body.from_file("body.npz")

The official pickles (v1.0, v1.1; basicModel_*, basicmodel_*, SMPL_*) hold numpy, scipy and chumpy
arrays in Python 2's format. They are read once, by `hmr.safe_pickle`; everything else in this
package reads the .npz. Both files stay under SMPL's licence: keep them out of repositories.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from hmr.body_arrays import BodyArrays, body_from_arrays, save_body
from hmr.errors import BodyError, DataError
from hmr.safe_pickle import read_object_npz, read_pickle

GENDERS = ("female", "male", "neutral")
SMPL_VERTICES = 6890

_ARRAYS = frozenset({
    "v_template", "shapedirs", "posedirs", "J_regressor", "weights", "lbs_weights",
    "kintree_table", "parents", "f", "faces", "landmark_vertices", "J_regressor_extra",
    "J_regressor_h36m", "extra_is_stand_in",
})  # fmt: skip
_OFFICIAL_NAME = re.compile(r"(smpl|basicmodel)_.*\.(pkl|npz)", re.IGNORECASE)
_SHORT_GENDERS = {"f": "female", "m": "male", "n": "neutral"}


def read_smpl(path: str | os.PathLike[str], *, gender: str | None = None) -> BodyArrays:
    """The body of an official SMPL file: a .pkl, an .npz, or a folder that holds some of them.

    gender: "female", "male" or "neutral"; chooses among a folder's files (those named SMPL_* or
    basicModel_*, at any depth) and must not contradict the name of a single file.
    The first 10 shape directions are kept. Joints whose regressors are not in the file get the
    stand-ins of `hmr.body_landmarks`.

    BodyError names the file, the rule it breaks, and the cure.
    """
    return _read(_chosen(Path(path), gender))


def convert_smpl(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    gender: str | None = None,
    extra_regressor: str | os.PathLike[str] | None = None,
    h36m_regressor: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write the body of `read_smpl(input)` as an .npz that `Body.from_file` reads, and its hash.

    extra_regressor, h36m_regressor: .npy files with (9, V) and (17, V), which the field calls
    J_regressor_extra.npy and J_regressor_h36m.npy; without them the stand-ins are used.
    `<output>.sha256` has the format of sha256sum: `sha256sum -c` in its folder checks the file.

    Returns what was done: input, input_sha256, output, sha256, vertices, faces, gender ("unknown"
    where neither the file's name nor the argument tells), content_hash (as model bundles record
    it), and stand_ins, the names of joints that were placed by stand-ins.
    BodyError as in `read_smpl`, also for a regressor that does not fit.
    """
    source, target = _chosen(Path(input), gender), Path(output)
    if target.suffix != ".npz":
        raise BodyError(f"{target}: bodies are written as .npz; give the output that ending.")
    if target.exists() and target.samefile(source):
        raise BodyError(f"{target}: the input cannot be its own output; give another name.")
    regressors = {
        "J_regressor_extra": _regressor(extra_regressor),
        "J_regressor_h36m": _regressor(h36m_regressor),
    }
    given = {key: value for key, value in regressors.items() if value is not None}
    body = _read(source, given)
    save_body(target, body)
    digest = _sha256(target)
    checksum = target.with_name(f"{target.name}.sha256")
    checksum.write_text(f"{digest}  {target.name}\n")
    return {
        "input": str(source),
        "input_sha256": _sha256(source),
        "output": str(target),
        "sha256": digest,
        "vertices": body.num_vertices,
        "faces": len(body.faces),
        "gender": gender or _gender(source) or "unknown",
        "content_hash": body.content_hash(),
        "stand_ins": list(body.stand_ins),
    }


def _read(source: Path, regressors: dict[str, np.ndarray] | None = None) -> BodyArrays:
    """The body of one file; `regressors` are used instead of those in it."""
    try:
        values = read_pickle(source) if _is_pickle(source) else read_object_npz(source, _ARRAYS)
    except DataError as error:
        raise BodyError(str(error)) from error
    if not isinstance(values, dict):
        raise BodyError(
            f"{source}: it holds a {type(values).__name__}, an SMPL file is a dict of arrays. "
            "Give the model file, not a file of poses or labels."
        )
    arrays = {key: values[key] for key in _ARRAYS & values.keys()}
    if regressors and "J_regressor_extra" in regressors:
        arrays.pop("extra_is_stand_in", None)
    arrays |= regressors or {}
    for key, value in arrays.items():
        if not isinstance(value, np.ndarray):
            raise BodyError(
                f"{source}: {key} is a {type(value).__name__}, it must be an array. "
                "Give an official SMPL file."
            )
    body = body_from_arrays(arrays, source)
    if body.num_vertices != SMPL_VERTICES and "landmark_vertices" not in arrays:
        raise BodyError(
            f"{source}: {body.num_vertices} vertices, SMPL has {SMPL_VERTICES}. Nose, heels and "
            "finger tips are known by vertex numbers: a body with others needs landmark_vertices."
        )
    return body


def _is_pickle(file: Path) -> bool:
    return file.suffix.lower() == ".pkl"


def _chosen(path: Path, gender: str | None) -> Path:
    """The one file that path and gender mean."""
    if gender is not None and gender not in GENDERS:
        raise BodyError(f"gender is {gender!r}; choose {', '.join(GENDERS)}.")
    if path.is_dir():
        return _in_folder(path, gender)
    if not path.is_file():
        raise BodyError(f"{path}: there is no such file or folder. Give an official SMPL file.")
    if path.suffix.lower() not in (".pkl", ".npz"):
        raise BodyError(
            f"{path}: SMPL files end in .pkl or .npz. Unpack the archive you downloaded and give "
            "the folder."
        )
    if gender and _gender(path) not in (None, gender):
        raise BodyError(
            f"{path}: by its name this is the {_gender(path)} body, but gender is {gender!r}. "
            "Leave gender out or give the other file."
        )
    return path


def _in_folder(folder: Path, gender: str | None) -> Path:
    files = sorted(file for file in folder.rglob("*") if _OFFICIAL_NAME.fullmatch(file.name))
    fitting = [file for file in files if gender in (None, _gender(file))]
    if len(fitting) == 1:
        return fitting[0]
    found = ", ".join(f"{file.relative_to(folder)} ({_gender(file) or '?'})" for file in files)
    wanted = f"{gender} SMPL file" if gender else "SMPL file"
    raise BodyError(
        f"{folder}: {len(fitting) or 'no'} {wanted}{'s' if len(fitting) != 1 else ''} in it "
        f"(found: {found or 'nothing named SMPL_*.pkl, basicModel_*.pkl or .npz'}). "
        f"Choose with gender ({', '.join(GENDERS)}), or give one of the files."
    )


def _gender(file: Path) -> str | None:
    """What the name says: SMPL_MALE.pkl, basicModel_f_lbs_10_207_0_v1.0.0.pkl."""
    for word in re.split(r"[^a-z]+", file.stem.lower()):
        if word in GENDERS:
            return word
        if word in _SHORT_GENDERS:
            return _SHORT_GENDERS[word]
    return None


def _regressor(path: str | os.PathLike[str] | None) -> np.ndarray | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            value = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise BodyError(
            f"{path}: not a plain .npy of numbers ({error}). Give J_regressor_extra.npy or "
            "J_regressor_h36m.npy as the field's projects hand them out."
        ) from error
    return np.asarray(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
