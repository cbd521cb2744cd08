"""The course project's regressor: its steps, its start, and what it leaves alone.

tests/hmr/test_published.py compares every number with the equations written out.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hmr.axis_angle_regressor import AxisAngleRegressor
from hmr.config import ModelConfig
from hmr.errors import ConfigError
from hmr.model import build_model
from hmr.rotations import axis_angle_to_matrix

FEATURES = 20


def regressor() -> AxisAngleRegressor:
    torch.manual_seed(0)
    made = AxisAngleRegressor(FEATURES, hidden=32)
    nn.init.normal_(made.init_theta)
    return made


def test_joints_come_in_smpls_order() -> None:
    """Root, 21 joints of the body, two hands; each number lands at one place."""
    net = regressor()
    for layer in (net.root, net.body, net.hands):
        nn.init.zeros_(layer.weight)
    numbers = torch.arange(72.0) / 50
    net.root.bias.data, net.body.bias.data, net.hands.bias.data = numbers.split([3, 63, 6])
    (start,) = net(torch.zeros(1, FEATURES), 0).iterations
    torch.testing.assert_close(start.rotmats[0], axis_angle_to_matrix(numbers.view(24, 3)))


def test_fewer_steps_are_the_beginning_of_more() -> None:
    net = regressor().eval()
    features = torch.randn(2, FEATURES)
    long, short = net(features, 5), net(features, 2)
    assert (net(features).n_iter, long.n_iter, short.n_iter) == (3, 5, 2)
    for first, second in zip(short.iterations, long.iterations, strict=False):
        torch.testing.assert_close(first.rotmats, second.rotmats)
        torch.testing.assert_close(first.betas, second.betas)
    assert (long.iterations[2].betas - long.iterations[1].betas).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="n_iter=-1"):
        net(features, -1)


def test_the_camera_never_moves() -> None:
    steps = regressor()(torch.randn(4, FEATURES)).iterations
    for step in steps:
        assert torch.equal(step.pred_cam, torch.tensor([[0.9, 0.0, 0.0]]).expand(4, 3))


def test_dropout_is_off_in_eval_mode() -> None:
    net, features = regressor(), torch.randn(4, FEATURES)
    assert not torch.equal(net(features).final.betas, net(features).final.betas)
    net.eval()
    assert torch.equal(net(features).final.betas, net(features).final.betas)


def test_configuration_chooses_it(tmp_path: Path) -> None:
    config = ModelConfig(encoder_width=4, image_size=32, hidden=24, n_iter=5, dropout=0.25,
                         regressor="axis_angle")  # fmt: skip
    net = build_model(config).regressor
    assert isinstance(net, AxisAngleRegressor)
    assert (net.fc1.out_features, net.n_iter, net.drop.p) == (24, 5, 0.25)
    both = config.model_copy(update={"mean_params": str(tmp_path / "mean.npz")})
    with pytest.raises(ConfigError, match=r"model\.mean_params=.*model\.regressor=rot6d"):
        build_model(both)
