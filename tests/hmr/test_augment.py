"""Augmentation as a whole: what is drawn, for whom, and that old settings keep their numbers."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from hmr.augment import augment
from hmr.augment_geometry import flip_labels
from hmr.config import AugmentConfig
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch

FLIP_ONLY = AugmentConfig(preset="none", flip=1.0)
EVERYTHING = AugmentConfig(preset="hmr2", translation=0.1, colour=0.3, occlusion=0.7)
PICTURE_ONLY = {"channel_noise": 0.4, "colour": 0.5, "occlusion": 1.0}
TENSORS = [f.name for f in fields(Batch) if f.name != "sample_ids"]
LABELS = ("keypoints_2d", "keypoints_3d", "rotmats", "betas", "has_smpl")


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
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flip_batch(batch: Batch) -> Batch:
    return replace(flip_labels(batch), images=batch.images.flip(-1))


def flip_and_noise(batch: Batch, flip: float, noise: float, generator: torch.Generator) -> Batch:
    """The first two augmentations in other words, with the draws that trainings rely on."""
    draws = torch.rand(len(batch), 4, generator=generator)
    mirrored = flip_batch(batch)
    people = []
    for i in range(len(batch)):
        source = mirrored if draws[i, 0] < flip else batch
        factors = 1 + noise * (2 * draws[i, 1:] - 1)
        image = (source.images[i] * factors[:, None, None]).round().clamp(0, 255).to(torch.uint8)
        row = {name: getattr(source, name)[i] for name in TENSORS}
        people.append(row | {"images": image})
    return Batch(**{name: torch.stack([p[name] for p in people]) for name in people[0]})


@pytest.mark.parametrize(("flip", "noise"), [(0.5, 0.4), (0.3, 0.2), (1.0, 1.0)])
def test_flip_and_noise_keep_their_numbers_over_many_batches(flip: float, noise: float) -> None:
    config, ours, theirs = AugmentConfig(flip=flip, channel_noise=noise), seeded(1), seeded(1)
    for seed in range(4):
        batch = random_batch(seed=seed)
        assert equal(augment(batch, config, ours), flip_and_noise(batch, flip, noise, theirs))


def test_probability_one_flips_everybody_and_zero_nobody() -> None:
    batch = random_batch()
    assert equal(augment(batch, FLIP_ONLY, seeded(0)), flip_batch(batch))
    assert equal(augment(batch, AugmentConfig(preset="none"), seeded(0)), batch)


def test_each_person_is_flipped_whole_or_not_at_all() -> None:
    batch = random_batch(200, size=4)
    changed = augment(batch, AugmentConfig(preset="none", flip=0.3), seeded(4))
    mirrored = flip_batch(batch)
    names = ("images", "keypoints_2d", "keypoints_3d", "rotmats")

    def same(other: Batch) -> list[Tensor]:
        return [(getattr(changed, n) == getattr(other, n)).flatten(1).all(1) for n in names]

    for was_flipped, was_kept in zip(same(mirrored), same(batch), strict=True):
        assert torch.equal(was_flipped, same(mirrored)[0])
        assert torch.equal(was_kept, ~same(mirrored)[0])
    # 200 draws at 0.3: four standard deviations are 26 people.
    assert 34 < int(same(mirrored)[0].sum()) < 86


def test_noise_is_spread_evenly_and_differs_by_channel() -> None:
    images = torch.full((40, 3, 4, 4), 180, dtype=torch.uint8)
    config = AugmentConfig(preset="none", channel_noise=0.4)
    noisy = augment(replace(random_batch(40), images=images), config, seeded(5)).images
    values = noisy[:, :, 0, 0] / 180
    assert values.min() > 0.6 - 1 / 180
    assert values.max() < 1.4 + 1 / 180
    assert abs(float(values.mean()) - 1) < 0.08
    assert abs(float(values.std()) - 0.4 / 3**0.5) < 0.05
    assert values.std(1).min() > 0.005


@pytest.mark.parametrize("name", PICTURE_ONLY)
def test_colours_and_boxes_change_only_the_picture(name: str) -> None:
    batch = random_batch()
    config = AugmentConfig(preset="none", **{name: PICTURE_ONLY[name]})
    changed = augment(batch, config, seeded(6))
    assert not torch.equal(changed.images, batch.images)
    assert all(torch.equal(getattr(changed, n), getattr(batch, n)) for n in LABELS)


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("rotation", {"images", "keypoints_2d", "keypoints_3d", "rotmats"}),
        ("scale", {"images", "keypoints_2d"}),
        ("translation", {"images", "keypoints_2d"}),
    ],
)
def test_each_amount_moves_its_labels_alone(name: str, moved: set[str]) -> None:
    batch = random_batch()
    changed = augment(batch, AugmentConfig(preset="none", **{name: 0.3}), seeded(7))
    found = {
        name for name in TENSORS if not torch.equal(getattr(changed, name), getattr(batch, name))
    }
    assert found == moved


def test_a_changed_strength_leaves_the_other_draws_as_they_were() -> None:
    """In the second batch, too: nothing draws more when more is asked for."""
    batch = random_batch(40)
    flips = AugmentConfig(preset="none", flip=0.5)
    shifts = AugmentConfig(preset="none", flip=0.5, translation=0.1, colour=0.5, occlusion=1.0)
    one, two = seeded(8), seeded(8)
    for _ in range(2):
        plain, shifted = augment(batch, flips, one), augment(batch, shifts, two)
        assert torch.equal(plain.rotmats, shifted.rotmats)
        assert not torch.equal(plain.keypoints_2d, shifted.keypoints_2d)
    assert torch.equal(one.get_state(), two.get_state())


def test_batches_are_warped_differently() -> None:
    batch, generator = random_batch(), seeded(9)
    config = AugmentConfig(preset="none", rotation=30.0, scale=0.25)
    first, second = (augment(batch, config, generator).keypoints_2d for _ in range(2))
    assert (first - second).abs().amax((1, 2)).min() > 1e-3


def test_people_do_not_influence_each_other() -> None:
    batch, other = random_batch(6, seed=0), random_batch(6, seed=9)
    mixed = Batch(**{
        name: torch.cat([getattr(batch, name)[:3], getattr(other, name)[3:]])
        for name in TENSORS
    })  # fmt: skip
    one, two = augment(batch, EVERYTHING, seeded(7)), augment(mixed, EVERYTHING, seeded(7))
    for name in TENSORS:
        assert torch.equal(getattr(one, name)[:3], getattr(two, name)[:3])


def test_the_seed_decides() -> None:
    batch = random_batch()
    assert equal(augment(batch, EVERYTHING, seeded(8)), augment(batch, EVERYTHING, seeded(8)))
    assert not equal(augment(batch, EVERYTHING, seeded(8)), augment(batch, EVERYTHING, seeded(9)))


def test_the_batch_itself_stays_as_it_was() -> None:
    batch = random_batch()
    augment(batch, AugmentConfig(flip=1.0), seeded(10))
    augment(batch, EVERYTHING, seeded(10))
    assert equal(batch, random_batch())
