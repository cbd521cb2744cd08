"""Augmentation: laws of the flip, independence of people, seeds."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from hmr.augment import augment, flip_batch, flip_rotations
from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import AugmentConfig
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr.skeleton import JOINT49_FLIP, joint49_index, smpl_index
from hmr.structures import Batch

MIRROR = torch.tensor([-1.0, 1.0, 1.0])
FLIP_ONLY = AugmentConfig(flip=1.0, channel_noise=0.0)
NOISE_ONLY = AugmentConfig(flip=0.0, channel_noise=0.4)


def random_batch(count: int = 6, seed: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Batch(
        images=torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8),
        keypoints_2d=normal(count, 49, 3),
        keypoints_3d=normal(count, 49, 4),
        rotmats=axis_angle_to_matrix(normal(count, 24, 3)),
        betas=normal(count, 10),
        has_smpl=torch.rand(count, generator=generator) < 0.5,
    )


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_two_flips_are_none() -> None:
    batch = random_batch()
    assert not equal(flip_batch(batch), batch)
    assert equal(flip_batch(flip_batch(batch)), batch)


def test_flip_by_hand() -> None:
    batch = random_batch()
    flipped = flip_batch(batch)
    left, right = joint49_index("op_left_wrist"), joint49_index("op_right_wrist")
    x, y, confidence = batch.keypoints_2d[:, right].unbind(-1)
    assert torch.equal(flipped.keypoints_2d[:, left], torch.stack([-x, y, confidence], -1))
    x, y, z, confidence = batch.keypoints_3d[:, right].unbind(-1)
    assert torch.equal(flipped.keypoints_3d[:, left], torch.stack([-x, y, z, confidence], -1))
    assert torch.equal(flipped.images[..., 0], batch.images[..., -1])
    assert torch.equal(flipped.betas, batch.betas)
    assert torch.equal(flipped.has_smpl, batch.has_smpl)


def test_flipped_axis_angles_have_y_and_z_negated() -> None:
    turns = 0.8 * torch.randn(3, 24, 3, generator=seeded(1))
    flipped = matrix_to_axis_angle(flip_rotations(axis_angle_to_matrix(turns)))
    left, right = smpl_index("left_elbow"), smpl_index("right_elbow")
    expected = turns * torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(flipped[:, left], expected[:, right], atol=1e-5, rtol=0)
    torch.testing.assert_close(flipped[:, 0], expected[:, 0], atol=1e-5, rtol=0)


def test_flipped_rotations_are_rotations() -> None:
    flipped = flip_rotations(random_batch().rotmats)
    torch.testing.assert_close(torch.linalg.det(flipped), torch.ones(6, 24))


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.embedded()


def test_body_of_the_flipped_pose_is_the_mirrored_body(body: Body) -> None:
    """The embedded body is built nearly symmetric: joints agree to 0.5 mm, landmarks, which are
    single vertices, to 8 mm, and to 0.5 mm on average."""
    generator = seeded(2)
    rotmats = axis_angle_to_matrix(0.4 * torch.randn(16, 24, 3, generator=generator))
    betas = torch.randn(16, 10, generator=generator)
    mirrored = body.landmarks(rotmats, betas)[:, JOINT49_FLIP] * MIRROR
    distance = (body.landmarks(flip_rotations(rotmats), betas) - mirrored).norm(dim=-1)
    assert distance.max() < 8e-3
    assert distance.mean() < 5e-4
    joints = [body.joints_only(r, betas) for r in (rotmats, flip_rotations(rotmats))]
    left, right = smpl_index("left_hand"), smpl_index("right_hand")
    torch.testing.assert_close(joints[1][:, left], joints[0][:, right] * MIRROR, atol=5e-4, rtol=0)


def test_projection_of_the_flip_is_the_flip_of_the_projection(body: Body) -> None:
    """A batch whose labels are projections is, once flipped, a batch of projections again."""
    generator = seeded(3)
    batch = random_batch(4, seed=3)
    landmarks = body.landmarks(batch.rotmats, batch.betas)
    camera = torch.tensor([0.9, 0.1, -0.2]) + 0.1 * torch.rand(4, 3, generator=generator)
    ones = torch.ones(4, 49, 1)
    labelled = Batch(
        images=batch.images, rotmats=batch.rotmats, betas=batch.betas, has_smpl=batch.has_smpl,
        keypoints_2d=torch.cat([project_weak(landmarks, camera, 16), ones], -1),
        keypoints_3d=torch.cat([landmarks, ones], -1),
    )  # fmt: skip
    flipped = flip_batch(labelled)
    points, mirrored_camera = flipped.keypoints_3d[..., :3], camera * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(
        flipped.keypoints_2d[..., :2], project_weak(points, mirrored_camera, 16), atol=1e-5, rtol=0
    )


def test_probability_one_flips_everybody_and_zero_nobody() -> None:
    batch = random_batch()
    assert equal(augment(batch, FLIP_ONLY, seeded(0)), flip_batch(batch))
    nothing = AugmentConfig(flip=0.0, channel_noise=0.0)
    assert equal(augment(batch, nothing, seeded(0)), batch)


def test_each_person_is_flipped_whole_or_not_at_all() -> None:
    batch = random_batch(200, size=4)
    changed = augment(batch, AugmentConfig(flip=0.3, channel_noise=0.0), seeded(4))
    mirrored = flip_batch(batch)
    flipped = [
        (getattr(changed, f) == getattr(mirrored, f)).flatten(1).all(1)
        for f in ("images", "keypoints_2d", "keypoints_3d", "rotmats")
    ]
    kept = [
        (getattr(changed, f) == getattr(batch, f)).flatten(1).all(1)
        for f in ("images", "keypoints_2d", "keypoints_3d", "rotmats")
    ]
    for was_flipped, was_kept in zip(flipped, kept, strict=True):
        assert torch.equal(was_flipped, flipped[0])
        assert torch.equal(was_kept, ~flipped[0])
    # 200 draws at 0.3: four standard deviations are 26 people.
    assert 34 < int(flipped[0].sum()) < 86


def test_channel_noise_scales_each_channel_of_each_person() -> None:
    batch = random_batch(40)
    # Bright enough for exact ratios, dark enough that nothing is clipped at 1.4.
    batch = Batch(**{f.name: getattr(batch, f.name) for f in fields(Batch)} | {
        "images": torch.full((40, 3, 4, 4), 180, dtype=torch.uint8)})  # fmt: skip
    noisy = augment(batch, NOISE_ONLY, seeded(5)).images
    factors = noisy.float() / 180
    assert noisy.dtype == torch.uint8
    assert torch.equal(factors, factors[..., :1, :1].expand_as(factors))
    values = factors[:, :, 0, 0]
    assert values.min() > 0.6 - 1 / 180
    assert values.max() < 1.4 + 1 / 180
    assert abs(float(values.mean()) - 1) < 0.08
    assert abs(float(values.std()) - 0.4 / 3**0.5) < 0.05
    assert values.std(1).min() > 0.005


def test_bright_pixels_are_clipped_not_wrapped() -> None:
    batch = random_batch(40)
    images = torch.full_like(batch.images, 250)
    bright = Batch(**{f.name: getattr(batch, f.name) for f in fields(Batch)} | {"images": images})
    noisy = augment(bright, NOISE_ONLY, seeded(6)).images
    assert noisy.max() == 255
    assert noisy.min() >= 149


def test_people_do_not_influence_each_other() -> None:
    batch, other = random_batch(6, seed=0), random_batch(6, seed=9)
    mixed = Batch(**{
        f.name: torch.cat([getattr(batch, f.name)[:3], getattr(other, f.name)[3:]])
        for f in fields(Batch)
    })  # fmt: skip
    config = AugmentConfig()
    one, two = augment(batch, config, seeded(7)), augment(mixed, config, seeded(7))
    for f in fields(Batch):
        assert torch.equal(getattr(one, f.name)[:3], getattr(two, f.name)[:3])


def test_the_seed_decides() -> None:
    batch = random_batch()
    config = AugmentConfig()
    assert equal(augment(batch, config, seeded(8)), augment(batch, config, seeded(8)))
    assert not equal(augment(batch, config, seeded(8)), augment(batch, config, seeded(9)))


def test_the_batch_itself_stays_as_it_was() -> None:
    batch = random_batch()
    augment(batch, AugmentConfig(flip=1.0), seeded(10))
    assert equal(batch, random_batch())
