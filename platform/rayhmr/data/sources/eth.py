"""The data of ETH's Machine Perception course project: one .npz for each frame of Human3.6M.

    <labels>/S1/<action>.<camera>/<frame>.npz      betas (10), root_orient (3), pose_body (63),
                                                   pose_hand (6), root_loc (3), center_img (2),
                                                   scale_img
    <images>/S1/Images/<action>.<camera>/<frame + 1, six digits>.jpg

Rotations and root_loc, which is added to the posed body, are in the camera's frame already. The
lens is taken as free of distortion, as the course did.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hmr.errors import ConfigError, DataError
from hmr.npz import read_npz
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, cut
from rayhmr.data.sources.smpl_labels import Row, in_chunks, no_joints

CAMERAS: dict[str, tuple[float, float, float, float]] = {
    "54138969": (1145.0494384765625, 1143.7811279296875, 512.54150390625, 515.4514770507812),
    "55011271": (1149.6756591796875, 1147.5916748046875, 508.8486328125, 508.0649108886719),
    "58860488": (1149.1407470703125, 1148.7989501953125, 519.8158569335938, 501.40264892578125),
    "60457274": (1145.5113525390625, 1144.77392578125, 514.9682006835938, 501.88201904296875),
}
"""fx, fy, cx, cy in pixels of Human3.6M's four cameras, by name."""

COURSE_SUBJECTS: dict[str, tuple[str, ...]] = {
    "train": ("S1", "S5", "S6", "S7"), "val": ("S8",), "test": ("S9", "S11"),
}  # fmt: skip
"""The course's people, with one of its training subjects held out for validation."""

_LABELS = {"root_orient": 3, "pose_body": 63, "pose_hand": 6, "betas": 10}
_GIVEN = {"root_loc": 3, "center_img": 2, "scale_img": 1}


@dataclass(frozen=True, kw_only=True)
class EthSource:
    """labels: folder of the subjects' folders. body: that of the labels, a path or
    `embedded`. subjects: the people of each split. name: of the data set, in ids.

    The labels of S9 and S11 were kept from the course's students: people whose files have a place
    and a box only are yielded without pose, shape and joints.
    """

    labels: str
    body: str
    subjects: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: COURSE_SUBJECTS)
    name: str = "eth"

    def __post_init__(self) -> None:
        subjects = [subject for people in self.subjects.values() for subject in people]
        twice = sorted({subject for subject in subjects if subjects.count(subject) > 1})
        if twice:
            raise ConfigError(
                f"subjects={dict(self.subjects)}: {', '.join(twice)} would be in two splits, and "
                "a model would be tested on people it knows; leave them in one"
            )

    def units(self, rows_per_file: int) -> list[Unit]:
        """Frames of one subject each; DataError for a subject without frames."""
        units = []
        for split, subjects in self.subjects.items():
            for subject in subjects:
                count = len(self.frames(subject))
                if count == 0:
                    raise DataError(
                        f"{Path(self.labels, subject)}: no <action>.<camera>/<frame>.npz below it; "
                        f"give the folder that holds {subject}, or leave {subject} out"
                    )
                units += cut(split, subject, count, rows_per_file)
        return units

    def people(self, unit: Unit) -> Iterator[Row]:
        """Row by row; reasons: label_unreadable, label_missing, camera_unknown, frame_unknown,
        and those of `smpl_labels.checked`."""
        frames = _remembered(self.labels, unit.file)[unit.start : unit.stop]
        rows = (self.frame(path, unit) for path in frames)
        return in_chunks(rows, {"neutral": self.body})

    def frames(self, subject: str) -> list[Path]:
        """Label files of a subject by action and camera, then by number."""
        return _label_files(self.labels, subject)

    def frame(self, path: Path, unit: Unit) -> Row:
        """The person of one label file; reads no more than this file."""
        folder = path.parent.name
        sample_id = f"{self.name}/{unit.file}/{folder}/{path.stem}/0"

        def rejected(reason: str, detail: str) -> RejectedRow:
            return RejectedRow(sample_id=sample_id, reason=reason, detail=f"{path}: {detail}")

        camera = CAMERAS.get(folder.rpartition(".")[2])
        if camera is None:
            return rejected("camera_unknown", f"no camera is one of {', '.join(CAMERAS)}")
        if not path.stem.isdecimal():
            return rejected("frame_unknown", "the name is not the number of a frame")
        try:
            values = read_npz(path)
        except ValueError as error:
            return rejected("label_unreadable", f"not a plain .npz of numbers ({error})")
        labelled = any(key in values for key in _LABELS)
        for key, size in (_GIVEN | _LABELS if labelled else _GIVEN).items():
            if key not in values or values[key].size != size or values[key].dtype.kind not in "fiu":
                found = values[key].shape if key in values else "nothing"
                return rejected("label_missing", f"{key} must be {size} numbers, it is {found}")
        flat = {key: value.reshape(-1).astype(np.float64) for key, value in values.items()
                if key in _GIVEN or key in _LABELS}  # fmt: skip
        pose = [flat[key] for key in ("root_orient", "pose_body", "pose_hand") if labelled]
        return RawPerson(
            sample_id=sample_id,
            image=f"{unit.file}/Images/{folder}/{int(path.stem) + 1:06d}.jpg",
            center=flat["center_img"], scale=float(flat["scale_img"][0]),
            keypoints_2d=no_joints(2), keypoints_3d=no_joints(3),
            pose=np.concatenate(pose) if labelled else None,
            betas=flat["betas"] if labelled else None,
            transl=flat["root_loc"], intrinsics=np.array(camera),
            subject=unit.file, split=unit.split, unlabelled=not labelled,
        )  # fmt: skip


def _label_files(labels: str, subject: str) -> list[Path]:
    def order(path: Path) -> tuple[str, int, str]:
        number = int(path.stem) if path.stem.isdecimal() else -1
        return path.parent.name, number, path.stem

    return sorted(Path(labels, subject).glob("*/*.npz"), key=order)


_remembered = functools.lru_cache(maxsize=1)(_label_files)
"""For a worker, which reads hundreds of units of one subject with tens of thousands of files."""
