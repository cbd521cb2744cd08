"""The true mesh stands where its keypoints say, the predicted one where the model says."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.camera import project_weak, weak_to_translation
from hmr.camera_fit import fit_weak_camera
from hmr.crops import decode_image
from hmr.pose_prior import ARCHETYPES, rodrigues
from hmr.render import layer
from hmr.structures import Batch, Parameters
from hmr.validation_pictures import (
    CAPTION_HEIGHT,
    MIN_SIDE,
    ValidationPictures,
    captioned,
    picture_grid,
    to_png,
)

SIZE = 64
GAP = 4
POSES = ("walk", "sit", "up")
CAMERAS = torch.tensor([[0.9, 0.1, 0.2], [1.1, -0.2, 0.1], [0.7, 0.0, 0.3]])


@pytest.fixture(scope="module")
def body():
    return Body.embedded()


@pytest.fixture(scope="module")
def truth():
    """Three people, upright before the camera."""
    upright = np.diag([1.0, -1.0, -1.0])
    poses = np.stack([rodrigues(ARCHETYPES[name].reshape(24, 3)) for name in POSES])
    poses[:, 0] = upright @ poses[:, 0]
    return Parameters(
        rotmats=torch.tensor(poses, dtype=torch.float32),
        betas=torch.linspace(-1, 1, 30).reshape(3, 10), pred_cam=CAMERAS,
    )  # fmt: skip


@pytest.fixture
def batch(body, truth):
    landmarks = body.landmarks(truth.rotmats, truth.betas)
    keypoints = project_weak(landmarks, truth.pred_cam, SIZE)
    pixels = torch.randint(0, 256, (3, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    return Batch(
        images=pixels.to(torch.uint8), keypoints_2d=torch.cat([keypoints, torch.ones(3, 49, 1)], 2),
        keypoints_3d=torch.zeros(3, 49, 4), rotmats=truth.rotmats, betas=truth.betas,
        has_smpl=torch.ones(3, dtype=torch.bool), sample_ids=("a", "b", "c"),
    )  # fmt: skip


def cell(sheet, row, column, side=MIN_SIDE):
    """The picture in a row and column of a sheet, without its caption."""
    y, x = GAP + row * (side + CAPTION_HEIGHT + GAP), GAP + column * (side + GAP)
    return sheet[y : y + side, x : x + side]


def changed(sheet, row, column):
    """(S, S) where a picture differs from the crop of its row."""
    return (cell(sheet, row, column) != cell(sheet, row, 0)).any(-1)


# The camera


def test_the_fit_finds_the_camera_that_made_the_keypoints(body, truth):
    landmarks = body.landmarks(truth.rotmats, truth.betas)
    for size in (64, 224):
        keypoints = project_weak(landmarks.double(), truth.pred_cam.double(), size)
        found = fit_weak_camera(landmarks, keypoints, torch.ones(3, 49), size)
        torch.testing.assert_close(found, truth.pred_cam, atol=2e-6, rtol=0)


def test_unknown_keypoints_do_not_matter_whatever_stands_in_their_place(body, truth):
    landmarks = body.landmarks(truth.rotmats, truth.betas)
    keypoints = project_weak(landmarks, truth.pred_cam, SIZE)
    confidence = torch.ones(3, 49)
    confidence[:, ::2] = torch.tensor([0.0, -1.0, 0.0])[:, None]
    keypoints[:, ::2] = torch.tensor([9.0, torch.inf, torch.nan])[:, None, None]
    found = fit_weak_camera(landmarks, keypoints, confidence, SIZE)
    torch.testing.assert_close(found, truth.pred_cam, atol=1e-5, rtol=0)


def test_the_fit_is_the_least_squares_of_the_weighted_distances(body, truth):
    generator = torch.Generator().manual_seed(0)
    landmarks = body.landmarks(truth.rotmats, truth.betas)
    exact = project_weak(landmarks, truth.pred_cam, SIZE)
    keypoints = exact + 0.05 * torch.randn(exact.shape, generator=generator)
    confidence = torch.rand(3, 49, generator=generator)
    found = fit_weak_camera(landmarks, keypoints, confidence, SIZE)

    def cost(cameras):
        away = project_weak(landmarks.double(), cameras.double(), SIZE) - keypoints
        return (confidence * away.square().sum(-1)).sum(1)

    best = cost(found)
    for k in range(3):
        for step in (-5e-3, 5e-3):
            moved = found.clone()
            moved[:, k] += step
            assert (cost(moved) > best).all()


@pytest.mark.parametrize("known", [0, 1])
def test_without_two_keypoints_there_is_no_camera(body, truth, known):
    landmarks = body.landmarks(truth.rotmats, truth.betas)
    confidence = torch.zeros(3, 49)
    confidence[:, :known] = 1
    assert fit_weak_camera(landmarks, torch.zeros(3, 49, 2), confidence, SIZE).isnan().all()


def test_keypoints_that_only_a_mirrored_body_fits_give_no_camera(body, truth):
    landmarks = body.landmarks(truth.rotmats, truth.betas)
    keypoints = -project_weak(landmarks, truth.pred_cam, SIZE)
    assert fit_weak_camera(landmarks, keypoints, torch.ones(3, 49), SIZE).isnan().all()


# The sheet


def test_a_perfect_prediction_covers_the_same_pixels_as_the_truth(body, batch, truth):
    sheet = picture_grid(batch, truth, body)
    for row in range(3):
        both = changed(sheet, row, 1), changed(sheet, row, 2)
        assert both[0].sum() > 500
        # The cameras differ in the last bits, which may decide about a pixel of the edge.
        assert (both[0] != both[1]).sum() <= 3


def test_a_mesh_covers_its_projected_vertices_and_nothing_far_from_them(body, batch, truth):
    sheet = picture_grid(batch, truth, body)
    vertices = body(truth.rotmats, truth.betas).vertices
    pixels = (project_weak(vertices, truth.pred_cam, SIZE) + 1) / 2 * MIN_SIDE
    moved = (vertices + weak_to_translation(CAMERAS, SIZE)[:, None]).numpy()
    for row in range(3):
        _, alpha = layer(
            [moved[row]], body.arrays.faces, (MIN_SIDE, MIN_SIDE), (5000 * MIN_SIDE / SIZE,) * 2,
            (MIN_SIDE / 2, MIN_SIDE / 2),
        )  # fmt: skip
        silhouette = changed(sheet, row, 2)
        assert (silhouette[alpha == 0] == 0).all()
        inside = pixels[row].floor().long().numpy()
        inside = inside[((inside >= 0) & (inside < MIN_SIDE)).all(1)]
        near = np.zeros((MIN_SIDE, MIN_SIDE), np.uint8)
        near[inside[:, 1], inside[:, 0]] = 1
        covered = cv2.dilate(silhouette.astype(np.uint8), np.ones((3, 3)))
        assert covered[near == 1].all()
        assert (cv2.dilate(near, np.ones((13, 13)))[silhouette] == 1).all()


def test_a_prediction_elsewhere_moves_only_the_third_column(body, batch, truth):
    pictures = ValidationPictures(batch, body)
    first = pictures.sheet(truth)
    away = replace(truth, pred_cam=truth.pred_cam + torch.tensor([0.0, 0.3, 0.0]))
    second = pictures.sheet(away)
    for row in range(3):
        for column in (0, 1):
            assert (cell(first, row, column) == cell(second, row, column)).all()
        (_, x1), (_, x2) = (np.argwhere(changed(s, row, 2)).mean(0) for s in (first, second))
        # 0.3 m at s = 0.7…1.1 is 0.15 s of the side, less what leaves the picture.
        assert 0.5 * 0.15 * 0.7 * MIN_SIDE < x2 - x1 < 0.15 * 1.1 * MIN_SIDE + 1


def test_the_same_people_give_the_same_sheet(body, batch, truth):
    pictures = ValidationPictures(batch, body)
    assert (pictures.sheet(truth) == pictures.sheet(truth)).all()
    assert (pictures.sheet(truth) == picture_grid(batch, truth, body)).all()


def test_what_has_no_place_is_left_out_and_named(body, batch, truth):
    keypoints = batch.keypoints_2d.clone()
    keypoints[1, :, 2] = 0
    rotmats = batch.rotmats.clone()
    rotmats[0] = torch.nan
    lacking = replace(
        batch, keypoints_2d=keypoints, rotmats=rotmats, has_smpl=torch.tensor([False, True, True])
    )
    cameras = truth.pred_cam.clone()
    cameras[2, 1] = torch.nan
    sheet = picture_grid(lacking, replace(truth, pred_cam=cameras), body)
    drawn = [[bool(changed(sheet, row, column).any()) for column in (1, 2)] for row in range(3)]
    assert drawn == [[False, True], [False, True], [True, False]]
    strips = [
        sheet[GAP + row * (MIN_SIDE + CAPTION_HEIGHT + GAP) + MIN_SIDE :][:CAPTION_HEIGHT]
        for row in range(2)
    ]
    at = slice(2 * GAP + MIN_SIDE, 2 * GAP + 2 * MIN_SIDE)
    nothing = np.zeros((1, MIN_SIDE, 3), np.uint8)
    for strip, text in zip(strips, ("no label", "truth: no keypoints"), strict=True):
        assert (strip[:, at] == captioned(nothing, text)[1:]).all()


@pytest.mark.parametrize(("size", "side"), [(64, 192), (192, 192), (224, 224)])
def test_small_crops_are_shown_larger_and_large_ones_as_they_are(body, batch, truth, size, side):
    images = torch.full((3, 3, size, size), 90, dtype=torch.uint8)
    sheet = picture_grid(replace(batch, images=images), truth, body)
    assert sheet.shape == (
        3 * (side + CAPTION_HEIGHT + GAP) + GAP, 3 * (side + GAP) + GAP, 3,
    )  # fmt: skip
    assert (cell(sheet, 2, 0, side) == 90).all()


def test_long_names_keep_their_end():
    picture = np.zeros((4, 192, 3), np.uint8)
    name = "a/very/long/place/of/people/000123"
    assert (captioned(picture, name) == captioned(picture, ".." + name[-24:])).all()
    assert (captioned(picture, name) != captioned(picture, name[:-1] + "4")).any()
    assert (captioned(picture, name)[:4] == picture).all()


def test_a_png_holds_the_same_pixels(body, batch, truth):
    sheet = picture_grid(batch, truth, body)
    assert (decode_image(to_png(sheet)) == sheet).all()
