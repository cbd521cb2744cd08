"""Cameras: hand values, linearity laws, and crop against full frame."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hmr.camera import (
    FOCAL_LENGTH,
    crop_to_full,
    default_focal,
    perspective_projection,
    project_weak,
    weak_to_translation,
)
from hmr.crops import apply_affine, box_to_affine, invert_affine

B, N = 16, 30
CROP = 224


def random_points(seed: int = 0) -> Tensor:
    """Points the size of a person around the origin, metres."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor([0.5, 0.9, 0.4], dtype=torch.float64)
    return (2 * torch.rand(B, N, 3, generator=generator, dtype=torch.float64) - 1) * extent


def random_cameras(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.tensor([0.5, -0.3, -0.3], dtype=torch.float64)
    high = torch.tensor([1.2, 0.3, 0.3], dtype=torch.float64)
    return low + (high - low) * torch.rand(B, 3, generator=generator, dtype=torch.float64)


def random_boxes(seed: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, sides and image sizes of boxes in photographs, pixels."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(500, 2500, (B, 2), generator=generator).double()
    center = size * (0.2 + 0.6 * torch.rand(B, 2, generator=generator, dtype=torch.float64))
    side = 150 + 500 * torch.rand(B, generator=generator, dtype=torch.float64)
    return center, side, size


def crop_pixels_in_frame(points: Tensor, cameras: Tensor, center: Tensor, side: Tensor) -> Tensor:
    """What the crop's camera sees, moved to frame pixels through the crop's own affine."""
    in_crop = (project_weak(points, cameras, CROP) + 1) * CROP / 2
    frames = []
    for pixels, c, b in zip(in_crop, center, side, strict=True):
        affine = invert_affine(box_to_affine(c.numpy(), float(b), CROP))
        frames.append(torch.from_numpy(apply_affine(affine, pixels.numpy())))
    return torch.stack(frames)


def test_default_focal_is_the_diagonal_and_sees_about_53_degrees_of_it() -> None:
    assert default_focal(3, 4) == 5
    assert default_focal(1920, 1080) == pytest.approx(math.sqrt(1920**2 + 1080**2))
    diagonal = default_focal(640, 480)
    field_of_view = 2 * math.degrees(math.atan(diagonal / 2 / diagonal))
    assert field_of_view == pytest.approx(53.13, abs=0.01)


def test_the_start_camera_stands_at_the_published_distance() -> None:
    translation = weak_to_translation(torch.tensor([[0.9, 0.1, -0.2]]), 224)
    torch.testing.assert_close(translation, torch.tensor([[0.1, -0.2, 49.6032]]))


def test_a_scale_of_zero_gives_a_finite_translation() -> None:
    assert bool(torch.isfinite(weak_to_translation(torch.zeros(1, 3), 224)).all())


def test_projection_by_hand() -> None:
    points = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]])
    translation = torch.tensor([[1.0, 0.0, 1.0]])
    pixels = perspective_projection(points, translation, 100.0, (10.0, 20.0))
    assert pixels.tolist() == [[[60.0, 70.0], [110.0, 20.0]]]
    without_center = perspective_projection(points, translation, 100.0)
    assert without_center.tolist() == [[[50.0, 50.0], [100.0, 0.0]]]


def test_every_spelling_of_the_focal_length_means_the_same() -> None:
    points, translation = random_points(), torch.tensor([[0.0, 0.0, 5.0]]).double().expand(B, 3)
    center = torch.tensor([320.0, 240.0]).double()
    reference = perspective_projection(points, translation, 600.0, (320.0, 240.0))
    for focal in (torch.full((B,), 600.0), torch.full((B, 2), 600.0), torch.tensor(600.0)):
        ours = perspective_projection(points, translation, focal.double(), center.expand(B, 2))
        assert torch.equal(ours, reference)
    unequal = perspective_projection(
        points, translation, torch.tensor([[600.0, 300.0]]).double().expand(B, 2), center
    )
    torch.testing.assert_close(unequal[..., 0], reference[..., 0])
    torch.testing.assert_close(unequal[..., 1] - 240, (reference[..., 1] - 240) / 2)


