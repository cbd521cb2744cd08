"""The pictures of one person in a browser page: photo, meshes over it, joints, side, errors."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch

from hmr.body import Body
from hmr.pose_prior import rodrigues
from hmr.render import overlay, person_color, view
from hmr.render_errors import HEAT_LIGHT, error_colors
from hmr.render_lines import skeleton
from hmr.skeleton import JOINT49_NAMES
from rayhmr.figure_subject import Figure3D

MODEL_COLOR, TRUTH_COLOR = person_color(0), (0.60, 0.85, 0.62)
UNSEEN_PX = 256
"""Side of the photo that a camera belongs to when the photo could not be read."""
HEAT_MM = 200.0
"""Vertex error that is red in every picture, so that they can be compared."""
BONES_49: tuple[tuple[str, str], ...] = (
    *((f"op_{side}_{a}", f"op_{side}_{b}") for side in ("left", "right")
      for a, b in (("hip", "knee"), ("knee", "ankle"), ("ankle", "big_toe"),
                   ("shoulder", "elbow"), ("elbow", "wrist"))),
    *(("op_neck", f"op_{side}_shoulder") for side in ("left", "right")),
    *(("op_mid_hip", f"op_{side}_hip") for side in ("left", "right")),
    ("op_mid_hip", "op_neck"), ("op_neck", "op_nose"),
    *((f"gt_{side}_{a}", f"gt_{side}_{b}") for side in ("left", "right")
      for a, b in (("hip", "knee"), ("knee", "ankle"), ("shoulder", "elbow"),
                   ("elbow", "wrist"))),
    ("gt_pelvis", "gt_neck"), ("gt_neck", "gt_head_top"),
    *(("gt_neck", f"gt_{side}_shoulder") for side in ("left", "right")),
    *(("gt_pelvis", f"gt_{side}_hip") for side in ("left", "right")),
)  # fmt: skip
"""Bones between the 49 joints, of both halves; those with an unlabelled end are left out."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A body before a camera. focal, principal: (2,) pixels of the person's photo."""

    body: Figure3D
    focal: np.ndarray
    principal: np.ndarray

    def scaled(self, factor: float) -> Placed:
        """The same over a photo that is so many times as large."""
        return Placed(body=self.body, focal=self.focal * factor, principal=self.principal * factor)


@dataclass(frozen=True, kw_only=True)
class Pictured:
    """photo: (P, P, 3) uint8, none when it could not be read. keypoints: (49, 3) its pixels and
    confidence, none without labels."""

    photo: np.ndarray | None
    truth: Placed | None = None
    prediction: Placed | None = None
    keypoints: np.ndarray | None = None


def bodies(
    body: Body, pose: np.ndarray, betas: np.ndarray, moved: np.ndarray
) -> list[Figure3D]:  # fmt: skip
    """pose: (N, 72) axis-angle, betas: (N, 10), moved: (N, 3) metres added to each."""
    device = body.faces.device
    rotmats = torch.from_numpy(rodrigues(pose.reshape(-1, 24, 3).astype(np.float32)))
    shape = torch.from_numpy(np.ascontiguousarray(betas, np.float32))
    with torch.inference_mode():
        output = body(rotmats.to(device), shape.to(device))
    vertices, joints = output.vertices.cpu().numpy(), output.joints.cpu().numpy()
    return [
        Figure3D(vertices=v + t, joints=j + t)
        for v, j, t in zip(vertices, joints, moved, strict=True)
    ]


def _joints(photo: np.ndarray, keypoints: np.ndarray) -> np.ndarray | None:
    """The labelled 2D joints and the bones between them; none without any."""
    known = keypoints[:, 2] > 0
    if not known.any():
        return None
    names = [name for name, seen in zip(JOINT49_NAMES, known, strict=True) if seen]
    bones = [(a, b) for a, b in BONES_49 if a in names and b in names]
    # At a depth of one a focal length of one leaves pixels as they are.
    points = np.column_stack([keypoints[known, :2], np.ones(int(known.sum()))])
    return skeleton(photo, [points], (1.0, 1.0), (0.0, 0.0), names=names, bones=bones)


def _enlarged(pictured: Pictured, side: int) -> tuple[np.ndarray, float]:
    """The photo with this side, or a plain ground in its place, and how many times larger it is."""
    if pictured.photo is None:
        return np.full((side, side, 3), 128, np.uint8), side / UNSEEN_PX
    factor = side / pictured.photo.shape[0]
    kind = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(pictured.photo, (side, side), interpolation=kind), factor


def _over(photo: np.ndarray, placed: Placed, faces: np.ndarray, **options: object) -> np.ndarray:
    return overlay(
        photo, [placed.body.vertices], faces, placed.focal, placed.principal,
        **{"supersampling": 2, **options},  # type: ignore[arg-type]
    )  # fmt: skip


def panels(
    pictured: Pictured, faces: np.ndarray, side: int, *, whole: bool
) -> dict[str, np.ndarray]:
    """Name to (side, side, 3) uint8: photo, and where there is such a thing truth, joints,
    prediction.

    whole: also the side view, and with both bodies the error of each vertex.
    """
    photo, factor = _enlarged(pictured, side)
    drawn = {"photo": photo}
    truth, prediction = (
        placed and placed.scaled(factor) for placed in (pictured.truth, pictured.prediction)
    )
    if truth is not None:
        drawn["truth"] = _over(photo, truth, faces, colors=[TRUTH_COLOR])
    if pictured.keypoints is not None:
        scaled = pictured.keypoints * [factor, factor, 1.0]
        joints = _joints(photo, scaled)
        if joints is not None:
            drawn["joints"] = joints
    if prediction is not None:
        drawn["prediction"] = _over(photo, prediction, faces, colors=[MODEL_COLOR])
    if whole:
        drawn |= _whole(photo, truth, prediction, faces)
    return drawn


def _whole(
    photo: np.ndarray, truth: Placed | None, prediction: Placed | None, faces: np.ndarray
) -> dict[str, np.ndarray]:
    side = photo.shape[0]
    shown = [(p.body.centred.vertices, color) for p, color in (
        (prediction, MODEL_COLOR), (truth, TRUTH_COLOR)) if p is not None]  # fmt: skip
    if not shown:
        return {}
    drawn = {"side": view(
        [vertices for vertices, _ in shown], faces, side, degrees=-90,
        colors=[color for _, color in shown],
    )}  # fmt: skip
    if truth is not None and prediction is not None:
        errors = prediction.body.vertex_errors(truth.body)
        drawn["error"] = _over(
            photo, prediction, faces, colors=[error_colors(errors, HEAT_MM)], light=HEAT_LIGHT,
            opacity=1.0,
        )  # fmt: skip
    return drawn
