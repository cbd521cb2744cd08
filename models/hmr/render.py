"""Pictures of bodies: over a photo, from the side, on a plain ground. No OpenGL, no torch.

The projection is the loss's: pinhole, pixel centres at +0.5, camera axes (x right, y down, z
forward), metres. Edges are smooth because everything is drawn at twice the size and averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from hmr.raster import Light, rasterize, shade, vertex_normals

SUPERSAMPLING = 2
OPACITY = 0.85
PERSON_COLORS: tuple[tuple[float, float, float], ...] = (
    (0.55, 0.74, 0.94), (0.97, 0.70, 0.46), (0.60, 0.85, 0.62), (0.91, 0.60, 0.70),
    (0.75, 0.66, 0.93), (0.92, 0.86, 0.50),
)  # fmt: skip
"""RGB in 0..1 of the first, second, … person; they repeat."""


def person_color(number: int) -> tuple[float, float, float]:
    """The colour of a person by number."""
    return PERSON_COLORS[number % len(PERSON_COLORS)]


def _joined(
    meshes: Sequence[np.ndarray], faces: np.ndarray, colors: Sequence[Any], light: Light
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All people as one mesh with shaded colours, so that one z-buffer orders them."""
    vertices, triangles, shaded = [], [], []
    offset = 0
    for mesh, color in zip(meshes, colors, strict=True):
        mesh = np.asarray(mesh, np.float64)
        palette = np.asarray(color, np.float64)
        shaded.append(shade(vertex_normals(mesh, faces), palette, light).clip(0, 1))
        vertices.append(mesh)
        triangles.append(faces + offset)
        offset += len(mesh)
    return np.concatenate(vertices), np.concatenate(triangles), np.concatenate(shaded)


def layer(
    meshes: Sequence[np.ndarray], faces: np.ndarray, size: tuple[int, int], focal: Any, center: Any,
    *, colors: Sequence[Any] | None = None, light: Light | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """People alone: colour (H, W, 3) in 0..1, premultiplied by coverage (H, W) in 0..1.

    meshes: (V, 3) each, camera space. size: width and height. focal, center: (2,) pixels.
    colors: (3,) or (V, 3) for each mesh; default: PERSON_COLORS.
    """
    width, height = size
    s = SUPERSAMPLING
    colors = [person_color(i) for i in range(len(meshes))] if colors is None else colors
    ground = np.zeros((height * s, width * s, 3), np.float32)
    if not meshes:
        return np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    vertices, triangles, shaded = _joined(meshes, faces, colors, light or Light())
    buffers = rasterize(
        vertices, triangles, shaded, focal=np.asarray(focal) * s, center=np.asarray(center) * s,
        background=ground,
    )  # fmt: skip
    covered = (buffers.face >= 0).astype(np.float32)
    return _averaged(buffers.color * covered[..., None]), _averaged(covered)


def _averaged(picture: np.ndarray) -> np.ndarray:
    s = SUPERSAMPLING
    height, width = picture.shape[0] // s, picture.shape[1] // s
    averaged: np.ndarray = picture.reshape(height, s, width, s, *picture.shape[2:]).mean((1, 3))
    return averaged


def overlay(
    image: np.ndarray, meshes: Sequence[np.ndarray], faces: np.ndarray, focal: Any, principal: Any,
    *, colors: Sequence[Any] | None = None, opacity: float = OPACITY,
) -> np.ndarray:  # fmt: skip
    """Bodies over a photo, (H, W, 3) uint8; the nearer person hides the farther one.

    image: (H, W, 3) uint8 RGB, upright. meshes: (V, 3) each, camera space with cam_t added.
    focal, principal: (2,) pixels of the image.
    """
    height, width = image.shape[:2]
    color, alpha = layer(meshes, faces, (width, height), focal, principal, colors=colors)
    mixed = image * (1 - opacity * alpha[..., None]) + 255.0 * opacity * color
    return mixed.round().clip(0, 255).astype(np.uint8)


def turned(vertices: np.ndarray, degrees: float) -> np.ndarray:
    """A mesh turned about the vertical axis through its middle; 90 shows its left side."""
    angle = np.deg2rad(degrees)
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    middle = (vertices.min(0) + vertices.max(0)) / 2
    moved: np.ndarray = (vertices - middle) @ turn.T + middle
    return moved


def portrait(
    vertices: np.ndarray, faces: np.ndarray, size: int, *, degrees: float = 0.0,
    color: Any = PERSON_COLORS[0], background: tuple[int, int, int] = (245, 246, 248),
    height_m: float | None = None,
) -> np.ndarray:  # fmt: skip
    """A body alone on a plain ground, (size, size, 3) uint8, filling the picture.

    vertices: (V, 3) camera axes, anywhere. height_m: what the picture's side shows, in metres, so
    that several portraits have one scale; default: 1.1 times the larger extent.
    """
    body = turned(np.asarray(vertices, np.float64), degrees)
    low, high = body.min(0), body.max(0)
    shown = height_m or 1.1 * float((high - low)[:2].max())
    distance = 12.0
    focal = size * distance / shown
    placed = body - (low + high) / 2 + np.array([0, 0, distance])
    color_layer, alpha = layer(
        [placed], faces, (size, size), (focal, focal), (size / 2, size / 2), colors=[color]
    )
    ground = np.asarray(background, np.float32)
    mixed = ground * (1 - alpha[..., None]) + 255.0 * color_layer
    return mixed.round().clip(0, 255).astype(np.uint8)


def error_colors(errors: np.ndarray, largest: float) -> np.ndarray:
    """(V,) errors to (V, 3) colours in 0..1: blue for none, red for `largest` and above."""
    scaled = (255 * np.clip(errors / largest, 0, 1)).astype(np.uint8)
    heat: np.ndarray = cv2.applyColorMap(scaled[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1] / 255.0
    return heat


def grid(pictures: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Pictures of one size in rows and columns on white, (H, W, 3) uint8."""
    side_y, side_x = pictures[0][0].shape[:2]
    rows, columns = len(pictures), max(map(len, pictures))
    shape = (rows * (side_y + gap) + gap, columns * (side_x + gap) + gap, 3)
    sheet = np.full(shape, 255, np.uint8)
    for i, line in enumerate(pictures):
        for j, picture in enumerate(line):
            y, x = gap + i * (side_y + gap), gap + j * (side_x + gap)
            sheet[y : y + side_y, x : x + side_x] = picture
    return sheet
