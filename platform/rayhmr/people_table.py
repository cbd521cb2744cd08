"""The rows of a batch prediction: one is one person.

The meaning, unit and frame of every column stand in the file's own schema, as `description` in the
metadata of each field. `sample_id`, `image_size`, `center`, `scale`, `pose`, `betas`, `transl` and
`intrinsics` are called, and mean, what they do in person shards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from hmr.crops import box_xyxy_to_square, centre_box
from hmr.skeleton import SMPL_JOINT_NAMES
from hmr.structures import Person

SHARD_NUMBERS = {
    "center": (2, "centre of the person's square in the image, pixels"),
    "pose": (72, "global_orient and body_pose"),
    "transl": (3, "cam_t"),
    "intrinsics": (4, "fx, fy, cx, cy in pixels of the upright image"),
}
"""The same under the names of the shards."""
PERSON_NUMBERS = {
    "box_xyxy": (4, "x1, y1, x2, y2 in pixels of the upright image"),
    "global_orient": (3, "axis-angle of the root in the camera frame: x right, y down, z forward"),
    "body_pose": (69, "axis-angle of joints 1 to 23 relative to their parents"),
    "betas": (10, "shape coefficients"),
    "pred_cam": (3, "weak-perspective camera of the crop: s, tx, ty"),
    "cam_t": (3, "metres; added to joints_3d it places the person before the camera"),
    "focal_length": (2, "fx, fy in pixels of the upright image; the image's diagonal is assumed"),
    "principal_point": (2, "cx, cy in pixels of the upright image"),
    "joints_2d": (48, "24 SMPL joints: x, y in pixels of the upright image"),
    "joints_3d": (72, "24 SMPL joints: x, y, z in metres, camera axes, without cam_t"),
}
"""Attribute of a Person: how many numbers it has, and what they mean."""


def _field(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


ITERATION_NUMBERS = {"pose": 72, "betas": 10, "pred_cam": 3}


def _people_schema(*, iterations: bool) -> pa.Schema:
    vectors = PERSON_NUMBERS | SHARD_NUMBERS
    every_step = [
        _field(f"iterations_{name}", pa.list_(pa.list_(pa.float32(), size)),
               f"{name} of the start and after every step")
        for name, size in ITERATION_NUMBERS.items()
    ]  # fmt: skip
    return pa.schema(
        [
            _field("sample_id", pa.string(), "image/person"),
            _field("image", pa.string(), "name in the input: path below the folder, or sample_id"),
            _field("image_width", pa.int32(), "pixels, upright"),
            _field("image_height", pa.int32(), "pixels, upright"),
            _field("image_size", pa.list_(pa.int32(), 2), "width and height of the upright image"),
            _field("person", pa.int32(), "number of the person in the image, from 0"),
            *(
                _field(name, pa.list_(pa.float32(), size), meaning)
                for name, (size, meaning) in vectors.items()
            ),
            _field("scale", pa.float32(), "side of the person's square / 200"),
            *(every_step if iterations else []),
            _field("n_iter", pa.int32(), "refinement steps of the regressor"),
            _field("model", pa.string(), "name in the registry, or of the folder"),
            _field("model_version", pa.int32(), "version in the registry, if any", nullable=True),
            _field("model_sha256", pa.string(), "sha256 of the weights"),
        ],
        metadata={"joint_set": "smpl24", "joint_names": json.dumps(SMPL_JOINT_NAMES)},
    )


PEOPLE_SCHEMA = _people_schema(iterations=False)
ITERATIONS_SCHEMA = _people_schema(iterations=True)
"""With every iteration."""


def result_schema(people: pa.Schema) -> pa.Schema:
    """What becomes of one picture: `reason` and `detail`, or people and the boxes refused beside
    them. number, path: as in the listing."""
    return pa.schema(
        {
            "number": pa.int64(),
            "path": pa.string(),
            "reason": pa.string(),
            "detail": pa.string(),
            "people": pa.list_(pa.struct(list(people))),
            "refused": pa.list_(pa.struct({"person": pa.int64(), "detail": pa.string()})),
            "overlay": pa.binary(),
        }
    )


RESULT_SCHEMA = result_schema(PEOPLE_SCHEMA)


def person_row(
    person: Person, padding: float | None, *, iterations: bool = False
) -> dict[str, Any]:
    """The columns that come from the person alone.

    padding: side of the person's square over the longer side of the box; none: the box is the whole
    picture, and the square the one around it.
    """
    row: dict[str, Any] = {
        name: np.asarray(getattr(person, name), np.float32).reshape(-1) for name in PERSON_NUMBERS
    }
    x1, y1, x2, y2 = row["box_xyxy"].tolist()
    if padding is None:
        center, side = centre_box(round(x2 - x1), round(y2 - y1))
    else:
        center, side = box_xyxy_to_square(row["box_xyxy"], padding)
    row |= {
        "pose": np.concatenate([row["global_orient"], row["body_pose"]]),
        "transl": row["cam_t"], "center": center.astype(np.float32), "scale": side / 200,
        "intrinsics": np.concatenate([row["focal_length"], row["principal_point"]]),
        "n_iter": len(person.iterations) - 1,
    }  # fmt: skip
    if iterations:
        steps = person.iterations
        row |= {
            "iterations_pose": [
                np.concatenate([step["global_orient"], step["body_pose"]]) for step in steps
            ],
            "iterations_betas": [step["betas"] for step in steps],
            "iterations_pred_cam": [step["pred_cam"] for step in steps],
        }
    return row


def file_names(paths: Collection[str], ending: str = ".jpg") -> dict[str, str]:
    """Path of each image to that of a file about it: `a/b.png` to `a/b.jpg`, or to `a/b.png.jpg`
    when an image beside it has the same stem, or is called like it."""
    stems = Counter(str(PurePosixPath(path).with_suffix("")) for path in paths)
    # A folder below the input becomes a folder of the same name below overlays/.
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    taken = set(paths)
    names = {}
    for path in paths:
        stem = str(PurePosixPath(path).with_suffix(""))
        alone = stems[stem] == 1 and stem not in taken and f"{stem}{ending}" not in folders
        names[path] = f"{stem if alone else path}{ending}"
    return names
