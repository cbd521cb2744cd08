"""What the service answers, as typed arrays. numpy only.

Lengths are metres, axes OpenCV's (x right, y down, z forward), pixels those of the full upright
image. docs/conventions.md says the same of the rest of the project.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class ServiceError(Exception):
    """The service's refusal, from its application/problem+json.

    status: of HTTP. code: short and stable, for programs, such as too_many_pixels; empty where
    something else answered. detail: value, rule and cure, for people. errors: one dict(loc, msg)
    for each wrong field. request_id: what the service's log knows the request by. retry_after_s:
    when to come again, where the service says so.
    """

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after_s: float | None = None
    ) -> None:
        self.status = status
        self.code = str(problem.get("type", "")).removeprefix("urn:rayhmr:")
        self.detail = str(problem.get("detail", ""))
        self.errors: list[dict[str, Any]] = list(problem.get("errors", ()))
        self.request_id = str(problem.get("request_id", ""))
        self.retry_after_s = retry_after_s
        super().__init__(
            f"{status} {self.code or 'no problem+json'}: {self.detail} (request {self.request_id})"
        )


@dataclass(frozen=True, kw_only=True)
class Camera:
    """Pinhole camera in pixels of the full upright image. assumed: not given with the request, so
    the depth of people is a convention and no measurement."""

    fx: float
    fy: float
    cx: float
    cy: float
    assumed: bool = False


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """The estimate after `step` refinement steps; 0 is the start. Arrays as in Person."""

    step: int
    global_orient: np.ndarray
    body_pose: np.ndarray
    betas: np.ndarray
    cam_t: np.ndarray
    weak_cam: np.ndarray
    vertices: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Person:
    """One person; float32 arrays.

    box_xyxy: (4,) pixels. global_orient: (3,), body_pose: (69,) axis-angle. betas: (10,).
    cam_t: (3,) metres, places joints_3d before the camera. weak_cam: (3,) s, tx, ty of the crop.
    joints_3d: (24, 3) metres, without cam_t. joints_2d: (24, 2) pixels. joint_names: of both.
    vertices: (V, 3) metres in the camera frame, cam_t added, with include=["vertices"].
    iterations: step 0 to T, with include=["iterations"].
    """

    id: int
    box_xyxy: np.ndarray
    body_model: str
    global_orient: np.ndarray
    body_pose: np.ndarray
    betas: np.ndarray
    cam_t: np.ndarray
    weak_cam: np.ndarray
    joint_names: tuple[str, ...]
    joints_3d: np.ndarray
    joints_2d: np.ndarray
    vertices: np.ndarray | None
    iterations: tuple[Iteration, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The people of one picture, in the order of the boxes.

    width, height: of the upright picture. turned: by its EXIF orientation. overlay: a PNG file,
    with include=["overlay"]. timing_ms: decode, queue, model, post. raw: the JSON as it came.
    """

    request_id: str
    model: str
    version: str
    width: int
    height: int
    turned: bool
    camera: Camera
    people: tuple[Person, ...]
    warnings: tuple[str, ...]
    timing_ms: dict[str, float]
    overlay: bytes | None
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A served model. faces_url: where its triangles are, relative to the service."""

    name: str
    version: str
    aliases: tuple[str, ...]
    input_size: int
    n_iter: int
    joint_names: tuple[str, ...]
    parents: tuple[int, ...]
    metrics: dict[str, Any]
    faces_url: str


def read_answer(content: dict[str, Any]) -> Answer:
    """A PredictAnswer of the service."""
    camera = {name: content["camera"][name] for name in ("fx", "fy", "cx", "cy")}
    overlay = content.get("overlay")
    return Answer(
        request_id=content["request_id"], model=content["model"]["name"],
        version=content["model"]["version"], width=content["image"]["width"],
        height=content["image"]["height"], turned=content["image"]["exif_rotated"],
        camera=Camera(**camera, assumed=content["camera"]["source"] == "assumed"),
        people=tuple(_person(person) for person in content["people"]),
        warnings=tuple(content["warnings"]), timing_ms=content["timing_ms"],
        overlay=None if overlay is None else base64.b64decode(overlay["data"]), raw=content,
    )  # fmt: skip


def read_model(content: dict[str, Any]) -> Model:
    """A ModelAnswer of the service."""
    return Model(
        name=content["name"], version=content["version"], aliases=tuple(content["aliases"]),
        input_size=content["input_size"], n_iter=content["n_iter"],
        joint_names=tuple(content["joint_names"]), parents=tuple(content["parents"]),
        metrics=content["metrics"], faces_url=content["faces_url"],
    )  # fmt: skip


def _person(content: dict[str, Any]) -> Person:
    return Person(
        id=content["id"], box_xyxy=_array(content["box_xyxy"]),
        body_model=content["smpl"]["body_model"], **_smpl(content["smpl"]),
        cam_t=_array(content["cam_t"]), weak_cam=_array(content["weak_cam"]),
        joint_names=tuple(content["joint_names"]), joints_3d=_array(content["joints_3d"]),
        joints_2d=_array(content["joints_2d"]), vertices=_unpacked(content.get("vertices")),
        iterations=tuple(_iteration(step) for step in content.get("iterations") or ()),
    )  # fmt: skip


def _iteration(content: dict[str, Any]) -> Iteration:
    return Iteration(
        step=content["step"], **_smpl(content["smpl"]), cam_t=_array(content["cam_t"]),
        weak_cam=_array(content["weak_cam"]), vertices=_unpacked(content.get("vertices")),
    )  # fmt: skip


def _smpl(content: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: _array(content[name]) for name in ("global_orient", "body_pose", "betas")}


def _array(numbers: Any) -> np.ndarray:
    return np.array(numbers, np.float32)


def _unpacked(packed: dict[str, Any] | None) -> np.ndarray | None:
    if packed is None:
        return None
    data = np.frombuffer(base64.b64decode(packed["data"]), f"<{packed['dtype']}")
    return data.reshape(packed["shape"]).astype(np.float32)
