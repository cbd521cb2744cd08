"""Meshes as files for 3D programs: GLB and OBJ. numpy only.

GLB is y-up and right-handed in metres, so meshes in camera axes are turned by diag(1, -1, -1).
Format: glTF 2.0, binary container.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from hmr.raster import vertex_normals
from hmr.render import person_color

CAMERA_TO_GLTF = np.array([1.0, -1.0, -1.0])
"""x right, y down, z forward to x right, y up, z towards the viewer; its own inverse."""

_FLOAT, _U16, _U32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963


class _Buffer:
    """Arrays one after the other, each at a multiple of 4 bytes, with glTF's bookkeeping."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, array: np.ndarray, kind: str, component: int, target: int, **more: Any) -> int:
        """The number of the new accessor."""
        content = array.tobytes()
        self.views.append(
            {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(content),
             "target": target}
        )  # fmt: skip
        self.accessors.append(
            {"bufferView": len(self.views) - 1, "componentType": component, "type": kind,
             "count": array.size if kind == "SCALAR" else len(array)} | more
        )  # fmt: skip
        self.data += content + b"\0" * (-len(content) % 4)
        return len(self.accessors) - 1


def glb_bytes(meshes: Sequence[np.ndarray], faces: np.ndarray) -> bytes:
    """A GLB scene: one node `person_<i>` with its colour for each mesh; the triangles are shared.

    meshes: (V, 3) metres in camera axes. faces: (F, 3), counter-clockwise from outside. Vertices
    are float32 in the file, so float32 ones are read back bit for bit.
    """
    buffer = _Buffer()
    small = not meshes or len(meshes[0]) < 65536
    indices = buffer.add(
        np.ascontiguousarray(faces, "<u2" if small else "<u4"), "SCALAR", _U16 if small else _U32,
        _INDICES,
    )  # fmt: skip
    nodes, entries, materials = [], [], []
    for number, mesh in enumerate(meshes):
        points = np.ascontiguousarray(mesh * CAMERA_TO_GLTF, "<f4")
        normals = np.ascontiguousarray(vertex_normals(mesh, faces) * CAMERA_TO_GLTF, "<f4")
        limits = {"min": points.min(0).tolist(), "max": points.max(0).tolist()}
        position = buffer.add(points, "VEC3", _FLOAT, _VERTICES, **limits)
        normal = buffer.add(normals, "VEC3", _FLOAT, _VERTICES)
        materials.append(
            {"pbrMetallicRoughness": {"baseColorFactor": [*_linear(person_color(number)), 1.0],
                                      "metallicFactor": 0.0, "roughnessFactor": 0.8}}
        )  # fmt: skip
        entries.append(
            {"primitives": [{"attributes": {"POSITION": position, "NORMAL": normal},
                             "indices": indices, "material": number}]}
        )  # fmt: skip
        nodes.append({"mesh": number, "name": f"person_{number}"})
    tree = {
        "asset": {"version": "2.0", "generator": "rayhmr"},
        "scene": 0,
        "scenes": [{"nodes": list(range(len(nodes)))} if nodes else {}],
        "buffers": [{"byteLength": len(buffer.data)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    # glTF forbids empty lists.
    tree |= {"nodes": nodes, "meshes": entries, "materials": materials} if nodes else {}
    return _container(json.dumps(tree, separators=(",", ":")).encode(), bytes(buffer.data))


def _linear(color: Sequence[float]) -> list[float]:
    """glTF's colours are linear, ours are sRGB."""
    return [round(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4, 4) for c in color]


def _container(tree: bytes, data: bytes) -> bytes:
    """Header, JSON chunk padded with spaces, binary chunk padded with zeros."""
    tree += b" " * (-len(tree) % 4)
    data += b"\0" * (-len(data) % 4)
    length = 12 + 8 + len(tree) + 8 + len(data)
    return b"".join(
        [
            struct.pack("<4sII", b"glTF", 2, length),
            struct.pack("<I4s", len(tree), b"JSON"), tree,
            struct.pack("<I4s", len(data), b"BIN\0"), data,
        ]
    )  # fmt: skip


def obj_text(vertices: np.ndarray, faces: np.ndarray) -> str:
    """Wavefront OBJ of one mesh, in the axes it comes in; numbering from 1.

    Nine digits: float32 vertices are read back bit for bit.
    """
    lines = [f"v {x:.9g} {y:.9g} {z:.9g}" for x, y, z in vertices.tolist()]
    lines += [f"f {a} {b} {c}" for a, b, c in (faces + 1).tolist()]
    return "\n".join(lines) + "\n"
