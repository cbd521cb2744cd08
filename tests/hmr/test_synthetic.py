"""Generated people: exact labels, the same person whoever asks, splits that share nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.body_arrays import body_from_path
from hmr.errors import ConfigError
from hmr.pose_prior import mirror_pose, rodrigues
from hmr.synthetic import PRESETS, UPRIGHT, Generator, camera_rotation

SIZE = 64


@pytest.fixture(scope="module")
def arrays():
    return body_from_path("embedded")


@pytest.fixture(scope="module")
def people(arrays):
    return Generator(arrays, "hard", SIZE, 3, "train").samples(range(24))


def test_a_person_is_the_same_alone_in_company_and_from_another_generator(arrays, people):
    (alone,) = Generator(arrays, "hard", SIZE, 3, "train").samples([17])
    for name in ("image", "pose", "betas", "transl", "keypoints_2d", "keypoints_3d", "mask"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(people[17], name))


def test_splits_and_seeds_have_their_own_people(arrays, people):
    for seed, split in ((3, "val"), (3, "test"), (4, "train")):
        (other,) = Generator(arrays, "hard", SIZE, seed, split).samples([17])
        assert not np.allclose(other.betas, people[17].betas)
        assert not np.array_equal(other.image, people[17].image)


def test_the_2d_joints_are_the_projected_3d_joints(people):
    for p in people:
        placed = p.keypoints_3d[:, :3].astype(np.float64) + p.transl
        pixels = p.focal * placed[:, :2] / placed[:, 2:] + SIZE / 2
        np.testing.assert_allclose(p.keypoints_2d[:, :2], pixels, atol=2e-4)
        inside = ((pixels > 0) & (pixels < SIZE)).all(1)
        np.testing.assert_array_equal(p.keypoints_2d[:, 2] > 0, inside)
        assert (p.keypoints_3d[:, 3] == 1).all()


def test_the_labels_are_what_the_body_layer_makes_of_pose_and_shape(arrays, people):
    body = Body(arrays)
    rotmats = torch.tensor(rodrigues(np.stack([p.pose for p in people]).reshape(-1, 24, 3)))
    betas = torch.tensor(np.stack([p.betas for p in people]))
    landmarks = body.landmarks(rotmats, betas).numpy()
    ours = np.stack([p.keypoints_3d[:, :3] for p in people])
    np.testing.assert_allclose(ours, landmarks, atol=1e-5)
    joints = body.joints_only(rotmats, betas).numpy()
    np.testing.assert_allclose(np.stack([p.joints for p in people]), joints, atol=1e-5)


def test_the_mask_holds_the_joints_that_lie_inside_the_body(people):
    for p in people:
        rows, columns = np.nonzero(p.mask > 0)
        body_joints = p.keypoints_2d[:15, :2]  # nose, trunk and limbs
        assert (body_joints.min(0) >= [columns.min() - 1, rows.min() - 1]).all()
        assert (body_joints.max(0) <= [columns.max() + 2, rows.max() + 2]).all()
        share = p.mask.mean()
        assert 0.02 < share < 0.6


def test_the_person_is_in_the_picture(people):
    """Where the mask says body, the picture is not the background: skin and cloth are smooth, and
    mostly differ from their surroundings."""
    differs = []
    for p in people:
        inside = p.image[p.mask == 1].astype(float).mean(0)
        outside = p.image[p.mask == 0].astype(float).mean(0)
        differs.append(np.abs(inside - outside).max())
    assert np.median(differs) > 15


@pytest.mark.parametrize("preset", ["easy", "medium", "hard"])
def test_presets_keep_their_limits(arrays, preset):
    p = PRESETS[preset]
    people = Generator(arrays, preset, 32, 0, "val").samples(range(60))
    for person in people:
        # The body's forward axis in the camera frame, seen from above.
        root = rodrigues(person.pose[:3].astype(np.float64))
        forward = UPRIGHT @ root @ [0, 0, 1]
        yaw = np.arctan2(forward[0], forward[2])
        assert abs(yaw) <= p.yaw + 0.12, "roll and pitch move it a little"
        assert p.focal[0] <= person.focal / 32 <= p.focal[1]
        assert np.abs(person.betas).max() <= 2.5


def test_camera_turns_are_rotations_and_a_plain_view_is_frontal():
    np.testing.assert_allclose(camera_rotation(0, 0, 0), UPRIGHT)
    rotation = camera_rotation(0.7, -0.2, 0.1)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_poses_survive_the_way_through_axis_angle_near_half_turns(people):
    """The roots are near a half turn (the camera's flip): the vector must give the matrix back."""
    for p in people:
        angle = np.linalg.norm(p.pose[:3])
        assert angle <= np.pi + 1e-6
        rotation = rodrigues(p.pose[:3].astype(np.float64))
        mirrored = rodrigues(mirror_pose(p.pose.astype(np.float64))[:3])
        flip = np.diag([-1.0, 1, 1])
        np.testing.assert_allclose(mirrored, flip @ rotation @ flip, atol=1e-6)


def test_unknown_names_are_refused(arrays):
    with pytest.raises(ConfigError, match="choose a preset of easy, medium, hard"):
        Generator(arrays, "ease", 32, 0, "train")
    with pytest.raises(ConfigError, match="a split of train, val, test"):
        Generator(arrays, "easy", 32, 0, "dev")
