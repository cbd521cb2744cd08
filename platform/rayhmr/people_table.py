"""What batch prediction writes: people.parquet, overlays/, rejected/rejected.csv, predictions.json.

One row of people.parquet is one person. The meaning, unit and frame of every column stand in the
file's own schema, as `description` in the metadata of each field.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmr.errors import ConfigError, HmrError
from hmr.manifest import replaced_folder
from hmr.skeleton import SMPL_JOINT_NAMES
from hmr.structures import Person

MANIFEST = "predictions.json"
PEOPLE = "people.parquet"
REJECTED = "rejected/rejected.csv"
ROW_GROUP = 1000

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


PEOPLE_SCHEMA = pa.schema(
    [
        _field("image", pa.string(), "path below the input folder"),
        _field("image_width", pa.int32(), "pixels, upright"),
        _field("image_height", pa.int32(), "pixels, upright"),
        _field("person", pa.int32(), "number of the person in the image, from 0"),
        *(
            _field(name, pa.list_(pa.float32(), size), meaning)
            for name, (size, meaning) in PERSON_NUMBERS.items()
        ),
        _field("n_iter", pa.int32(), "refinement steps of the regressor"),
        _field("model", pa.string(), "name in the registry, or of the folder"),
        _field("model_version", pa.int32(), "version in the registry, if any", nullable=True),
        _field("model_sha256", pa.string(), "sha256 of the weights"),
    ],
    metadata={"joint_set": "smpl24", "joint_names": json.dumps(SMPL_JOINT_NAMES)},
)

RESULT_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "people": pa.list_(pa.struct(list(PEOPLE_SCHEMA))),
        "overlay": pa.binary(),
    }
)
"""What becomes of one file: either `reason` and `detail`, or people."""


def person_row(person: Person) -> dict[str, Any]:
    """The columns of PEOPLE_SCHEMA that come from the person alone."""
    row = {name: getattr(person, name).reshape(-1).tolist() for name in PERSON_NUMBERS}
    return row | {"n_iter": len(person.iterations) - 1}


def overlay_names(paths: Collection[str]) -> dict[str, str]:
    """Path of each image to that of its overlay: `a/b.png` to `a/b.jpg`, or to `a/b.png.jpg` when
    an image beside it has the same stem, or is called like it."""
    stems = Counter(str(PurePosixPath(path).with_suffix("")) for path in paths)
    # A folder below the input becomes a folder of the same name below overlays/.
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    taken = set(paths)
    names = {}
    for path in paths:
        stem = str(PurePosixPath(path).with_suffix(""))
        alone = stems[stem] == 1 and stem not in taken and f"{stem}.jpg" not in folders
        names[path] = f"{stem if alone else path}.jpg"
    return names


class PeopleWriter:
    """Writes results into a folder as they come, and counts them.

    paths: every listed file; each must come exactly once.
    """

    def __init__(self, folder: Path, paths: Collection[str]) -> None:
        self.folder = folder
        self.awaited = set(paths)
        self.overlays = overlay_names(paths)
        self.predicted = self.people = 0
        self.reasons: Counter[str] = Counter()
        self._rows: list[dict[str, Any]] = []
        (folder / REJECTED).parent.mkdir()
        self._csv = (folder / REJECTED).open("w", newline="", encoding="utf-8")
        self._rejected = csv.writer(self._csv)
        self._rejected.writerow(["id", "reason", "detail"])
        self._parquet = pq.ParquetWriter(folder / PEOPLE, PEOPLE_SCHEMA, compression="zstd")

    @property
    def done(self) -> int:
        """Files with a result so far."""
        return self.predicted + self.reasons.total()

    def add(self, result: dict[str, Any]) -> None:
        """One row of RESULT_SCHEMA. HmrError for a file that was not listed or came twice."""
        path = result["path"]
        if path not in self.awaited:
            raise HmrError(f"{path}: a second result for one file, or a file that was not listed")
        self.awaited.remove(path)
        if result["reason"] is not None:
            self.reasons[result["reason"]] += 1
            self._rejected.writerow([path, result["reason"], result["detail"]])
            return
        self.predicted += 1
        self.people += len(result["people"])
        self._rows += result["people"]
        if len(self._rows) >= ROW_GROUP:
            self._flush()
        if result["overlay"] is not None:
            target = self.folder / "overlays" / self.overlays[path]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(result["overlay"])

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, PEOPLE_SCHEMA))
            self._rows = []

    def close(self) -> None:
        """Finish the files. HmrError when a listed file had no result."""
        self._flush()
        self._parquet.close()
        self._csv.close()
        if self.awaited:
            raise HmrError(
                f"{len(self.awaited)} listed files had no result, among them "
                f"{min(self.awaited)}; run the job again"
            )


def finished_folder(target: Path) -> AbstractContextManager[Path]:
    """A new folder that becomes `target`, with one rename, when the block ends without an error.

    What an earlier prediction wrote there is replaced; a folder with anything else is refused.
    """
    foreign = ConfigError(
        f"output={target}: is there and holds no {MANIFEST}, so no prediction made it; "
        "choose another folder"
    )
    return replaced_folder(target, MANIFEST, foreign)
