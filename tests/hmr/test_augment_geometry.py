"""Mirror images and warps: pixels, keypoints, 3D keypoints and rotations move together."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from hmr.augment_colour import to_bytes
from hmr.augment_geometry import (
    Warp,
    draw_warp,
    flip_labels,
    flip_rotations,
    warp_images,
    warp_labels,
)
from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import AugmentConfig
from hmr.crops import apply_affine, box_to_affine, crop_image
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr.skeleton import JOINT49_FLIP, joint49_index, smpl_index
from hmr.structures import Batch

TENSORS = [f.name for f in fields(Batch) if f.name != "sample_ids"]
MIRROR = torch.tensor([-1.0, 1.0, 1.0])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(count: int = 6, seed: int = 0, size: int = 16) -> Batch:
    generator = seeded(seed)

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


def random_warp(count: int = 6, seed: int = 0) -> Warp:
    generator = seeded(seed)
    return Warp(
        angle=2 * torch.randn(count, generator=generator),
        scale=1 + 0.3 * (2 * torch.rand(count, generator=generator) - 1),
        shift=0.2 * torch.randn(count, 2, generator=generator),
    )


def one_warp(
    degrees: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0),
    count: int = 1,
) -> Warp:  # fmt: skip
    return Warp(
        angle=torch.full((count,), math.radians(degrees)),
        scale=torch.full((count,), float(scale)),
        shift=torch.tensor([shift]).expand(count, 2),
    )


def flip_batch(batch: Batch) -> Batch:
    return replace(flip_labels(batch), images=batch.images.flip(-1))


def warp_batch(batch: Batch, warp: Warp) -> Batch:
    return replace(warp_labels(batch, warp), images=to_bytes(warp_images(batch.images, warp)))


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in TENSORS)


def close(one: Batch, other: Batch, atol: float) -> None:
    for name in TENSORS:
        pair = (getattr(batch, name) for batch in (one, other))
        if name == "images":
            first, second = (images.int() for images in pair)
            assert (first - second).abs().max() <= 1
        else:
            torch.testing.assert_close(*pair, atol=atol, rtol=0)


def view_turn(degrees: float) -> Tensor:
    """The rotation of camera axes under which the picture turns counter-clockwise: x goes to -y,
    which is up, and z is the axis."""
    return axis_angle_to_matrix(torch.tensor([0.0, 0.0, -math.radians(degrees)]))


# The mirror image


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


def labelled(body: Body, camera: Tensor, seed: int) -> Batch:
    """People whose keypoints are those of their SMPL labels, seen by a crop's weak camera."""
    batch = random_batch(len(camera), seed)
    landmarks = body.landmarks(batch.rotmats, batch.betas)
    confidence = torch.rand(len(camera), 49, 1, generator=seeded(seed))
    return replace(
        batch,
        keypoints_2d=torch.cat([project_weak(landmarks, camera, 16), confidence], -1),
        keypoints_3d=torch.cat([landmarks, confidence], -1),
    )


def cameras(count: int, seed: int) -> Tensor:
    return torch.tensor([0.9, 0.1, -0.2]) + 0.1 * torch.rand(count, 3, generator=seeded(seed))


def test_projection_of_the_flip_is_the_flip_of_the_projection(small_body: Body) -> None:
    """A batch whose labels are projections is, once flipped, a batch of projections again."""
    camera = cameras(4, seed=3)
    flipped = flip_batch(labelled(small_body, camera, seed=3))
    points, mirrored_camera = flipped.keypoints_3d[..., :3], camera * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(
        flipped.keypoints_2d[..., :2], project_weak(points, mirrored_camera, 16), atol=1e-5, rtol=0
    )


# Warps: the picture


def test_a_warp_to_the_same_box_changes_nothing() -> None:
    batch = random_batch()
    assert equal(warp_batch(batch, one_warp(count=6)), batch)


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_are_exact(quarters: int) -> None:
    images = random_batch(2).images
    turned = warp_images(images, one_warp(90 * quarters, count=2))
    expected = torch.rot90(images, quarters, (2, 3)).float()  # counter-clockwise, as seen
    torch.testing.assert_close(turned, expected, atol=1e-2, rtol=0)


