"""Pictures of bodies: over a photo, from any side, on a plain ground. No OpenGL, no torch.

The projection is the loss's: pinhole, pixel centres at +0.5, camera axes (x right, y down, z
forward), metres. Edges are smooth because everything is drawn at a multiple of the size and
averaged. The same call gives the same bytes, in any thread. `hmr.render_lines` draws wireframes
and skeletons, `hmr.render_errors` the colours of errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hmr.errors import ConfigError
from hmr.raster import NEAR, Buffers, Light, averaged, project, rasterize, shade, vertex_normals
from hmr.render_errors import error_colors as error_colors

SUPERSAMPLING = 2
MAX_SUPERSAMPLING = 8
OPACITY = 0.85
PERSON_COLORS: tuple[tuple[float, float, float], ...] = (
    (0.55, 0.74, 0.94), (0.97, 0.70, 0.46), (0.60, 0.85, 0.62), (0.91, 0.60, 0.70),
    (0.75, 0.66, 0.93), (0.92, 0.86, 0.50),
)  # fmt: skip
"""RGB in 0..1 of the first, second, … person; they repeat."""
GROUND = (245, 246, 248)
VIEW_DISTANCE_M = 12.0
"""Far enough that a person seen alone is not distorted by perspective."""


def person_color(number: int) -> tuple[float, float, float]:
    """The colour of a person by number."""
    return PERSON_COLORS[number % len(PERSON_COLORS)]


class Mesh(NamedTuple):
    """All people as one mesh, so that one z-buffer orders them.

    vertices: (V, 3) camera space. faces: (F, 3). colors: (V, 3) in 0..1, shaded.
    """

    vertices: np.ndarray
    faces: np.ndarray
    colors: np.ndarray


class Window(NamedTuple):
    """The part of a picture that the people can cover, in whole pixels; empty when x1 <= x0."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def joined(
    meshes: Sequence[np.ndarray], faces: np.ndarray, colors: Sequence[Any] | None = None,
    light: Light | None = None,
) -> Mesh:  # fmt: skip
    """People of one topology as one shaded mesh. colors: (3,) or (V, 3) for each person."""
    colors = [person_color(i) for i in range(len(meshes))] if colors is None else colors
    vertices, triangles, shaded = [np.empty((0, 3))], [np.empty((0, 3), int)], [np.empty((0, 3))]
    offset = 0
    for mesh, color in zip(meshes, colors, strict=True):
        mesh = np.asarray(mesh, np.float64)
        palette = np.asarray(color, np.float64)
        lit = shade(vertex_normals(mesh, faces), palette, light or Light())
        shaded.append(lit.clip(0, 1))
        vertices.append(mesh)
        triangles.append(faces + offset)
        offset += len(mesh)
    return Mesh(np.concatenate(vertices), np.concatenate(triangles), np.concatenate(shaded))


