"""Laws of smoothing: what moves evenly stays, jitter goes, axes and signs do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmr.errors import DataError
from hmr.metric_extras import acceleration_errors
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle, rotation_angle
from hmr.smoothing import fill_points, fill_rotations, smooth_points, smooth_rotations

FPS = 30.0


def drawn(*shape, seed=0, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(shape, generator=generator, dtype=torch.float64)


def turning(frames, joints, seed=0, size=0.1):
    """Every joint turns about an axis of its own, at a constant speed."""
    start, speed = (
        axis_angle_to_matrix(drawn(joints, 3, seed=seed)),
        drawn(joints, 3, seed=seed + 1),
    )
    times = torch.arange(frames, dtype=torch.float64)[:, None, None]
    return start @ axis_angle_to_matrix(times * size * speed)


def swinging(frames, joints, seed=0):
    times = torch.arange(frames, dtype=torch.float64)[:, None, None] / FPS
    phase, size = drawn(1, joints, 3, seed=seed), drawn(1, joints, 3, seed=seed + 1, size=0.4)
    return axis_angle_to_matrix(size * torch.sin(2 * torch.pi * 0.5 * times + phase))


def jittered(rotations, seed=7, size=0.03):
    return rotations @ axis_angle_to_matrix(drawn(*rotations.shape[:2], 3, seed=seed, size=size))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 60])
@pytest.mark.parametrize("size", [0.0, 0.1, 0.6])
def test_motion_at_a_constant_speed_is_left_as_it_is(frames, size):
    rotations = turning(frames, 24, size=size)
    torch.testing.assert_close(smooth_rotations(rotations, FPS), rotations, atol=1e-9, rtol=0)
    points = drawn(1, 2, 3) + torch.arange(frames).double()[:, None, None] * size * drawn(1, 2, 3)
    torch.testing.assert_close(smooth_points(points, FPS), points, atol=1e-9, rtol=0)


def test_the_jitter_of_a_still_person_gets_smaller():
    still = turning(200, 24, size=0.0)
    noisy = jittered(still)
    smooth = smooth_rotations(noisy, FPS)
    before, after = (rotation_angle(still, some).square().mean() for some in (noisy, smooth))
    assert after < 0.15 * before
    # Nowhere is it larger, the ends included.
    per_frame = rotation_angle(still, smooth).square().mean(1)
    assert per_frame.max() < before
    places = drawn(200, 1, 3, size=0.02)
    assert smooth_points(places, FPS).var(0).mean() < 0.15 * places.var(0).mean()


def test_a_swinging_person_is_followed_without_lag_and_nearer_to_the_truth():
    truth = swinging(240, 24)
    noisy = jittered(truth)
    smooth = smooth_rotations(noisy, FPS)
    before, after = (rotation_angle(truth, some).mean() for some in (noisy, smooth))
    assert after < 0.6 * before
    clean = smooth_rotations(truth, FPS)
    errors = [
        rotation_angle(clean[2:-2], truth[2 + lag : 238 + lag]).mean() for lag in (-2, -1, 0, 1, 2)
    ]
    assert np.argmin(errors) == 2, "no lag"


def test_the_acceleration_error_falls():
    truth = swinging(120, 4)
    noisy = jittered(truth)
    limbs = torch.tensor([0.0, 0.4, 0.0], dtype=torch.float64)
    frames, tracks = np.arange(120), np.zeros(120, int)
    errors = [
        acceleration_errors(some @ limbs, truth @ limbs, tracks, frames)[1].mean()
        for some in (noisy, smooth_rotations(noisy, FPS))
    ]
    assert errors[1] < 0.3 * errors[0]


def test_the_choice_of_axes_and_of_signs_does_not_matter():
    noisy = jittered(swinging(50, 24))
    turn = axis_angle_to_matrix(torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64))
    torch.testing.assert_close(
        smooth_rotations(turn @ noisy, FPS), turn @ smooth_rotations(noisy, FPS),
        atol=1e-9, rtol=0,
    )  # fmt: skip
    places = drawn(50, 1, 3)
    torch.testing.assert_close(
        smooth_points(places @ turn.T + 5, FPS), smooth_points(places, FPS) @ turn.T + 5,
        atol=1e-9, rtol=0,
    )  # fmt: skip
    # A turn past pi, where axis-angles jump to the other side.
    around = jittered(turning(80, 6, size=0.2), size=0.01)
    vectors = matrix_to_axis_angle(around)
    assert (vectors[1:] - vectors[:-1]).norm(dim=-1).max() > 3, "the input does jump"
    smooth = smooth_rotations(around, FPS)
    assert rotation_angle(smooth, around).max() < 0.06


def test_played_backwards_it_is_the_same():
    noisy = jittered(swinging(40, 3))
    torch.testing.assert_close(
        smooth_rotations(noisy.flip(0), FPS), smooth_rotations(noisy, FPS).flip(0),
        atol=1e-9, rtol=0,
    )  # fmt: skip


def test_gaps_are_crossed_evenly():
    rotations, points = turning(30, 5, size=0.1), drawn(1, 1, 3) * torch.arange(30)[:, None, None]
    seen = np.array([0, 1, 2, 7, 8, 15, 29])
    torch.testing.assert_close(fill_rotations(rotations[seen], seen), rotations)
    torch.testing.assert_close(fill_points(points[seen], seen), points)
    torch.testing.assert_close(fill_points(points[seen][:1], seen[:1] + 4), points[:1])
    with pytest.raises(DataError, match="ascending"):
        fill_points(points[[3, 3]], np.array([3, 3]))


def test_settings_without_a_meaning_are_refused():
    still = turning(4, 1)
    for wrong in ({"fps": 0}, {"fps": FPS, "min_cutoff": 0}, {"fps": FPS, "beta": -1.0},
                  {"fps": float("nan")}):  # fmt: skip
        with pytest.raises(DataError, match="must be"):
            smooth_rotations(still, **wrong)