def test_whole_pixels_are_shifted_exactly() -> None:
    images = random_batch(2).images.float()
    moved = warp_images(images, one_warp(shift=(2 * 3 / 16, -2 * 5 / 16), count=2))
    # The box goes 3 px to the right and 5 up: the content 3 to the left and 5 down.
    torch.testing.assert_close(moved[:, :, 5:, :-3], images[:, :, :-5, 3:], atol=1e-3, rtol=0)
    assert not moved[:, :, :5].any()
    assert not moved[:, :, :, -3:].any()


def smooth_picture(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] + 0.5
    waves = [np.sin(x / 7), np.cos(y / 6), np.sin((x - 0.7 * y) / 8)]
    return np.rint(128 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [
        (0, 1, (0.3, -0.1)), (37, 1, (0, 0)), (0, 0.7, (0, 0)), (0, 1.3, (0, 0)),
        (-70, 0.8, (0.1, 0.2)), (150, 1.25, (-0.2, 0.05)),
    ],
)  # fmt: skip
def test_same_map_as_a_crop(degrees: float, scale: float, shift: tuple[float, float]) -> None:
    """The device's warp of a crop and the data workers' crop of it agree in pixels and points."""
    side = 96
    picture = smooth_picture(side)
    affine = box_to_affine((1 + np.array(shift)) * side / 2, scale * side, side, degrees)
    batch = random_batch(1, size=side)
    batch = replace(batch, images=torch.from_numpy(picture).permute(2, 0, 1)[None])
    warped = warp_batch(batch, one_warp(degrees, scale, shift))

    pixels = side * (batch.keypoints_2d[0, :, :2].double().numpy() + 1) / 2
    expected = 2 * apply_affine(affine, pixels) / side - 1
    np.testing.assert_allclose(warped.keypoints_2d[0, :, :2].numpy(), expected, atol=1e-5)

    crop = crop_image(picture, affine, side).astype(int)
    difference = np.abs(warped.images[0].permute(1, 2, 0).numpy() - crop)
    # The black outside begins a fraction of a pixel apart: leave out a rim of the picture.
    white = crop_image(np.full((side, side, 3), 255, np.uint8), affine, side)
    inside = cv2.erode(white, np.ones((5, 5))) == 255
    assert inside.mean() > 0.3
    assert difference[inside].max() <= 4
    assert difference[inside].mean() < 1


@pytest.mark.parametrize("shrink", [1.1, 1.25, 1.3, 1.5])
@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_fine_detail_does_not_alias_when_shrinking(shrink: float, degrees: float) -> None:
    side = 120
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    patterns = 255.0 * torch.stack([(x + y) % 2, x % 2, y % 2]).float()[None]
    seen = warp_images(patterns, one_warp(degrees, shrink, (0.013, 0.007)))[..., 40:80, 40:80]
    assert (seen.mean((0, 2, 3)) - 127.5).abs().max() < 1
    assert seen.std((0, 2, 3)).max() < 4  # the patterns' own is 127.5


def test_people_who_do_not_shrink_stay_sharp() -> None:
    images = random_batch(1, size=64).images.float().expand(3, -1, -1, -1)
    warp = replace(one_warp(count=3), scale=torch.tensor([1.0, 1.0, 1.3]))
    assert torch.equal(warp_images(images, warp)[:2], images[:2])


# Warps: picture and keypoints


def test_dots_are_found_at_their_keypoints() -> None:
    side, count = 64, 40
    generator = seeded(5)
    places = 0.8 * (2 * torch.rand(count, 2, generator=generator) - 1)
    line = (2 * torch.arange(side) + 1) / side - 1
    squared = (line - places[:, :1]).square()[:, None] + (line - places[:, 1:]).square()[:, :, None]
    dots = (255 * torch.exp(-squared / (2 * (3 / side) ** 2))).round().to(torch.uint8)
    batch = random_batch(count, size=side)
    keypoints = batch.keypoints_2d.clone()
    keypoints[:, 7, :2] = places
    batch = replace(batch, images=dots[:, None].expand(-1, 3, -1, -1), keypoints_2d=keypoints)

    warped = warp_batch(batch, random_warp(count, seed=5))
    light = warped.images[:, 0].float()
    total = light.sum((1, 2))
    found = torch.stack([(light.sum(1) * line).sum(1), (light.sum(2) * line).sum(1)], -1)
    found /= total[:, None]
    expected = warped.keypoints_2d[:, 7, :2]
    whole = (expected.abs() < 1 - 10 / side).all(1)
    assert whole.sum() > count / 2
    # A twentieth of a pixel: bytes are rounded, nothing else.
    assert (found - expected)[whole].abs().max() < 2 * 0.05 / side
    assert ((expected - places)[whole].norm(dim=-1) > 0.2).sum() > count / 3


