"""The z-buffer against its reference and against geometry, and what is drawn with it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from hmr.body_arrays import body_from_path, lbs_numpy
from hmr.camera import perspective_projection
from hmr.pose_prior import ARCHETYPES, rodrigues
from hmr.raster import Light, _draw_numpy, rasterize, shade, vertex_normals
from hmr.render import error_colors, layer, overlay, portrait, turned

UPRIGHT = np.diag([1.0, -1.0, -1.0])


@pytest.fixture(scope="module")
def body():
    return body_from_path("embedded")


def posed(body, name, place=(0, 0, 4)):
    rotmats = rodrigues(ARCHETYPES[name].reshape(1, 24, 3))
    return lbs_numpy(body, rotmats, np.zeros((1, 10)))[0][0] @ UPRIGHT.T + place


def triangle(points, z=1.0):
    """Pixels on a plane where a metre is a pixel, seen from the front."""
    vertices = np.array([[x * z, y * z, z] for x, y in points], float)
    return vertices, np.array([[0, 1, 2]])


def drawn(vertices, faces, size=8, colors=None):
    colors = np.ones((len(vertices), 3)) if colors is None else colors
    return rasterize(
        vertices, faces, colors, focal=(1, 1), center=(0, 0), background=np.zeros((size, size, 3))
    )


def test_a_triangle_covers_the_pixels_whose_centres_lie_inside():
    # The half of the square 0..4 below its diagonal.
    vertices, faces = triangle([(0, 0), (0, 4), (4, 4)])
    expected = np.full((8, 8), -1)
    for row in range(4):
        for column in range(row + 1):
            expected[row, column] = 0
    np.testing.assert_array_equal(drawn(vertices, faces).face, expected)


def test_a_triangle_that_turns_its_back_is_not_drawn():
    vertices, faces = triangle([(0, 0), (4, 4), (0, 4)])
    assert (drawn(vertices, faces).face == -1).all()


def test_the_nearer_triangle_hides_the_farther_one_in_any_order():
    near, faces = triangle([(0, 0), (0, 6), (6, 6)], z=1.0)
    far, _ = triangle([(0, 0), (0, 8), (8, 8)], z=3.0)
    for first, second, expected in ((near, far, 0), (far, near, 1)):
        both = drawn(np.concatenate([first, second]), np.concatenate([faces, faces + 3]))
        assert both.face[4, 1] == expected
        assert both.inverse_depth[4, 1] == pytest.approx(1.0)
        assert both.face[7, 1] == 1 - expected, "beyond the near one the far one is seen"


def test_what_is_behind_or_at_the_camera_is_left_out():
    vertices, faces = triangle([(0, 0), (0, 4), (4, 4)])
    for z in (-1.0, 0.0, 0.04):
        moved = vertices.copy()
        moved[:, 2] = z
        assert (drawn(moved, faces).face == -1).all()


def test_colours_are_interpolated_in_perspective():
    vertices = np.array([[0, 0, 1], [0, 80, 10], [80, 80, 10]], float)
    colors = vertices[:, 2:] * [1, 1, 1]  # the colour is the depth
    result = drawn(vertices, np.array([[0, 1, 2]]), colors=colors)
    seen = result.face >= 0
    assert seen.sum() > 20
    np.testing.assert_allclose(result.color[seen][:, 0], 1 / result.inverse_depth[seen], rtol=1e-5)


@pytest.mark.parametrize("pose", ["tpose", "sit", "run", "squat"])
def test_numba_and_numpy_draw_the_same(body, pose):
    vertices = posed(body, pose)
    colors = np.random.default_rng(0).random(vertices.shape)
    options = {"focal": (260, 250), "center": (100.3, 90.7), "background": np.zeros((180, 200, 3))}
    ours = rasterize(vertices, body.faces, colors, **options)
    reference = rasterize(vertices, body.faces, colors, draw=_draw_numpy, **options)
    np.testing.assert_array_equal(ours.face, reference.face)
    np.testing.assert_array_equal(ours.inverse_depth, reference.inverse_depth)
    np.testing.assert_allclose(ours.color, reference.color, atol=1e-6)
    assert (ours.face >= 0).sum() > 1000


def test_it_works_without_numba():
    code = """
import sys
sys.modules["numba"] = None
import numpy as np
from hmr.raster import _draw_numpy, draw, vertex_normals
from hmr.render import portrait
assert draw is _draw_numpy
points = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0.]])
picture = portrait(points, np.array([[0, 1, 2]]), 32)
assert (picture != picture[0, 0]).any()
print(vertex_normals(points, np.array([[0, 1, 2]]))[0].round(6).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0.0, 0.0, -1.0]"


