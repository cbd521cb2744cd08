"""The shard schema: one row is one person, one file a few thousand rows of one split.

    shards/train-00000-of-00008.parquet    rows in the order of writing, already shuffled
    shards/val-00000-of-00001.parquet
    shards/rejected/rejected.csv           what was left out, with a reason
    shards/dataset.json                    written last: a folder without it is refused

Files are plain Parquet that Hugging Face's `datasets` reads with `image` as an Image feature.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmr.errors import DataError, HmrError
from hmr.skeleton import JOINT49_NAMES
from rayhmr.storage import Folder, joined

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
REJECTED = "rejected/rejected.csv"
SPLITS = ("train", "val", "test")
ROW_GROUP = 250
"""Rows that are read, and held in memory, together."""

J = len(JOINT49_NAMES)
_VECTORS: dict[str, tuple[int, str, bool]] = {
    "crop_to_frame": (6, "affine from crop pixels to frame pixels, row by row", False),
    "center": (2, "centre of the person's box, frame pixels", False),
    "keypoints_2d": (3 * J, "49 joints: x, y in crop pixels, confidence", False),
    "keypoints_3d": (4 * J, "49 joints: x, y, z in metres, camera axes; confidence", False),
    "pose": (72, "axis-angle of 24 SMPL joints, joint 0 in the camera frame", False),
    "betas": (10, "shape coefficients", False),
    "transl": (3, "metres; added to the body it places it before the camera", True),
    "intrinsics": (4, "fx, fy, cx, cy in frame pixels", True),
}
"""Name -> float32 numbers, meaning, whether it may be missing."""


def _field(name: str, kind: pa.DataType, meaning: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": meaning})


def _vector_field(name: str) -> pa.Field:
    size, meaning, nullable = _VECTORS[name]
    return _field(name, pa.list_(pa.float32(), size), meaning, nullable=nullable)


_FIELDS = [
    _field("sample_id", pa.string(), "unique and stable: source/sequence/frame/person"),
    _field(
        "image",
        pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())]),
        "JPEG of the square crop, upright, RGB",
    ),
    _field("image_size", pa.list_(pa.int32(), 2), "width and height of the frame"),
    _vector_field("crop_to_frame"),
    _vector_field("center"),
    _field("scale", pa.float32(), "side of the person's box in the frame / 200"),
    *(_vector_field(name) for name in ("keypoints_2d", "keypoints_3d", "pose", "betas")),
    _field("has_smpl", pa.bool_(), "whether pose and betas are labels"),
    *(_vector_field(name) for name in ("transl", "intrinsics")),
    _field("gender", pa.string(), "female, male or neutral"),
    _field("source", pa.string(), "data set of origin"),
    _field("split", pa.string(), "train, val or test"),
    _field("subject", pa.string(), "who; no subject is in two splits"),
]


def _hugging_face_feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(kind):
        return {"_type": "Image"}
    if pa.types.is_fixed_size_list(kind):
        inner = _hugging_face_feature(kind.value_type)
        return {"_type": "List", "length": kind.list_size, "feature": inner}
    names = {pa.float32(): "float32", pa.int32(): "int32", pa.bool_(): "bool"}
    return {"_type": "Value", "dtype": names.get(kind, "string")}


SCHEMA = pa.schema(
    _FIELDS,
    metadata={
        "huggingface": json.dumps(
            {"info": {"features": {f.name: _hugging_face_feature(f.type) for f in _FIELDS}}}
        ),
        "joint_names": json.dumps(JOINT49_NAMES),
    },
)
TRAINING_COLUMNS = ("sample_id", "image", "keypoints_2d", "keypoints_3d", "pose", "betas",
                    "has_smpl")  # fmt: skip


def _codecs() -> dict[str, str]:
    """Compression of each Parquet leaf: JPEG stays as it is, labels get zstd. A name that is no
    leaf would silently leave everything uncompressed, so the leaves are asked for."""
    sink = io.BytesIO()
    pq.write_table(SCHEMA.empty_table(), sink)
    leaves = pq.ParquetFile(sink).schema
    paths = [leaves.column(i).path for i in range(len(leaves))]
    return {path: "none" if path == "image.bytes" else "zstd" for path in paths}


def encode_shard(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A shard file with these rows; the same rows give the same bytes.

    DataError for a row that lacks what every person has.
    """
    for row in rows:
        # Arrow would write a list of nothings in its place, which a reader takes for NaN.
        if lacking := [f.name for f in _FIELDS if not f.nullable and row.get(f.name) is None]:
            raise DataError(
                f"{row.get('sample_id')}: lacks {', '.join(lacking)}, which every row must have; "
                "correct the source, joints without a label have confidence 0"
            )
    codecs = _codecs()
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist(list(rows), SCHEMA), sink, row_group_size=ROW_GROUP,
        compression=codecs, use_dictionary=["source", "split", "gender"],
        write_statistics=[path for path in codecs if path != "image.bytes"],
    )  # fmt: skip
    return sink.getvalue()


