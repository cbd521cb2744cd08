"""Every term by hand, and the laws of a mean over labelled people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import LossConfig
from hmr.losses import HIPS, hmr_losses, label_counts, weighted_terms
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch, Parameters, Prediction

SIZE = 64
TERMS = ("keypoints_2d", "keypoints_3d", "pose", "betas", "camera")


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.embedded()


@pytest.fixture
def computed(body: Body) -> Iterator[list[int]]:
    """The numbers of bodies all of whose vertices were computed, call by call."""
    calls: list[int] = []
    hook = body._surface.register_forward_pre_hook(lambda _, given: calls.append(len(given[1])))
    yield calls
    hook.remove()


def parameters(count: int, seed: int) -> Parameters:
    g = torch.Generator().manual_seed(seed)
    rotmats = axis_angle_to_matrix(0.3 * torch.randn(count, 24, 3, generator=g))
    betas = torch.randn(count, 10, generator=g)
    cams = torch.tensor([0.9, 0.05, -0.1]) + 0.05 * torch.randn(count, 3, generator=g)
    return Parameters(rotmats=rotmats, betas=betas, pred_cam=cams)


def batch_of(true: Parameters, body: Body) -> Batch:
    joints = body.landmarks(true.rotmats, true.betas)
    ones = torch.ones(len(joints), 49, 1)
    return Batch(
        images=torch.zeros(len(joints), 3, SIZE, SIZE, dtype=torch.uint8),
        keypoints_2d=torch.cat([project_weak(joints, true.pred_cam, SIZE), ones], -1),
        keypoints_3d=torch.cat([joints + torch.tensor([0.3, 1.0, 5.0]), ones], -1),
        rotmats=true.rotmats, betas=true.betas,
        has_smpl=torch.ones(len(joints), dtype=torch.bool),
    )  # fmt: skip


def rows_of(batch: Batch, rows: Any) -> Batch:
    """Some people of a batch."""
    fields = [name for name in Batch.__dataclass_fields__ if name != "sample_ids"]
    return Batch(**{name: getattr(batch, name)[rows] for name in fields})


def prediction(*steps: Parameters) -> Prediction:
    return Prediction(iterations=(parameters(len(steps[0].betas), 99), *steps))


def losses(pred: Prediction, batch: Batch, body: Body, **config: Any) -> dict[str, Tensor]:
    return hmr_losses(pred, batch, body, LossConfig(**config))


# Each term


def test_the_truth_costs_nothing_but_the_cameras_guard(body: Body) -> None:
    true = parameters(3, 0)
    terms = losses(prediction(true), batch_of(true, body), body)
    for name in TERMS[:-1]:
        assert terms[name] == pytest.approx(0, abs=1e-6), name
    expected = torch.exp(-10 * true.pred_cam[:, 0]).square().mean()
    assert terms["camera"] == pytest.approx(float(expected))
    assert terms["loss"] == pytest.approx(60 * float(expected), rel=1e-4)


@pytest.mark.parametrize(("kind", "power"), [("l2", 2), ("l1", 1)])
def test_each_term_is_the_mean_over_people_of_the_mean_over_numbers(
    body: Body, kind: str, power: int
) -> None:
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


def test_the_vertex_terms_are_means_over_coordinates(body: Body) -> None:
    true, pred = parameters(2, 0), parameters(2, 1)
    batch = batch_of(true, body)
    terms = losses(prediction(pred), batch, body, v2v_l1=1.0, v2v_l2=2.0)
    expected = (
        body(pred.rotmats, pred.betas).vertices - body(true.rotmats, true.betas).vertices
    ).abs()
    assert terms["v2v_l1"] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert terms["v2v_l2"] == pytest.approx(float(expected.square().mean()), rel=1e-5)
    alone = losses(prediction(pred), batch, body, v2v_l2=2.0)
    assert "v2v_l1" not in alone
    gap = float(terms["loss"] - alone["loss"])
    assert gap == pytest.approx(60 * float(terms["v2v_l1"]), rel=1e-4)
    without = losses(prediction(pred), batch, body)
    for name in TERMS:
        assert terms[name] == pytest.approx(float(without[name]), rel=1e-4), name


def test_weighted_terms_add_up_to_the_loss(body: Body) -> None:
    pred, batch = parameters(3, 1), batch_of(parameters(3, 0), body)
    config = LossConfig(preset="bedlam", v2v_l2=3.0)
    terms = hmr_losses(prediction(pred), batch, body, config)
    weighted = weighted_terms(terms, config)
    assert weighted.keys() == terms.keys() - {"loss"}
    assert weighted["v2v_l2"] == pytest.approx(float(180 * terms["v2v_l2"]))
    assert sum(weighted.values()) == pytest.approx(float(terms["loss"]), rel=1e-5)
    numbers = weighted_terms({name: float(value) for name, value in terms.items()}, config)
    assert numbers == pytest.approx({name: float(value) for name, value in weighted.items()})


# Steps


def test_earlier_steps_count_by_their_distance_from_the_last(body: Body) -> None:
    first, second, last = (parameters(2, seed) for seed in (1, 2, 3))
    batch = batch_of(parameters(2, 0), body)
    alone = [losses(prediction(step), batch, body)["loss"] for step in (first, second, last)]
    for given, discount in (({}, 0.5), ({"discount": 0.3}, 0.3), ({"discount": 1.0}, 1.0)):
        together = losses(
            prediction(first, second, last), batch, body, iteration_weights="all", **given
        )
        expected = discount**2 * alone[0] + discount * alone[1] + alone[2]
        assert together["loss"] == pytest.approx(float(expected), rel=1e-5)
    final = losses(prediction(first, second, last), batch, body, discount=1.0)["loss"]
    assert final == pytest.approx(float(alone[2]), rel=1e-5)


def test_vertices_are_those_of_the_last_step(body: Body, computed: list[int]) -> None:
    first, last = parameters(2, 1), parameters(2, 2)
    batch = batch_of(parameters(2, 0), body)
    weights = {"iteration_weights": "all", "v2v_l1": 1.0}
    both = losses(prediction(first, last), batch, body, **weights)
    assert computed == [2, 2]  # of the last step and of the labels
    alone = losses(prediction(last), batch, body, **weights)["loss"]
    earlier = losses(prediction(first), batch, body)["loss"]
    assert both["loss"] == pytest.approx(float(alone + 0.5 * earlier), rel=1e-5)


@pytest.mark.parametrize("steps", ["final", "all"])
def test_without_a_vertex_loss_the_vertices_are_not_computed(
    body: Body, computed: list[int], steps: str
) -> None:
    batch = batch_of(parameters(2, 0), body)
    pred = prediction(parameters(2, 1), parameters(2, 2))
    losses(pred, batch, body, iteration_weights=steps)["loss"].item()
    assert computed == []
    body(batch.rotmats, batch.betas)
    assert computed == [2]  # the counter counts


# Labels


def corrupted(batch: Batch, filling: float) -> Batch:
    """Person 1 without labels, which leaves room for what loaders put there."""
    keypoints_2d, keypoints_3d = batch.keypoints_2d.clone(), batch.keypoints_3d.clone()
    rotmats, betas, has_smpl = batch.rotmats.clone(), batch.betas.clone(), batch.has_smpl.clone()
    keypoints_2d[1, :, :2], keypoints_2d[1, :, 2] = filling, 0
    keypoints_3d[1, :, :3], keypoints_3d[1, :, 3] = filling, 0
    rotmats[1], betas[1], has_smpl[1] = filling, filling, False
    return replace(
        batch, keypoints_2d=keypoints_2d, keypoints_3d=keypoints_3d, rotmats=rotmats,
        betas=betas, has_smpl=has_smpl,
    )  # fmt: skip


@pytest.mark.parametrize("filling", [7.0, float("nan"), float("inf")])
def test_a_person_without_a_label_changes_nothing_whatever_stands_in_the_padding(
    body: Body, filling: float
) -> None:
    true, pred = parameters(2, 0), parameters(2, 1)
    rotmats = pred.rotmats.clone().requires_grad_()
    masked = corrupted(batch_of(true, body), filling)
    weights = {"v2v_l1": 1.0, "v2v_l2": 1.0, "camera": 0.0}
    both = losses(prediction(replace(pred, rotmats=rotmats)), masked, body, **weights)
    alone = losses(prediction(pred[:1]), rows_of(masked, slice(0, 1)), body, **weights)
    for name in (*TERMS[:-1], "v2v_l1", "v2v_l2"):
        assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-5), name
    both["loss"].backward()
    assert rotmats.grad is not None
    assert rotmats.grad[0].abs().sum() > 0
    assert (rotmats.grad[1] == 0).all()


def test_confidence_weighs_a_joint_and_below_zero_it_is_none(body: Body) -> None:
    true, pred = parameters(1, 0), parameters(1, 1)
    batch = batch_of(true, body)
    singles = []
    for joint, confidence in ((0, 0.25), (30, 1.0)):
        keypoints_2d = batch.keypoints_2d.clone()
        keypoints_2d[..., 2] = -2
        keypoints_2d[:, joint, 2] = confidence
        some = replace(batch, keypoints_2d=keypoints_2d)
        assert label_counts(some).tolist() == [1, 1, 1, 1]
        singles.append(losses(prediction(pred), some, body)["keypoints_2d"])
    joints = body.landmarks(pred.rotmats, pred.betas)
    error = project_weak(joints, pred.pred_cam, SIZE) - batch.keypoints_2d[..., :2]
    assert singles[0] == pytest.approx(float(0.25 * error[0, 0].square().sum() / 98), rel=1e-5)
    assert singles[1] == pytest.approx(float(error[0, 30].square().sum() / 98), rel=1e-5)


@pytest.mark.parametrize("hip", HIPS)
def test_without_a_hip_a_person_has_no_3d_label(body: Body, hip: int) -> None:
    pred, batch = parameters(2, 1), batch_of(parameters(2, 0), body)
    batch.keypoints_3d[0, hip, 3] = 0
    assert label_counts(batch).tolist() == [2, 1, 2, 2]
    terms = losses(prediction(pred), batch, body)
    alone = losses(prediction(pred[1:]), rows_of(batch, slice(1, 2)), body)
    assert terms["keypoints_3d"] == pytest.approx(float(alone["keypoints_3d"]), rel=1e-5)


def test_without_any_label_the_loss_is_zero_and_still_has_a_gradient(body: Body) -> None:
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
    assert rotmats.grad is not None
    assert (rotmats.grad == 0).all()


def test_a_term_without_weight_does_no_harm_and_every_output_has_a_gradient(body: Body) -> None:
    pred, batch = parameters(2, 1), batch_of(parameters(2, 0), body)
    outputs = replace(pred, pred_cam=torch.full((2, 3), -9.0))  # exp(90)^2 is no float32
    leaves = {
        name: getattr(outputs, name).clone().requires_grad_()
        for name in ("rotmats", "betas", "pred_cam")
    }
    terms = losses(prediction(replace(outputs, **leaves)), batch, body, preset="eth")
    assert terms["camera"].isinf()
    terms["loss"].backward()
    assert torch.isfinite(terms["loss"])
    assert leaves["rotmats"].grad.abs().sum() > 0
    assert (leaves["pred_cam"].grad == 0).all()


# Parts of a step


def mixed_batch(count: int, seed: int, body: Body) -> Batch:
    """People with some, all or none of the labels."""
    batch, g = batch_of(parameters(count, seed), body), torch.Generator().manual_seed(seed)
    carries = torch.rand(count, 3, generator=g) < 0.5
    keypoints_2d, keypoints_3d = batch.keypoints_2d.clone(), batch.keypoints_3d.clone()
    keypoints_2d[..., 2] = torch.rand(count, 49, generator=g) * carries[:, :1]
    keypoints_3d[..., 3] = torch.rand(count, 49, generator=g) * carries[:, 1:2]
    return replace(
        batch, keypoints_2d=keypoints_2d, keypoints_3d=keypoints_3d, has_smpl=carries[:, 2]
    )


Shares = tuple[dict[str, Tensor], list[Tensor]]


def shares_of(
    pred: Parameters, batch: Batch, body: Body, cuts: list[list[int]], config: LossConfig
) -> Shares:
    """Terms and gradients of a step, added up over its parts, each of them some of the people."""
    leaves = {
        name: getattr(pred, name).clone().requires_grad_()
        for name in ("rotmats", "betas", "pred_cam")
    }
    first, last = parameters(len(batch), 7), Parameters(**leaves)
    counts = torch.stack([label_counts(rows_of(batch, rows)) for rows in cuts]).sum(0)
    sums: dict[str, Tensor] = {}
    for rows in cuts:
        picked = torch.tensor(rows, dtype=torch.long)
        steps = prediction(first[picked], last[picked])
        terms = hmr_losses(steps, rows_of(batch, picked), body, config, counts)
        terms["loss"].backward()
        sums = {name: sums.get(name, torch.zeros(())) + terms[name].detach() for name in terms}
    gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    assert len(gradients) == 3
    return sums, gradients


def randomly_cut(count: int, seed: int) -> list[list[int]]:
    """Everybody into one of four parts, some of which may be empty."""
    g = torch.Generator().manual_seed(seed)
    part_of = torch.multinomial(torch.tensor([0.6, 0.3, 0.1, 0.0]), count, True, generator=g)
    return [(part_of == part).nonzero()[:, 0].tolist() for part in range(4)]


def by_label(batch: Batch) -> list[list[int]]:
    """Those with SMPL labels, and a part which has none of that kind."""
    return [batch.has_smpl.nonzero()[:, 0].tolist(), (~batch.has_smpl).nonzero()[:, 0].tolist()]


@pytest.mark.parametrize("preset", ["spin", "bedlam", "eth", "hmr2-like"])
@pytest.mark.parametrize(
    "cut", [*(lambda b, s=s: randomly_cut(len(b), s) for s in range(5)), by_label]
)
def test_the_parts_of_a_step_add_up_to_the_whole(
    body: Body, cut: Callable[[Batch], list[list[int]]], preset: Any
) -> None:
    """However labels are spread over ranks and micro-batches, in values and in gradients."""
    batch, pred = mixed_batch(11, 3, body), parameters(11, 1)
    config = LossConfig(preset=preset, iteration_weights="all", v2v_l1=1.0, scale=1.0)
    whole, expected = shares_of(pred, batch, body, [list(range(11))], config)
    own = hmr_losses(prediction(parameters(11, 7), pred), batch, body, config)
    assert whole == {name: pytest.approx(float(own[name]), rel=1e-5) for name in own}
    found, gradients = shares_of(pred, batch, body, cut(batch), config)
    assert found == {name: pytest.approx(float(whole[name]), rel=1e-4) for name in whole}
    for gradient, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-7)


def test_counts_add_up_and_are_people_not_joints(body: Body) -> None:
    batch = mixed_batch(40, 5, body)
    carries = [
        (batch.keypoints_2d[..., 2] > 0).any(1),
        (batch.keypoints_3d[:, HIPS, 3] > 0).all(1),
        batch.has_smpl,
    ]
    expected = [float(labelled.sum()) for labelled in carries]
    assert all(0 < number < 40 for number in expected)
    assert label_counts(batch).tolist() == [*expected, 40]
    parts = [label_counts(rows_of(batch, rows)) for rows in randomly_cut(40, 1)]
    assert torch.stack(parts).sum(0).tolist() == [*expected, 40]


def test_a_part_without_people_has_shares_of_zero_on_the_graph(body: Body) -> None:
    pred, batch = parameters(0, 1), batch_of(parameters(0, 0), body)
    assert label_counts(batch).tolist() == [0, 0, 0, 0]
    for counts in (None, torch.tensor([3.0, 2, 1, 4])):
        rotmats = pred.rotmats.clone().requires_grad_()
        steps = prediction(pred, replace(pred, rotmats=rotmats))
        config = LossConfig(preset="bedlam", iteration_weights="all")
        terms = hmr_losses(steps, batch, body, config, counts)
        assert all(value == 0 for value in terms.values())
        terms["loss"].backward()
        assert rotmats.grad is not None


def test_people_who_stand_twice_in_a_batch_change_nothing(body: Body) -> None:
    batch, pred = mixed_batch(5, 3, body), parameters(5, 1)
    twice = torch.arange(5).repeat(2)
    once = losses(prediction(pred), batch, body, v2v_l2=1.0)
    both = losses(prediction(pred[twice]), rows_of(batch, twice), body, v2v_l2=1.0)
    assert both == {name: pytest.approx(float(once[name]), rel=1e-5) for name in once}
