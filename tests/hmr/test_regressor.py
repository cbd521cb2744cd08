"""The iterative regressor against SPIN's equations written out, and where it starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hmr.errors import ConfigError, DataError
from hmr.regressor import IterativeRegressor, MeanParameters
from hmr.rotations import axis_angle_to_matrix, rot6d_to_matrix, rotation_angle

FEATURES = 20


def random_mean(seed: int = 1) -> MeanParameters:
    generator = torch.Generator().manual_seed(seed)
    turns = 0.5 * torch.randn(24, 3, generator=generator)
    return MeanParameters.from_rotations(
        axis_angle_to_matrix(turns), torch.randn(10, generator=generator)
    )


def regressor(*, dropout: float = 0.5, activation: bool = False) -> IterativeRegressor:
    """With heads at ordinary scale, so that every step moves the state visibly."""
    torch.manual_seed(0)
    made = IterativeRegressor(
        FEATURES, mean=random_mean(), hidden=32, dropout=dropout, activation=activation
    )
    for head in (made.decpose, made.decshape, made.deccam):
        torch.nn.init.normal_(head.weight, std=0.3)
    return made


def gram_schmidt(state: np.ndarray) -> np.ndarray:
    """The interleaved 6D form by hand, one joint after the other."""
    result = np.empty((len(state), 24, 3, 3))
    for person, vector in enumerate(state):
        for joint in range(24):
            a1 = vector[6 * joint : 6 * joint + 6 : 2]
            a2 = vector[6 * joint + 1 : 6 * joint + 6 : 2]
            b1 = a1 / math.sqrt(a1 @ a1)
            b2 = a2 - (b1 @ a2) * b1
            b2 /= math.sqrt(b2 @ b2)
            result[person, joint] = np.column_stack([b1, b2, np.cross(b1, b2)])
    return result


def spin_steps(
    net: IterativeRegressor, features: Tensor, steps: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Kolotouros et al.: the whole input goes through fc1 at every step; no activation."""
    batch = len(features)
    pose = net.init_pose.expand(batch, -1)
    shape = net.init_shape.expand(batch, -1)
    cam = net.init_cam.expand(batch, -1)
    states = [(pose, shape, cam)]
    for _ in range(steps):
        x = torch.cat([features, pose, shape, cam], 1)
        x = F.dropout(net.fc1(x), net.drop1.p, net.training)
        x = F.dropout(net.fc2(x), net.drop2.p, net.training)
        pose, shape, cam = pose + net.decpose(x), shape + net.decshape(x), cam + net.deccam(x)
        states.append((pose, shape, cam))
    return [
        (gram_schmidt(p.detach().double().numpy()), s.detach().numpy(), c.detach().numpy())
        for p, s, c in states
    ]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "dropout"])
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_every_step_is_spins(steps: int, training: bool) -> None:
    net = regressor().train(training)
    features = torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(2))
    # The same seed draws the same dropout masks if they fall on the same tensors in the same order.
    torch.manual_seed(3)
    prediction = net(features, steps)
    torch.manual_seed(3)
    expected = spin_steps(net, features, steps)
    assert prediction.n_iter == steps
    assert len(prediction.iterations) == steps + 1
    for estimate, (rotmats, betas, cam) in zip(prediction.iterations, expected, strict=True):
        np.testing.assert_allclose(estimate.rotmats.detach().numpy(), rotmats, atol=2e-5)
        np.testing.assert_allclose(estimate.betas.detach().numpy(), betas, atol=2e-5)
        np.testing.assert_allclose(estimate.pred_cam.detach().numpy(), cam, atol=2e-5)


def test_fewer_steps_are_the_beginning_of_more() -> None:
    net = regressor().eval()
    features = torch.randn(2, FEATURES)
    long, short = net(features, 5), net(features, 2)
    for first, second in zip(short.iterations, long.iterations, strict=False):
        torch.testing.assert_close(first.rotmats, second.rotmats)
    assert net(features).n_iter == 3
    (start,) = net(features, 0).iterations
    assert torch.equal(start.betas, net.init_shape.expand(2, -1))


def test_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_iter=-1"):
        regressor()(torch.zeros(1, FEATURES), -1)


def test_activation_changes_the_function() -> None:
    features = torch.randn(4, FEATURES)
    linear, relu = regressor().eval(), regressor(activation=True).eval()
    relu.load_state_dict(linear.state_dict())
    x = torch.cat([features, *(b.expand(4, -1) for b in relu.buffers())], 1)
    hidden = relu.fc2(relu.fc1(x).relu()).relu()
    torch.testing.assert_close(
        relu(features, 1).final.betas, relu.init_shape + relu.decshape(hidden)
    )
    assert not torch.allclose(linear(features, 1).final.betas, relu(features, 1).final.betas)


def test_without_activation_and_dropout_a_step_is_linear_in_the_features() -> None:
    net = regressor().eval()
    one, two = torch.randn(2, 1, FEATURES)
    betas = [net(x, 1).final.betas for x in (one, two, 0.3 * one + 0.7 * two)]
    torch.testing.assert_close(betas[2], 0.3 * betas[0] + 0.7 * betas[1])


