"""The z-buffer against its reference and against geometry, and what is drawn with it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.body_arrays import body_from_path, lbs_numpy
from hmr.camera import perspective_projection
from hmr.config import ModelConfig
from hmr.errors import ConfigError
from hmr.model import build_model
from hmr.pose_prior import ARCHETYPES, rodrigues
from hmr.predictor import Predictor
from hmr.raster import Light, _draw_numpy, rasterize, shade, vertex_normals
from hmr.render import layer, overlay, portrait, turned, view

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


FLAT = Light(ambient=1.0, diffuse=0.0, sky=0.0, specular=0.0)
"""Colours come out as they went in."""
METRE_IS_PIXEL = ((1, 1), (0, 0))


def test_coverage_and_colour_of_a_triangle_are_exact():
    vertices, faces = triangle([(0, 0), (0, 4), (4, 4)])
    image = np.full((6, 6, 3), 100, np.uint8)
    # Of the four samples of a pixel on the diagonal one lies outside; of 64 samples, 28.
    for samples, share in ((1, 1.0), (2, 0.75), (8, 36 / 64)):
        options = {"colors": [(1.0, 0.5, 0.0)], "light": FLAT, "supersampling": samples}
        color, alpha = layer([vertices], faces, (6, 6), *METRE_IS_PIXEL, **options)
        expected = np.zeros((6, 6))
        expected[:4, :4] = np.tril(np.ones((4, 4)), -1) + share * np.eye(4)
        np.testing.assert_array_equal(alpha, expected)
        np.testing.assert_allclose(color, expected[..., None] * [1.0, 0.5, 0.0], atol=1e-7)
        result = overlay(image, [vertices], faces, *METRE_IS_PIXEL, opacity=1.0, **options)
        assert result[2, 1].tolist() == [255, 128, 0]
        mixed = 100 * (1 - share) + share * np.array([255, 127.5, 0])
        np.testing.assert_array_equal(result[1, 1], mixed.round())
        assert (result[expected == 0] == 100).all()


def test_two_triangles_that_cross_show_the_nearer_one_at_each_pixel():
    # One plane at depth 2; the other runs from depth 1 on the left to 3 on the right.
    flat = np.array([[0, 0, 2], [0, 16, 2], [16, 0, 2]], float)
    tilted = np.array([[0, 0, 1], [0, 8, 1], [24, 0, 3]], float)
    faces = np.array([[0, 1, 2]])
    for order in ([flat, tilted], [tilted, flat]):
        colors = [(1, 0, 0) if mesh is flat else (0, 0, 1) for mesh in order]
        image = np.zeros((8, 8, 3), np.uint8)
        result = overlay(
            image, order, faces, *METRE_IS_PIXEL, colors=colors, light=FLAT, opacity=1.0
        )  # fmt: skip
        assert result[0, 0].tolist() == [0, 0, 255], "on the left the tilted one is nearer"
        assert result[0, 6].tolist() == [255, 0, 0], "on the right the flat one is"


def test_a_person_at_the_edge_is_drawn_as_on_the_whole_frame(body):
    mesh = posed(body, "run", (-0.9, 0.7, 3))
    focal, center, size = (110.0, 120.0), (52.5, 40.0), (100, 80)
    color, alpha = layer([mesh], body.faces, size, focal, center, colors=[(1, 1, 1)])
    shaded = shade(vertex_normals(mesh, body.faces), np.ones(3), Light()).clip(0, 1)
    whole = rasterize(
        mesh, body.faces, shaded, focal=np.multiply(focal, 2), center=np.multiply(center, 2),
        background=np.zeros((160, 200, 3)),
    )  # fmt: skip
    covered = (whole.face >= 0).reshape(80, 2, 100, 2).mean((1, 3))
    assert alpha[-1].max() == 1, "it leaves the picture"
    np.testing.assert_allclose(alpha, covered, atol=1e-6)
    np.testing.assert_allclose(color, whole.color.reshape(80, 2, 100, 2, 3).mean((1, 3)), atol=1e-5)


@pytest.mark.parametrize("place", [(0, 0, -3), (40, 0, 4), (0, 0, 0)])
def test_who_is_outside_or_behind_leaves_the_photo_alone(body, place):
    mesh = body.v_template * 0.01 + place
    image = np.arange(75, dtype=np.uint8).reshape(5, 5, 3)
    assert (overlay(image, [mesh], body.faces, (5, 5), (2, 2)) == image).all()


@pytest.mark.parametrize("samples", [0, 9, 1.5])
def test_a_wrong_number_of_samples_is_named(body, samples):
    with pytest.raises(ConfigError, match=f"supersampling={samples}: must be a whole number"):
        layer([body.v_template], body.faces, (8, 8), (8, 8), (4, 4), supersampling=samples)


def test_the_same_bytes_in_every_thread_and_for_any_number_of_threads(body):
    meshes = [posed(body, "sit"), posed(body, "wave", (0.3, 0, 5))]

    def picture(_):
        image = np.full((96, 96, 3), 90, np.uint8)
        return overlay(image, meshes, body.faces, (110, 110), (48, 48)).tobytes()

    with ThreadPoolExecutor(6) as pool:
        drawn_together = set(pool.map(picture, range(24)))
    assert drawn_together == {picture(0)}
    code = """
