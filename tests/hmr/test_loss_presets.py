"""Presets of the loss: their numbers, and what those make of a case that is worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import LossConfig, TrainConfig
from hmr.losses import hmr_losses
from hmr.structures import Batch, Parameters, Prediction

PRESETS = ("default", "spin", "bedlam", "eth", "hmr2-like")
SIZE = 64

SPIN = {
    "keypoints_2d": 5, "keypoints_3d": 5, "pose": 1, "pose_root": True, "betas": 0.001,
    "v2v_l1": 0, "v2v_l2": 0, "camera": 1, "keypoint_error": "l2", "iteration_weights": "final",
    "discount": 0.5, "scale": 60,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "default": SPIN,
    "spin": SPIN,
    "bedlam": SPIN | {"v2v_l1": 1, "pose_root": False},
    "eth": SPIN | {
        "keypoints_2d": 0, "keypoints_3d": 0, "pose": 0, "betas": 0, "camera": 0, "v2v_l1": 1,
        "v2v_l2": 1, "scale": 1,
    },
    # Weights of sums, times the numbers of a person; the 2D crop is twice as wide here.
    "hmr2-like": SPIN | {
        "keypoints_2d": 0.01 * 49 * 2 / 2, "keypoints_3d": 0.05 * 49 * 3, "pose": 0.001 * 24 * 9,
        "betas": 0.0005 * 10, "camera": 0, "keypoint_error": "l1", "scale": 1,
    },
}  # fmt: skip


# Numbers and forms


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_published_numbers(preset: Any) -> None:
    written = LossConfig(preset=preset).model_dump()
    expected = PUBLISHED[preset]
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        same = value if isinstance(value, bool | str) else pytest.approx(value)
        assert written[name] == same, name


@pytest.mark.parametrize("preset", PRESETS)
def test_the_short_form_is_the_preset(preset: str) -> None:
    short = TrainConfig.model_validate({"losses": preset})
    assert short == TrainConfig.model_validate({"losses": {"preset": preset}})
    assert short.losses.model_dump() == LossConfig.model_validate(preset).model_dump()


def test_given_numbers_win() -> None:
    config = LossConfig.model_validate({"preset": "eth", "keypoints_2d": 3, "v2v_l2": 0})
    assert (config.keypoints_2d, config.v2v_l1, config.v2v_l2) == (3, 1, 0)
    assert (config.scale, config.camera) == (1, 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_written_settings_hold_the_numbers_and_read_back_the_same(preset: str) -> None:
    config = LossConfig.model_validate({"preset": preset, "scale": 7})
    written = config.model_dump(mode="json")
    assert "preset" not in written
    assert LossConfig.model_validate(written).model_dump() == config.model_dump()


def test_a_preset_that_could_not_matter_is_refused() -> None:
    written = LossConfig().model_dump()
    with pytest.raises(ValidationError, match=r"search `train\.losses`"):
        LossConfig.model_validate(written | {"preset": "eth"})


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ("hmr2", "preset"), ({"preset": ["spin"]}, "preset"), ({"pose": -1}, "pose"),
        ({"discount": 0}, "discount"), ({"discount": 1.1}, "discount"), ({"scale": 0}, "scale"),
        ({"vertices": 1}, "vertices"), ({"preset": "eth", "vertices_l2": 1}, "vertices_l2"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(wrong: Any, where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LossConfig.model_validate(wrong)
    assert [problem["loc"] for problem in caught.value.errors()] == [(where,)]


# A case by hand: one person who stands at rest, and labels that differ in a few numbers


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.embedded()


@pytest.fixture
def guess() -> Parameters:
    return Parameters(
        rotmats=torch.eye(3).repeat(1, 24, 1, 1), betas=torch.zeros(1, 10),
        pred_cam=torch.tensor([[0.2, 0.0, 0.0]]),
    )  # fmt: skip


@pytest.fixture
def batch(guess: Parameters, body: Body) -> Batch:
    """Right but for: the 2D nose, 0.3 of the crop to the right with confidence 0.5; the 3D left
    wrist, 0.2 m and 0.1 m off; the left knee, bent by half a turn; two betas; every origin."""
    joints = body.landmarks(guess.rotmats, guess.betas)
    keypoints_2d = torch.cat([project_weak(joints, guess.pred_cam, SIZE), torch.ones(1, 49, 1)], -1)
    keypoints_2d[0, 0] += torch.tensor([0.3, 0.0, -0.5])
    keypoints_3d = torch.cat([joints + torch.tensor([1.0, 2, 3]), torch.ones(1, 49, 1)], -1)
    keypoints_3d[0, 36] += torch.tensor([0.2, -0.1, 0, 0])
    rotmats, betas = guess.rotmats.clone(), guess.betas.clone()
    rotmats[0, 4] = torch.diag(torch.tensor([1.0, -1, -1]))
    betas[0, 2:4] = torch.tensor([1.0, -2.0])
    return Batch(
        images=torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), keypoints_2d=keypoints_2d,
        keypoints_3d=keypoints_3d, rotmats=rotmats, betas=betas, has_smpl=torch.tensor([True]),
    )  # fmt: skip


def loss(guess: Parameters, batch: Batch, body: Body, preset: Any) -> float:
    prediction = Prediction(iterations=(guess, guess))
    return float(hmr_losses(prediction, batch, body, LossConfig(preset=preset))["loss"])


KP2D = 0.5 * 0.3**2 / (49 * 2)
KP3D = (0.2**2 + 0.1**2) / (49 * 3)
HALF_TURN = 8  # squared entries of diag(0, 2, 2)
BETAS = (1 + 4) / 10
CAMERA = math.exp(-10 * 0.2) ** 2


def test_spin_by_hand(guess: Parameters, batch: Batch, body: Body) -> None:
    """60 (5 KP2D + 5 KP3D + pose + 0.001 betas + exp(-10 s)^2), of squared errors."""
    pose = HALF_TURN / (24 * 9)
    expected = 60 * (5 * KP2D + 5 * KP3D + pose + 0.001 * BETAS + CAMERA)
    assert loss(guess, batch, body, "spin") == pytest.approx(expected, rel=1e-4)


def turned(batch: Batch) -> Batch:
    """The same labels at rest, but facing backwards."""
    rotmats = torch.eye(3).repeat(1, 24, 1, 1)
    rotmats[0, 0] = torch.diag(torch.tensor([-1.0, 1, -1]))
    return replace(batch, rotmats=rotmats, betas=torch.zeros(1, 10))


def half_turn_of_vertices(body: Body) -> torch.Tensor:
    """(V, 3): about the pelvis' upright axis, x and z move by twice their distance from it."""
    arrays = body.arrays
    pelvis = torch.from_numpy(arrays.rest_joints[0])
    return 2 * (torch.from_numpy(arrays.v_template) - pelvis) * torch.tensor([1.0, 0, 1])


