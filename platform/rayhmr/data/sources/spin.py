"""SPIN's .npz, which HMR, VIBE, PARE, PyMAF and others share: one row a person.

imgname (N)            below the data set's folder of pictures
center (N, 2)          of the box, pixels; scale (N): its side / 200, enlarged already
and, each only if the data set has it:
part (N, 24, 3)        2D joints x, y, confidence        ─┐ the last 24 of our 49 joints
S (N, 24, 4)           3D joints x, y, z, confidence     ─┘ metres, camera axes, any origin
openpose (N, 25, 3)    detected 2D joints                 ── the first 25
pose (N, 72), shape (N, 10)    SMPL; has_smpl (N): where they count, by default everywhere
gender (N)             m or f; neutral where it is something else
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rayhmr.data.sources.columns import Columns, npz_units
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, box_id
from rayhmr.data.sources.smpl_labels import GENDERS


@dataclass(frozen=True, kw_only=True)
class SpinSource:
    """labels: an .npz, or a folder of them."""

    labels: str
    split: str
    name: str = "spin"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Pieces of each file."""
        return npz_units(self.labels, self.split, rows_per_file)

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """Row by row; DataError for a file that is not as documented."""
        table = Columns(self.labels, unit)
        images, genders = table.texts("imgname"), table.texts("gender")
        centers, scales = table.numbers("center", 2), table.numbers("scale")
        joints_2d = np.concatenate(
            [table.optional("openpose", 25, 3), table.optional("part", 24, 3)], axis=1
        )
        joints_3d = np.concatenate(
            [np.zeros((len(table), 25, 4)), table.optional("S", 24, 4)], axis=1
        )
        poses, betas = table.optional("pose", 72), table.optional("shape", 10)
        labelled = np.full(len(table), table.has("pose") and table.has("shape"))
        if table.has("has_smpl"):
            labelled &= table.numbers("has_smpl") > 0
        for row, image in enumerate(images):
            yield RawPerson(
                sample_id=box_id(self.name, image, centers[row], scales[row]),
                image=image, center=centers[row], scale=float(scales[row]),
                keypoints_2d=joints_2d[row], keypoints_3d=joints_3d[row],
                pose=poses[row] if labelled[row] else None,
                betas=betas[row] if labelled[row] else None,
                gender=GENDERS.get(genders[row], "neutral"), split=unit.split,
            )  # fmt: skip
