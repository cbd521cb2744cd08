"""A z-buffer for triangle meshes on the CPU, in numba, with the same in numpy as reference.

Vertices are in camera space (x right, y down, z forward, metres), the camera is a pinhole, pixel
centres lie at +0.5. Triangles that turn their back to the camera, or have a vertex nearer than
5 cm, are not drawn. Both versions compute in float64 with the same formulas and draw the same
pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

NEAR = 0.05
"""Metres; nearer triangles are left out."""


class Buffers(NamedTuple):
    """color: (H, W, 3) float32, the background where nothing was drawn. face: (H, W) int32, number
    of the visible triangle or -1. inverse_depth: (H, W) float32, 1 / z in 1/m, 0 for nothing."""

    color: np.ndarray
    face: np.ndarray
    inverse_depth: np.ndarray


def project(vertices: np.ndarray, focal: Any, center: Any) -> tuple[np.ndarray, np.ndarray]:
    """(V, 3) to pixels (V, 2) and 1 / z (V,), float64. focal, center: (2,) pixels."""
    points = np.asarray(vertices, np.float64)
    # Behind the camera there is no pixel; such triangles are dropped by their depth.
    inverse = 1.0 / np.where(np.abs(points[:, 2]) < 1e-9, 1e-9, points[:, 2])
    pixels = points[:, :2] * inverse[:, None] * np.asarray(focal, np.float64)
    return pixels + np.asarray(center, np.float64), inverse


def _draw(
    pixels: np.ndarray, inverse: np.ndarray, faces: np.ndarray, colors: np.ndarray,
    image: np.ndarray, face_of: np.ndarray, depth: np.ndarray,
) -> None:  # fmt: skip
    """One triangle after the other, in place; compiled by numba."""
    height, width = depth.shape
    for number in range(faces.shape[0]):
        a, b, c = faces[number, 0], faces[number, 1], faces[number, 2]
        wa, wb, wc = inverse[a], inverse[b], inverse[c]
        if not (0 < wa <= 1 / NEAR and 0 < wb <= 1 / NEAR and 0 < wc <= 1 / NEAR):
            continue
        ax, ay, bx, by = pixels[a, 0], pixels[a, 1], pixels[b, 0], pixels[b, 1]
        cx, cy = pixels[c, 0], pixels[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0:  # y points down: the front of a triangle has a negative area
            continue
        x0 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0 = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        for row in range(y0, y1 + 1):
            y = row + 0.5
            for column in range(x0, x1 + 1):
                x = column + 0.5
                u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                w = 1.0 - u - v
                if u < 0 or v < 0 or w < 0:
                    continue
                near = np.float32(u * wa + v * wb + w * wc)
                if near <= depth[row, column]:
                    continue
                depth[row, column] = near
                face_of[row, column] = number
                total = u * wa + v * wb + w * wc
                for k in range(3):
                    image[row, column, k] = (
                        u * wa * colors[a, k] + v * wb * colors[b, k] + w * wc * colors[c, k]
                    ) / total


def _draw_numpy(
    pixels: np.ndarray, inverse: np.ndarray, faces: np.ndarray, colors: np.ndarray,
    image: np.ndarray, face_of: np.ndarray, depth: np.ndarray,
) -> None:  # fmt: skip
    """The same without a loop over triangles: every face gets its list of candidate pixels, and of
    the candidates of a pixel the nearest is written last."""
    height, width = depth.shape
    w3 = inverse[faces]
    (ax, ay), (bx, by), (cx, cy) = (pixels[faces[:, k]].T for k in range(3))
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    shown = ((w3 > 0) & (w3 <= 1 / NEAR)).all(1) & (area < 0)
    corners = pixels[faces]
    with np.errstate(invalid="ignore"):
        low = np.maximum(np.ceil(corners.min(1) - 0.5), 0)
        high = np.minimum(np.floor(corners.max(1) - 0.5), [width - 1, height - 1])
    size = np.where(shown[:, None], high - low + 1, 0).clip(0).astype(np.int64)
    count = size[:, 0] * size[:, 1]
    face = np.repeat(np.arange(len(faces)), count)
    k = np.arange(len(face)) - np.repeat(np.cumsum(count) - count, count)
    column = low[face, 0].astype(np.int64) + k % size[face, 0]
    row = low[face, 1].astype(np.int64) + k // size[face, 0]
    x, y = column + 0.5, row + 0.5
    ax, ay, bx, by, cx, cy, area = (a[face] for a in (ax, ay, bx, by, cx, cy, area))
    u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
    v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
    weights = np.stack([u, v, 1.0 - u - v], axis=1)
    inside = (weights >= 0).all(1)
    face, row, column, weights = face[inside], row[inside], column[inside], weights[inside]
    scaled = weights * w3[face]
    total = scaled[:, 0] + scaled[:, 1] + scaled[:, 2]
    near = total.astype(np.float32)
    # Of equally near candidates the first face stays, as in the loop.
    order = np.lexsort((-face, near))
    winner = np.full((height, width), -1, np.int64)
    winner[row[order], column[order]] = order
    winner[winner >= 0] = np.where(
        near[winner[winner >= 0]] > depth[winner >= 0], winner[winner >= 0], -1
    )
    seen = winner >= 0
    chosen = winner[seen]
    depth[seen], face_of[seen] = near[chosen], face[chosen]
    blended = (scaled[chosen, :, None] * colors[faces[face[chosen]]]).sum(1)
    image[seen] = blended / total[chosen, None]


def _face_normal_sums(vertices: np.ndarray, faces: np.ndarray, total: np.ndarray) -> None:
    """Add each face's normal, twice its area long, to its three vertices; compiled by numba."""
    for number in range(faces.shape[0]):
        a, b, c = faces[number, 0], faces[number, 1], faces[number, 2]
        px, py = vertices[b, 0] - vertices[a, 0], vertices[b, 1] - vertices[a, 1]
        qx, qy = vertices[c, 0] - vertices[a, 0], vertices[c, 1] - vertices[a, 1]
        pz, qz = vertices[b, 2] - vertices[a, 2], vertices[c, 2] - vertices[a, 2]
        nx, ny, nz = py * qz - pz * qy, pz * qx - px * qz, px * qy - py * qx
        for vertex in (a, b, c):
            total[vertex, 0] += nx
            total[vertex, 1] += ny
            total[vertex, 2] += nz


