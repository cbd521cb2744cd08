"""Pictures changed by OpenCV on a CPU against those changed by torch: the same draws, the same
labels, the same pictures but for rounding."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

import hmr.augment
from hmr.augment import augment, change_together
from hmr.augment_cpu import change_one_by_one, pixel_maps
from hmr.augment_draws import Changes, draw_changes
from hmr.augment_geometry import Warp, draw_warp
from hmr.config import AugmentConfig
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch

CPU = torch.device("cpu")
EVERYTHING = AugmentConfig(preset="hmr2", translation=0.1, colour=0.5, occlusion=0.7)
INTERPOLATED = {
    "spin": AugmentConfig(preset="spin"),
    "hmr2": AugmentConfig(preset="hmr2"),
    "turn": AugmentConfig(preset="none", rotation=90.0),
    "zoom": AugmentConfig(preset="none", scale=0.5, flip=0.5),
    "colour": AugmentConfig(preset="none", colour=1.0),
    "everything": EVERYTHING,
}
EXACT = {
    "default": AugmentConfig(),
    "flip": AugmentConfig(preset="none", flip=0.5),
    "noise": AugmentConfig(preset="none", channel_noise=1.0),
    "box": AugmentConfig(preset="none", occlusion=0.7, occlusion_size=1.0),
    "all": AugmentConfig(occlusion=0.7),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, side: int, seed: int) -> Tensor:
    """Soft spots of all colours, up to black and white: about as sharp as photographs."""
    noise = np.random.default_rng(seed).uniform(0, 255, (count, side, side, 3)).astype(np.float32)
    soft = np.stack([128 + 6 * (cv2.GaussianBlur(n, (0, 0), 2) - 128) for n in noise])
    return torch.from_numpy(np.rint(soft.clip(0, 255)).astype(np.uint8)).permute(0, 3, 1, 2)


def people(count: int = 12, side: int = 48, seed: int = 0) -> Batch:
    generator = seeded(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Batch(
        images=pictures(count, side, seed),
        keypoints_2d=normal(count, 49, 3),
        keypoints_3d=normal(count, 49, 4),
        rotmats=axis_angle_to_matrix(normal(count, 24, 3)),
        betas=normal(count, 10),
        has_smpl=torch.rand(count, generator=generator) < 0.5,
    )


def still(count: int) -> Warp:
    """The warp that changes nothing."""
    return Warp(angle=torch.zeros(count), scale=torch.ones(count), shift=torch.zeros(count, 2))


def changes(config: AugmentConfig, count: int, seed: int = 0) -> Changes:
    return draw_changes(config, count, seeded(seed), CPU)


def both(monkeypatch: pytest.MonkeyPatch, batch: Batch, config: AugmentConfig, seed: int
         ) -> tuple[Batch, Batch]:  # fmt: skip
    """The batch as on a CPU, and as on other devices."""
    ours = augment(batch, config, seeded(seed))
    with monkeypatch.context() as patch:
        patch.setattr(hmr.augment, "change_one_by_one", change_together)
        return ours, augment(batch, config, seeded(seed))


def same_labels(one: Batch, other: Batch) -> bool:
    names = [f.name for f in fields(Batch) if f.name != "images"]
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in ((getattr(one, n), getattr(other, n)) for n in names)
    )


@pytest.mark.parametrize("side", [48, 63])
@pytest.mark.parametrize("name", INTERPOLATED)
def test_as_torch_does_it_but_for_rounding(
    name: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On average a tenth of a level, and never a fifth over the picture of one person; OpenCV's
    fixed point and the bytes between smoothing and warp are seldom three levels apart."""
    for seed in range(4):
        batch = people(side=side, seed=seed)
        ours, theirs = both(monkeypatch, batch, INTERPOLATED[name], seed)
        assert same_labels(ours, theirs)
        assert not torch.equal(ours.images, batch.images)
        difference = (ours.images.int() - theirs.images.int()).abs().float()
        assert difference.mean() < 0.15
        assert difference.mean((1, 2, 3)).max() < 0.3
        assert (difference > 3).float().mean() < 1e-3
        assert difference.max() <= 20  # at the borders of the old picture