def test_keypoints_that_leave_the_crop_keep_their_confidence() -> None:
    batch = random_batch()
    warped = warp_batch(batch, random_warp())
    outside = (warped.keypoints_2d[..., :2].abs() > 1).any(-1)
    assert outside.any()
    assert torch.equal(warped.keypoints_2d[..., 2], batch.keypoints_2d[..., 2])
    assert torch.equal(warped.keypoints_3d[..., 3], batch.keypoints_3d[..., 3])


# Warps: 3D labels


def test_turns_of_the_picture_turn_the_root_about_the_viewing_axis() -> None:
    batch = random_batch(1)
    warped = warp_batch(batch, one_warp(33.0, 1.2, (0.1, 0.2)))
    expected = view_turn(33.0) @ batch.rotmats[:, 0]
    torch.testing.assert_close(warped.rotmats[:, 0], expected, atol=1e-6, rtol=0)
    assert torch.equal(warped.rotmats[:, 1:], batch.rotmats[:, 1:])
    assert torch.equal(warped.betas, batch.betas)
    assert torch.equal(warped.has_smpl, batch.has_smpl)
    points = batch.keypoints_3d[..., :3] @ view_turn(33.0).mT
    torch.testing.assert_close(warped.keypoints_3d[..., :3], points, atol=1e-6, rtol=0)


def test_a_standing_person_turned_by_ninety_degrees_points_left() -> None:
    """Counter-clockwise: what was above (y = -1, down is positive) is then on the left."""
    batch = random_batch(1)
    head = torch.tensor([0.0, -1.0, 5.0, 1.0])
    batch = replace(batch, keypoints_3d=head.expand(1, 49, 4))
    turned = warp_batch(batch, one_warp(90)).keypoints_3d[0, 0]
    torch.testing.assert_close(turned, torch.tensor([-1.0, 0.0, 5.0, 1.0]), atol=1e-6, rtol=0)


def test_zoom_and_shift_leave_metres_alone() -> None:
    batch = random_batch(1)
    warped = warp_batch(batch, one_warp(scale=0.8, shift=(0.3, 0.1)))
    assert torch.equal(warped.keypoints_3d, batch.keypoints_3d)
    assert torch.equal(warped.rotmats, batch.rotmats)


def test_keypoints_and_pose_stay_one_person(small_body: Body) -> None:
    """The body of the warped pose has the warped 3D keypoints, but for where its origin is."""
    batch = labelled(small_body, cameras(6, seed=8), seed=8)
    warped = warp_batch(batch, random_warp(seed=8))
    landmarks = small_body.landmarks(warped.rotmats, warped.betas)
    offset = landmarks - warped.keypoints_3d[..., :3]
    torch.testing.assert_close(offset, offset[:, :1].expand_as(offset), atol=1e-5, rtol=0)


def flat_projection(points: Tensor, camera: Tensor) -> Tensor:
    """The weak camera itself: s (x + tx, y + ty), without the distant point of view."""
    return camera[:, None, :1] * (points[..., :2] + camera[:, None, 1:])


def warped_camera(camera: Tensor, warp: Warp) -> Tensor:
    """The weak camera that sees a turned person where the warp puts its picture."""
    x, y = (camera[:, 1:] - warp.shift / camera[:, :1]).unbind(-1)
    cos, sin = warp.angle.cos(), warp.angle.sin()
    return torch.stack([camera[:, 0] / warp.scale, cos * x + sin * y, cos * y - sin * x], -1)


