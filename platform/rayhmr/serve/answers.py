"""One recovery, four forms: JSON here, and the files of `answer_files`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from hmr.skeleton import SMPL_JOINT_NAMES
from rayhmr.serve import answer_files
from rayhmr.serve.answered import Answered, ModelInfo
from rayhmr.serve.inference import Recovered, Step
from rayhmr.serve.media import GLB, JSON, MEDIA_TYPES, NPZ, PNG
from rayhmr.serve.problems import Problem

__all__ = ["MEDIA_TYPES", "Answered", "ModelInfo", "json_bytes", "write"]

CONVENTIONS = {
    "axes": "x right, y down, z forward",
    "joints_3d": "add cam_t for the camera frame",
    "pixels": "of the upright image; the centre of its first pixel is 0.5, 0.5",
}


def write(answered: Answered, media: str) -> bytes:
    """The body of the answer in one of MEDIA_TYPES."""
    writers: dict[str, Callable[[Answered], bytes]] = {
        JSON: json_bytes, GLB: answer_files.glb, NPZ: answer_files.npz, PNG: answer_files.png,
    }  # fmt: skip
    return writers[media](answered)


def json_bytes(answered: Answered) -> bytes:
    """The PredictAnswer of one picture; Problem 500 when a number is not finite."""
    width, height = answered.size
    camera = answered.camera
    source = "assumed" if answered.work.camera is None else "request"
    content = {
        "request_id": answered.request_id,
        "model": {"name": answered.info.name, "version": answered.info.version},
        "timing_ms": {name: round(value, 3) for name, value in answered.timing_ms.items()},
        "image": {"width": width, "height": height, "exif_rotated": answered.exif_rotated},
        "camera": {"model": "pinhole", "fx": camera.fx, "fy": camera.fy, "cx": camera.cx,
                   "cy": camera.cy, "source": source},
        "units": "m",
        "axes": "opencv",
        "conventions": CONVENTIONS,
        "people": [
            _person(answered, number, recovered)
            for number, recovered in enumerate(answered.recovery.people)
        ],
        "warnings": _warnings(answered),
    }  # fmt: skip
    if "overlay" in answered.options.include:
        data = base64.b64encode(answer_files.png(answered)).decode()
        content["overlay"] = {"media_type": PNG, "encoding": "base64", "data": data}
    try:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise Problem(
            500, "model_nonfinite", "the model's numbers are not finite; try another picture"
        ) from error


def _warnings(answered: Answered) -> list[str]:
    warnings = []
    if answered.work.boxes is None:
        warnings.append("no box given: the whole image was used as one person's square")
    elif not answered.recovery.people:
        warnings.append("boxes is empty: nobody was looked for")
    if answered.work.camera is None:
        warnings.append("no camera given: the focal length is assumed, so depth is a convention")
    return warnings


def _person(answered: Answered, number: int, recovered: Recovered) -> dict[str, Any]:
    person = recovered.person
    parameters = {
        "global_orient": person.global_orient, "body_pose": person.body_pose, "betas": person.betas,
    }  # fmt: skip
    content: dict[str, Any] = {
        "id": number,
        "box_xyxy": _plain(person.box_xyxy),
        "box_source": "full_image" if answered.work.boxes is None else "request",
        "smpl": _smpl(answered.info, parameters),
        "cam_t": _plain(person.cam_t),
        "weak_cam": _plain(person.pred_cam),
        "joint_set": "smpl24",
        "joint_names": list(SMPL_JOINT_NAMES),
        "joints_3d": _plain(person.joints_3d),
        "joints_2d": _plain(person.joints_2d),
    }
    if "vertices" in answered.options.include:
        content["vertices"] = _encoded(recovered.vertices)
    if "iterations" in answered.options.include:
        content["iterations"] = [
            _step(answered.info, step, entry) for step, entry in enumerate(recovered.steps)
        ]
    return content


def _step(info: ModelInfo, number: int, step: Step) -> dict[str, Any]:
    content = {
        "step": number,
        "smpl": _smpl(info, step.parameters),
        "cam_t": _plain(step.cam_t),
        "weak_cam": _plain(step.parameters["pred_cam"]),
    }
    return content if step.vertices is None else content | {"vertices": _encoded(step.vertices)}


def _smpl(info: ModelInfo, parameters: dict[str, np.ndarray]) -> dict[str, Any]:
    names = ("global_orient", "body_pose", "betas")
    numbers = {name: _plain(parameters[name]) for name in names}
    return {"body_model": info.body_model, "rotation": "axis_angle"} | numbers


def _plain(array: np.ndarray) -> Any:
    """Nested lists with the shortest decimals that give the float32 numbers back."""
    if array.ndim > 1:
        return [_plain(row) for row in array]
    return [float(str(value)) for value in array.astype(np.float32)]


def _encoded(array: np.ndarray) -> dict[str, Any]:
    if not np.isfinite(array).all():
        raise Problem(
            500, "model_nonfinite", "the model's vertices are not finite; try another picture"
        )
    data = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"dtype": "f4", "shape": list(array.shape), "encoding": "base64", "data": data}