def test_each_person_of_a_batch_has_his_own_camera() -> None:
    points, cameras = random_points(), random_cameras()
    focal = torch.linspace(300, 900, B, dtype=torch.float64)
    center = torch.rand(B, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    translation = weak_to_translation(cameras, CROP, focal)
    together = perspective_projection(points, translation, focal, center)
    alone = [
        perspective_projection(
            points[i : i + 1], translation[i : i + 1], float(focal[i]), center[i]
        )
        for i in range(B)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_points_on_one_ray_share_a_pixel() -> None:
    points, origin = random_points() + torch.tensor([0, 0, 4.0]), torch.zeros(B, 3).double()
    near = perspective_projection(points, origin, 500.0, (1.0, 2.0))
    far = perspective_projection(7 * points, origin, 500.0, (1.0, 2.0))
    torch.testing.assert_close(near, far)


@pytest.mark.parametrize("crop_size", [64, 224, 256])
def test_weak_projection_of_the_camera_plane_is_s_times_xy_plus_t(crop_size: int) -> None:
    points, cameras = random_points(), random_cameras()
    points[..., 2] = 0
    expected = cameras[:, None, :1] * (points[..., :2] + cameras[:, None, 1:])
    torch.testing.assert_close(project_weak(points, cameras, crop_size), expected)


def test_weak_projection_is_spins_chain_of_pixels() -> None:
    points, cameras = random_points(), random_cameras()
    pixels = perspective_projection(
        points, weak_to_translation(cameras, CROP), FOCAL_LENGTH, (CROP / 2, CROP / 2)
    )
    torch.testing.assert_close(project_weak(points, cameras, CROP), 2 * pixels / CROP - 1)


def test_mirroring_the_person_and_tx_mirrors_the_picture() -> None:
    points, cameras = random_points(), random_cameras()
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    flipped = project_weak(points * mirror, cameras * torch.tensor([1.0, -1.0, 1.0]), CROP)
    torch.testing.assert_close(flipped, project_weak(points, cameras, CROP) * mirror[:2])


def test_crop_and_full_frame_agree_exactly_in_the_bodys_plane() -> None:
    points, cameras = random_points(), random_cameras()
    points[..., 2] = 0
    center, side, size = random_boxes()
    focal = torch.linspace(300, 4000, B, dtype=torch.float64)
    translation = crop_to_full(cameras, center, side, size, focal)
    full = perspective_projection(points, translation, focal, size / 2)
    torch.testing.assert_close(
        full, crop_pixels_in_frame(points, cameras, center, side), atol=1e-5, rtol=0
    )


def test_crop_and_full_frame_agree_exactly_for_a_centred_box_at_the_crops_focal_length() -> None:
    points, cameras = random_points(), random_cameras()
    _, side, size = random_boxes()
    focal = FOCAL_LENGTH * side / CROP
    translation = crop_to_full(cameras, size / 2, side, size, focal)
    full = perspective_projection(points, translation, focal, size / 2)
    torch.testing.assert_close(
        full, crop_pixels_in_frame(points, cameras, size / 2, side), atol=1e-5, rtol=0
    )


def test_crop_and_full_frame_agree_below_a_pixel_at_a_large_distance() -> None:
    points, cameras = 0.3 * random_points(), random_cameras()
    points[..., 2] *= 0.1
    center, side, size = random_boxes()
    focal = FOCAL_LENGTH * side / CROP
    translation = crop_to_full(cameras, center, side, size, focal)
    assert float(translation[:, 2].min()) > 30
    full = perspective_projection(points, translation, focal, size / 2)
    error = (full - crop_pixels_in_frame(points, cameras, center, side)).norm(dim=-1)
    assert 0 < float(error.max()) < 1


def test_the_full_frame_error_of_a_deep_body_falls_with_distance() -> None:
    points, cameras = random_points(), random_cameras()
    center, side, size = random_boxes()
    seen = crop_pixels_in_frame(points, cameras, center, side)
    errors = []
    for factor in (1.0, 10.0, 100.0):
        focal = factor * FOCAL_LENGTH * side / CROP
        translation = crop_to_full(cameras, center, side, size, focal)
        flat = seen - perspective_projection(points, translation, focal, size / 2)
        orthographic = cameras[:, None, :1] * (points[..., :2] + cameras[:, None, 1:])
        frame = center[:, None] + orthographic * side[:, None, None] / 2
        full = perspective_projection(points, translation, focal, size / 2)
        assert bool(torch.isfinite(flat).all())
        errors.append(float((full - frame).norm(dim=-1).max()))
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)
    assert errors[2] == pytest.approx(errors[1] / 10, rel=0.1)


def test_moving_a_box_moves_the_person_and_not_his_distance() -> None:
    cameras = random_cameras()
    center, side, size = random_boxes()
    focal = torch.full((B,), 1000.0, dtype=torch.float64)
    before = crop_to_full(cameras, center, side, size, focal)
    after = crop_to_full(cameras, center + torch.tensor([50.0, -20.0]), side, size, focal)
    torch.testing.assert_close(after[:, 2], before[:, 2])
    pixels = focal[:, None] * (after - before)[:, :2] / before[:, 2:]
    torch.testing.assert_close(pixels, torch.tensor([50.0, -20.0]).double().expand(B, 2))


def test_gradients_reach_every_camera_parameter() -> None:
    points, cameras = random_points(), random_cameras().requires_grad_()
    center, side, size = random_boxes()
    focal = torch.full((B,), 1000.0, dtype=torch.float64)

    def chain(cams: Tensor) -> Tensor:
        translation = crop_to_full(cams, center, side, size, focal)
        full = perspective_projection(points, translation, focal, size / 2)
        return full / size[:, None] + project_weak(points, cams, CROP)

    assert torch.autograd.gradcheck(chain, (cameras,), atol=1e-5)
