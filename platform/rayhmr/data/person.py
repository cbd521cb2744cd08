"""One labelled person on the way into a shard: the record, its checks, its row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hmr.crops import encode_jpeg

MIN_VISIBLE_JOINTS = 6
"""People with fewer labelled joints teach nothing about their pose."""


@dataclass(frozen=True, kw_only=True)
class LabelledPerson:
    """image: (S, S, 3) uint8 RGB crop. Everything else as the columns of `schema.SCHEMA`.

    keypoints_2d: (49, 3) crop pixels, confidence. keypoints_3d: (49, 4) metres, camera axes,
    confidence. pose: (72,) and betas: (10,), none when there are no SMPL labels.
    """

    sample_id: str
    image: np.ndarray
    image_size: tuple[int, int]
    crop_to_frame: np.ndarray
    center: np.ndarray
    scale: float
    keypoints_2d: np.ndarray
    keypoints_3d: np.ndarray
    pose: np.ndarray | None
    betas: np.ndarray | None
    transl: np.ndarray | None
    intrinsics: np.ndarray | None
    gender: str
    source: str
    split: str
    subject: str

    def rejection(self, min_joints: int = MIN_VISIBLE_JOINTS) -> tuple[str, str] | None:
        """Why this person may not enter a data set: a short stable code and a sentence.

        min_joints: fewest joints with a 2D label.
        """
        for name in ("crop_to_frame", "center", "scale", "keypoints_2d", "keypoints_3d", "pose",
                     "betas", "transl", "intrinsics"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not np.isfinite(value).all():
                return "label_nonfinite", f"{name} holds NaN or infinite numbers"
        visible = int((self.keypoints_2d[:, 2] > 0).sum())
        if visible < min_joints:
            return "label_missing", f"{visible} joints are labelled, at least {min_joints} must be"
        return None

    def row(self, jpeg_quality: int) -> dict[str, Any]:
        """The row of the shard."""
        has_smpl = self.pose is not None and self.betas is not None
        return {
            "sample_id": self.sample_id,
            "image": {
                "bytes": encode_jpeg(self.image, jpeg_quality),
                "path": f"{self.sample_id}.jpg",
            },
            "image_size": list(self.image_size),
            "crop_to_frame": _numbers(self.crop_to_frame),
            "center": _numbers(self.center),
            "scale": float(self.scale),
            "keypoints_2d": _numbers(self.keypoints_2d),
            "keypoints_3d": _numbers(self.keypoints_3d),
            "pose": _numbers(self.pose) if has_smpl else [0.0] * 72,
            "betas": _numbers(self.betas) if has_smpl else [0.0] * 10,
            "has_smpl": has_smpl,
            "transl": _numbers(self.transl),
            "intrinsics": _numbers(self.intrinsics),
            "gender": self.gender,
            "source": self.source,
            "split": self.split,
            "subject": self.subject,
        }


def _numbers(array: np.ndarray | None) -> Any:
    return None if array is None else np.asarray(array, np.float32).reshape(-1)
