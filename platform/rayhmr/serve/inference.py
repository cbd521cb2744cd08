"""From a batch of requests to people: what runs in the replica's worker thread. No Ray, no HTTP."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hmr.crops import box_xyxy_to_square, centre_box
from hmr.predictor import Predictor
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Person

_EPSILON = 1e-9


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole camera in pixels of the full upright image."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """One image to recover people from.

    image: (H, W, 3) uint8 RGB, upright. boxes: (N, 4) x1, y1, x2, y2 in its pixels; none: the whole
    image. n_iter: steps instead of the model's own. camera: none: focal length assumed.
    step_meshes: also the mesh of every step.
    """

    image: np.ndarray
    boxes: np.ndarray | None = None
    n_iter: int | None = None
    camera: Camera | None = None
    step_meshes: bool = False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the regressor: its parameters (as in Person.iterations), where the body then
    stands, (3,) metres, and its mesh (V, 3) with that added, when it was asked for."""

    parameters: dict[str, np.ndarray]
    cam_t: np.ndarray
    vertices: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """A person and the steps that led there, start included."""

    person: Person
    steps: tuple[Step, ...]

    @property
    def vertices(self) -> np.ndarray:
        """(V, 3) metres in the camera frame, float32."""
        return (self.person.vertices + self.person.cam_t).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """The people of one image, in the order of its boxes; how long the model took for their batch,
    and what came after it for this image alone."""

    people: tuple[Recovered, ...]
    model_ms: float
    post_ms: float


def recover_batch(predictor: Predictor, works: Sequence[Work]) -> list[Recovery | Exception]:
    """Answers in the order of `works`; whatever an item fails with stands in its own place."""
    groups: dict[int | None, list[int]] = defaultdict(list)
    for index, work in enumerate(works):
        groups[work.n_iter].append(index)
    answers: dict[int, Recovery | Exception] = {}
    for members in groups.values():
        results = _recover_alike(predictor, [works[index] for index in members])
        answers.update(zip(members, results, strict=True))
    return [answers[index] for index in range(len(works))]


def _recover_alike(predictor: Predictor, works: list[Work]) -> list[Recovery | Exception]:
    """`works` with the same number of steps."""
    start = time.perf_counter()
    try:
        people = predictor.predict_many(
            [work.image for work in works], [work.boxes for work in works], works[0].n_iter
        )
    except Exception as error:
        if len(works) == 1:
            return [error]
        # One of them broke the batch: alone, each gets what it deserves.
        return [result for work in works for result in _recover_alike(predictor, [work])]
    model_ms = 1000 * (time.perf_counter() - start)
    return [
        found if isinstance(found, Exception) else _finish(predictor, work, found, model_ms)
        for work, found in zip(works, people, strict=True)
    ]


def _finish(
    predictor: Predictor, work: Work, people: list[Person], model_ms: float
) -> Recovery | Exception:
    start = time.perf_counter()
    try:
        recovered = tuple(_recovered(predictor, work, person) for person in people)
    except Exception as error:  # stands in this item's place
        return error
    post_ms = 1000 * (time.perf_counter() - start)
    return Recovery(people=recovered, model_ms=model_ms, post_ms=post_ms)


def _recovered(predictor: Predictor, work: Work, person: Person) -> Recovered:
    if work.boxes is None:
        center, side = centre_box(work.image.shape[1], work.image.shape[0])
    else:
        center, side = box_xyxy_to_square(person.box_xyxy, predictor.box_padding)
    if work.camera is not None:
        person = _seen_by(work.camera, person, center, side)
    (fx, fy), (cx, cy) = person.focal_length, person.principal_point
    camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy)
    places = [place(step["pred_cam"], center, side, camera) for step in person.iterations]
    meshes: Sequence[Any] = [None] * len(places)
    if work.step_meshes:
        meshes = _step_vertices(predictor, person) + np.stack(places)[:, None]
    steps = tuple(
        Step(parameters=parameters, cam_t=cam_t, vertices=mesh)
        for parameters, cam_t, mesh in zip(person.iterations, places, meshes, strict=True)
    )
    return Recovered(person=person, steps=steps)


def place(pred_cam: np.ndarray, center: np.ndarray, side: float, camera: Camera) -> np.ndarray:
    """Weak camera (s, tx, ty) of a square crop to the (3,) translation before a full camera.

    The crop shows s side / 2 pixels a metre; the depth is where the full camera does the same (in
    the geometric mean of both axes), and the origin of the body keeps its pixel. For a central
    camera with fx = fy this is `hmr.camera.crop_to_full`.
    """
    scale, tx, ty = (float(value) for value in pred_cam)
    pixels_per_metre = (scale * side + _EPSILON) / 2
    depth = math.sqrt(camera.fx * camera.fy) / pixels_per_metre
    u, v = center[0] + pixels_per_metre * tx, center[1] + pixels_per_metre * ty
    x, y = (u - camera.cx) * depth / camera.fx, (v - camera.cy) * depth / camera.fy
    return np.array([x, y, depth], np.float32)


def _seen_by(camera: Camera, person: Person, center: np.ndarray, side: float) -> Person:
    """The same person before the camera of the request."""
    cam_t = place(person.pred_cam, center, side, camera)
    focal = np.array([camera.fx, camera.fy], np.float32)
    principal = np.array([camera.cx, camera.cy], np.float32)
    joints = person.joints_3d + cam_t
    joints_2d = focal * joints[:, :2] / joints[:, 2:] + principal
    return replace(
        person, cam_t=cam_t, focal_length=focal, principal_point=principal, joints_2d=joints_2d
    )


def _step_vertices(predictor: Predictor, person: Person) -> np.ndarray:
    """(T + 1, V, 3) float32, without translation."""
    poses = [np.concatenate([s["global_orient"], s["body_pose"]]) for s in person.iterations]
    with torch.inference_mode():
        pose = torch.as_tensor(np.stack(poses), device=predictor.device).reshape(-1, 24, 3)
        betas = torch.as_tensor(
            np.stack([s["betas"] for s in person.iterations]), device=predictor.device
        )
        output = predictor.body(axis_angle_to_matrix(pose), betas)
        return np.asarray(output.vertices.cpu().numpy(), np.float32)
