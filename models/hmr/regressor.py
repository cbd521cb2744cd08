"""The iterative regressor of HMR and SPIN: T residual corrections of pose, shape and camera.

Kanazawa et al. (CVPR 2018), with the 6D pose of Kolotouros et al. (ICCV 2019). The leaf names
(fc1, fc2, decpose, decshape, deccam, init_pose, init_shape, init_cam) are SPIN's, so published
weights load by a change of prefix.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hmr.errors import ConfigError, DataError
from hmr.npz import read_npz
from hmr.rotations import matrix_to_rot6d, nearest_rotation, rot6d_to_matrix
from hmr.structures import Parameters, Prediction

POSE, SHAPE, CAM = 144, 10, 3
STATE = POSE + SHAPE + CAM
START_CAMERA = (0.9, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class MeanParameters:
    """Where the iteration starts. pose: (144,) interleaved 6D, shape: (10,), cam: (3,)."""

    pose: Tensor
    shape: Tensor
    cam: Tensor

    @classmethod
    def from_rotations(
        cls, rotmats: Tensor, betas: Tensor | None = None, cam: Tensor | None = None
    ) -> MeanParameters:
        """(24, 3, 3) rotations, (10,) betas (default zero), (3,) camera (default HMR's start)."""
        shape = torch.zeros(SHAPE) if betas is None else betas
        cam = torch.tensor(START_CAMERA) if cam is None else cam
        return cls(matrix_to_rot6d(rotmats).flatten().float(), shape.float(), cam.float())

    @classmethod
    def upright(cls) -> MeanParameters:
        """The rest pose, upright before the camera: the root turned by pi about x."""
        rotmats = torch.eye(3).repeat(24, 1, 1)
        rotmats[0] = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        return cls.from_rotations(rotmats)

    @classmethod
    def from_labels(
        cls, rotmats: Tensor, betas: Tensor, cams: Tensor | None = None
    ) -> MeanParameters:
        """The mean of labels (N, 24, 3, 3), (N, 10) and, where known, cameras (N, 3).

        A joint's mean is the rotation nearest to the mean matrix, so turns near pi average rightly
        (a mean of axis-angles does not).
        """
        if len(rotmats) == 0:
            raise DataError(
                "mean parameters need at least one person with SMPL labels; check that the "
                "training split holds rows with has_smpl = true"
            )
        means = [None if t is None else t.double().mean(0) for t in (betas, cams)]
        return cls.from_rotations(nearest_rotation(rotmats.double().mean(0)), *means)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> MeanParameters:
        """A smpl_mean_params.npz with pose (144,), shape (10,) and cam (3,)."""
        if not Path(path).is_file():
            raise ConfigError(
                f"model.mean_params={path}: no such file; leave it empty to start upright"
            )
        values = _read_arrays(path, {"pose": POSE, "shape": SHAPE, "cam": CAM})
        columns = values["pose"].view(24, 3, 2)
        if not torch.allclose(columns.mT @ columns, torch.eye(2), atol=1e-3):
            raise ConfigError(
                f"model.mean_params={path}: pose is no set of rotations in the interleaved 6D "
                "layout; a file in the block layout must be converted first"
            )
        return cls(**values)


def _read_arrays(path: str | os.PathLike[str], sizes: dict[str, int]) -> dict[str, Tensor]:
    """The named vectors of an .npz, float32, after checks of size and finiteness."""
    try:
        values = {key: value.astype(np.float32) for key, value in read_npz(path, sizes).items()}
    except ValueError as error:
        raise ConfigError(
            f"model.mean_params={path}: not a plain .npz ({error}); it must hold the arrays "
            f"{', '.join(sizes)}"
        ) from error
    for key, size in sizes.items():
        found = values[key].shape if key in values else "nothing"
        if found != (size,) or not np.isfinite(values[key]).all():
            raise ConfigError(
                f"model.mean_params={path}: {key} must be {size} finite numbers, found {found}; "
                "use a file in the layout of SPIN's smpl_mean_params.npz"
            )
    return {key: torch.from_numpy(value) for key, value in values.items()}


class IterativeRegressor(nn.Module):
    """state <- state + decoder(drop(fc2(drop(fc1([features, state]))))), T times.

    SPIN has no activation between the layers; `activation` adds ReLU. The product of the features
    with their part of fc1 does not change between the steps and is computed once.
    """

    init_pose: Tensor
    init_shape: Tensor
    init_cam: Tensor

    def __init__(
        self, in_features: int, *, mean: MeanParameters, hidden: int = 1024, dropout: float = 0.5,
        n_iter: int = 3, activation: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features, self.n_iter = in_features, n_iter
        self.activation = nn.ReLU() if activation else nn.Identity()
        self.fc1 = nn.Linear(in_features + STATE, hidden)
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, hidden)
        self.drop2 = nn.Dropout(dropout)
        self.decpose = nn.Linear(hidden, POSE)
        self.decshape = nn.Linear(hidden, SHAPE)
        self.deccam = nn.Linear(hidden, CAM)
        for head in (self.decpose, self.decshape, self.deccam):
            nn.init.xavier_uniform_(head.weight, gain=0.01)
        self.register_buffer("init_pose", mean.pose.reshape(1, POSE).clone())
        self.register_buffer("init_shape", mean.shape.reshape(1, SHAPE).clone())
        self.register_buffer("init_cam", mean.cam.reshape(1, CAM).clone())

    def forward(self, features: Tensor, n_iter: int | None = None) -> Prediction:
        """(B, in_features) to the start and every later step; n_iter overrides T."""
        batch = features.shape[0]
        steps = self.n_iter if n_iter is None else n_iter
        if steps < 0:
            raise ConfigError(f"n_iter={steps}: must not be negative; 0 gives the start alone")
        # The state stays in float32 whatever the precision of the layers.
        pose = self.init_pose.float().expand(batch, -1)
        shape = self.init_shape.float().expand(batch, -1)
        cam = self.init_cam.float().expand(batch, -1)
        weight_features, weight_state = self.fc1.weight.split([self.in_features, STATE], dim=1)
        from_features = F.linear(features, weight_features, self.fc1.bias)
        poses, shapes, cams = [pose], [shape], [cam]
        for _ in range(steps):
            state = torch.cat([pose, shape, cam], dim=1)
            x = from_features + F.linear(state.to(features.dtype), weight_state)
            x = self.drop1(self.activation(x))
            x = self.drop2(self.activation(self.fc2(x)))
            pose = pose + self.decpose(x).float()
            shape = shape + self.decshape(x).float()
            cam = cam + self.deccam(x).float()
            poses.append(pose)
            shapes.append(shape)
            cams.append(cam)
        # One call for all steps: many small tensors cost more than their arithmetic.
        rotmats = rot6d_to_matrix(torch.stack(poses).unflatten(-1, (24, 6))).unbind(0)
        return Prediction(
            iterations=tuple(
                Parameters(rotmats=r, betas=s, pred_cam=c)
                for r, s, c in zip(rotmats, shapes, cams, strict=True)
            )
        )
