"""The pose prior keeps its promises: limits, mirroring, determinism, distribution; rodrigues."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmr import pose_prior
from hmr.pose_prior import (
    ARCHETYPE_PROBABILITIES,
    ARCHETYPES,
    POSE_HIGH,
    POSE_LOW,
    POSE_NOISE_SD,
    mirror_pose,
    rodrigues,
    sample_pose,
)
from hmr.skeleton import SMPL_FLIP, SMPL_JOINT_NAMES


def joint(pose: np.ndarray, name: str) -> np.ndarray:
    return pose.reshape(24, 3)[SMPL_JOINT_NAMES.index(name)]


def test_samples_stay_within_the_limits_and_leave_the_root_alone():
    rng = np.random.default_rng(1)
    poses = np.stack([sample_pose(rng, 1.5) for _ in range(2000)])
    assert (poses >= POSE_LOW).all()
    assert (poses <= POSE_HIGH).all()
    assert not poses[:, :3].any()
    assert (poses.std(0)[3:] > 0.01).all()


def test_limits_and_noise_are_those_of_their_own_mirror_image():
    np.testing.assert_array_equal(
        mirror_pose(POSE_LOW), np.where(_keeps_sign(), POSE_LOW, POSE_HIGH)
    )
    np.testing.assert_array_equal(np.abs(mirror_pose(POSE_NOISE_SD)), POSE_NOISE_SD)
    assert joint(POSE_HIGH, "right_elbow").tolist() == [0.6, 2.4, 0.6]
    assert joint(POSE_LOW, "right_knee").tolist() == [-0.05, -0.1, -0.1]


def _keeps_sign() -> np.ndarray:
    return np.tile([True, False, False], 24)


def test_archetypes_lie_within_the_limits_and_their_probabilities_sum_to_one():
    assert sum(ARCHETYPE_PROBABILITIES.values()) == pytest.approx(1.0, abs=1e-12)
    for name, pose in ARCHETYPES.items():
        assert (pose >= POSE_LOW).all(), name
        assert (pose <= POSE_HIGH).all(), name
    assert len(ARCHETYPES) == 13


@pytest.mark.parametrize("name", ["stand", "apose", "tpose", "sit", "squat", "up", "reach", "bend"])
def test_symmetric_archetypes_equal_their_mirror_image(name):
    np.testing.assert_array_equal(mirror_pose(ARCHETYPES[name]), ARCHETYPES[name])


def test_walking_is_not_symmetric_and_swings_the_arm_against_the_leg():
    walk = ARCHETYPES["walk"]
    assert not np.allclose(mirror_pose(walk), walk)
    assert joint(walk, "left_hip")[0] < 0 < joint(walk, "left_shoulder")[0]


def test_mirrored_twice_is_the_pose_itself():
    pose = np.random.default_rng(2).normal(size=(5, 72))
    np.testing.assert_array_equal(mirror_pose(mirror_pose(pose)), pose)


def test_mirroring_is_the_reflection_of_the_rotations():
    pose = sample_pose(np.random.default_rng(3))
    reflect = np.diag([-1.0, 1.0, 1.0])
    matrices, mirrored = rodrigues(pose.reshape(24, 3)), rodrigues(mirror_pose(pose).reshape(24, 3))
    np.testing.assert_allclose(mirrored, reflect @ matrices[list(SMPL_FLIP)] @ reflect, atol=1e-12)


def test_the_same_seed_gives_the_same_pose_and_another_seed_another_one():
    first = sample_pose(np.random.default_rng(7), 0.6)
    np.testing.assert_array_equal(first, sample_pose(np.random.default_rng(7), 0.6))
    assert not np.allclose(first, sample_pose(np.random.default_rng(8), 0.6))


def test_without_noise_half_of_the_poses_are_archetypes_in_the_right_proportions():
    rng = np.random.default_rng(11)
    poses = np.stack([sample_pose(rng, 0.0) for _ in range(4000)])
    known = {name: (pose, mirror_pose(pose)) for name, pose in ARCHETYPES.items()}
    hits = {
        name: np.mean(
            [min(np.abs(pose - variant).max() for variant in variants) < 1e-9 for pose in poses]
        )
        for name, variants in known.items()
    }
    # t = 0 half of the time; mixtures of an archetype with itself add p^2 / 2.
    for name, share_of_name in hits.items():
        p = ARCHETYPE_PROBABILITIES[name]
        assert share_of_name == pytest.approx(p / 2 + p * p / 2, abs=0.02), name


def test_half_of_the_samples_are_mirrored():
    rng = np.random.default_rng(13)
    walk = ARCHETYPES["walk"]
    poses = np.stack([sample_pose(rng, 0.0) for _ in range(4000)])
    straight = (np.abs(poses - walk).max(1) < 1e-9).sum()
    mirrored = (np.abs(poses - mirror_pose(walk)).max(1) < 1e-9).sum()
    assert straight / (straight + mirrored) == pytest.approx(0.5, abs=0.08)


vectors = st.lists(st.floats(-7, 7, allow_subnormal=True), min_size=3, max_size=3)


@given(vectors)
def test_rodrigues_is_a_rotation_about_the_axis(vector):
    axis_angle = np.array(vector)
    matrix = rodrigues(axis_angle)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(matrix @ axis_angle, axis_angle, atol=1e-11)
    angle = np.linalg.norm(axis_angle)
    assert np.trace(matrix) == pytest.approx(1 + 2 * np.cos(angle), abs=1e-12)


def test_rodrigues_turns_the_right_way_and_keeps_dtype_and_leading_axes():
    quarter = rodrigues(np.array([0.0, 0.0, np.pi / 2]))
    np.testing.assert_allclose(quarter @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    assert rodrigues(np.zeros((2, 5, 3), np.float32)).dtype == np.float32
    np.testing.assert_array_equal(
        rodrigues(np.zeros((2, 5, 3))), np.broadcast_to(np.eye(3), (2, 5, 3, 3))
    )
    np.testing.assert_allclose(rodrigues(np.full(3, -1e-8)), np.eye(3), atol=2e-8)


def test_importing_the_prior_does_not_import_torch():
    code = f"import sys; import {pose_prior.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