def _face_normal_sums_numpy(vertices: np.ndarray, faces: np.ndarray, total: np.ndarray) -> None:
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    np.add.at(total, faces, np.cross(b - a, c - a)[:, None])


def _compiled(loop: Callable[..., None], reference: Callable[..., None]) -> Callable[..., None]:
    """The loop by numba; the numpy version where numba is not installed."""
    try:
        import numba
    except ImportError:
        return reference
    try:
        compiled: Callable[..., None] = numba.njit(cache=True, nogil=True)(loop)
    except RuntimeError:  # no writable folder for the cache
        compiled = numba.njit(nogil=True)(loop)
    return compiled


draw = _compiled(_draw, _draw_numpy)
"""Draw projected triangles into buffers, in place; see `rasterize` for the arguments."""
_sum_face_normals = _compiled(_face_normal_sums, _face_normal_sums_numpy)


def rasterize(
    vertices: np.ndarray, faces: np.ndarray, colors: np.ndarray, *, focal: Any, center: Any,
    background: np.ndarray, draw: Callable[..., None] = draw,
) -> Buffers:  # fmt: skip
    """Draw a mesh over a picture.

    vertices: (V, 3) camera space, metres. faces: (F, 3). colors: (V, 3) of any range. focal,
    center: (2,) pixels. background: (H, W, 3), is not changed.
    """
    image = np.ascontiguousarray(background, np.float32).copy()
    face_of = np.full(image.shape[:2], -1, np.int32)
    depth = np.zeros(image.shape[:2], np.float32)
    pixels, inverse = project(vertices, focal, center)
    draw(
        pixels, inverse, np.ascontiguousarray(faces, np.int64),
        np.ascontiguousarray(colors, np.float64), image, face_of, depth,
    )  # fmt: skip
    return Buffers(image, face_of, depth)


def averaged(picture: np.ndarray, samples: int) -> np.ndarray:
    """(H s, W s, …) to (H, W, …): the mean of each square of s x s samples."""
    height, width = picture.shape[0] // samples, picture.shape[1] // samples
    parts = picture.reshape(height, samples, width, samples, *picture.shape[2:])
    mean: np.ndarray = parts.mean((1, 3), dtype=np.float32)
    return mean


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(V, 3) unit normals: the faces' normals, weighted by area, summed at their vertices."""
    points = np.ascontiguousarray(vertices, np.float64)
    total = np.zeros_like(points)
    _sum_face_normals(points, np.ascontiguousarray(faces, np.int64), total)
    normals: np.ndarray = total / (np.sqrt((total * total).sum(1, keepdims=True)) + 1e-12)
    return normals


class Light(NamedTuple):
    """direction: towards the light, camera axes. The rest are strengths of the shading terms."""

    direction: tuple[float, float, float] = (-0.4, -0.6, -0.7)
    ambient: float = 0.5
    diffuse: float = 0.7
    sky: float = 0.4
    specular: float = 0.08


def shade(normals: np.ndarray, palette: np.ndarray, light: Light) -> np.ndarray:
    """(V, 3) Lambert shading with a brighter sky and a small highlight; may exceed the palette's
    range, so clip it. normals: unit, camera axes. palette: (V, 3) or (3,)."""
    direction = np.asarray(light.direction, np.float64)
    direction = direction / np.linalg.norm(direction)
    facing = normals @ direction
    lit = np.maximum(facing, 0) + 0.075 * np.maximum(-facing, 0)
    up = 0.5 - 0.5 * normals[:, 1]
    base = light.ambient * (1 - light.sky + light.sky * up) + light.diffuse * lit
    reflected = 2 * facing * normals[:, 2] - direction[2]
    highlight = np.maximum(-reflected, 0) ** 8 * light.specular
    shaded: np.ndarray = palette * base[:, None] + highlight[:, None]
    return shaded