@pytest.mark.parametrize("name", EXACT)
def test_flips_noise_and_boxes_are_the_same_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(4):
        ours, theirs = both(monkeypatch, people(seed=seed), EXACT[name], seed)
        assert same_labels(ours, theirs)
        assert torch.equal(ours.images, theirs.images)


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig()], ids=["everything", "default"])
def test_neither_threads_nor_memory_layout_matter(
    config: AugmentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(7, 48, seed=1)
    drawn = changes(config, 7)

    def changed(pictures: Tensor, threads: int) -> Tensor:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return change_one_by_one(pictures, drawn)

    alone = changed(images, 1)
    assert torch.equal(changed(images.contiguous(), 1), alone)
    assert all(torch.equal(changed(images, threads), alone) for threads in (2, 3, 16))
    assert torch.equal(images, pictures(7, 48, seed=1))


def test_nobody_and_nothing() -> None:
    images = pictures(2, 16, seed=0)
    assert change_one_by_one(images, changes(AugmentConfig(preset="none"), 2)) is images
    empty = change_one_by_one(images[:0], changes(EVERYTHING, 0))
    assert empty.shape == (0, 3, 16, 16)


@pytest.mark.parametrize("side", [16, 17])
def test_whole_pixels_quarter_turns_and_mirror_images_are_exact(side: int) -> None:
    images = pictures(4, side, seed=2)
    warp = replace(
        still(4),
        angle=torch.tensor([0.0, math.pi / 2, 0.0, -math.pi / 2]),
        shift=torch.tensor([[0.0, 0.0], [0.0, 0.0], [2 * 3 / side, -2 * 5 / side], [0.0, 0.0]]),
    )
    flipped = torch.tensor([False, False, True, True])
    plain = changes(AugmentConfig(preset="none"), 4)
    seen = change_one_by_one(images, replace(plain, warp=warp, flipped=flipped))
    shifted = torch.zeros_like(images[2])
    shifted[:, 5:, :-3] = images[2, :, :-5, 3:]  # the box goes 3 px to the right and 5 up
    expected = [
        images[0],
        torch.rot90(images[1], 1, (1, 2)),
        shifted.flip(-1),
        torch.rot90(images[3], -1, (1, 2)).flip(-1),
    ]
    assert torch.equal(seen, torch.stack(expected))


def test_pixel_maps_by_hand() -> None:
    """In a picture of 8 pixels the middle is 3.5; a box of twice the side begins 4 pixels before
    the picture, and each of its pixels is two of the picture's."""
    shift = torch.tensor([[0.0, 0.0], [0.25, 0.0]])
    warp = replace(still(2), scale=torch.tensor([2.0, 1.0]), shift=shift)
    found = pixel_maps(warp, torch.tensor([False, True]), 8)
    np.testing.assert_allclose(found[0], [[2, 0, -3.5], [0, 2, -3.5]], atol=1e-12)
    # A quarter of the half side is one pixel: the first column shows the last but for that one.
    np.testing.assert_allclose(found[1], [[-1, 0, 8], [0, 1, 0]], atol=1e-12)


def test_only_people_who_shrink_are_smoothed() -> None:
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    board = (255 * ((x + y) % 2)).to(torch.uint8).expand(3, 3, -1, -1)
    warp = replace(still(3), scale=torch.tensor([1.0, 1.5, 1.05]))
    plain = changes(AugmentConfig(preset="none"), 3)
    seen = change_one_by_one(board, replace(plain, warp=warp)).float()[..., 24:40, 24:40]
    assert torch.equal(seen[0], board[0, :, 24:40, 24:40].float())
    assert seen[1].std() < 2  # the board's own is 127.5
    assert 2 < seen[2].std() < 100


def test_a_gpu_is_asked_nothing() -> None:
    """No GPU is needed: the tensors only say that they are on one, and hold no numbers that could
    be asked for."""
    device = torch.device("cuda")
    with FakeTensorMode():
        images = torch.zeros(3, 3, 16, 16, dtype=torch.uint8, device=device)
        numbers = torch.rand(3, 12, device=device)
        drawn = Changes(
            config=EVERYTHING, warp=draw_warp(EVERYTHING, numbers[:, 0], numbers[:, :4]),
            flipped=numbers[:, 0] < 0.5, channels=numbers[:, :3], light=numbers[:, :3],
            boxes=numbers[:, :8],
        )  # fmt: skip
        changed = change_together(images, drawn)
        assert (changed.device.type, changed.dtype) == ("cuda", torch.uint8)
        with pytest.raises(DynamicOutputShapeException):
            images[drawn.flipped]  # how many?


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_does_the_same() -> None:
    batch = people()
    here = augment(batch, EVERYTHING, seeded(3))
    there = augment(batch.to("cuda"), EVERYTHING, seeded(3)).to("cpu")
    for name in ("keypoints_2d", "keypoints_3d", "rotmats"):
        torch.testing.assert_close(getattr(here, name), getattr(there, name))
    assert (here.images.int() - there.images.int()).abs().float().mean() < 0.15
