"""3DPW: one pickle for each sequence, with one or two people in each of its frames.

    <labels>/{train,validation,test}/<sequence>.pkl      F frames, P people
        sequence            name
        poses, trans        for each person (F, 72) axis-angle and (F, 3) metres, in the world
        betas, genders      for each person 10 or more numbers, and m or f
        poses2d             for each person (F, 3, 18) x, y, confidence that OpenPose detected
        campose_valid       for each person (F,) whether the camera fits the person
        cam_poses           (F, 4, 4) from the world to the camera
        cam_intrinsics      (3, 3)
    <images>/imageFiles/<sequence>/image_<frame, five digits>.jpg

Shapes belong to the body of the person's gender. With it, 3D joints are the posed body's and 2D
joints their projections; without it only the rotations, the shape and the detections are known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hmr.errors import DataError
from hmr.pose_prior import rodrigues
from hmr.safe_pickle import read_pickle
from hmr.skeleton import joint49_index
from rayhmr.data.sources.bodies import shared_body
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, cut
from rayhmr.data.sources.smpl_labels import (
    GENDERS,
    Row,
    box_around,
    in_chunks,
    no_joints,
    rest_pelvis,
)

FOLDERS: dict[str, str] = {"train": "train", "val": "validation", "test": "test"}
"""Folder of each split."""

DETECTED: tuple[int, ...] = tuple(
    joint49_index(f"op_{name}")
    for name in (
        "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder",
        "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip",
        "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear",
    )
)  # fmt: skip
"""Among the 49, the joints of poses2d: OpenPose's 18 of COCO."""


@dataclass(frozen=True, kw_only=True)
class ThreeDPWSource:
    """labels: the folder sequenceFiles. bodies: path of the body by gender, female and male.

    splits: which to read. read: the value of a pickle's bytes. name: of the data set, in ids.
    """

    labels: str
    bodies: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[str, ...] = ("train", "val", "test")
    read: Callable[[bytes], Any] = read_pickle
    name: str = "threedpw"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Rows of one sequence each: all frames of its first person, then those of the next.

        Reads the files: a pickle does not say how long it is. DataError for a damaged file or a
        split without files.
        """
        units = []
        for split in self.splits:
            folder = Path(self.labels, FOLDERS[split])
            files = sorted(folder.glob("*.pkl"))
            if not files:
                raise DataError(
                    f"{folder}: no .pkl in it; give the folder sequenceFiles of 3DPW, or leave "
                    f"the split {split} out"
                )
            for file in files:
                sequence = _Sequence(file, self.read)
                count = sequence.people * sequence.frames
                units += cut(split, f"{folder.name}/{file.name}", count, rows_per_file)
        return units

    def people(self, unit: Unit) -> Iterator[Row]:
        """Row by row; reasons: camera_invalid, label_missing, gender_unknown and those of
        `smpl_labels.checked`."""
        sequence = _Sequence(Path(self.labels, unit.file), self.read)
        rows = (self._row(sequence, number, unit) for number in range(unit.start, unit.stop))
        return in_chunks(rows, self.bodies)

    def _row(self, sequence: _Sequence, number: int, unit: Unit) -> Row:
        person, frame = divmod(number, sequence.frames)
        sample_id = f"{self.name}/{sequence.name}/{frame:05d}/{person}"

        def rejected(reason: str, detail: str) -> RejectedRow:
            return RejectedRow(sample_id=sample_id, reason=reason, detail=detail)

        if not sequence.valid[person, frame]:
            return rejected("camera_invalid", "campose_valid says that the camera does not fit")
        gender = GENDERS.get(sequence.genders[person])
        if gender is None:
            return rejected("gender_unknown", f"genders has {sequence.genders[person]!r}, not m, f")
        detected = sequence.poses2d[person, frame].T
        seen = detected[:, 2] > 0
        if not seen.any():
            return rejected("label_missing", "no joint was detected, so there is no box")
        center, scale = box_around(detected[seen, :2])
        pose, transl = self._before_camera(sequence, person, frame, gender)
        joints = no_joints(2)
        if gender not in self.bodies:
            joints[list(DETECTED)] = detected * seen[:, None]
        return RawPerson(
            sample_id=sample_id,
            image=f"imageFiles/{sequence.name}/image_{frame:05d}.jpg",
            center=center, scale=scale, keypoints_2d=joints, keypoints_3d=no_joints(3),
            pose=pose, betas=sequence.betas[person], transl=transl,
            intrinsics=sequence.intrinsics, gender=gender,
            subject=f"{self.name}/{sequence.name}/{person}", split=unit.split,
        )  # fmt: skip

    def _before_camera(
        self, sequence: _Sequence, person: int, frame: int, gender: str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Pose (72,) with the root in the camera's frame, and the translation (3,) that fits it.

        The camera sees x' = R x + t. A body turns about its resting pelvis J, not about the
        origin: x = R_root (v - J) + J + trans, so that x' = (R R_root) (v - J) + J + trans' with
        trans' = R (J + trans) + t - J. J, and with it trans', needs the body.
        """
        rotation = sequence.cam_poses[frame, :3, :3]
        pose = sequence.poses[person, frame].copy()
        turn = rotation @ rodrigues(pose[:3])
        pose[:3] = cv2.Rodrigues(turn)[0][:, 0] if np.isfinite(turn).all() else np.nan
        if gender not in self.bodies:
            return pose, None
        pelvis = rest_pelvis(shared_body(self.bodies[gender]), sequence.betas[person])
        moved = rotation @ (pelvis + sequence.trans[person, frame])
        return pose, moved + sequence.cam_poses[frame, :3, 3] - pelvis


class _Sequence:
    """A file's arrays, people first: poses (P, F, 72), trans (P, F, 3), betas (P, 10), genders (P),
    poses2d (P, F, 3, 18), valid (P, F), cam_poses (F, 4, 4), intrinsics (4)."""

    def __init__(self, path: Path, read: Callable[[bytes], Any]) -> None:
        try:
            content = read(path.read_bytes())
        except (OSError, DataError) as error:
            raise DataError(f"{path}: {error}") from error
        try:
            self.name = str(content["sequence"])
            self.cam_poses = np.asarray(content["cam_poses"], np.float64)
            self.frames, self.people = len(self.cam_poses), len(content["poses"])
            each = (self.people, self.frames)
            self.poses = _numbers(content["poses"], *each, 72)
            self.trans = _numbers(content["trans"], *each, 3)
            self.poses2d = _numbers(content["poses2d"], *each, 3, 18)
            self.valid = _numbers(content["campose_valid"], *each) > 0
            betas = [np.ravel(values)[:10] for values in content["betas"]]
            self.betas = _numbers(betas, self.people, 10)
            self.genders = [str(gender) for gender in content["genders"]]
            (fx, _, cx), (_, fy, cy), _ = np.asarray(content["cam_intrinsics"], np.float64)
            self.intrinsics = np.array([fx, fy, cx, cy])
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise DataError(
                f"{path}: not a sequence of 3DPW ({error!r}). Get the file again."
            ) from error


def _numbers(values: Any, *shape: int) -> np.ndarray:
    return np.asarray(values, np.float64).reshape(shape)
