"""Colours of errors on a mesh, and the bar that explains them."""

from __future__ import annotations

import math

import cv2
import numpy as np

from hmr.raster import Light

HEAT_LIGHT = Light(ambient=0.88, diffuse=0.2, sky=0.2, specular=0.0)
"""Weak shading: a body keeps its form and an error its colour."""
_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def error_colors(errors: np.ndarray, largest: float) -> np.ndarray:
    """(V,) errors to (V, 3) colours in 0..1: blue for none, red for `largest` and above."""
    scaled = (255 * np.clip(errors / largest, 0, 1)).astype(np.uint8)
    heat: np.ndarray = cv2.applyColorMap(scaled[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1] / 255.0
    return heat


def round_above(value: float) -> float:
    """The next round number, 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten, that is not below
    `value`; 1 for 0."""
    if value <= 0:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(value))
    return next(step * magnitude for step in _STEPS if step * magnitude >= value * (1 - 1e-9))


def color_bar(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: the colours of `error_colors`, none at the bottom, the largest
    error at the top."""
    column = error_colors((np.arange(height)[::-1] + 0.5) / height, 1.0)
    bar: np.ndarray = np.repeat((255 * column).round().astype(np.uint8)[:, None], width, axis=1)
    return bar