def shard_name(split: str, number: int, count: int) -> str:
    """`train-00000-of-00008.parquet`: the form in which data-set hubs recognise splits."""
    return f"{split}-{number:05d}-of-{count:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What dataset.json says about a folder of shards.

    files: for each split, `name`, `rows`, `bytes`, `sha256` of every file. statistics: over the
    training split, see `rayhmr.data.statistics`. rejected: reason to count.
    """

    location: str
    fingerprint: str
    source: str
    image_size: int
    files: dict[str, list[dict[str, Any]]]
    statistics: dict[str, Any]
    rejected: dict[str, int]
    body: dict[str, Any]

    def rows(self, split: str, fraction: float = 1.0) -> int:
        """Rows of the files that `names` gives."""
        return sum(int(file["rows"]) for file in self._chosen(split, fraction))

    def names(self, split: str, fraction: float = 1.0) -> list[str]:
        """A split's files, by their names in the folder; the first part of them if a fraction is
        wanted."""
        return [str(file["name"]) for file in self._chosen(split, fraction)]

    def paths(self, split: str, fraction: float = 1.0) -> list[str]:
        """The same as paths or URIs."""
        return [joined(self.location, name) for name in self.names(split, fraction)]

    def _chosen(self, split: str, fraction: float) -> list[dict[str, Any]]:
        files = self.files.get(split, [])
        if not files:
            have = ", ".join(name for name, inside in self.files.items() if inside) or "nothing"
            raise DataError(f"{self.location}: has no {split} split, only {have}; prepare it anew")
        return files[: max(1, round(fraction * len(files)))]


def fingerprint(files: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Hex sha256 over names and contents of all files: the identity of a data set."""
    lines = sorted(f"{file['name']} {file['sha256']}" for split in files.values() for file in split)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_info(location: str) -> DatasetInfo:
    """The data set in a folder; DataError when the folder is none, or was never finished."""
    folder = Folder(location)
    if not folder.exists(MANIFEST):
        found = folder.names()
        what = "is not there" if not found else f"has no {MANIFEST}, so it was never finished"
        raise DataError(
            f"{location}: the folder {what}; make it with "
            f"`python jobs/prepare.py output={location}`, or correct data.path"
        )
    try:
        stored = folder.read_json(MANIFEST)
        version = stored["schema_version"]
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{location}: schema version {version!r}, this code reads {SCHEMA_VERSION}; "
                "prepare the data set again"
            )
        info = DatasetInfo(
            location=folder.location,
            **{key: stored[key] for key in DatasetInfo.__dataclass_fields__ if key != "location"},
        )
        _check_files(folder, info)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, HmrError):
            raise
        raise DataError(
            f"{folder.at(MANIFEST)}: is damaged ({error!r}); prepare the data set again"
        ) from error
    return info


def _check_files(folder: Folder, info: DatasetInfo) -> None:
    names = [file["name"] for files in info.files.values() for file in files]
    if len(set(names)) != len(names):
        double = sorted({name for name in names if names.count(name) > 1})
        # Ray's reader would drop the repetition without a word.
        raise DataError(f"{info.location}: {', '.join(double)} is listed twice; prepare it again")
    for files in info.files.values():
        for file in files:
            size = folder.size(file["name"])
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DataError(
                    f"{folder.at(file['name'])}: {found}, {MANIFEST} says {file['bytes']} "
                    "bytes; copy the folder again or prepare it anew"
                )
