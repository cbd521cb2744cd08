"""BEDLAM's .npz, one a scene and one row a person, with SMPL labels.

    imgname (N), center (N, 2), scale (N)      as in SPIN's files
    pose_cam (N, 72), shape (N, 10 or more)    SMPL in the camera's frame; the first 10 are read
    trans_cam (N, 3), cam_ext (N, 4, 4)        the body stands at cam_ext's last column + trans_cam
    cam_int (N, 3, 3)                          pixels
    gtkps (N, J, 2 or 3)                       x, y, and perhaps confidence; SMPL's 24 come first
    gender (N), sub (N)                        sub: who it is

Pictures of a single file lie below files.images as imgname says; those of a folder of files below
<images>/<name of the file>/png, as they are published. Scenes with `closeup` in the name of the
file or picture are stored turned: their pictures are turned clockwise, the labels are upright.

The file has no 3D joints: they are those of the posed body, for people of the body's gender.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hmr.errors import DataError
from hmr.skeleton import JOINT49_NAMES, JOINT49_SOURCE, SMPL_JOINT_NAMES
from rayhmr.data.sources.columns import Columns, npz_units
from rayhmr.data.sources.label_files import label_files
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, box_id
from rayhmr.data.sources.smpl_labels import GENDERS, in_chunks
from rayhmr.storage import absolute

TURNED = "closeup"
_PLACES = [place for place, joint in enumerate(JOINT49_SOURCE) if joint < len(SMPL_JOINT_NAMES)]
_SOURCES = [JOINT49_SOURCE[place] for place in _PLACES]


@dataclass(frozen=True, kw_only=True)
class BedlamSource:
    """labels: an .npz, or a folder of them. body: of the SMPL labels."""

    labels: str
    split: str
    body: str
    name: str = "bedlam"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Pieces of each file."""
        return npz_units(self.labels, self.split, rows_per_file)

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """Row by row; DataError for a file that is not as documented."""
        return in_chunks(self._rows(unit), {"neutral": self.body})

    def _rows(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        table = Columns(self.labels, unit)
        images, genders, subjects = (table.texts(key) for key in ("imgname", "gender", "sub"))
        centers, scales = table.numbers("center", 2), table.numbers("scale")
        poses, shapes = _poses(table, unit), _shapes(table, unit)
        transl = _translations(table)
        cameras = table.numbers("cam_int", 3, 3) if table.has("cam_int") else None
        joints = _joints(table, unit)
        scene = unit.file.removesuffix(".npz")
        is_folder = label_files(self.labels, ".npz")[0].location == absolute(self.labels)
        folder = f"{scene}/png/" if is_folder else ""
        for row, image in enumerate(images):
            turned = TURNED in scene.lower() or TURNED in image.lower()
            yield RawPerson(
                sample_id=box_id(self.name, f"{scene}/{image}", centers[row], scales[row]),
                image=folder + image, quarter_turns=int(turned),
                center=centers[row], scale=float(scales[row]),
                keypoints_2d=joints[row], keypoints_3d=np.zeros((len(JOINT49_NAMES), 4)),
                pose=poses[row], betas=shapes[row],
                transl=None if transl is None else transl[row],
                intrinsics=None if cameras is None else cameras[row][[0, 1, 0, 1], [0, 1, 2, 2]],
                gender=GENDERS.get(genders[row], "neutral"), subject=subjects[row],
                split=unit.split,
            )  # fmt: skip


def _poses(table: Columns, unit: Unit) -> np.ndarray:
    poses = table.any_numbers("pose_cam")
    poses = poses.reshape(len(poses), -1)
    if poses.shape[1] != 72:
        raise DataError(
            f"{unit.file}: pose_cam has {poses.shape[1]} numbers a person, SMPL has 72; SMPL-X "
            "labels belong to another body, take BEDLAM's files with SMPL labels"
        )
    return poses


def _shapes(table: Columns, unit: Unit) -> np.ndarray:
    shapes = table.any_numbers("shape")
    if shapes.ndim != 2 or shapes.shape[1] < 10:
        raise DataError(
            f"{unit.file}: shape has rows of shape {shapes.shape[1:]}, 10 or more numbers expected"
        )
    return shapes[:, :10]


def _translations(table: Columns) -> np.ndarray | None:
    if not (table.has("trans_cam") and table.has("cam_ext")):
        return None
    moved: np.ndarray = table.numbers("cam_ext", 4, 4)[:, :3, 3] + table.numbers("trans_cam", 3)
    return moved


def _joints(table: Columns, unit: Unit) -> np.ndarray:
    """(n, 49, 3): pixels, confidence."""
    joints = np.zeros((len(table), len(JOINT49_NAMES), 3))
    if not table.has("gtkps"):
        return joints
    points = table.any_numbers("gtkps")
    if points.ndim != 3 or points.shape[1] < len(SMPL_JOINT_NAMES) or points.shape[2] not in (2, 3):
        raise DataError(
            f"{unit.file}: gtkps has rows of shape {points.shape[1:]}; at least SMPL's 24 joints "
            "with 2 or 3 numbers each are needed"
        )
    joints[:, _PLACES, 2] = 1
    joints[:, _PLACES, : points.shape[2]] = points[:, _SOURCES]
    joints[joints[..., 2] <= 0] = 0
    return joints
