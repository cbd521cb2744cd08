"""The sheet of the body shows what its legend says."""

from __future__ import annotations

import numpy as np
import pytest

from hmr.body_sheet import POSES, body_sheet, posed
from hmr.pose_prior import ARCHETYPES

SIDE, GAP = 80, 4


@pytest.fixture(scope="module")
def tiles(embedded_arrays):
    sheet = body_sheet(embedded_arrays, SIDE)
    step = SIDE + GAP
    return [
        [sheet[GAP + r * step :, GAP + c * step :][:SIDE, :SIDE] for c in range(8)]
        for r in range(3)
    ]


def extent(tile):
    """Height and width in pixels of what is not ground."""
    figure = np.abs(tile.astype(int) - tile[0, 0]).max(-1) > 12
    edges = [figure[0], figure[-1], figure[:, 0], figure[:, -1]]
    assert not np.concatenate(edges).any(), "cut off"
    return int(figure.any(1).sum()), int(figure.any(0).sum())


def test_each_pose_looks_like_its_name(tiles):
    front = {name: extent(tiles[0][2 * i]) for i, name in enumerate(POSES)}
    right = {name: extent(tiles[0][2 * i + 1]) for i, name in enumerate(POSES)}
    height, width = front["tpose"]
    assert width > 0.75 * height, "the arms are spread"
    assert front["up"][0] > 1.1 * height, "hands above the head"
    assert front["sit"][0] < 0.85 * height, "lower than standing"
    assert right["walk"][1] > 1.5 * right["tpose"][1], "a stride, seen from the side"


def test_opposite_shapes_differ_and_every_direction_shows(tiles):
    for plus, minus in zip(tiles[1], tiles[2], strict=True):
        extent(plus)
        extent(minus)
        changed = np.abs(plus.astype(int) - minus).max(-1) > 40
        assert changed.mean() > 0.005
    assert extent(tiles[1][0])[0] != extent(tiles[2][0])[0], "the first direction is size"


def test_the_figure_stands_upright_and_faces_the_camera(embedded_arrays):
    body = posed(embedded_arrays, ARCHETYPES["tpose"], np.zeros(10))
    template = embedded_arrays.v_template
    np.testing.assert_allclose(body[:, 0], template[:, 0], atol=1e-6)
    np.testing.assert_allclose(body[:, 1:], -template[:, 1:], atol=1e-6)
