"""Errors by hand and against an independent Procrustes; sums that merge; the mean pose."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation

from hmr.body import Body
from hmr.errors import DataError
from hmr.metrics import (
    MeanPoseBaseline,
    MetricAccumulator,
    mpjpe,
    pa_mpjpe,
    person_errors,
    pve,
    similarity_transform,
)
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Parameters


def points(count=5, joints=24, seed=0):
    return torch.randn(count, joints, 3, generator=torch.Generator().manual_seed(seed)).double()


def moved(x, seed=1):
    """The same points after a similarity transform of each person's own."""
    rng = np.random.default_rng(seed)
    turns = torch.tensor(Rotation.random(len(x), random_state=seed).as_matrix())
    scales = torch.tensor(rng.uniform(0.3, 3, (len(x), 1, 1)))
    return scales * (x @ turns.mT) + torch.tensor(rng.normal(size=(len(x), 1, 3)))


def test_mpjpe_is_the_mean_distance_after_moving_the_roots_together():
    gt = torch.zeros(1, 3, 3)
    pred = torch.tensor([[[1.0, 1, 1], [4.0, 1, 1], [1.0, 5, 1]]])
    assert mpjpe(pred, gt) == pytest.approx((0 + 3 + 4) / 3)
    middle = mpjpe(pred, gt, root=(1, 2))
    centre = torch.tensor([2.5, 3.0, 1.0])
    assert middle == pytest.approx(float((pred[0] - centre).norm(dim=-1).mean()))


def test_alignment_undoes_every_similarity_transform():
    gt = points()
    np.testing.assert_allclose(similarity_transform(moved(gt), gt), gt, atol=1e-10)
    np.testing.assert_allclose(pa_mpjpe(moved(gt), gt), 0, atol=1e-10)
    pred = points(seed=3)
    np.testing.assert_allclose(pa_mpjpe(moved(pred), gt), pa_mpjpe(pred, gt), rtol=1e-9)


def test_alignment_agrees_with_scipy_where_no_reflection_is_involved():
    gt = points()
    pred = moved(gt) + 0.1 * points(seed=4)
    for p, g in zip(pred.numpy(), gt.numpy(), strict=True):
        standard, fitted, _ = procrustes(g, p)
        size = np.linalg.norm(g - g.mean(0))
        expected = size * np.linalg.norm(standard - fitted, axis=1).mean()
        ours = pa_mpjpe(torch.tensor(p)[None], torch.tensor(g)[None])
        assert float(ours) == pytest.approx(expected, rel=1e-9)


def test_a_mirror_image_is_not_aligned_away():
    gt = points()
    mirrored = gt * torch.tensor([-1.0, 1, 1])
    assert (pa_mpjpe(mirrored, gt) > 0.1).all()
    aligned = similarity_transform(mirrored, gt)
    source = (mirrored - mirrored.mean(1, True))[:, :3]
    target = (aligned - aligned.mean(1, True))[:, :3]
    assert (torch.linalg.det(source) * torch.linalg.det(target) > 0).all()


def test_alignment_of_points_that_coincide_is_finite():
    gt = points(2)
    same = torch.ones(2, 24, 3).double()
    np.testing.assert_allclose(
        similarity_transform(same, gt), gt.mean(1, keepdim=True).expand_as(gt), atol=1e-12
    )


def test_vertex_error_moves_the_pelvises_together():
    gt = torch.zeros(1, 4, 3)
    pred = torch.tensor([[3.0, 4, 0]]).expand(1, 4, 3) + 1
    assert pve(pred, gt, torch.ones(1, 3), torch.zeros(1, 3)) == pytest.approx(5.0)


def test_person_errors_are_millimetres_of_the_body():
    body = Body.embedded()
    g = torch.Generator().manual_seed(0)
    rotmats = axis_angle_to_matrix(0.3 * torch.randn(2, 24, 3, generator=g))
    betas, cams = torch.randn(2, 10, generator=g), torch.ones(2, 3)
    truth = Parameters(rotmats=rotmats, betas=betas, pred_cam=cams)
    zero = person_errors(truth, rotmats, betas, body)
    assert all(values.abs().max() < 0.01 for values in zero.values())
    turned = rotmats.clone()
    turned[:, 0] = axis_angle_to_matrix(torch.tensor([0.0, 0.5, 0.0])) @ rotmats[:, 0]
    errors = person_errors(
        Parameters(rotmats=turned, betas=betas, pred_cam=cams), rotmats, betas, body
    )
    assert (errors["pa_mpjpe_mm"] < 0.01).all(), "a turn of the whole body is aligned away"
    assert (errors["mpjpe_mm"] > 20).all()


def test_merged_sums_equal_the_whole_in_any_order():
    errors = {name: torch.rand(11) * 100 for name in ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm")}
    whole = MetricAccumulator()
    whole.update(errors)
    parts = []
    for rows in (slice(7, 11), slice(0, 3), slice(3, 7)):
        part = MetricAccumulator()
        part.update({name: values[rows] for name, values in errors.items()})
        parts.append(MetricAccumulator.from_vector(part.to_vector()))
    merged = MetricAccumulator()
    for part in parts:
        merged.merge(part)
    assert merged.compute() == pytest.approx(whole.compute())
    assert merged.compute()["count"] == 11
    with pytest.raises(DataError, match="no person with SMPL labels"):
        MetricAccumulator().compute()


def test_the_mean_pose_is_the_best_constant_and_knows_no_place():
    joints = points(50).float() * 0.2
    baseline = MeanPoseBaseline([joints[:20], joints[20:]])
    centred = joints - joints[:, :1]
    np.testing.assert_allclose(baseline.mean_joints, centred.mean(0), atol=1e-6)
    errors = baseline.errors(joints + 5)
    expected = 1000 * (centred - centred.mean(0)).norm(dim=-1).mean(-1)
    np.testing.assert_allclose(errors["mpjpe_mm"], expected, rtol=1e-4)
    with pytest.raises(DataError):
        MeanPoseBaseline([])
