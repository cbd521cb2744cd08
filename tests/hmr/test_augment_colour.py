"""Noise of channels, light and colour, boxes in the way: by hand, and their spread."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hmr.augment_colour import jitter_colour, occlude, scale_channels, to_bytes


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int = 6, size: int = 12, seed: int = 1) -> Tensor:
    return (256 * uniform(count, 3, size, size, seed=seed)).to(torch.uint8)


def plain(count: int, *colour: int) -> Tensor:
    return torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).repeat(count, 1, 4, 4)


def test_bytes_are_rounded_and_clipped() -> None:
    values = torch.tensor([-3.0, 0.4, 0.6, 254.4, 254.6, 300.0])
    assert to_bytes(values).tolist() == [0, 0, 1, 254, 255, 255]


def test_channel_noise_scales_each_channel_of_each_person() -> None:
    # Bright enough for exact ratios, dark enough that nothing is clipped at 1.4.
    numbers = uniform(40, 3)
    noisy = scale_channels(plain(40, 180, 180, 180), numbers, 0.4)
    expected = (180 * (0.6 + 0.8 * numbers)).round()[..., None, None]
    assert noisy.dtype == torch.uint8
    assert (noisy - expected).abs().max() <= 1
    assert torch.equal(noisy, noisy[..., :1, :1].expand_as(noisy))


def test_bright_pixels_are_clipped_not_wrapped() -> None:
    noisy = scale_channels(plain(40, 250, 250, 250), uniform(40, 3), 0.4)
    assert noisy.max() == 255
    assert noisy.min() >= 149


HALF = torch.full((1, 3), 0.5)
"""The number that leaves brightness, contrast and saturation as they are."""


def with_number(column: int, number: float) -> Tensor:
    numbers = HALF.clone()
    numbers[0, column] = number
    return numbers


def test_jitter_without_change() -> None:
    images = pictures(1)
    assert torch.equal(jitter_colour(images, HALF, 0.9), images)


@pytest.mark.parametrize("number", [0.1, 0.6])
def test_brightness_is_a_factor(number: float) -> None:
    changed = jitter_colour(plain(1, 100, 80, 60), with_number(0, number), 0.5)
    factor = 1 + 0.5 * (2 * number - 1)
    expected = torch.tensor([100, 80, 60]) * factor
    torch.testing.assert_close(changed[0, :, 0, 0].float(), expected, atol=0.51, rtol=0)


def test_contrast_is_the_distance_from_the_mean() -> None:
    image = plain(1, 90, 90, 90)
    image[..., 2:] = 150  # mean 120
    changed = jitter_colour(image, with_number(1, 0.25), 1.0)  # half the contrast
    assert changed[..., :2].unique().tolist() == [105]
    assert changed[..., 2:].unique().tolist() == [135]


def test_saturation_is_the_distance_from_gray() -> None:
    # Brightness 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    gray = jitter_colour(plain(1, 200, 100, 50), with_number(2, 0.0), 1.0)
    assert gray.unique().tolist() == [124]
    strong = jitter_colour(plain(1, 200, 100, 50), with_number(2, 0.75), 1.0)
    assert strong[0, :, 0, 0].tolist() == [238, 88, 13]


# Boxes: whether, width, height, x, y, red, green, blue


def test_a_box_by_hand() -> None:
    images = pictures(2, size=10)
    numbers = torch.tensor([[0.2, 0.5, 1.0, 0.6, 0.1, 0.0, 0.5, 0.999]]).repeat(2, 1)
    numbers[1, 0] = 0.4
    changed = occlude(images, numbers, probability=0.3, size=0.8)
    # 0.8 * 0.5 = 4 px wide about x = 6, 8 px high about y = 1, so down to 5.
    assert changed[0, :, :5, 4:8].flatten(1).unique(dim=1).flatten().tolist() == [0, 128, 255]
    outside = torch.ones(10, 10, dtype=torch.bool)
    outside[:5, 4:8] = False
    assert torch.equal(changed[0][:, outside], images[0][:, outside])
    assert torch.equal(changed[1], images[1])


def test_boxes_of_many_people() -> None:
    count = 4000
    images = torch.zeros(count, 3, 20, 20, dtype=torch.uint8)
    numbers = uniform(count, 8, seed=2)
    numbers[:, 5:] = 0.9
    covered = occlude(images, numbers, probability=0.3, size=0.5)[:, 0] > 0
    hidden = covered.flatten(1).any(1)
    # A few boxes are thinner than a pixel. Four standard deviations of 0.3 are 0.03.
    assert 0.2 < float(hidden.float().mean()) < 0.33
    columns, rows = covered.any(1).sum(1)[hidden], covered.any(2).sum(1)[hidden]
    assert max(int(columns.max()), int(rows.max())) == 10
    assert torch.equal(covered.flatten(1).sum(1)[hidden], columns * rows)  # whole rectangles
    everywhere = covered.float().mean(0)
    assert everywhere.min() > 0.2 * everywhere.max() > 0


def test_people_do_not_influence_each_other() -> None:
    images, numbers = pictures(), uniform(6, 8, seed=3)
    rows = torch.tensor([5, 2])
    jittered, covered = jitter_colour(images, numbers[:, :3], 0.5), occlude(images, numbers, 1, 0.9)
    assert torch.equal(jitter_colour(images[rows], numbers[rows, :3], 0.5), jittered[rows])
    assert torch.equal(occlude(images[rows], numbers[rows], 1, 0.9), covered[rows])


def test_the_pictures_themselves_stay_as_they_were() -> None:
    images = pictures()
    scale_channels(images, uniform(6, 3), 0.4)
    jitter_colour(images, uniform(6, 3), 0.4)
    occlude(images, uniform(6, 8), 1.0, 0.9)
    assert torch.equal(images, pictures())
