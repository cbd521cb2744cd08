"""Colours of errors and their bar."""

from __future__ import annotations

import numpy as np
import pytest

from hmr.render_errors import color_bar, error_colors, round_above


def test_error_colours_run_from_blue_to_red():
    none, half, most = error_colors(np.array([0.0, 50.0, 500.0]), 100.0)
    assert none[2] > none[0]
    assert most[0] > most[2]
    assert half[1] > max(half[0], half[2])


def test_the_bar_shows_the_colour_of_each_error_at_its_height():
    bar = color_bar(3, 256)
    assert bar.shape == (256, 3, 3)
    assert (bar == bar[:, :1]).all()
    for share in (0.0, 0.25, 0.5, 0.999):
        row = 255 - int(256 * share)
        expected = 255 * error_colors(np.array([80 * share]), 80.0)[0]
        assert np.abs(bar[row, 0] - expected).max() <= 6, "at most one of turbo's 256 colours off"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 1), (1, 1), (1.01, 1.5), (87, 100), (100, 100), (101, 150), (0.031, 0.04), (620, 800)],
)
def test_the_end_of_a_scale_is_the_next_round_number(value, expected):
    assert round_above(value) == pytest.approx(expected)
