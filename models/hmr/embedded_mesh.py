"""Meshing the embedded body's distance field: surface nets, relaxation, collapse.

The result is a closed triangle mesh of genus 0 with exactly the wanted number of vertices V, and
therefore F = 2 V - 4 faces. numpy only, and the same on every machine: where symmetric edges tie,
lengths are rounded before they are compared.
"""

from __future__ import annotations

import numpy as np

from hmr.embedded_field import Primitives, gradient, signed_distance

GRID_STEP = 0.0190
"""Metres. Not every step gives a closed mesh (islands at finger tips): keep this one."""

_BAND = 0.05
_ROUNDING = 5
"""Decimals of a metre to which edge lengths are compared."""


def build_mesh(parts: Primitives, num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) on the zero surface of the field and faces (2 V - 4, 3), outward."""
    vertices, quads = _surface_nets(parts)
    vertices = _project(parts, vertices, rounds=3)
    for _ in range(2):
        vertices = _relax(parts, vertices, _split_quads(vertices, quads))
    vertices, faces = _collapse(vertices, _split_quads(vertices, quads), num_vertices)
    return _relax(parts, vertices, faces), faces


def _axis(segments: list[tuple[float, float, float]]) -> np.ndarray:
    """Grid coordinates from (start, end, step) segments that follow one another."""
    pieces = []
    for start, end, step in segments:
        intervals = max(2, round((end - start) / step))
        pieces.append(np.linspace(start, end, intervals + 1)[:-1])
    return np.append(np.concatenate(pieces), segments[-1][1])


def _grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates of the grid lines, finer at hands, feet and face; none of them on x = 0."""
    h = GRID_STEP
    half = _axis([(h / 2, 0.70, h), (0.70, 0.90, 0.55 * h)])
    y = _axis([(-1.0, -0.88, 0.8 * h), (-0.88, 0.55, 1.15 * h), (0.55, 0.83, 0.66 * h)])
    return np.concatenate([-half[::-1], half]), y, _axis([(-0.19, 0.21, 0.85 * h)])


def _sample(parts: Primitives, axes: tuple[np.ndarray, ...]) -> np.ndarray:
    """The field on the grid; +1 away from every primitive, where nobody looks."""
    near = np.zeros([len(axis) for axis in axes], bool)
    for low, high in zip(*parts.boxes(), strict=True):
        box = [
            slice(*np.searchsorted(axis, [lo - _BAND, hi + _BAND]))
            for axis, lo, hi in zip(axes, low, high, strict=True)
        ]
        near[tuple(box)] = True
    field = np.ones(near.shape)
    points = np.stack([axis[i] for axis, i in zip(axes, np.nonzero(near), strict=True)], axis=1)
    field[near] = signed_distance(parts, points)
    return field


def _surface_nets(parts: Primitives) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3), one per grid cell that the surface crosses, and outward quads (Q, 4).

    A vertex is the mean of the crossings of its cell's edges; every crossed grid edge gives the
    quad of the four cells around it (naive surface nets, Gibson 1998).
    """
    axes = _grid()
    field = _sample(parts, axes)
    cells = tuple(n - 1 for n in field.shape)
    sums = np.zeros((*cells, 3))
    counts = np.zeros(cells)
    crossed_edges = []
    for axis in range(3):
        first = np.moveaxis(field, axis, 0)[:-1]
        second = np.moveaxis(field, axis, 0)[1:]
        edges = np.stack(np.nonzero((first < 0) != (second < 0)), axis=1)
        a, b = first[tuple(edges.T)], second[tuple(edges.T)]
        # Back to the order x, y, z of the columns.
        corner = np.insert(edges[:, 1:], axis, edges[:, 0], axis=1)
        crossing = corner.astype(float)
        crossing[:, axis] += a / (a - b)
        crossed_edges.append((axis, corner, a < 0))
        for around in _cells_around(corner, axis):
            np.add.at(sums, tuple(around.T), crossing)
            np.add.at(counts, tuple(around.T), 1.0)
    active = counts > 0
    numbers = np.cumsum(active.ravel()).reshape(cells) - 1
    position = sums[active] / counts[active][:, None]
    vertices = np.stack(
        [np.interp(position[:, k], np.arange(len(axes[k])), axes[k]) for k in range(3)], axis=1
    )
    quads = []
    for axis, corner, starts_inside in crossed_edges:
        quad = np.stack([numbers[tuple(c.T)] for c in _cells_around(corner, axis)], axis=1)
        quads.append(np.where(starts_inside[:, None], quad, quad[:, ::-1]))
    return vertices, np.concatenate(quads)


def _cells_around(corner: np.ndarray, axis: int) -> list[np.ndarray]:
    """The four cells around a grid edge, counter-clockwise as seen from the edge's far end."""
    b, c = (axis + 1) % 3, (axis + 2) % 3
    cells = []
    for back_b, back_c in ((1, 1), (0, 1), (0, 0), (1, 0)):
        cell = corner.copy()
        cell[:, b] -= back_b
        cell[:, c] -= back_c
        cells.append(cell)
    return cells


