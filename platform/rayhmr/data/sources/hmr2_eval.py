"""The .npz on which HMR2 is evaluated: one row a person.

    imgname (N), center (N, 2)     as in SPIN's files
    scale (N), (N, 1) or (N, 2)    side, or width and height, of the box in pixels
    body_keypoints_2d (N, 25, 3)   OpenPose's joints, the first 25 of our 49
    extra_keypoints_2d (N, 19, 3)  the 19 joints after them
    body_keypoints_3d (N, 25, 4), extra_keypoints_3d (N, 19, 4)     the same in metres
    body_pose (N, 72)              axis-angle with the root, where has_body_pose (N) is not 0
    betas (N, 10)                  where has_betas (N) is not 0
    personid (N)                   who in the picture

Whatever is missing counts as zeros. As when HMR2 reads them, 3D body joints 1 to 14 have confidence
0, since the extra joints score the same places; and the crop is the square of the longer side of
the box after it has grown to the aspect 192 : 256, so that a square box grows by a third. HMR2
ignores EXIF orientation, and so do its labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hmr.errors import DataError
from rayhmr.data.sources.columns import Columns, npz_units
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, box_id

ASPECT = 256 / 192
"""Height over width of HMR2's picture."""


def box_side(sizes: np.ndarray) -> float:
    """Side of HMR2's square crop around a box of (1,) side or (2,) width and height."""
    width, height = float(sizes[0]), float(sizes[-1])
    return max(height, width * ASPECT)


def _sizes(table: Columns, unit: Unit) -> np.ndarray:
    """(n, 1) or (n, 2) pixels."""
    sizes = table.any_numbers("scale")
    sizes = sizes.reshape(len(sizes), -1)
    if sizes.shape[1] not in (1, 2):
        raise DataError(f"{unit.file}: scale has {sizes.shape[1]} numbers a person, not 1 or 2")
    return sizes


@dataclass(frozen=True, kw_only=True)
class Hmr2EvalSource:
    """labels: an .npz, or a folder of them."""

    labels: str
    split: str
    name: str = "hmr2_eval"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Pieces of each file."""
        return npz_units(self.labels, self.split, rows_per_file)

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """Row by row; DataError for a file that is not as documented."""
        table = Columns(self.labels, unit)
        images, numbers = table.texts("imgname"), table.texts("personid")
        centers, sizes = table.numbers("center", 2), _sizes(table, unit)
        joints = {}
        for kind, width in (("2d", 3), ("3d", 4)):
            body = table.optional(f"body_keypoints_{kind}", 25, width)
            extra = table.optional(f"extra_keypoints_{kind}", 19, width)
            rest = np.zeros((len(table), 5, width))
            joints[kind] = np.concatenate([body, extra, rest], axis=1)
        joints["3d"][:, 1:15, 3] = 0
        poses, betas = table.optional("body_pose", 72), table.optional("betas", 10)
        labelled = table.optional("has_body_pose") * table.optional("has_betas") > 0
        for row, image in enumerate(images):
            scale = box_side(sizes[row]) / 200
            sample_id = box_id(self.name, image, centers[row], scale)
            yield RawPerson(
                sample_id=f"{sample_id}/{numbers[row]}" if numbers[row] else sample_id,
                image=image, center=centers[row], scale=scale,
                keypoints_2d=joints["2d"][row], keypoints_3d=joints["3d"][row],
                pose=poses[row] if labelled[row] else None,
                betas=betas[row] if labelled[row] else None, split=unit.split,
                exif_ignored=True,
            )  # fmt: skip
