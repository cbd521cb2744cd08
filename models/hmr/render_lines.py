"""Wireframes and skeletons over a photo, with smooth lines. No OpenGL, no torch.

Both take the camera of `hmr.render.overlay`. What lies behind is hidden: wireframes by the z-buffer
of the filled meshes, skeletons by being drawn from the farthest bone to the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hmr.errors import ConfigError
from hmr.raster import NEAR, Buffers, averaged, project
from hmr.render import Mesh, blended, drawn, joined, window_of
from hmr.skeleton import SMPL_JOINT_NAMES, SMPL_PARENTS

WIRE_SUPERSAMPLING = 4
"""Lines need more samples than surfaces."""
LEFT_COLOR, RIGHT_COLOR, MIDDLE_COLOR = (0.96, 0.58, 0.22), (0.25, 0.55, 0.95), (0.92, 0.92, 0.95)
OUTLINE_COLOR = (0.08, 0.09, 0.12)
SMPL_BONES: tuple[tuple[str, str], ...] = tuple(
    (SMPL_JOINT_NAMES[parent], name)
    for name, parent in zip(SMPL_JOINT_NAMES, SMPL_PARENTS, strict=True)
    if parent >= 0
)
"""Parent and child of each of SMPL's 23 bones."""


def _on_an_edge(buffers: Buffers, pixels: np.ndarray, faces: np.ndarray, half: float) -> np.ndarray:
    """(H, W) bool: samples whose centre is at most `half` samples from an edge of the triangle they
    show. pixels: (V, 2) projected vertices."""
    rows, columns = np.nonzero(buffers.face >= 0)
    corners = pixels[faces[buffers.face[rows, columns]]]
    points = np.column_stack([columns + 0.5, rows + 0.5])
    near = np.zeros(buffers.face.shape, bool)
    distance = np.full(len(points), np.inf)
    for k in range(3):
        start, edge = corners[:, k], corners[:, (k + 1) % 3] - corners[:, k]
        x, y = (points - start).T
        cross = np.abs(edge[:, 0] * y - edge[:, 1] * x)
        distance = np.minimum(distance, cross / np.hypot(edge[:, 0], edge[:, 1]))
    near[rows, columns] = distance <= half
    return near


def wireframe(
    image: np.ndarray, meshes: Sequence[np.ndarray], faces: np.ndarray, focal: Any, principal: Any,
    *, colors: Sequence[Any] | None = None, opacity: float = 1.0, width: float = 1.0,
    supersampling: int = WIRE_SUPERSAMPLING,
) -> np.ndarray:  # fmt: skip
    """The visible edges of meshes over a photo, (H, W, 3) uint8.

    Arguments as in `hmr.render.overlay`. width: of a line between two visible triangles, in pixels;
    outlines, which have a triangle on one side only, are half as wide.
    """
    if not width > 0:
        raise ConfigError(f"width={width}: a line must be wider than 0 pixels")
    mesh: Mesh = joined(meshes, faces, colors)
    window = window_of(mesh, (image.shape[1], image.shape[0]), focal, principal)
    buffers = drawn(mesh, window, focal, principal, supersampling)
    corner = np.array([window.x0, window.y0], np.float64)
    pixels, _ = project(
        mesh.vertices, np.asarray(focal, np.float64) * supersampling,
        (np.asarray(principal, np.float64) - corner) * supersampling,
    )  # fmt: skip
    line = _on_an_edge(buffers, pixels, mesh.faces, width * supersampling / 2)
    color = averaged(buffers.color * line[..., None], supersampling)
    alpha = averaged(line.astype(np.float32), supersampling)
    result = image.copy()
    result[window.pixels] = blended(image[window.pixels], color, alpha, opacity)
    return result


class _Stroke(NamedTuple):
    """A bone, or a joint when both ends are the same. Ends: (2,) pixels. depth: metres."""

    depth: float
    start: np.ndarray
    end: np.ndarray
    radius: float
    color: tuple[float, float, float]


def side_color(name: str) -> tuple[float, float, float]:
    """The colour of a joint by the side in its name: orange left, blue right, else light grey."""
    if "left" in name:
        return LEFT_COLOR
    return RIGHT_COLOR if "right" in name else MIDDLE_COLOR


def _place_of(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ConfigError(f"bone end {name!r}: no such joint; the joints are {', '.join(names)}")
    return list(names).index(name)


def _strokes(
    joints: np.ndarray, names: Sequence[str], bones: Sequence[tuple[str, str]], focal: Any,
    principal: Any, radius: float,
) -> list[_Stroke]:  # fmt: skip
    """The bones and joints of one person that lie before the camera."""
    pixels, _ = project(joints, focal, principal)
    depth = np.asarray(joints, np.float64)[:, 2]
    strokes = []
    for parent, child in bones:
        a, b = _place_of(parent, names), _place_of(child, names)
        if min(depth[a], depth[b]) >= NEAR:
            middle = float(depth[a] + depth[b]) / 2
            strokes.append(_Stroke(middle, pixels[a], pixels[b], radius, side_color(child)))
    for place, name in enumerate(names):
        if depth[place] >= NEAR:
            at = pixels[place]
            strokes.append(_Stroke(float(depth[place]), at, at, 1.6 * radius, side_color(name)))
    return strokes


def _paint(picture: np.ndarray, stroke: _Stroke, radius: float, color: Any) -> None:
    """Blend one stroke into a float picture, in place. A pixel is covered by how far its centre
    lies inside the outline: all from half a pixel on."""
    ends = np.stack([stroke.start, stroke.end])
    size = picture.shape[1::-1]
    x0, y0 = np.floor(ends.min(0) - radius - 1).clip(0, size).astype(int)
    x1, y1 = np.ceil(ends.max(0) + radius + 1).clip(0, size).astype(int)
    if x1 <= x0 or y1 <= y0:
        return
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    axis = stroke.end - stroke.start
    length = float(axis @ axis)
    dx, dy = x - stroke.start[0], y - stroke.start[1]
    along = ((dx * axis[0] + dy * axis[1]) / length).clip(0, 1) if length > 0 else 0.0
    distance = np.hypot(dx - along * axis[0], dy - along * axis[1])
    cover = (radius + 0.5 - distance).clip(0, 1)[..., None]
    part = picture[y0:y1, x0:x1]
    part += cover * (255.0 * np.asarray(color) - part)


def skeleton(
    image: np.ndarray, people: Sequence[np.ndarray], focal: Any, principal: Any, *,
    names: Sequence[str] = SMPL_JOINT_NAMES, bones: Sequence[tuple[str, str]] = SMPL_BONES,
    radius: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Joints and bones over a photo, (H, W, 3) uint8; nearer ones hide farther ones.

    people: (J, 3) joints each, camera space with cam_t added. names: of the J joints. bones: pairs
    of names. focal, principal: (2,) pixels. radius: of a bone, in pixels; default: 0.5 % of the
    picture's longer side. ConfigError for a bone whose end is no joint.
    """
    radius = radius or max(1.25, 0.005 * max(image.shape[:2]))
    outline = max(0.75, 0.35 * radius)
    strokes = [
        stroke
        for joints in people
        for stroke in _strokes(joints, names, bones, focal, principal, radius)
    ]
    picture = image.astype(np.float64)
    for stroke in sorted(strokes, key=lambda s: -s.depth):
        _paint(picture, stroke, stroke.radius + outline, OUTLINE_COLOR)
        _paint(picture, stroke, stroke.radius, stroke.color)
    result: np.ndarray = picture.round().clip(0, 255).astype(np.uint8)
    return result