def test_the_picture_agrees_with_the_loss_projection(body):
    """Every vertex of a front face falls on or beside a drawn pixel, and nothing else is drawn."""
    vertices = posed(body, "wave")
    focal, center = (300.0, 310.0), (128.0, 120.0)
    result = rasterize(
        vertices, body.faces, np.ones_like(vertices), focal=focal, center=center,
        background=np.zeros((256, 256, 3)),
    )  # fmt: skip
    points = torch.tensor(vertices)[None]
    pixels = perspective_projection(
        points, torch.zeros(1, 3, dtype=points.dtype), torch.tensor([focal]), torch.tensor([center])
    )[0].numpy()  # fmt: skip
    rows, columns = np.nonzero(result.face >= 0)
    # The tip of a finger is thinner than a pixel.
    assert abs(columns.min() + 0.5 - pixels[:, 0].min()) < 2
    assert abs(columns.max() + 0.5 - pixels[:, 0].max()) < 2
    assert abs(rows.min() + 0.5 - pixels[:, 1].min()) < 2
    assert abs(rows.max() + 0.5 - pixels[:, 1].max()) < 2
    near = np.zeros((258, 258), bool)
    for dy in range(3):
        for dx in range(3):
            near[dy : dy + 256, dx : dx + 256] |= result.face >= 0
    inside = pixels.astype(int) + 1
    assert near[inside[:, 1], inside[:, 0]].all()


def test_normals_of_a_sphere_point_outwards():
    rng = np.random.default_rng(0)
    from scipy.spatial import ConvexHull

    points = rng.standard_normal((400, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    hull = ConvexHull(points)
    faces = hull.simplices.copy()
    a, b, c = (points[faces[:, k]] for k in range(3))
    inward = (np.cross(b - a, c - a) * a).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    assert ((vertex_normals(points, faces) * points).sum(1) > 0.97).all()


def test_light_from_the_front_makes_the_front_brightest():
    normals = np.array([[0, 0, -1.0], [1, 0, 0], [0, 0, 1.0]])
    light = Light((0, 0, -1), ambient=0.3, diffuse=0.7, sky=0.0, specular=0.0)
    bright = shade(normals, np.ones(3), light)[:, 0]
    np.testing.assert_allclose(bright, [1.0, 0.3, 0.3 + 0.7 * 0.075])


def test_an_overlay_changes_only_what_the_body_covers_and_mixes_at_its_edge(body):
    image = np.full((120, 100, 3), 200, np.uint8)
    mesh = posed(body, "stand")
    camera = ((150, 150), (50, 60))
    result = overlay(image, [mesh], body.faces, *camera)
    color, alpha = layer([mesh], body.faces, (100, 120), *camera)
    assert (result[alpha == 0] == 200).all()
    assert set(np.unique(alpha)) <= {0, 0.25, 0.5, 0.75, 1}
    assert 0 < ((alpha > 0) & (alpha < 1)).sum() < (alpha == 1).sum()
    whole = alpha == 1
    np.testing.assert_allclose(result[whole], 0.15 * 200 + 0.85 * 255 * color[whole], atol=0.51)
    assert (overlay(image, [], body.faces, *camera) == image).all()
    assert (result == overlay(image, [mesh], body.faces, *camera)).all()


def test_the_nearer_person_is_in_front_whatever_the_order(body):
    image = np.zeros((120, 120, 3), np.uint8)
    near, far = posed(body, "stand", (0, 0, 3)), posed(body, "stand", (0.1, 0, 5))
    colors = [(1, 0, 0), (0, 0, 1)]
    camera = ((130, 130), (60, 60))
    first = overlay(image, [near, far], body.faces, *camera, colors=colors)
    second = overlay(image, [far, near], body.faces, *camera, colors=colors[::-1])
    np.testing.assert_array_equal(first, second)
    alone = overlay(image, [near], body.faces, *camera, colors=colors[:1])
    covered = layer([near], body.faces, (120, 120), *camera)[1] == 1
    np.testing.assert_array_equal(first[covered], alone[covered])


def test_a_quarter_turn_shows_the_depth_as_width(body):
    mesh = posed(body, "tpose")
    side = turned(mesh, 90)
    np.testing.assert_allclose(np.ptp(side, axis=0), np.ptp(mesh, axis=0)[[2, 1, 0]])
    np.testing.assert_allclose(turned(side, -90), mesh, atol=1e-12)
    picture = portrait(mesh, body.faces, 64)
    assert picture.shape == (64, 64, 3)
    assert (picture[0, 0] == [245, 246, 248]).all()


def test_error_colours_run_from_blue_to_red():
    none, half, most = error_colors(np.array([0.0, 50.0, 500.0]), 100.0)
    assert none[2] > none[0]
    assert most[0] > most[2]
    assert half[1] > max(half[0], half[2])
