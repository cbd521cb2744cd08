"""Every term by hand, and the laws of a mean over labelled people."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import LossConfig
from hmr.losses import HIPS, hmr_losses
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch, Parameters, Prediction

SIZE = 64
TERMS = ("keypoints_2d", "keypoints_3d", "pose", "betas", "camera")


@pytest.fixture(scope="module")
def body():
    return Body.embedded()


def parameters(count, seed):
    g = torch.Generator().manual_seed(seed)
    rotmats = axis_angle_to_matrix(0.3 * torch.randn(count, 24, 3, generator=g))
    betas = torch.randn(count, 10, generator=g)
    cams = torch.tensor([0.9, 0.05, -0.1]) + 0.05 * torch.randn(count, 3, generator=g)
    return Parameters(rotmats=rotmats, betas=betas, pred_cam=cams)


def batch_of(true, body):
    joints = body.landmarks(true.rotmats, true.betas)
    ones = torch.ones(len(joints), 49, 1)
    return Batch(
        images=torch.zeros(len(joints), 3, SIZE, SIZE, dtype=torch.uint8),
        keypoints_2d=torch.cat([project_weak(joints, true.pred_cam, SIZE), ones], -1),
        keypoints_3d=torch.cat([joints + torch.tensor([0.3, 1.0, 5.0]), ones], -1),
        rotmats=true.rotmats, betas=true.betas,
        has_smpl=torch.ones(len(joints), dtype=torch.bool),
    )  # fmt: skip


def prediction(*steps):
    return Prediction(iterations=(parameters(len(steps[0].betas), 99), *steps))


def losses(pred, batch, body, **config):
    return hmr_losses(pred, batch, body, LossConfig(**config))


def test_the_truth_costs_nothing_but_the_cameras_guard(body):
    true = parameters(3, 0)
    terms = losses(prediction(true), batch_of(true, body), body)
    for name in TERMS[:-1]:
        assert terms[name] == pytest.approx(0, abs=1e-6), name
    expected = torch.exp(-10 * true.pred_cam[:, 0]).square().mean()
    assert terms["camera"] == pytest.approx(float(expected))
    assert terms["loss"] == pytest.approx(60 * float(expected), rel=1e-4)


@pytest.mark.parametrize(("kind", "power"), [("l2", 2), ("l1", 1)])
def test_each_term_is_the_mean_over_people_of_the_mean_over_numbers(body, kind, power):
    true, pred = parameters(3, 0), parameters(3, 1)
    batch = batch_of(true, body)
    terms = losses(prediction(pred), batch, body, keypoint_error=kind)
    joints, gt = body.landmarks(pred.rotmats, pred.betas), batch.keypoints_3d[..., :3]
    flat = (project_weak(joints, pred.pred_cam, SIZE) - batch.keypoints_2d[..., :2]).abs()
    assert terms["keypoints_2d"] == pytest.approx(float((flat**power).mean()), rel=1e-5)
    centred = joints - joints[:, HIPS].mean(1, True) - gt + gt[:, HIPS].mean(1, True)
    assert terms["keypoints_3d"] == pytest.approx(float((centred.abs() ** power).mean()), rel=1e-4)
    assert terms["pose"] == pytest.approx(float((pred.rotmats - true.rotmats).pow(2).mean()))
    assert terms["betas"] == pytest.approx(float((pred.betas - true.betas).pow(2).mean()))
    weights = LossConfig()
    total = sum(getattr(weights, name) * terms[name] for name in TERMS) * 60
    assert terms["loss"] == pytest.approx(float(total), rel=1e-5)


def test_a_person_without_a_label_changes_nothing_whatever_stands_in_the_padding(body):
    true, pred = parameters(2, 0), parameters(2, 1)
    batch = batch_of(true, body)
    keypoints_2d, keypoints_3d = batch.keypoints_2d.clone(), batch.keypoints_3d.clone()
    keypoints_2d[1, :, 2], keypoints_3d[1, :, 3] = 0, 0
    keypoints_2d[1, :, :2], keypoints_3d[1, :, :3] = 7.0, -3.0
    masked = replace(
        batch, keypoints_2d=keypoints_2d, keypoints_3d=keypoints_3d,
        has_smpl=torch.tensor([True, False]), betas=batch.betas * torch.tensor([[1.0], [50.0]]),
    )  # fmt: skip
    both = losses(prediction(pred), masked, body)
    first = Batch(**{f: getattr(batch, f)[:1] for f in Batch.__dataclass_fields__})
    alone = losses(prediction(pred[:1]), first, body)
    for name in TERMS[:-1]:
        assert both[name] == pytest.approx(float(alone[name]), rel=1e-5), name


def test_without_any_label_the_loss_is_zero_and_still_has_a_gradient(body):
    pred = parameters(2, 1)
    rotmats = pred.rotmats.clone().requires_grad_()
    batch = batch_of(pred, body)
    empty = replace(
        batch, keypoints_2d=batch.keypoints_2d * 0, keypoints_3d=batch.keypoints_3d * 0,
        has_smpl=torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    terms = losses(prediction(replace(pred, rotmats=rotmats)), empty, body, camera=0)
    assert terms["loss"] == 0
    terms["loss"].backward()
    assert (rotmats.grad == 0).all()


def test_a_mean_does_not_depend_on_how_the_people_are_dealt_out(body):
    true, pred = parameters(4, 0), parameters(4, 1)
    batch = batch_of(true, body)
    whole = losses(prediction(pred), batch, body)["loss"]
    halves = [
        losses(
            prediction(pred[rows]),
            Batch(**{f: getattr(batch, f)[rows] for f in Batch.__dataclass_fields__}),
            body,
        )["loss"]
        for rows in (slice(0, 2), slice(2, 4))
    ]
    assert torch.stack(halves).mean() == pytest.approx(float(whole), rel=1e-5)


def test_earlier_steps_count_a_quarter_when_all_are_supervised(body):
    true, first, last = parameters(2, 0), parameters(2, 1), parameters(2, 2)
    batch = batch_of(true, body)
    both = losses(prediction(first, last), batch, body, iteration_weights="all")["loss"]
    final = losses(prediction(first, last), batch, body)["loss"]
    earlier = losses(prediction(first), batch, body)["loss"]
    assert both == pytest.approx(float(final + 0.25 * earlier), rel=1e-5)


def test_the_vertex_term_is_the_mean_distance_per_coordinate(body):
    true, pred = parameters(2, 0), parameters(2, 1)
    batch = batch_of(true, body)
    terms = losses(prediction(pred), batch, body, vertices=1.0, vertices_l2=2.0)
    expected = (
        body(pred.rotmats, pred.betas).vertices - body(true.rotmats, true.betas).vertices
    ).abs()
    assert terms["vertices"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert terms["vertices_l2"] == pytest.approx(float(expected.square().mean()), rel=1e-5)
    alone = losses(prediction(pred), batch, body, vertices_l2=2.0)
    assert "vertices" not in alone
    gap = float(terms["loss"] - alone["loss"])
    assert gap == pytest.approx(60 * float(terms["vertices"]), rel=1e-4)
    without = losses(prediction(pred), batch, body)
    for name in TERMS:
        assert terms[name] == pytest.approx(float(without[name]), rel=1e-4), name
