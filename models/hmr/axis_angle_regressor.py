"""The regressor of the ETH course project, here only so that its weights can be run.

Its state theta has 82 numbers that are refined T times by three layers with ReLU; four linear maps
then read root, body, hands (axis-angle) and shape from it. Nothing in it estimates a camera: the
project was given the person's place, so the camera stays where it starts and the person's place
follows from the box. `hmr.regressor` is the one to train.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmr.errors import ConfigError
from hmr.regressor import SHAPE, START_CAMERA
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Parameters, Prediction

THETA = 82
ROOT, BODY, HANDS = 3, 63, 6
"""Axis-angle numbers of joint 0, of joints 1 to 21, and of the hands, 22 and 23."""


class AxisAngleRegressor(nn.Module):
    """theta <- theta + fc3(drop(relu(fc2(drop(relu(fc1([features, theta]))))), T times."""

    init_theta: Tensor
    init_cam: Tensor

    def __init__(
        self, in_features: int, *, hidden: int = 1024, dropout: float = 0.5, n_iter: int = 3
    ) -> None:
        super().__init__()
        self.in_features, self.n_iter = in_features, n_iter
        self.fc1 = nn.Linear(in_features + THETA, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.fc3 = nn.Linear(hidden, THETA)
        self.drop = nn.Dropout(dropout)
        self.root = nn.Linear(THETA, ROOT)
        self.body = nn.Linear(THETA, BODY)
        self.hands = nn.Linear(THETA, HANDS)
        self.shape = nn.Linear(THETA, SHAPE)
        self.register_buffer("init_theta", torch.zeros(1, THETA))
        self.register_buffer("init_cam", torch.tensor([START_CAMERA]))

    def forward(self, features: Tensor, n_iter: int | None = None) -> Prediction:
        """(B, in_features) to the start and every later step; n_iter overrides T."""
        steps = self.n_iter if n_iter is None else n_iter
        if steps < 0:
            raise ConfigError(f"n_iter={steps}: must not be negative; 0 gives the start alone")
        theta = self.init_theta.float().expand(features.shape[0], -1)
        iterations = [self._read_out(theta)]
        for _ in range(steps):
            x = torch.cat([features, theta.to(features.dtype)], dim=1)
            x = self.drop(torch.relu(self.fc1(x)))
            x = self.drop(torch.relu(self.fc2(x)))
            theta = theta + self.fc3(x).float()
            iterations.append(self._read_out(theta))
        return Prediction(iterations=tuple(iterations))

    def _read_out(self, theta: Tensor) -> Parameters:
        pose = torch.cat([self.root(theta), self.body(theta), self.hands(theta)], dim=1)
        return Parameters(
            rotmats=axis_angle_to_matrix(pose.float().unflatten(1, (24, 3))),
            betas=self.shape(theta).float(),
            pred_cam=self.init_cam.float().expand(theta.shape[0], -1),
        )