def test_names_and_shapes_are_those_of_published_weights() -> None:
    net = IterativeRegressor(2048, mean=MeanParameters.upright())
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    assert shapes == {
        "fc1.weight": (1024, 2205), "fc1.bias": (1024,),
        "fc2.weight": (1024, 1024), "fc2.bias": (1024,),
        "decpose.weight": (144, 1024), "decpose.bias": (144,),
        "decshape.weight": (10, 1024), "decshape.bias": (10,),
        "deccam.weight": (3, 1024), "deccam.bias": (3,),
        "init_pose": (1, 144), "init_shape": (1, 10), "init_cam": (1, 3),
    }  # fmt: skip
    # Xavier-uniform with gain 0.01: |w| < 0.01 sqrt(6 / (in + out)).
    for head, size in ((net.decpose, 144), (net.decshape, 10), (net.deccam, 3)):
        limit = 0.01 * math.sqrt(6 / (1024 + size))
        assert 0.9 * limit < head.weight.abs().max() <= limit


def test_state_stays_in_float32_under_autocast() -> None:
    net = regressor().eval()
    features = torch.randn(3, FEATURES)
    exact = net(features, 3)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(features, 3)
    for one, other in zip(exact.iterations, rounded.iterations, strict=True):
        assert other.rotmats.dtype == other.betas.dtype == other.pred_cam.dtype == torch.float32
        torch.testing.assert_close(
            other.rotmats @ other.rotmats.mT, torch.eye(3).expand(3, 24, 3, 3), atol=1e-5, rtol=0
        )
        assert rotation_angle(one.rotmats, other.rotmats).max() < 0.15
    # A bfloat16 state could not hold its own start.
    assert torch.equal(rounded.iterations[0].betas, exact.iterations[0].betas)


def test_upright_start_is_the_rest_pose_turned_about_x() -> None:
    mean = MeanParameters.upright()
    rotmats = rot6d_to_matrix(mean.pose.view(24, 6))
    turn = axis_angle_to_matrix(torch.tensor([math.pi, 0.0, 0.0]))
    torch.testing.assert_close(rotmats[0], turn, atol=1e-6, rtol=0)
    torch.testing.assert_close(rotmats[1:], torch.eye(3).expand(23, 3, 3))
    assert mean.shape.tolist() == [0.0] * 10
    torch.testing.assert_close(mean.cam, torch.tensor([0.9, 0.0, 0.0]))


def test_mean_of_labels_is_the_middle_rotation() -> None:
    """Turns about one axis by pi - a and pi + a: the middle is pi, though half of the axis-angle
    vectors point the other way."""
    axis = torch.tensor([0.6, 0.0, 0.8])
    angles = math.pi + torch.tensor([-0.5, 0.5, -0.2, 0.2])
    rotmats = axis_angle_to_matrix((angles[:, None] * axis)[:, None].expand(4, 24, 3))
    betas = torch.arange(40.0).view(4, 10)
    cams = torch.tensor([[1.0, 0.5, 0.0], [0.5, -0.5, 1.0]])
    mean = MeanParameters.from_labels(rotmats, betas, cams)
    middle = axis_angle_to_matrix(math.pi * axis).expand(24, 3, 3)
    torch.testing.assert_close(rot6d_to_matrix(mean.pose.view(24, 6)), middle, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean.shape, betas.mean(0))
    torch.testing.assert_close(mean.cam, torch.tensor([0.75, 0.0, 0.5]))
    torch.testing.assert_close(
        MeanParameters.from_labels(rotmats, betas).cam, torch.tensor([0.9, 0.0, 0.0])
    )


def test_mean_of_nobody_is_refused() -> None:
    with pytest.raises(DataError, match="at least one person"):
        MeanParameters.from_labels(torch.zeros(0, 24, 3, 3), torch.zeros(0, 10))


def arrays_of(mean: MeanParameters) -> dict[str, np.ndarray]:
    return {key: getattr(mean, key).numpy() for key in ("pose", "shape", "cam")}


def test_file_gives_back_what_it_holds(tmp_path: Path) -> None:
    mean = random_mean()
    arrays: dict[str, Any] = arrays_of(mean) | {"other": np.array(["ignored"])}
    np.savez(tmp_path / "mean.npz", **arrays)
    loaded = MeanParameters.from_file(tmp_path / "mean.npz")
    for key in ("pose", "shape", "cam"):
        assert torch.equal(getattr(loaded, key), getattr(mean, key))


def block_layout(pose: np.ndarray) -> np.ndarray:
    return pose.reshape(24, 3, 2).transpose(0, 2, 1).reshape(144)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a | {"pose": block_layout(a["pose"])}, "interleaved 6D"),
        (lambda a: a | {"pose": np.zeros(144, np.float32)}, "interleaved 6D"),
        (lambda a: a | {"pose": a["pose"][:72]}, "pose must be 144 finite numbers, found .72,."),
        (lambda a: a | {"cam": np.array([np.nan, 0, 0])}, "cam must be 3 finite"),
        (lambda a: {k: v for k, v in a.items() if k != "shape"}, "shape must be 10 .*nothing"),
        (lambda a: a | {"shape": np.array([None] * 10)}, r"not a plain \.npz"),
    ],
    ids=["block", "zeros", "short", "nan", "missing", "pickled"],
)
def test_unfit_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    path = tmp_path / "mean.npz"
    np.savez(path, **change(arrays_of(random_mean())))
    with pytest.raises(ConfigError, match=words) as caught:
        MeanParameters.from_file(path)
    assert f"model.mean_params={path}" in str(caught.value)


def test_what_is_no_npz_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        MeanParameters.from_file(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("pose")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(ConfigError, match=r"not a plain \.npz"):
            MeanParameters.from_file(tmp_path / name)
