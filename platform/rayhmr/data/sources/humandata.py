"""HumanData: mmhuman3d's .npz of arrays and pickled dicts, one row a person.

    image_path (N)           below the data set's folder
    bbox_xywh (N, 5)         corner x, y, width, height, confidence
    keypoints2d (N, 190, 3)  also with the endings _original, _smpl, _smplx; each with <key>_mask
    keypoints3d (N, 190, 4)  (190), and perhaps stored without the joints whose mask is 0
    smpl                     {body_pose (N, 23, 3), global_orient (N, 3), betas (N, 10),
                             transl (N, 3)}, valid where has_smpl (N) is not 0
    meta                     {gender, focal_length, principal_point, height, width}, N of each
    misc                     {focal_length, principal_point} where all rows have the same;
                             {kps3d_root_aligned}: 3D joints are not where the camera sees them

Everything is in the camera's frame (OpenCV's axes), metres and pixels. Boxes were enlarged when the
file was made and are not enlarged again. smplx parameters belong to another body and are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hmr.errors import ConfigError, DataError
from hmr.safe_pickle import read_pickle
from rayhmr.data.sources.humandata_joints import JOINT_SETS, NUM_JOINTS, joints49
from rayhmr.data.sources.npz_rows import NpzRows
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, cut
from rayhmr.data.sources.smpl_labels import (
    GENDERS,
    PIXELS_PER_SCALE,
    Row,
    in_chunks,
    no_joints,
)

SMPL_SIZES = {"global_orient": 3, "body_pose": 69, "betas": 10, "transl": 3}
"""Numbers of each row of smpl; transl may be missing."""


@dataclass(frozen=True, kw_only=True)
class HumanDataSource:
    """labels: a HumanData .npz, or a folder of them. split: where all its people go.

    joints: which set of joints to read, a name in JOINT_SETS. bodies: path of the body by gender,
    for files with SMPL parameters but without joints. read: the value of a pickle's bytes. name: of
    the data set, in ids.
    """

    labels: str
    split: str
    joints: str = "original"
    bodies: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[bytes], Any] = read_pickle
    name: str = "humandata"

    def __post_init__(self) -> None:
        if self.joints not in JOINT_SETS:
            raise ConfigError(f"joints={self.joints!r}; choose one of {', '.join(JOINT_SETS)}")

    def units(self, rows_per_file: int) -> list[Unit]:
        """Rows of one file each; DataError for a folder without files, or one that is damaged."""
        root = Path(self.labels)
        files = sorted(root.rglob("*.npz")) if root.is_dir() else [root]
        if not files:
            raise DataError(f"{root}: no .npz below it; give a HumanData file or a folder of them")
        units = []
        for file in files:
            count = NpzRows(file, self.read).count("image_path")
            below = "" if file == root else str(file.relative_to(root))
            units += cut(self.split, below, count, rows_per_file)
        return units

    def people(self, unit: Unit) -> Iterator[Row]:
        """Row by row; reasons: gender_unknown and those of `smpl_labels.checked`.

        DataError where the file as a whole is not as documented.
        """
        path = Path(self.labels, unit.file)
        table = _Table(self.name, path, NpzRows(path, self.read), unit, self.joints)
        return in_chunks((table.row(number) for number in range(table.count)), self.bodies)


class _Table:
    """The rows of one unit, column by column; n of them."""

    def __init__(self, name: str, path: Path, file: NpzRows, unit: Unit, joints: str) -> None:
        self._path, self._file, self._unit = path, file, unit
        self._id = f"{name}/{Path(unit.file or path.name).with_suffix('')}"
        self._total = file.count("image_path")
        self.count = min(unit.stop, self._total) - unit.start
        self._images = file.rows("image_path", unit.start, unit.stop)
        self._boxes = self._column("bbox_xywh", 4, 5)
        self._has_smpl = self._column("has_smpl", 1) if "has_smpl" in file.keys else None
        self._check_joints(joints)
        self._keypoints_2d = self._joints("keypoints2d", joints, 2)
        self._keypoints_3d = self._joints("keypoints3d", joints, 3)
        meta, misc, smpl = (self._dict(key) for key in ("meta", "misc", "smpl"))
        self._smpl = {
            key: self._cut(f"smpl.{key}", smpl.get(key), size)
            for key, size in SMPL_SIZES.items()
            if smpl and (key in smpl or key != "transl")
        }
        self._root_aligned = bool(misc.get("kps3d_root_aligned", False))
        self._intrinsics = self._cameras(meta, misc)
        self._genders = self._spelled(meta)

    def row(self, number: int) -> Row:
        """Row `number` of the unit."""
        image = str(self._images[number])
        # The number is no person's name: nobody says who follows whom from picture to picture.
        sample_id = f"{self._id}/{image}/row{self._unit.start + number:07d}"
        gender = self._genders[number]
        if gender not in GENDERS:
            return RejectedRow(
                sample_id=sample_id, reason="gender_unknown",
                detail=f"meta's gender is {gender!r}, it must be one of {', '.join(GENDERS)}",
            )  # fmt: skip
        x, y, width, height = self._boxes[number, :4].astype(np.float64)
        pose, betas, transl = self._parameters(number)
        keypoints_3d = self._keypoints_3d[number]
        if transl is not None and not self._root_aligned:
            # As with every other source: the translation leads from the joints to the camera.
            keypoints_3d[:, :3] -= transl * (keypoints_3d[:, 3:] > 0)
        return RawPerson(
            sample_id=sample_id, image=image,
            center=np.array([x + width / 2, y + height / 2]),
            scale=float(max(width, height)) / PIXELS_PER_SCALE,
            keypoints_2d=self._keypoints_2d[number], keypoints_3d=keypoints_3d,
            intrinsics=None if self._intrinsics is None else self._intrinsics[number],
            pose=pose, betas=betas, transl=transl, gender=GENDERS[gender], split=self._unit.split,
        )  # fmt: skip

    def _parameters(
        self, number: int
    ) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """SMPL's pose (72,), betas (10,), transl (3,)."""
        if not self._smpl or (self._has_smpl is not None and self._has_smpl[number, 0] == 0):
            return None, None, None
        row = {key: column[number] for key, column in self._smpl.items()}
        pose = np.concatenate([row["global_orient"], row["body_pose"]])
        return pose, row["betas"], row.get("transl")

    def _check_joints(self, joints: str) -> None:
        """DataError where the file has joints, but not those."""
        there = sorted(key for key in self._file.keys if key.startswith("keypoints"))
        wanted = {f"keypoints{n}d{ending}" for n in (2, 3) for ending in JOINT_SETS[joints]}
        if there and not wanted.intersection(there):
            raise DataError(
                f"{self._path}: joints={joints!r} are not in it, it has {', '.join(there)}. "
                f"Choose another of joints={', '.join(JOINT_SETS)}."
            )

    def _joints(self, key: str, joints: str, dimensions: int) -> np.ndarray:
        """(n, 49, dimensions + 1); without confidence where the file has none."""
        names = [key + ending for ending in JOINT_SETS[joints]]
        name = next((name for name in names if name in self._file.keys), None)
        if name is None:
            return np.tile(no_joints(dimensions), (self.count, 1, 1))
        values = self._file.rows(name, self._unit.start, self._unit.stop)
        mask = np.ones(NUM_JOINTS, bool)
        if f"{name}_mask" in self._file.keys:
            mask = np.ravel(self._file.value(f"{name}_mask")) > 0
        try:
            if values.ndim != 3 or values.shape[::2] != (self.count, dimensions + 1):
                raise ValueError(f"{values.shape} for {self.count} rows")
            return joints49(values, mask)
        except ValueError as error:
            raise DataError(f"{self._path}: {name}: {error}. Write the file again.") from error

    def _cameras(self, meta: dict[str, Any], misc: dict[str, Any]) -> np.ndarray | None:
        """(n, 4) fx, fy, cx, cy; without a principal point it is the picture's middle."""
        focal = self._camera("focal_length", meta, misc)
        center = self._camera("principal_point", meta, misc)
        if center is None and "width" in meta and "height" in meta:
            sides = [self._cut(f"meta.{side}", meta[side], 1) for side in ("width", "height")]
            center = np.concatenate(sides, axis=1) / 2
        return None if focal is None or center is None else np.concatenate([focal, center], axis=1)

    def _camera(self, key: str, meta: dict[str, Any], misc: dict[str, Any]) -> np.ndarray | None:
        """(n, 2) one or two numbers of each row in meta, or of all of them in misc."""
        if key in meta:
            values = self._cut(f"meta.{key}", meta[key], 1, 2)
        elif key in misc:
            values = self._table(f"misc.{key}", misc[key], 1, 1, 2)
        else:
            return None
        return np.broadcast_to(values, (self.count, 2))

    def _column(self, key: str, *widths: int) -> np.ndarray:
        values = self._file.rows(key, self._unit.start, self._unit.stop)
        return self._table(key, values, self.count, *widths)

    def _cut(self, name: str, values: Any, *widths: int) -> np.ndarray:
        """The unit's rows of a column that is stored whole."""
        whole = self._table(name, values, self._total, *widths)
        return whole[self._unit.start : self._unit.start + self.count]

    def _table(self, name: str, values: Any, rows: int, *widths: int) -> np.ndarray:
        """(rows, one of the widths) float64."""
        try:
            table = np.asarray(values, np.float64).reshape(rows, -1)
        except (ValueError, TypeError):
            table = np.zeros((0, 0))
        if table.shape[1] not in widths:
            raise DataError(
                f"{self._path}: {name} must hold {rows} rows of {' or '.join(map(str, widths))} "
                "numbers, as many rows as image_path. Write the file again."
            )
        return table

    def _spelled(self, meta: dict[str, Any]) -> list[str]:
        """The unit's rows of meta's gender."""
        whole = [str(gender) for gender in meta.get("gender", ["neutral"] * self._total)]
        if len(whole) != self._total:
            raise DataError(
                f"{self._path}: meta.gender holds {len(whole)} rows, image_path {self._total}. "
                "Write the file again."
            )
        return whole[self._unit.start : self._unit.start + self.count]

    def _dict(self, key: str) -> dict[str, Any]:
        value = self._file.value(key) if key in self._file.keys else {}
        if not isinstance(value, dict):
            raise DataError(
                f"{self._path}: {key} is a {type(value).__name__}, it must be a dict. "
                "Write the file again."
            )
        return value