def test_projection_of_the_warp_is_the_warp_of_the_projection(small_body: Body) -> None:
    camera, warp = cameras(6, seed=9), random_warp(seed=9)
    batch = labelled(small_body, camera, seed=9)
    seen = flat_projection(batch.keypoints_3d[..., :3], camera)
    flat = replace(batch, keypoints_2d=torch.cat([seen, batch.keypoints_2d[..., 2:]], -1))
    warped = warp_batch(flat, warp)
    again = flat_projection(warped.keypoints_3d[..., :3], warped_camera(camera, warp))
    torch.testing.assert_close(warped.keypoints_2d[..., :2], again, atol=1e-5, rtol=0)


def test_the_same_under_the_distant_point_of_view(small_body: Body) -> None:
    """Turns commute with the perspective camera exactly; zooms and shifts up to the depth of the
    body over its distance, here less than a hundredth of the crop."""
    camera, warp = cameras(6, seed=10), random_warp(seed=10)
    batch = labelled(small_body, camera, seed=10)
    turn = replace(warp, scale=torch.ones(6), shift=torch.zeros(6, 2))
    for one, tolerance in ((turn, 1e-5), (warp, 2e-2)):
        warped = warp_batch(batch, one)
        again = project_weak(warped.keypoints_3d[..., :3], warped_camera(camera, one), 16)
        torch.testing.assert_close(warped.keypoints_2d[..., :2], again, atol=tolerance, rtol=0)


def test_a_warp_of_the_mirror_image_is_the_mirror_image_of_the_opposite_warp() -> None:
    batch, warp = random_batch(size=48), random_warp()
    opposite = Warp(
        angle=-warp.angle, scale=warp.scale, shift=warp.shift * torch.tensor([-1.0, 1.0])
    )
    close(flip_batch(warp_batch(batch, warp)), warp_batch(flip_batch(batch), opposite), 1e-5)


def test_people_do_not_influence_each_other() -> None:
    batch, warp = random_batch(), random_warp()
    rows = torch.tensor([4, 1])
    alone = Batch(**{name: getattr(batch, name)[rows] for name in TENSORS})
    part = warp_batch(alone, Warp(**{f.name: getattr(warp, f.name)[rows] for f in fields(Warp)}))
    whole = warp_batch(batch, warp)
    assert equal(part, Batch(**{name: getattr(whole, name)[rows] for name in TENSORS}))


def test_the_batch_itself_stays_as_it_was() -> None:
    batch = random_batch()
    warp_batch(batch, random_warp())
    flip_batch(batch)
    assert equal(batch, random_batch())


# Draws


def drawn(config: AugmentConfig, count: int = 4000) -> Warp:
    generator = seeded(12)
    chance = torch.rand(count, generator=generator)
    return draw_warp(config, chance, torch.randn(count, 4, generator=generator))


def share(mask: Tensor) -> float:
    return float(mask.float().mean())


def test_the_draws_of_spin() -> None:
    warp = drawn(AugmentConfig(preset="spin"))
    degrees = warp.angle.rad2deg()
    turned = degrees[degrees != 0]
    # 4000 people: four standard deviations of a share near one half are 0.03.
    assert share(degrees == 0) == pytest.approx(0.6, abs=0.03)
    assert float(turned.abs().max()) == pytest.approx(60, abs=1e-3)
    assert share(turned.abs() < 30) == pytest.approx(0.683, abs=0.05)
    assert share(turned.abs() > 59.99) == pytest.approx(0.0455, abs=0.025)
    assert float(warp.scale.min()) == pytest.approx(0.75, abs=1e-6)
    assert float(warp.scale.max()) == pytest.approx(1.25, abs=1e-6)
    assert share((warp.scale - 1).abs() > 0.2499) == pytest.approx(0.317, abs=0.03)
    assert not warp.shift.any()


def test_the_draws_of_hmr2() -> None:
    warp = drawn(AugmentConfig(preset="hmr2"))
    assert share(warp.angle == 0) == pytest.approx(0.4, abs=0.03)
    assert float(warp.scale.max()) == pytest.approx(1.3, abs=1e-6)
    # Two hundredths of the side are four hundredths of its half.
    assert float(warp.shift.abs().max()) == pytest.approx(0.04, abs=1e-6)
    assert share(warp.shift.abs() > 0.0399) == pytest.approx(0.317, abs=0.03)
    mixed = torch.stack([warp.angle, warp.scale, *warp.shift.unbind(-1)])
    off_diagonal = torch.corrcoef(mixed) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.08
