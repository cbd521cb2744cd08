"""Points of bodies and labels by name, and every protocol's errors against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from hmr.body import Body
from hmr.errors import BodyError
from hmr.metrics import person_errors
from hmr.protocol_errors import (
    Yardstick,
    body_points,
    gendered_output,
    keypoint_points,
    protocol_errors,
)
from hmr.protocols import JOINT_SETS, PROTOCOLS
from hmr.rotations import axis_angle_to_matrix
from hmr.skeleton import H36M17_NAMES, joint49_index
from hmr.structures import Batch, Parameters


def people(count=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    rotmats = axis_angle_to_matrix(0.4 * torch.randn(count, 24, 3, generator=g))
    return rotmats, torch.randn(count, 10, generator=g)


def regressor_for(body, seed=0):
    weights = np.random.default_rng(seed).random((17, body.num_vertices)) ** 6
    return torch.tensor(weights / weights.sum(1, keepdims=True), dtype=torch.float32)


def batch_of(rotmats, betas, keypoints_3d, has_smpl=None):
    count = len(betas)
    return Batch(
        images=torch.zeros(count, 3, 8, 8, dtype=torch.uint8),
        keypoints_2d=torch.zeros(count, 49, 3), keypoints_3d=keypoints_3d,
        rotmats=rotmats, betas=betas,
        has_smpl=torch.ones(count, dtype=torch.bool) if has_smpl is None else has_smpl,
    )  # fmt: skip


def labels_of(body, rotmats, betas):
    """(B, 49, 4) landmarks, all of them known."""
    joints = body.landmarks(rotmats, betas)
    return torch.cat([joints, torch.ones_like(joints[..., :1])], dim=2)


@pytest.mark.parametrize("name", ["3dpw", "h36m_p1", "mpi_inf_3dhp"])
def test_joints_of_a_regressor_are_found_by_name(small_body, name):
    protocol, output = PROTOCOLS[name], small_body(*people())
    regressor = regressor_for(small_body)
    points = body_points(protocol, small_body, output, regressor)
    all17 = np.einsum("jv,bvc->bjc", regressor.numpy(), output.vertices.numpy())
    for column, joint in enumerate(JOINT_SETS[protocol.joints]):
        expected = all17[:, H36M17_NAMES.index(joint)]
        np.testing.assert_allclose(points.joints[:, column], expected, atol=1e-5)
    np.testing.assert_allclose(points.root, all17[:, 0], atol=1e-5)
    assert points.joints.shape[1] == len(JOINT_SETS[protocol.joints])


@pytest.mark.parametrize("name", ["3dpw", "h36m_p2", "mpi_inf_3dhp"])
def test_without_a_regressor_landmarks_of_the_same_names_stand_in(small_body, name):
    protocol, (rotmats, betas) = PROTOCOLS[name], people()
    points = body_points(protocol, small_body, small_body(rotmats, betas))
    landmarks = small_body.landmarks(rotmats, betas)
    labels, known = keypoint_points(protocol, labels_of(small_body, rotmats, betas))
    for column, joint in enumerate(JOINT_SETS[protocol.joints]):
        expected = landmarks[:, joint49_index(f"gt_{joint}")]
        np.testing.assert_allclose(points.joints[:, column], expected, atol=1e-5)
        np.testing.assert_array_equal(labels.joints[:, column], expected)
    np.testing.assert_allclose(points.root, landmarks[:, joint49_index("gt_pelvis")], atol=1e-5)
    assert known.all()


def test_a_regressor_for_another_mesh_is_refused(small_body):
    output = small_body(*people(1))
    with pytest.raises(BodyError, match=r"has the shape \(17, 9\), this body needs \(17, 300\)"):
        body_points(PROTOCOLS["3dpw"], small_body, output, torch.zeros(17, 9))


@pytest.mark.parametrize("name", ["h36m_p1", "h36m_p2", "mpi_inf_3dhp"])
def test_a_known_offset_of_measured_joints_is_the_error_in_millimetres(small_body, name):
    yardstick = Yardstick(body=small_body, protocol=PROTOCOLS[name])
    rotmats, betas = people()
    labels = labels_of(small_body, rotmats, betas)
    pelvis, moved = joint49_index("gt_pelvis"), labels.clone()
    moved[:, :, :3] += torch.tensor([0.009, 0.012, 0.02])
    moved[:, pelvis, :3] = labels[:, pelvis, :3]
    pred, batch = yardstick.points(rotmats, betas), batch_of(rotmats, betas, moved)
    rows, truth = yardstick.truth(batch)
    assert rows.tolist() == list(range(5))
    errors = protocol_errors(yardstick.protocol, pred, truth)
    # The pelvis is one of the 17 joints and was left where it was.
    expected = 25.0 * (16 / 17 if name == "mpi_inf_3dhp" else 1)
    np.testing.assert_allclose(errors["mpjpe_mm"], expected, atol=1e-3)
    same = protocol_errors(yardstick.protocol, pred, yardstick.truth(
        batch_of(rotmats, betas, labels + torch.tensor([5.0, 6, 7, 0]))
    )[1])  # fmt: skip
    np.testing.assert_allclose(same["mpjpe_mm"], 0, atol=2e-3)


def test_measured_joints_count_only_when_all_of_the_protocol_are_known(small_body):
    yardstick = Yardstick(body=small_body, protocol=PROTOCOLS["h36m_p1"])
    rotmats, betas = people()
    labels = labels_of(small_body, rotmats, betas)
    labels[1, joint49_index("gt_left_knee"), 3] = 0
    labels[3, joint49_index("gt_pelvis"), 3] = 0
    labels[4, joint49_index("op_nose"), 3] = 0
    no_smpl = torch.zeros(5, dtype=torch.bool)
    rows, truth = yardstick.truth(batch_of(rotmats, betas, labels, no_smpl))
    assert rows.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(truth.root, labels[[0, 2, 4], joint49_index("gt_pelvis"), :3])


def test_the_protocol_of_synthetic_people_is_person_errors_to_the_bit(small_body):
    rotmats, betas = people()
    others = people(seed=1)
    yardstick = Yardstick(body=small_body)
    hidden = torch.tensor([True, False, True, True, True])
    rows, truth = yardstick.truth(batch_of(rotmats, betas, torch.zeros(5, 49, 4), hidden))
    assert rows.tolist() == [0, 2, 3, 4]
    ours = protocol_errors(
        yardstick.protocol, yardstick.points(others[0][rows], others[1][rows]), truth
    )
    pred = Parameters(rotmats=others[0][rows], betas=others[1][rows], pred_cam=torch.ones(4, 3))
    theirs = person_errors(pred, rotmats[rows], betas[rows], small_body)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert torch.equal(ours[name], values)
    assert yardstick.joints_used == ("smpl24", "SMPL joint 0 (pelvis)")


def after_alignment(p, g):
    """Mean distance after the best turn, scale and shift without reflection, in millimetres."""
    x, y = p - p.mean(0), g - g.mean(0)
    turned = x @ Rotation.align_vectors(y, x)[0].as_matrix().T
    scale = (turned * y).sum() / (x**2).sum()
    return 1000 * np.linalg.norm(scale * turned - y, axis=1).mean()


def by_hand(pred, truth):
    """Every metric of one person, in numpy and scipy; joints, root, vertices of both."""
    (joints, root, vertices), (gt_joints, gt_root, gt_vertices) = pred, truth
    distances = 1000 * np.sqrt((((joints - root) - (gt_joints - gt_root)) ** 2).sum(1))
    surface = (vertices - root) - (gt_vertices - gt_root)
    return {
        "mpjpe_mm": distances.mean(),
        "pa_mpjpe_mm": after_alignment(joints, gt_joints),
        "pve_mm": 1000 * np.sqrt((surface**2).sum(1)).mean(),
        "pa_pve_mm": after_alignment(vertices, gt_vertices),
        "pck_150": 100 * (distances < 150).mean(),
        "auc_150": np.mean([100 * (distances < t).mean() for t in range(0, 151, 5)]),
        "v2v_l2": ((vertices - gt_vertices) ** 2).mean(),
    }


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_every_protocol_agrees_with_numpy(small_body, name):
    protocol, regressor = PROTOCOLS[name], regressor_for(small_body)
    pred, truth = (
        body_points(protocol, small_body, small_body(*people(seed=seed)), regressor)
        for seed in (0, 1)
    )
    errors = protocol_errors(protocol, pred, truth)
    assert list(errors) == [metric for metric in protocol.metrics if metric != "accel_mm"]
    for row in range(5):
        one = [[part[row].double().numpy() for part in (p.joints, p.root, p.vertices)]
               for p in (pred, truth)]  # fmt: skip
        expected = by_hand(*one)
        for metric, values in errors.items():
            assert float(values[row]) == pytest.approx(expected[metric], rel=1e-4, abs=1e-3)


def test_labels_of_women_and_men_use_their_own_bodies(small_arrays, small_body):
    wide = Body(replace(small_arrays, v_template=small_arrays.v_template * 1.2))
    rotmats, betas = people()
    genders = ["female", "neutral", "male", "female", "male"]
    output = gendered_output({"female": wide}, small_body, genders, rotmats, betas)
    ours, theirs = small_body(rotmats, betas), wide(rotmats, betas)
    for row, gender in enumerate(genders):
        expected = theirs if gender == "female" else ours
        np.testing.assert_allclose(output.vertices[row], expected.vertices[row], atol=1e-6)
        np.testing.assert_allclose(output.joints[row], expected.joints[row], atol=1e-6)
    yardstick = Yardstick(
        body=small_body, protocol=PROTOCOLS["3dpw"], truth_bodies={"female": wide}
    )
    batch = batch_of(rotmats, betas, torch.zeros(5, 49, 4))
    truth = yardstick.truth(batch, genders)[1]
    errors = protocol_errors(yardstick.protocol, yardstick.points(rotmats, betas), truth)
    assert (errors["pve_mm"] > 10).tolist() == [True, False, False, True, False]
    assert yardstick.truth_used == "SMPL labels, female bodies"


def test_bodies_of_another_size_are_refused(small_body):
    rotmats, betas = people(1)
    with pytest.raises(BodyError, match=r"the male body has \d+ vertices, the model's 300"):
        gendered_output({"male": Body.embedded()}, small_body, ["male"], rotmats, betas)
