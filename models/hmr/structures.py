"""The only data that crosses module borders: Batch, Parameters, Prediction, BodyOutput, Person.

Shape letters: B batch, T iterations, V vertices, J joints, H W image side in pixels.
Pixel coordinates are continuous: the centre of the top-left pixel is (0.5, 0.5), the image spans
[0, W] x [0, H]. Camera axes are OpenCV's: x right, y down, z forward; lengths are metres.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _map_tensors(instance: Any, function: Any) -> Any:
    values = {f.name: getattr(instance, f.name) for f in fields(instance)}
    changed = {k: function(v) for k, v in values.items() if isinstance(v, Tensor)}
    return replace(instance, **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One training batch, as it leaves the loader.

    images: (B, 3, H, W) uint8, RGB, square crops.
    keypoints_2d: (B, 49, 3) x, y in [-1, 1] over the crop (2 * px / side - 1), confidence.
    keypoints_3d: (B, 49, 4) x, y, z in metres, camera axes, any common origin; confidence.
    rotmats: (B, 24, 3, 3) SMPL rotations; joint 0 is the root in the camera frame.
    betas: (B, 10).
    has_smpl: (B,) bool, whether rotmats and betas are labels or padding.
    sample_ids: names of the B people, or empty.
    """

    images: Tensor
    keypoints_2d: Tensor
    keypoints_3d: Tensor
    rotmats: Tensor
    betas: Tensor
    has_smpl: Tensor
    sample_ids: tuple[str, ...] = ()

    @property
    def side(self) -> int:
        """Of the crops, in pixels."""
        return self.images.shape[-1]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        return _map_tensors(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU copies by itself."""
        return _map_tensors(self, lambda t: t.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of its tensors until what is queued on `stream` now has ended."""
        _map_tensors(self, lambda t: (t.record_stream(stream), t)[1])

    def parts(self, count: int) -> list[Batch]:
        """The same people in `count` batches of about equal size."""
        split: dict[str, Any] = {
            f.name: torch.tensor_split(getattr(self, f.name), count)
            for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }  # fmt: skip
        return [
            replace(self, sample_ids=(), **{n: t[number] for n, t in split.items()})
            for number in range(count)
        ]

    def first(self, count: int) -> Batch:
        """At most so many of its people."""
        first: Batch = _map_tensors(self, lambda t: t[:count])
        return replace(first, sample_ids=self.sample_ids[:count])

    def __len__(self) -> int:
        return self.images.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureBatch(Batch):
    """A batch whose pictures a frozen encoder has seen before (`hmr.features`).

    images: (B, C) float32, its features. crop_size: side of the pictures, in pixels.
    """

    crop_size: int

    @property
    def side(self) -> int:
        """Of the crops, in pixels."""
        return self.crop_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What the regressor estimates, at one iteration.

    rotmats: (B, 24, 3, 3) orthonormal, joint 0 in the camera frame.
    betas: (B, 10).
    pred_cam: (B, 3) weak-perspective camera (s, tx, ty) of the crop.
    """

    rotmats: Tensor
    betas: Tensor
    pred_cam: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Parameters:
        return _map_tensors(self, lambda t: t[rows])

    def float(self) -> Parameters:
        """The same numbers in float32 (the body layer and the metrics want them)."""
        return _map_tensors(self, lambda t: t.float())

    def detach(self) -> Parameters:
        """The same numbers outside the graph."""
        return _map_tensors(self, lambda t: t.detach())


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Every iteration of the regressor: entry 0 is the start (mean parameters), entry t the
    estimate after t refinement steps."""

    iterations: tuple[Parameters, ...]

    @property
    def final(self) -> Parameters:
        """The estimate after the last step."""
        return self.iterations[-1]

    @property
    def n_iter(self) -> int:
        """Number of refinement steps T."""
        return len(self.iterations) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyOutput:
    """vertices: (B, V, 3) and joints: (B, 24, 3), metres, pelvis near the origin."""

    vertices: Tensor
    joints: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """One recovered person, in the full upright image.

    box_xyxy: (4,) pixels of the full image.
    global_orient: (3,) axis-angle, camera frame. body_pose: (69,) axis-angle. betas: (10,).
    pred_cam: (3,) weak-perspective camera of the crop.
    cam_t: (3,) metres: add it to vertices or joints to place them before the camera.
    focal_length: (2,) fx, fy and principal_point: (2,) cx, cy in pixels of the full image.
    vertices: (V, 3) and joints_3d: (24, 3), metres, camera axes, cam_t not yet added; vertices are
        (0, 3) where no mesh was asked for.
    joints_2d: (24, 2) pixels of the full image.
    iterations: joints and vertices are those of the last of these; each entry is a
        dict(global_orient, body_pose, betas, pred_cam) for iteration 0..T.
    """

    box_xyxy: np.ndarray
    global_orient: np.ndarray
    body_pose: np.ndarray
    betas: np.ndarray
    pred_cam: np.ndarray
    cam_t: np.ndarray
    focal_length: np.ndarray
    principal_point: np.ndarray
    vertices: np.ndarray
    joints_3d: np.ndarray
    joints_2d: np.ndarray
    iterations: tuple[dict[str, np.ndarray], ...] = ()