def window_of(mesh: Mesh, size: tuple[int, int], focal: Any, center: Any) -> Window:
    """Where the mesh falls on a picture of this width and height."""
    drawable = mesh.vertices[mesh.vertices[:, 2] >= NEAR]
    if len(drawable) == 0:
        return Window(0, 0, 0, 0)
    pixels, _ = project(drawable, focal, center)
    low = np.floor(pixels.min(0)).clip(0, size).astype(int)
    high = np.ceil(pixels.max(0)).clip(0, size).astype(int)
    if (high <= low).any():
        return Window(0, 0, 0, 0)
    return Window(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def drawn(mesh: Mesh, window: Window, focal: Any, center: Any, samples: int) -> Buffers:
    """The window at `samples` times the size, on black; ConfigError for a wrong `samples`."""
    if samples not in range(1, MAX_SUPERSAMPLING + 1):
        raise ConfigError(
            f"supersampling={samples}: must be a whole number from 1 to {MAX_SUPERSAMPLING}"
        )
    side_y, side_x = (window.y1 - window.y0) * samples, (window.x1 - window.x0) * samples
    corner = np.array([window.x0, window.y0], np.float64)
    return rasterize(
        mesh.vertices, mesh.faces, mesh.colors, focal=np.asarray(focal, np.float64) * samples,
        center=(np.asarray(center, np.float64) - corner) * samples,
        background=np.zeros((side_y, side_x, 3), np.float32),
    )  # fmt: skip


def layer(
    meshes: Sequence[np.ndarray], faces: np.ndarray, size: tuple[int, int], focal: Any, center: Any,
    *, colors: Sequence[Any] | None = None, light: Light | None = None,
    supersampling: int = SUPERSAMPLING,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """People alone: colour (H, W, 3) in 0..1, premultiplied by coverage (H, W) in 0..1.

    meshes: (V, 3) each, camera space. size: width and height. focal, center: (2,) pixels.
    colors: (3,) or (V, 3) for each mesh; default: PERSON_COLORS. supersampling: samples along each
    side of a pixel.
    """
    width, height = size
    color = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)
    mesh = joined(meshes, faces, colors, light)
    window = window_of(mesh, size, focal, center)
    buffers = drawn(mesh, window, focal, center, supersampling)
    color[window.pixels] = averaged(buffers.color, supersampling)
    alpha[window.pixels] = averaged((buffers.face >= 0).astype(np.float32), supersampling)
    return color, alpha


def blended(
    image: np.ndarray, color: np.ndarray, alpha: np.ndarray, opacity: float = 1.0
) -> np.ndarray:
    """A layer over an image, (H, W, 3) uint8; see `layer` for color and alpha."""
    mixed = image * (1 - opacity * alpha[..., None]) + 255.0 * opacity * color
    return mixed.round().clip(0, 255).astype(np.uint8)


def overlay(
    image: np.ndarray, meshes: Sequence[np.ndarray], faces: np.ndarray, focal: Any, principal: Any,
    *, colors: Sequence[Any] | None = None, opacity: float = OPACITY, light: Light | None = None,
    supersampling: int = SUPERSAMPLING,
) -> np.ndarray:  # fmt: skip
    """Bodies over a photo, (H, W, 3) uint8; the nearer person hides the farther one.

    image: (H, W, 3) uint8 RGB, upright. meshes: (V, 3) each, camera space with cam_t added.
    focal, principal: (2,) pixels of the image. Only the part that the people cover is drawn, so a
    large photo costs no more than its people.
    """
    mesh = joined(meshes, faces, colors, light)
    window = window_of(mesh, (image.shape[1], image.shape[0]), focal, principal)
    buffers = drawn(mesh, window, focal, principal, supersampling)
    color = averaged(buffers.color, supersampling)
    alpha = averaged((buffers.face >= 0).astype(np.float32), supersampling)
    result = image.copy()
    result[window.pixels] = blended(image[window.pixels], color, alpha, opacity)
    return result


def turned(vertices: np.ndarray, degrees: float, elevation: float = 0.0) -> np.ndarray:
    """Points (V, 3) turned about the vertical axis through their middle; 90 shows a person's left
    side. elevation: degrees by which the viewer then climbs; 90 looks down on them."""
    angle, climb = np.deg2rad(degrees), np.deg2rad(elevation)
    turn = np.array(
        [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    )
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(climb), -np.sin(climb)], [0, np.sin(climb), np.cos(climb)]]
    )
    middle = (vertices.min(0) + vertices.max(0)) / 2
    moved: np.ndarray = (vertices - middle) @ (tilt @ turn).T + middle
    return moved


def view(
    meshes: Sequence[np.ndarray], faces: np.ndarray, size: int, *, degrees: float = 0.0,
    elevation: float = 0.0, colors: Sequence[Any] | None = None,
    background: tuple[int, int, int] = GROUND, span_m: float | None = None,
    light: Light | None = None, supersampling: int = SUPERSAMPLING,
) -> np.ndarray:  # fmt: skip
    """People on a plain ground from any side, (size, size, 3) uint8, in their places to each other.

    meshes: (V, 3) each, camera axes, at least one. degrees, elevation: see `turned`; the side view
    is 90 or -90, the top view elevation 90. span_m: what the picture's side shows, in metres, so
    that several views have one scale; default: 1.1 times the larger extent.
    """
    points = [np.asarray(mesh, np.float64) for mesh in meshes]
    all_points = turned(np.concatenate(points), degrees, elevation)
    low, high = all_points.min(0), all_points.max(0)
    shown = span_m or 1.1 * float((high - low)[:2].max())
    distance = max(VIEW_DISTANCE_M, 4 * float((high - low).max()))
    focal = size * distance / shown
    placed = all_points - (low + high) / 2 + np.array([0, 0, distance])
    ends = np.cumsum([len(mesh) for mesh in points])[:-1]
    color, alpha = layer(
        np.split(placed, ends), faces, (size, size), (focal, focal), (size / 2, size / 2),
        colors=colors, light=light, supersampling=supersampling,
    )  # fmt: skip
    return blended(np.asarray(background, np.float32), color, alpha)


def portrait(
    vertices: np.ndarray, faces: np.ndarray, size: int, *, degrees: float = 0.0,
    color: Any = PERSON_COLORS[0], background: tuple[int, int, int] = GROUND,
    height_m: float | None = None,
) -> np.ndarray:  # fmt: skip
    """A body alone on a plain ground, (size, size, 3) uint8, filling the picture.

    vertices: (V, 3) camera axes, anywhere. height_m: what the picture's side shows, in metres, so
    that several portraits have one scale; default: 1.1 times the larger extent.
    """
    return view(
        [vertices], faces, size, degrees=degrees, colors=[color], background=background,
        span_m=height_m,
    )  # fmt: skip


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