import hashlib, sys
import numpy as np
from hmr.render import portrait
from hmr.render_lines import wireframe
rng = np.random.default_rng(3)
mesh, faces = rng.normal(0, 0.4, (60, 3)) + [0, 0, 4], rng.integers(0, 60, (90, 3))
image = np.zeros((64, 64, 3), np.uint8)
pictures = [portrait(mesh, faces, 64), wireframe(image, [mesh], faces, (90, 90), (32, 32))]
print(hashlib.sha256(b"".join(p.tobytes() for p in pictures)).hexdigest())
"""
    names = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    digests = set()
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env=os.environ | dict.fromkeys(names, threads),
        )  # fmt: skip
        digests.add(done.stdout.strip())
    (digest,) = digests
    assert len(digest) == len(hashlib.sha256().hexdigest())


def test_the_silhouette_covers_what_the_predictor_projects():
    torch.manual_seed(0)
    model = build_model(ModelConfig(image_size=32, encoder_width=4, hidden=32))
    predictor = Predictor(model, Body.embedded())
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    for person in predictor.predict(image, boxes=[[30, 20, 110, 140], [80, 10, 190, 130]]):
        faces = predictor.body.arrays.faces
        _, alpha = layer(
            [person.vertices + person.cam_t], faces, (200, 150), person.focal_length,
            person.principal_point, supersampling=8,
        )  # fmt: skip
        pixels = perspective_projection(
            torch.tensor(person.vertices)[None], torch.tensor(person.cam_t)[None],
            torch.tensor(person.focal_length)[None], torch.tensor(person.principal_point)[None],
        )[0].numpy()  # fmt: skip
        pixels = np.concatenate([pixels, person.joints_2d])
        inside = ((pixels >= 0) & (pixels < [200, 150])).all(1)
        columns, rows = pixels[inside].astype(int).T
        assert inside.sum() > 3000
        assert (alpha[rows, columns] > 0).mean() > 0.995, "tips are thinner than a sample"
        near = np.zeros((152, 202), bool)
        for dy in range(3):
            for dx in range(3):
                near[dy : dy + 150, dx : dx + 200] |= alpha > 0
        assert near[rows + 1, columns + 1].all()


def test_from_above_the_head_is_nearest_and_the_far_side_is_up(body):
    mesh = posed(body, "tpose", (0.5, 0.2, 3))
    above = turned(mesh, 0, 90)
    np.testing.assert_allclose(np.ptp(above, axis=0), np.ptp(mesh, axis=0)[[0, 2, 1]])
    assert above[:, 2].argmin() == mesh[:, 1].argmin()
    assert above[:, 1].argmin() == mesh[:, 2].argmax()
    np.testing.assert_allclose(above[:, 0], mesh[:, 0])


def test_a_view_keeps_people_in_their_places(body):
    near, far = posed(body, "stand", (-0.6, 0, 3)), posed(body, "stand", (0.6, 0, 5))
    options = {"colors": [(1, 0, 0), (0, 0, 1)], "background": (255, 255, 255), "light": FLAT}
    above = view([near, far], body.faces, 80, elevation=90, **options)

    def middle(picture, channel):
        """Of the pixels that are of this colour alone."""
        others = [k for k in range(3) if k != channel]
        rows, columns = np.nonzero((picture[..., others] < 40).all(-1))
        return np.array([rows.mean(), columns.mean()])

    red, blue = middle(above, 0), middle(above, 2)
    assert blue[0] < red[0] - 20, "the farther one is higher up"
    assert blue[1] > red[1] + 10, "the right one is on the right"
    side = view([near, far], body.faces, 80, degrees=-90, **options)
    assert middle(side, 0)[1] > middle(side, 2)[1] + 20, "from the right the near one is right"
    assert abs(middle(side, 0)[0] - middle(side, 2)[0]) < 3


def test_a_portrait_is_the_view_of_one_person(body):
    mesh = posed(body, "walk")
    expected = view([mesh], body.faces, 48, degrees=30, span_m=2.4)
    assert (portrait(mesh, body.faces, 48, degrees=30, height_m=2.4) == expected).all()
