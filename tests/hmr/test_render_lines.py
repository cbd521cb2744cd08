"""Wireframes and skeletons: which pixels they change, to what, and what hides what."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.config import ModelConfig
from hmr.errors import ConfigError
from hmr.model import build_model
from hmr.predictor import Predictor
from hmr.render_lines import (
    LEFT_COLOR,
    MIDDLE_COLOR,
    RIGHT_COLOR,
    SMPL_BONES,
    side_color,
    skeleton,
    wireframe,
)
from hmr.skeleton import SMPL_JOINT_NAMES, SMPL_PARENTS

CAMERA = ((1, 1), (0, 0))
"""Points at depth 1 are pixels."""


def flat(points, z=1.0):
    return np.array([[x * z, y * z, z] for x, y in points], float)


def changed(before, after):
    return (before != after).any(-1)


def test_a_wireframe_is_the_rim_of_a_triangle():
    faces = np.array([[0, 1, 2]])
    vertices = flat([(0, 0), (0, 16), (16, 16)])
    image = np.full((20, 20, 3), 50, np.uint8)
    result = wireframe(image, [vertices], faces, *CAMERA, width=3.0, supersampling=1)
    rows, columns = np.mgrid[:20, :20] + 0.5
    inside = (columns <= rows) & (rows <= 16)
    distance = np.minimum(np.minimum(columns, 16 - rows), (rows - columns) / np.sqrt(2))
    np.testing.assert_array_equal(changed(image, result), inside & (distance <= 1.5))


def test_a_line_between_two_triangles_is_as_wide_as_asked():
    vertices = flat([(0, 0), (0, 40), (20, 40), (20, 0), (40, 40), (40, 0)])
    faces = np.array([[0, 1, 2], [0, 2, 3], [3, 2, 4], [3, 4, 5]])
    image = np.zeros((40, 40, 3), np.uint8)
    result = wireframe(image, [vertices], faces, *CAMERA, width=2.0, colors=[(1, 1, 1)])
    row = result[20, 17:23].astype(int).sum(-1)
    assert row.astype(bool).tolist() == [False, False, True, True, False, False]
    assert row[2:4].min() > 300, "one pixel on either side of the common edge at 20"
    outline = result[20, :3].astype(int).sum(-1)
    assert outline[0] > 300
    assert outline[1] == 0


def test_edges_behind_a_surface_are_hidden():
    faces = np.array([[0, 1, 2]])
    near = flat([(0, 0), (0, 30), (30, 30)], z=1.0)
    far = flat([(6, 14), (6, 24), (14, 24)], z=2.0)
    image = np.zeros((32, 32, 3), np.uint8)
    alone = wireframe(image, [near], faces, *CAMERA)
    both = wireframe(image, [near, far], faces, *CAMERA, colors=[(0.55, 0.74, 0.94), (1, 0, 0)])
    assert changed(image, wireframe(image, [far], faces, *CAMERA)).sum() > 10
    np.testing.assert_array_equal(alone, both)


def test_a_wireframe_is_see_through_between_its_lines():
    body = Body.embedded().arrays
    mesh = body.v_template * [1, -1, -1] + [0, 0, 3]
    image = np.full((400, 400, 3), 128, np.uint8)
    result = wireframe(image, [mesh], body.faces, (600, 600), (200, 160), width=0.4)
    share = changed(image, result)[60:300, 150:250].mean()
    assert 0.1 < share < 0.9
    with pytest.raises(ConfigError, match="width=0: a line must be wider"):
        wireframe(image, [mesh], body.faces, (600, 600), (200, 160), width=0)


def test_bones_are_smpls_tree_by_name():
    assert len(SMPL_BONES) == 23
    for parent, child in SMPL_BONES:
        place = SMPL_JOINT_NAMES.index(child)
        assert SMPL_JOINT_NAMES[SMPL_PARENTS[place]] == parent
    assert side_color("left_knee") == LEFT_COLOR
    assert side_color("right_hip") == RIGHT_COLOR
    assert side_color("neck") == MIDDLE_COLOR


def test_a_bone_covers_the_pixels_within_its_radius():
    joints = flat([(5.5, 10.5), (24.5, 10.5)])
    image = np.full((20, 30, 3), 200, np.uint8)
    result = skeleton(
        image, [joints], *CAMERA, names=("left_hip", "left_knee"),
        bones=[("left_hip", "left_knee")], radius=2.0,
    )  # fmt: skip
    middle = result[:, 15]
    color = (255 * np.array(LEFT_COLOR)).round()
    np.testing.assert_array_equal(middle[9:12], np.tile(color, (3, 1)))
    # The rim lies at 2 pixels: there half of the colour and half of the outline is seen.
    outline = 255.0 * np.array([0.08, 0.09, 0.12])
    np.testing.assert_allclose(
        middle[8], 0.5 * 255 * np.array(LEFT_COLOR) + 0.5 * outline, atol=0.51
    )
    assert (middle[[0, 1, 2, 3, 17, 18, 19]] == 200).all()
    assert (result[:, 29] == 200).all()


def test_the_nearer_bone_hides_the_farther_one_in_any_order():
    left, right = flat([(2, 10), (18, 10)], z=2.0), flat([(10, 2), (10, 18)], z=1.0)
    names, bone = ("a_hip", "a_knee"), [("a_hip", "a_knee")]
    image = np.zeros((20, 20, 3), np.uint8)
    together = skeleton(image, [left, right], *CAMERA, names=names, bones=bone, radius=2)
    swapped = skeleton(image, [right, left], *CAMERA, names=names, bones=bone, radius=2)
    np.testing.assert_array_equal(together, swapped)
    alone = skeleton(image, [right], *CAMERA, names=names, bones=bone, radius=2)
    np.testing.assert_array_equal(together[8:12, 8:12], alone[8:12, 8:12])


def test_joints_behind_the_camera_and_outside_are_left_out():
    image = np.full((20, 20, 3), 7, np.uint8)
    for joints in (flat([(5, 5), (9, 9)], z=-1.0), flat([(50, 50), (90, 90)])):
        result = skeleton(
            image, [joints], *CAMERA, names=("hip", "knee"), bones=[("hip", "knee")]
        )  # fmt: skip
        assert (result == 7).all()


def test_a_bone_to_no_joint_is_named():
    with pytest.raises(ConfigError, match="bone end 'knie': no such joint; the joints are hip"):
        skeleton(
            np.zeros((9, 9, 3), np.uint8), [flat([(1, 1)])], *CAMERA, names=("hip",),
            bones=[("hip", "knie")],
        )  # fmt: skip


def test_the_skeleton_lies_where_the_predictor_says():
    torch.manual_seed(0)
    model = build_model(ModelConfig(image_size=32, encoder_width=4, hidden=32))
    image = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    (person,) = Predictor(model, Body.embedded()).predict(image)
    result = skeleton(
        image, [person.joints_3d + person.cam_t], person.focal_length, person.principal_point,
        bones=[], radius=2.5,
    )  # fmt: skip
    for name in ("head", "left_ankle", "right_ankle", "left_wrist", "right_wrist"):
        x, y = person.joints_2d[SMPL_JOINT_NAMES.index(name)]
        color = (255 * np.array(side_color(name))).round()
        np.testing.assert_array_equal(result[int(y), int(x)], color, name)
