"""From pictures to people in three parts: cut out, compute in batches, finish. No Ray, no HTTP.

`Prepared.of` and `finish` need no model; they run where requests come in. `compute` is all that a
process with the model does, and what travels to it are small squares. `recover_batch` is the three
in a row.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hmr.crops import Frame
from hmr.errors import HmrError
from hmr.person_crops import PersonCrop, person_crops
from hmr.predictor import BATCH_SIZE, Predictor, people_of
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

    image: upright; all its pixels (H, W, 3) uint8 RGB, or fewer as a Frame. boxes: (N, 4) x1, y1,
    x2, y2 in its pixels; none: the whole image. n_iter: steps instead of the model's own. camera:
    none: focal length assumed. mesh: False leaves the vertices out. step_meshes: also the mesh of
    every step.
    """

    image: np.ndarray | Frame
    boxes: np.ndarray | None = None
    n_iter: int | None = None
    camera: Camera | None = None
    mesh: bool = True
    step_meshes: bool = False

    @property
    def frame(self) -> Frame:
        """The image as a Frame."""
        return self.image if isinstance(self.image, Frame) else Frame(self.image)


def probe_work() -> Work:
    """A gray picture: what it shows does not matter, that the answer stays the same does."""
    return Work(image=np.full((64, 64, 3), 128, np.uint8))


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
        """(V, 3) metres in the camera frame, float32; (0, 3) where no mesh was asked for."""
        return (self.person.vertices + self.person.cam_t).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """The people of one image, in the order of its boxes; how long the model took for their batch,
    and what came after it for this image alone."""

    people: tuple[Recovered, ...]
    model_ms: float
    post_ms: float


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a model needs of one Work: the squares of its people, how many steps to take, and
    whether the mesh, and that of every step, is wanted."""

    crops: tuple[PersonCrop, ...]
    n_iter: int | None
    mesh: bool
    step_meshes: bool

    @classmethod
    def of(cls, work: Work, *, image_size: int, padding: float) -> Prepared:
        """Cut the people out; DataError for a box that breaks its rule."""
        crops = person_crops(work.image, work.boxes, image_size=image_size, padding=padding)
        return cls(
            crops=tuple(crops), n_iter=work.n_iter, mesh=work.mesh, step_meshes=work.step_meshes
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Computed:
    """columns: of `Predictor.columns`, a row for each crop. model_ms: the time of the batch."""

    columns: dict[str, np.ndarray]
    model_ms: float


def recover_batch(predictor: Predictor, works: Sequence[Work]) -> list[Recovery | Exception]:
    """Answers in the order of `works`; whatever an item fails with stands in its own place."""
    prepared = [_attempt(predictor, work) for work in works]
    good = [one for one in prepared if isinstance(one, Prepared)]
    computed = iter(compute_batch(predictor, good))
    return [
        one if isinstance(one, Exception) else finish(work, one, next(computed))
        for work, one in zip(works, prepared, strict=True)
    ]


def _attempt(predictor: Predictor, work: Work) -> Prepared | Exception:
    try:
        return Prepared.of(work, image_size=predictor.image_size, padding=predictor.box_padding)
    except Exception as error:  # stands in this item's place
        return error


def compute_batch(predictor: Predictor, items: Sequence[Prepared]) -> list[Computed | Exception]:
    """The model's part, in the order of `items`; an item's failure stands in its own place."""
    groups: dict[tuple[int | None, bool], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        groups[item.n_iter, item.step_meshes].append(index)
    answers: dict[int, Computed | Exception] = {}
    for members in groups.values():
        results = _compute_alike(predictor, [items[index] for index in members])
        answers.update(zip(members, results, strict=True))
    return [answers[index] for index in range(len(items))]


def _compute_alike(predictor: Predictor, items: Sequence[Prepared]) -> list[Computed | Exception]:
    """Items with the same number of steps; all get a mesh where one wants it, since a second pass
    would cost more."""
    start = time.perf_counter()
    crops = [crop for item in items for crop in item.crops]
    try:
        mesh = any(item.mesh for item in items)
        columns = _columns(predictor, crops, items[0], mesh) if crops else {}
    except Exception as error:
        if len(items) == 1:
            return [error]
        # One of them broke the batch: alone, each gets what it deserves.
        return [result for item in items for result in _compute_alike(predictor, [item])]
    model_ms = 1000 * (time.perf_counter() - start)
    results: list[Computed | Exception] = []
    begin = 0
    for item in items:
        end = begin + len(item.crops)
        rows = {name: column[begin:end] for name, column in columns.items()}
        if rows and not item.mesh:  # it would travel for nothing
            rows["vertices"] = rows["vertices"][:, :0]
        results.append(Computed(columns=rows, model_ms=model_ms))
        begin = end
    return results


def _columns(
    predictor: Predictor, crops: Sequence[PersonCrop], wishes: Prepared, mesh: bool
) -> dict[str, np.ndarray]:
    """As many forward passes as the people need, as one table."""
    parts = [
        predictor.columns(
            crops[start : start + BATCH_SIZE],
            wishes.n_iter,
            mesh=mesh,
            step_meshes=wishes.step_meshes,
        )
        for start in range(0, len(crops), BATCH_SIZE)
    ]
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def finish(work: Work, prepared: Prepared, computed: Computed | Exception) -> Recovery | Exception:
    """The people of one image; what it failed with instead."""
    if isinstance(computed, Exception):
        return computed
    start = time.perf_counter()
    try:
        recovered = tuple(_recovered_all(work, prepared.crops, computed.columns))
    except Exception as error:  # stands in this item's place
        return error
    post_ms = 1000 * (time.perf_counter() - start)
    return Recovery(people=recovered, model_ms=computed.model_ms, post_ms=post_ms)


def _recovered_all(
    work: Work, crops: Sequence[PersonCrop], columns: dict[str, np.ndarray]
) -> list[Recovered]:
    if not crops:
        return []
    meshes = columns.get("step_vertices")
    people = []
    for row, (crop, person) in enumerate(zip(crops, people_of(crops, columns), strict=True)):
        if isinstance(person, HmrError):
            raise person
        people.append(_recovered(work, crop, person, None if meshes is None else meshes[row]))
    return people


def _recovered(
    work: Work, crop: PersonCrop, person: Person, meshes: np.ndarray | None
) -> Recovered:
    """meshes: (T + 1, V, 3) of the steps, where they are wanted."""
    if work.camera is not None:
        person = _seen_by(work.camera, person, crop.center, crop.side)
    (fx, fy), (cx, cy) = person.focal_length, person.principal_point
    camera = Camera(fx=fx, fy=fy, cx=cx, cy=cy)
    places = [place(step["pred_cam"], crop.center, crop.side, camera) for step in person.iterations]
    steps = tuple(
        Step(
            parameters=parameters,
            cam_t=cam_t,
            vertices=None if meshes is None else meshes[number] + cam_t,
        )
        for number, (parameters, cam_t) in enumerate(zip(person.iterations, places, strict=True))
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