def test_bedlam_by_hand(guess: Parameters, batch: Batch, body: Body) -> None:
    """SPIN's without the root's rotation, which the vertices tell: their absolute error at 1."""
    bent = hmr_losses(
        Prediction(iterations=(guess, guess)), batch, body, LossConfig(preset="bedlam")
    )
    assert bent["pose"] == pytest.approx(HALF_TURN / (23 * 9))
    v2v = half_turn_of_vertices(body).abs().mean()
    expected = 60 * (5 * KP2D + 5 * KP3D + float(v2v) + CAMERA)
    assert loss(guess, turned(batch), body, "bedlam") == pytest.approx(expected, rel=1e-4)


def test_eth_by_hand(guess: Parameters, batch: Batch, body: Body) -> None:
    """mean |dv| + mean dv^2 over vertices and coordinates, and nothing else."""
    moved = half_turn_of_vertices(body)
    expected = float(moved.abs().mean() + moved.square().mean())
    assert loss(guess, turned(batch), body, "eth") == pytest.approx(expected, rel=1e-4)


def test_hmr2_by_hand(guess: Parameters, batch: Batch, body: Body) -> None:
    """Sums: 0.01 of 2D in a crop of side 1, 0.05 of 3D, both absolute, 0.001 and 0.0005."""
    sums = 0.01 * (0.5 * 0.3 / 2) + 0.05 * (0.2 + 0.1) + 0.001 * HALF_TURN + 0.0005 * (1 + 4)
    assert loss(guess, batch, body, "hmr2-like") == pytest.approx(sums, rel=1e-3)
