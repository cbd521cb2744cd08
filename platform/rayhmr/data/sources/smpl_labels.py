"""What several readers do with SMPL labels: joints of the body, boxes around joints, checks.

numpy only: this runs on data workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from hmr.body_arrays import BodyArrays, landmarks_numpy, lbs_numpy
from hmr.crops import DEFAULT_PADDING, box_xyxy_to_square
from hmr.pose_prior import rodrigues
from hmr.skeleton import JOINT49_NAMES
from rayhmr.data.sources.bodies import shared_body
from rayhmr.data.sources.record import RawPerson, RejectedRow

CHUNK = 32
"""Rows whose bodies are posed together."""
PIXELS_PER_SCALE = 200.0
"""The field gives a box by its side / 200."""
GENDERS: dict[str, str] = {
    "f": "female", "m": "male", "n": "neutral",
    "female": "female", "male": "male", "neutral": "neutral",
}  # fmt: skip
"""What data sets write, and what we do."""

Row = RawPerson | RejectedRow


def no_joints(dimensions: int) -> np.ndarray:
    """(49, dimensions + 1) zeros: no joint is labelled."""
    return np.zeros((len(JOINT49_NAMES), dimensions + 1))


def box_around(points: np.ndarray, padding: float = DEFAULT_PADDING) -> tuple[np.ndarray, float]:
    """Centre and scale = padding * longer side / 200 of the box around (N, 2) pixels (SPIN)."""
    center, side = box_xyxy_to_square(np.concatenate([points.min(0), points.max(0)]), padding)
    return center, side / PIXELS_PER_SCALE


def rest_pelvis(arrays: BodyArrays, betas: np.ndarray) -> np.ndarray:
    """(3,) the point about which joint 0 turns the body with these betas (10,)."""
    pelvis: np.ndarray = arrays.rest_joints[0] + arrays.joint_shapedirs[0] @ betas
    return pelvis


def project(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(J, 3) camera axes to (J, 3): pixels, and confidence 1 before and 0 behind the camera."""
    before = points[:, 2] > 0
    depth = np.where(before, points[:, 2], 1.0)[:, None]
    pixels = intrinsics[:2] * points[:, :2] / depth + intrinsics[2:]
    return np.column_stack([pixels, np.ones(len(points))]) * before[:, None]


def in_chunks(rows: Iterator[Row], bodies: Mapping[str, str]) -> Iterator[Row]:
    """The same rows in the same order, with `fill_joints` and `checked` applied."""
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield from map(checked, fill_joints(chunk, bodies))
            chunk = []
    yield from map(checked, fill_joints(chunk, bodies))


def fill_joints(rows: Sequence[Row], bodies: Mapping[str, str]) -> list[Row]:
    """People without labelled joints get those of their SMPL labels.

    bodies: path of the body (or `embedded`) by gender; people of another gender stay as they are,
    since shape coefficients mean nothing to another body. 3D joints need pose and betas; 2D joints
    are their projections and need transl and intrinsics as well. Labelled joints are never changed.
    """
    filled = list(rows)
    for gender, path in bodies.items():
        of_gender = [
            (place, row)
            for place, row in enumerate(rows)
            if isinstance(row, RawPerson) and row.gender == gender and _can_be_posed(row)
        ]
        if not of_gender:
            continue
        poses = np.stack([row.pose for _, row in of_gender if row.pose is not None])
        betas = np.stack([row.betas for _, row in of_gender if row.betas is not None])
        joints = landmarks(shared_body(path), poses, betas)
        for (place, row), points in zip(of_gender, joints, strict=True):
            filled[place] = _with_joints(row, points.astype(np.float64))
    return filled


def landmarks(arrays: BodyArrays, poses: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """The 49 joints (B, 49, 3) of poses (B, 72) and betas (B, 10): metres, the root's frame."""
    vertices, joints = lbs_numpy(arrays, rodrigues(poses.reshape(-1, 24, 3)), betas)
    assert vertices is not None
    return landmarks_numpy(arrays, vertices, joints)


def checked(row: Row) -> Row:
    """The row, or its rejection as label_nonfinite."""
    if isinstance(row, RejectedRow):
        return row
    for name in ("center", "scale", "keypoints_2d", "keypoints_3d", "pose", "betas", "transl",
                 "intrinsics"):  # fmt: skip
        value = getattr(row, name)
        if value is not None and not np.isfinite(value).all():
            return RejectedRow(
                sample_id=row.sample_id, reason="label_nonfinite",
                detail=f"{name} holds NaN or infinite numbers",
            )  # fmt: skip
    return row


def _can_be_posed(row: RawPerson) -> bool:
    labels = (row.pose, row.betas)
    return all(values is not None and np.isfinite(values).all() for values in labels)


def _with_joints(row: RawPerson, points: np.ndarray) -> RawPerson:
    """points: (49, 3) joints of the posed body."""
    if not row.keypoints_3d[:, 3].any():
        row = replace(row, keypoints_3d=np.column_stack([points, np.ones(len(points))]))
    if row.transl is None or row.intrinsics is None or row.keypoints_2d[:, 2].any():
        return row
    if not (np.isfinite(row.transl).all() and np.isfinite(row.intrinsics).all()):
        return row
    return replace(row, keypoints_2d=project(points + row.transl, row.intrinsics))
