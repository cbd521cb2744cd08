"""A trained model as people use it: full frames and boxes in, people in full frames out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmr.body import Body
from hmr.camera import crop_to_full, default_focal, perspective_projection
from hmr.crops import (
    DEFAULT_PADDING,
    box_to_affine,
    box_xyxy_to_square,
    centre_box,
    crop_image,
)
from hmr.errors import DataError, HmrError
from hmr.model import HMR
from hmr.rotations import matrix_to_axis_angle
from hmr.structures import Person, Prediction

BATCH_SIZE = 32
"""People of one forward pass."""
MAX_ITERATIONS = 16
MIN_OVERLAP_PX = 1.0
"""A box shares at least this much of each axis with its image."""
MAX_BOX_RATIO = 100.0
"""A box is at most this many times as long as its image."""


@dataclass(frozen=True)
class _Task:
    """One person to recover: a square of one image. item: number of the image in the request."""

    item: int
    image: np.ndarray
    box: np.ndarray
    center: np.ndarray
    side: float
    focal: float


class Predictor:
    """A model in eval mode with its body; safe to call from several threads.

    box_padding: side of the square crop over the longer side of a person's box.
    info: what is known about the model (path, config, metrics, provenance), for display.
    """

    def __init__(
        self,
        model: HMR,
        body: Body,
        *,
        box_padding: float = DEFAULT_PADDING,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.body = model.eval(), body
        self.box_padding = box_padding
        self.info = info or {}
        self.device = next(model.parameters()).device

    @property
    def image_size(self) -> int:
        """Side S of the square crops, in pixels."""
        return self.model.image_size

    @property
    def n_iter(self) -> int:
        """Refinement steps T unless a call asks for another number."""
        return self.model.regressor.n_iter

    def predict(
        self,
        image: np.ndarray,
        boxes: np.ndarray | Sequence[Sequence[float]] | None = None,
        n_iter: int | None = None,
        focal: float | None = None,
    ) -> list[Person]:
        """The people of one upright image (H, W, 3) uint8 RGB, in the order of their boxes.

        boxes: (N, 4) as x1, y1, x2, y2 in pixels; none: one person, the whole image.
        n_iter: refinement steps, 1 to 16. focal: focal length in pixels; none: the diagonal.

        DataError names a box or image that breaks its rule; HmrError when the model's numbers are
        not finite.
        """
        (people,) = self.predict_many([image], [boxes], n_iter, [focal])
        if isinstance(people, HmrError):
            raise people
        return people

    def predict_many(
        self,
        images: Sequence[np.ndarray],
        boxes: Sequence[np.ndarray | Sequence[Sequence[float]] | None] | None = None,
        n_iter: int | None = None,
        focals: Sequence[float | None] | None = None,
    ) -> list[list[Person] | HmrError]:
        """`predict` for several images, crops of all of them batched together.

        An image that fails gets its error in its place and leaves the others alone. The answer to
        an image does not depend on what it was batched with (beyond 1e-5 of rounding).
        """
        _check_n_iter(n_iter)
        boxes = [None] * len(images) if boxes is None else boxes
        focals = [None] * len(images) if focals is None else focals
        if not len(images) == len(boxes) == len(focals):
            raise DataError(
                f"{len(images)} images, {len(boxes)} sets of boxes and {len(focals)} focal "
                "lengths: give one of each for every image"
            )
        results: list[list[Person] | HmrError] = []
        tasks: list[_Task] = []
        for item, (image, of_image, focal) in enumerate(zip(images, boxes, focals, strict=True)):
            try:
                tasks += self._tasks(item, image, of_image, focal)
                results.append([])
            except HmrError as error:
                results.append(error)
        for chunk in _chunks(tasks, BATCH_SIZE):
            for task, person in zip(chunk, self._recover(chunk, n_iter), strict=True):
                people = results[task.item]
                if isinstance(people, HmrError):
                    continue
                if person is None:
                    results[task.item] = HmrError(
                        f"box {task.box.round(1).tolist()}: the model's numbers are not finite; "
                        "try another picture, and if it stays so, train with a lower learning rate"
                    )
                else:
                    people.append(person)
        return results

    def predict_crops(self, crops: np.ndarray | Tensor, n_iter: int | None = None) -> Prediction:
        """Every iteration for square crops, on the model's device, in float32.

        crops: uint8 RGB, an array (B, S, S, 3) or, as in a Batch, a tensor (B, 3, S, S).
        """
        _check_n_iter(n_iter)
        if isinstance(crops, np.ndarray):
            size = self.image_size
            if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
                raise DataError(
                    f"crops are {crops.dtype} {crops.shape}; this model takes uint8 "
                    f"(B, {size}, {size}, 3): crop with hmr.crops.crop_image"
                )
            crops = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            prediction: Prediction = self.model(crops.to(self.device), n_iter)
            return Prediction(iterations=tuple(step.float() for step in prediction.iterations))

    def _tasks(
        self,
        item: int,
        image: np.ndarray,
        boxes: np.ndarray | Sequence[Sequence[float]] | None,
        focal: float | None,
    ) -> list[_Task]:
        _check_image(image)
        height, width = image.shape[:2]
        if focal is None:
            focal = default_focal(width, height)
        elif not (np.isfinite(focal) and focal > 0):
            raise DataError(f"focal={focal}: must be a finite number of pixels above 0")
        if boxes is None:
            box = np.array([0, 0, width, height], np.float64)
            return [_Task(item, image, box, *centre_box(width, height), focal)]
        return [
            _Task(item, image, box, *box_xyxy_to_square(box, self.box_padding), focal)
            for box in _checked_boxes(boxes, width, height)
        ]

    def _recover(self, tasks: Sequence[_Task], n_iter: int | None) -> list[Person | None]:
        """A person for each task; none where the numbers are not finite."""
        size = self.image_size
        crops = [
            crop_image(task.image, box_to_affine(task.center, task.side, size), size)
            for task in tasks
        ]
        prediction = self.predict_crops(np.stack(crops), n_iter)
        with torch.inference_mode():
            columns = self._columns(prediction, tasks)
        finite = np.all(
            [np.isfinite(c).reshape(len(tasks), -1).all(1) for c in columns.values()], axis=0
        )
        return [
            _person(task, {name: column[row] for name, column in columns.items()})
            if finite[row]
            else None
            for row, task in enumerate(tasks)
        ]

    def _columns(self, prediction: Prediction, tasks: Sequence[_Task]) -> dict[str, np.ndarray]:
        """Everything about a batch of people as arrays with one row for each."""
        final = prediction.final
        output = self.body(final.rotmats, final.betas)
        centers = self._tensor([task.center for task in tasks])
        sides = self._tensor([task.side for task in tasks])
        sizes = self._tensor([task.image.shape[1::-1] for task in tasks])
        focals = self._tensor([task.focal for task in tasks])
        cam_t = crop_to_full(final.pred_cam, centers, sides, sizes, focals)
        joints_2d = perspective_projection(output.joints, cam_t, focals, sizes / 2)
        steps = prediction.iterations
        tensors = {
            "vertices": output.vertices,
            "joints_3d": output.joints,
            "joints_2d": joints_2d,
            "cam_t": cam_t,
            "pose": matrix_to_axis_angle(torch.stack([s.rotmats for s in steps], 1)).flatten(2),
            "betas": torch.stack([s.betas for s in steps], 1),
            "pred_cam": torch.stack([s.pred_cam for s in steps], 1),
        }
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.as_tensor(np.array(values), dtype=torch.float32, device=self.device)


def _person(task: _Task, row: dict[str, np.ndarray]) -> Person:
    """row: vertices, joints, cam_t of one person; pose, betas, pred_cam of each of T + 1 steps."""
    height, width = task.image.shape[:2]
    iterations = tuple(
        {"global_orient": pose[:3], "body_pose": pose[3:], "betas": betas, "pred_cam": pred_cam}
        for pose, betas, pred_cam in zip(row["pose"], row["betas"], row["pred_cam"], strict=True)
    )
    # Copies: a slice would keep the whole batch in memory for as long as one person lives.
    return Person(
        box_xyxy=task.box.astype(np.float32),
        cam_t=row["cam_t"].copy(),
        focal_length=np.full(2, task.focal, np.float32),
        principal_point=np.array([width / 2, height / 2], np.float32),
        vertices=row["vertices"].copy(),
        joints_3d=row["joints_3d"].copy(),
        joints_2d=row["joints_2d"].copy(),
        iterations=iterations,
        **iterations[-1],
    )


def _chunks(tasks: Iterable[_Task], size: int) -> Iterator[list[_Task]]:
    remaining = iter(tasks)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk


def _check_n_iter(n_iter: int | None) -> None:
    if n_iter is None:
        return
    if not isinstance(n_iter, int | np.integer) or not 1 <= n_iter <= MAX_ITERATIONS:
        raise DataError(f"n_iter={n_iter}: must be a whole number from 1 to {MAX_ITERATIONS}")


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise DataError(
            f"image is a {type(image).__name__}; it must be uint8 (H, W, 3), RGB: "
            "read it with hmr.crops.read_image"
        )
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise DataError(
            f"image is {image.dtype} {image.shape}; it must be uint8 (H, W, 3), RGB: "
            "read it with hmr.crops.read_image"
        )


def _checked_boxes(
    boxes: np.ndarray | Sequence[Sequence[float]], width: int, height: int
) -> np.ndarray:
    """(N, 4) float64; DataError names the first box that is no box of this image."""
    try:
        array = np.asarray(boxes, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"boxes={boxes!r:.80}: give rows of 4 numbers, x1, y1, x2, y2") from error
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise DataError(f"boxes have the shape {array.shape}; give (N, 4) as x1, y1, x2, y2")
    for number, box in enumerate(array):
        x1, y1, x2, y2 = box
        inside_x, inside_y = min(x2, width) - max(x1, 0), min(y2, height) - max(y1, 0)
        if not np.isfinite(box).all():
            rule = "every coordinate must be finite"
        elif x2 <= x1 or y2 <= y1:
            rule = "x2 must be above x1 and y2 above y1; give corners, not width and height"
        elif min(inside_x, inside_y) < MIN_OVERLAP_PX:
            rule = (
                f"it must overlap the {width} x {height} image by {MIN_OVERLAP_PX:g} pixel or more"
            )
        elif max(x2 - x1, y2 - y1) > MAX_BOX_RATIO * max(width, height):
            rule = f"no side may be above {MAX_BOX_RATIO:g} times the {width} x {height} image's"
        else:
            continue
        raise DataError(f"box {number} {box.tolist()}: {rule}")
    return array
