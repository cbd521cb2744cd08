"""The stand-ins for regressors of further joints: where they put them, and that they follow."""

from __future__ import annotations

import numpy as np
import pytest

from hmr.body_arrays import BodyArrays, lbs_numpy
from hmr.body_landmarks import extra_joint_regressor, h36m_joint_regressor
from hmr.skeleton import EXTRA_JOINT_NAMES, H36M17_NAMES, smpl_index

TRUNK = ("pelvis", "spine", "neck", "jaw", "head")


@pytest.fixture(scope="module")
def regressor(embedded_arrays: BodyArrays) -> np.ndarray:
    return embedded_arrays.h36m_regressor


def test_limbs_lie_at_the_smpl_joints_of_the_same_name(
    embedded_arrays: BodyArrays, regressor: np.ndarray
) -> None:
    places = regressor @ embedded_arrays.v_template
    limbs = [name for name in H36M17_NAMES if name not in TRUNK]
    assert len(limbs) == 12
    for name in limbs:
        expected = embedded_arrays.rest_joints[smpl_index(name)]
        np.testing.assert_allclose(places[H36M17_NAMES.index(name)], expected, atol=1e-9)


def test_the_trunk_is_that_of_the_extra_joints(embedded_arrays: BodyArrays) -> None:
    extra = np.random.default_rng(0).random((9, embedded_arrays.num_vertices))
    rows = h36m_joint_regressor(embedded_arrays.v_template, embedded_arrays.rest_joints, extra)
    for name in TRUNK:
        expected = extra[EXTRA_JOINT_NAMES.index(f"extra_{name}")]
        np.testing.assert_array_equal(rows[H36M17_NAMES.index(name)], expected)


def test_rows_are_convex_combinations_of_few_vertices(regressor: np.ndarray) -> None:
    assert (regressor >= 0).all()
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-12)
    assert (np.count_nonzero(regressor, axis=1) <= 20).all()


def test_joints_follow_pose_and_shape(embedded_arrays: BodyArrays, regressor: np.ndarray) -> None:
    """Read off the moved surface they stay within two centimetres of the moved SMPL joint."""
    rotmats = np.tile(np.eye(3, dtype=np.float32), (1, 24, 1, 1))
    bend = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)  # a quarter turn
    rotmats[0, 0] = bend
    rotmats[0, smpl_index("left_shoulder")] = bend.T
    betas = np.zeros((1, 10), np.float32)
    betas[0, :3] = 1.5, -1.0, 0.5
    vertices, joints = lbs_numpy(embedded_arrays, rotmats, betas)
    assert vertices is not None
    found = regressor @ vertices[0]
    for name in ("left_elbow", "left_wrist", "right_knee", "right_ankle", "right_shoulder"):
        distance = np.linalg.norm(found[H36M17_NAMES.index(name)] - joints[0, smpl_index(name)])
        assert distance < 0.02, (name, distance)


def test_extra_joints_lie_where_the_documentation_says(embedded_arrays: BodyArrays) -> None:
    template, J = embedded_arrays.v_template, embedded_arrays.rest_joints
    found = extra_joint_regressor(template, J) @ template
    crown = template[np.argsort(-template[:, 1])[:8]].mean(0)
    head = J[smpl_index("head")]
    expected = {
        "extra_right_hip": J[smpl_index("right_hip")],
        "extra_left_hip": J[smpl_index("left_hip")],
        "extra_neck": J[smpl_index("neck")],
        "extra_head_top": crown,
        "extra_pelvis": (J[smpl_index("left_hip")] + J[smpl_index("right_hip")]) / 2,
        "extra_thorax": (J[smpl_index("left_shoulder")] + J[smpl_index("right_shoulder")]) / 2,
        "extra_spine": J[smpl_index("spine2")],
        "extra_jaw": head,
        "extra_head": head + 0.6 * (crown - head),
    }
    for row, name in enumerate(EXTRA_JOINT_NAMES):
        np.testing.assert_allclose(found[row], expected[name], atol=2e-3, err_msg=name)