def _project(parts: Primitives, vertices: np.ndarray, rounds: int) -> np.ndarray:
    """Newton steps onto the zero surface, at most a centimetre each."""
    for _ in range(rounds):
        g = gradient(parts, vertices)
        step = np.clip(signed_distance(parts, vertices), -0.01, 0.01)
        slope = np.maximum((g**2).sum(1), 1e-3)
        vertices = vertices - (step / slope)[:, None] * g
    return vertices


def _relax(parts: Primitives, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Move every vertex half-way to its neighbours' mean, along the surface only."""
    edges = unique_edges(faces)
    ends = np.concatenate([edges, edges[:, ::-1]])
    degree = np.bincount(ends[:, 0], minlength=len(vertices))
    total = np.stack(
        [
            np.bincount(ends[:, 0], weights=vertices[ends[:, 1], k], minlength=len(vertices))
            for k in range(3)
        ],
        axis=1,
    )
    pull = total / degree[:, None] - vertices
    normal = gradient(parts, vertices)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    pull -= (pull * normal).sum(1, keepdims=True) * normal
    return _project(parts, vertices + 0.5 * pull, rounds=2)


def _split_quads(vertices: np.ndarray, quads: np.ndarray) -> np.ndarray:
    """Cut every quad along its shorter diagonal into two triangles."""
    a, b, c, d = quads.T
    first = ((vertices[a] - vertices[c]) ** 2).sum(1)
    second = ((vertices[b] - vertices[d]) ** 2).sum(1)
    # Diagonals of mirror-symmetric quads tie: rounding noise must not decide.
    use_first = (first <= second + 1e-7)[:, None, None]
    along_first = np.stack([np.stack([a, b, c], 1), np.stack([a, c, d], 1)], 1)
    along_second = np.stack([np.stack([a, b, d], 1), np.stack([b, c, d], 1)], 1)
    return np.where(use_first, along_first, along_second).reshape(-1, 3)


def unique_edges(faces: np.ndarray) -> np.ndarray:
    """(E, 2) edges of a triangle mesh, each once, smaller vertex number first, sorted."""
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return np.unique(np.sort(edges, axis=1), axis=0)


def _collapse(
    vertices: np.ndarray, faces: np.ndarray, num_vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the shortest edges until `num_vertices` are left; closed and genus 0 stay so."""
    while len(vertices) > num_vertices:
        edges = unique_edges(faces)
        lengths = np.linalg.norm(vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1)
        order = np.argsort(np.round(lengths, _ROUNDING), kind="stable")
        merged = _independent_collapses(edges, order, len(vertices), len(vertices) - num_vertices)
        if not merged:
            raise RuntimeError(f"no edge of the mesh can collapse at {len(vertices)} vertices")
        target = np.arange(len(vertices))
        vertices = vertices.copy()
        for kept, removed in merged:
            vertices[kept] = (vertices[kept] + vertices[removed]) / 2
            target[removed] = kept
        faces = target[faces]
        distinct = (faces != np.roll(faces, 1, axis=1)).all(1)
        used = target == np.arange(len(target))
        renumber = np.cumsum(used) - 1
        vertices, faces = vertices[used], renumber[faces[distinct]]
    return vertices, faces


def _independent_collapses(
    edges: np.ndarray, order: np.ndarray, num_vertices: int, wanted: int
) -> list[tuple[int, int]]:
    """Edges (kept, removed) that may collapse at once: their rings do not touch."""
    neighbours: list[set[int]] = [set() for _ in range(num_vertices)]
    for i, j in edges.tolist():
        neighbours[i].add(j)
        neighbours[j].add(i)
    locked: set[int] = set()
    merged: list[tuple[int, int]] = []
    for i, j in edges[order].tolist():
        if len(merged) == wanted:
            break
        ring = neighbours[i] | neighbours[j]
        # Link condition: with any other number of common neighbours the surface would pinch.
        if len(neighbours[i] & neighbours[j]) == 2 and len(ring) >= 7 and not ring & locked:
            merged.append((i, j))
            locked |= ring
    return merged
