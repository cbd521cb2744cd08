"""A trained model as people use it: full frames and boxes in, people in full frames out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmr.body import Body
from hmr.camera import crop_to_full, perspective_projection
from hmr.crops import DEFAULT_PADDING, Frame
from hmr.errors import DataError, HmrError
from hmr.model import HMR
from hmr.person_crops import PersonCrop, person_crops
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr.structures import Parameters, Person, Prediction

BATCH_SIZE = 32
"""People of one forward pass."""
MAX_ITERATIONS = 16


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
        image: np.ndarray | Frame,
        boxes: np.ndarray | Sequence[Sequence[float]] | None = None,
        n_iter: int | None = None,
        focal: float | None = None,
    ) -> list[Person]:
        """The people of one upright image (H, W, 3) uint8 RGB, in the order of their boxes.

        image: its pixels, or fewer of them as a Frame. boxes: (N, 4) as x1, y1, x2, y2 in the
        image's pixels; none: one person, the whole image. n_iter: refinement steps, 1 to 16.
        focal: focal length in pixels; none: the diagonal.

        DataError names a box or image that breaks its rule; HmrError when the model's numbers are
        not finite.
        """
        (people,) = self.predict_many([image], [boxes], n_iter, [focal])
        if isinstance(people, HmrError):
            raise people
        return people

    def predict_many(
        self,
        images: Sequence[np.ndarray | Frame],
        boxes: Sequence[np.ndarray | Sequence[Sequence[float]] | None] | None = None,
        n_iter: int | None = None,
        focals: Sequence[float | None] | None = None,
        *,
        mesh: bool = True,
    ) -> list[list[Person] | HmrError]:
        """`predict` for several images, crops of all of them batched together.

        mesh: False leaves the vertices out, which are a third of the time of a small model.

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
        tasks: list[tuple[int, PersonCrop]] = []
        for item, (image, of_image, focal) in enumerate(zip(images, boxes, focals, strict=True)):
            try:
                tasks += [(item, crop) for crop in self.crops(image, of_image, focal)]
                results.append([])
            except HmrError as error:
                results.append(error)
        for chunk in _chunks(tasks, BATCH_SIZE):
            crops = [crop for _, crop in chunk]
            found = people_of(crops, self.columns(crops, n_iter, mesh=mesh))
            for (item, _), person in zip(chunk, found, strict=True):
                people = results[item]
                if isinstance(people, HmrError):
                    continue
                if isinstance(person, HmrError):
                    results[item] = person
                else:
                    people.append(person)
        return results

    def crops(
        self,
        image: np.ndarray | Frame,
        boxes: np.ndarray | Sequence[Sequence[float]] | None = None,
        focal: float | None = None,
    ) -> list[PersonCrop]:
        """What this model sees of an image's people; arguments and DataError as in `predict`."""
        return person_crops(
            image, boxes, focal, image_size=self.image_size, padding=self.box_padding
        )

    def columns(
        self, crops: Sequence[PersonCrop], n_iter: int | None = None, *, mesh: bool = True,
        step_meshes: bool = False,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Everything about the people as arrays with one row for each; `people_of` reads them.

        mesh: False leaves `vertices` empty, (N, 0, 3). step_meshes: also `step_vertices`,
        (N, T + 1, V, 3) metres: the mesh of every step, cam_t not yet added.
        """
        prediction = self.predict_crops(np.stack([crop.pixels for crop in crops]), n_iter)
        with torch.inference_mode():
            return self._columns(prediction, crops, mesh, step_meshes)

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

    def _columns(
        self, prediction: Prediction, crops: Sequence[PersonCrop], mesh: bool, step_meshes: bool
    ) -> dict[str, np.ndarray]:
        vertices, joints = self._bodies(prediction.final, mesh)
        centers = self._tensor([crop.center for crop in crops])
        sides = self._tensor([crop.side for crop in crops])
        sizes = self._tensor([crop.size for crop in crops])
        focals = self._tensor([crop.focal for crop in crops])
        cam_t = crop_to_full(prediction.final.pred_cam, centers, sides, sizes, focals)
        joints_2d = perspective_projection(joints, cam_t, focals, sizes / 2)
        steps = prediction.iterations
        rotmats = torch.stack([step.rotmats for step in steps], 1)
        tensors = {
            "vertices": vertices,
            "joints_3d": joints,
            "joints_2d": joints_2d,
            "cam_t": cam_t,
            "pose": matrix_to_axis_angle(rotmats).flatten(2),
            "betas": torch.stack([step.betas for step in steps], 1),
            "pred_cam": torch.stack([step.pred_cam for step in steps], 1),
        }
        if step_meshes:
            # By way of the axis-angles of the answer, so that its parameters give these meshes.
            turned = axis_angle_to_matrix(tensors["pose"].unflatten(2, (24, 3)))
            meshes = self.body(turned.flatten(0, 1), tensors["betas"].flatten(0, 1)).vertices
            tensors["step_vertices"] = meshes.unflatten(0, (len(crops), len(steps)))
        return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}

    def _bodies(self, step: Parameters, mesh: bool) -> tuple[Tensor, Tensor]:
        if mesh:
            output = self.body(step.rotmats, step.betas)
            return output.vertices, output.joints
        joints = self.body.joints_only(step.rotmats, step.betas)
        return joints.new_empty(len(joints), 0, 3), joints

    def _tensor(self, values: Sequence[Any]) -> Tensor:
        return torch.as_tensor(np.array(values), dtype=torch.float32, device=self.device)


def people_of(
    crops: Sequence[PersonCrop], columns: dict[str, np.ndarray]
) -> list[Person | HmrError]:
    """A person for each crop from the rows of `Predictor.columns`; HmrError in the place of one
    whose numbers are not finite."""
    finite = np.all(
        [np.isfinite(c).all(axis=tuple(range(1, c.ndim))) for c in columns.values()], axis=0
    )
    return [
        _person(crop, {name: column[row] for name, column in columns.items()})
        if finite[row]
        else HmrError(
            f"box {crop.box.round(1).tolist()}: the model's numbers are not finite; "
            "try another picture, and if it stays so, train with a lower learning rate"
        )
        for row, crop in enumerate(crops)
    ]


def _person(crop: PersonCrop, row: dict[str, np.ndarray]) -> Person:
    """row: vertices, joints, cam_t of one person; pose, betas, pred_cam of each of T + 1 steps."""
    width, height = crop.size
    iterations = tuple(
        {"global_orient": pose[:3], "body_pose": pose[3:], "betas": betas, "pred_cam": pred_cam}
        for pose, betas, pred_cam in zip(row["pose"], row["betas"], row["pred_cam"], strict=True)
    )
    # Copies: a slice would keep the whole batch in memory for as long as one person lives.
    return Person(
        box_xyxy=crop.box.astype(np.float32),
        cam_t=row["cam_t"].copy(),
        focal_length=np.full(2, crop.focal, np.float32),
        principal_point=np.array([width / 2, height / 2], np.float32),
        vertices=row["vertices"].copy(),
        joints_3d=row["joints_3d"].copy(),
        joints_2d=row["joints_2d"].copy(),
        iterations=iterations,
        **iterations[-1],
    )


def _chunks(
    tasks: Iterable[tuple[int, PersonCrop]], size: int
) -> Iterator[list[tuple[int, PersonCrop]]]:
    remaining = iter(tasks)
    while chunk := list(itertools.islice(remaining, size)):
        yield chunk


def _check_n_iter(n_iter: int | None) -> None:
    if n_iter is None:
        return
    if not isinstance(n_iter, int | np.integer) or not 1 <= n_iter <= MAX_ITERATIONS:
        raise DataError(f"n_iter={n_iter}: must be a whole number from 1 to {MAX_ITERATIONS}")
