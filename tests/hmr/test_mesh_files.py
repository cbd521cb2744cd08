"""Mesh files read back by an independent reader."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hmr.body_arrays import body_from_path
from hmr.mesh_files import CAMERA_TO_GLTF, glb_bytes, obj_text
from hmr.npz import read_npz


def chunks(data):
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    place, found = 12, {}
    while place < len(data):
        size, kind = struct.unpack_from("<I4s", data, place)
        assert size % 4 == 0
        found[kind] = data[place + 8 : place + 8 + size]
        place += 8 + size
    return json.loads(found[b"JSON"]), found[b"BIN\0"]


def test_a_glb_gives_the_vertices_back_upright():
    body = body_from_path("embedded")
    people = [body.v_template + np.array(place) for place in ((0, 0, 3), (1, 0, 4))]
    scene = trimesh.load(io.BytesIO(glb_bytes(people, body.faces)), file_type="glb", process=False)
    assert sorted(scene.graph.nodes_geometry) == ["person_0", "person_1"]
    for number, expected in enumerate(people):
        _, name = scene.graph[f"person_{number}"]
        mesh = scene.geometry[name]
        np.testing.assert_allclose(mesh.vertices * CAMERA_TO_GLTF, expected, atol=1e-6)
        np.testing.assert_array_equal(mesh.faces, body.faces)
        assert mesh.volume > 0, "seen from outside the triangles run counter-clockwise"


def test_the_container_keeps_to_the_format():
    points = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1.5]])
    tree, data = chunks(glb_bytes([points], np.array([[0, 1, 2]])))
    assert tree["buffers"][0]["byteLength"] <= len(data)
    position = tree["accessors"][tree["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    assert position["min"] == [0, -1, -1.5]
    assert position["max"] == [1, 0, -1]
    assert all(view["byteOffset"] % 4 == 0 for view in tree["bufferViews"])
    empty, _ = chunks(glb_bytes([], np.array([[0, 1, 2]])))
    assert empty["scenes"] == [{}]


def test_an_obj_gives_the_mesh_back():
    body = body_from_path("embedded")
    text = obj_text(body.v_template, body.faces)
    mesh = trimesh.load(io.StringIO(text), file_type="obj", process=False)
    np.testing.assert_allclose(mesh.vertices, body.v_template, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, body.faces)


TRIANGLE = np.array([[0, 1, 2]])
PLACES = arrays(
    np.float32, (3, 3), elements=st.floats(-200, 200, width=32, allow_subnormal=False)
)  # fmt: skip


def glb_vertices(data, mesh=0):
    """(V, 3) in camera axes, as they stand in the file."""
    tree, content = chunks(data)
    accessor = tree["accessors"][tree["meshes"][mesh]["primitives"][0]["attributes"]["POSITION"]]
    start = tree["bufferViews"][accessor["bufferView"]]["byteOffset"]
    stored = np.frombuffer(content, "<f4", 3 * accessor["count"], start).reshape(-1, 3)
    return stored * CAMERA_TO_GLTF.astype("f4")


def obj_vertices(text):
    return np.array([line.split()[1:] for line in text.splitlines() if line[0] == "v"], np.float64)


@settings(max_examples=60, deadline=None)
@given(PLACES)
def test_float32_vertices_come_back_bit_for_bit(points):
    np.testing.assert_array_equal(glb_vertices(glb_bytes([points], TRIANGLE)), points)
    np.testing.assert_array_equal(obj_vertices(obj_text(points, TRIANGLE)).astype("f4"), points)


@pytest.mark.parametrize("distance", [0.5, 3.0, 14.0])
def test_a_person_at_a_distance_comes_back_to_a_micrometre(distance):
    body = body_from_path("embedded")
    points = body.v_template + np.array([0.3, -0.2, distance])
    np.testing.assert_allclose(glb_vertices(glb_bytes([points], body.faces)), points, atol=1e-6)
    np.testing.assert_allclose(obj_vertices(obj_text(points, body.faces)), points, atol=1e-6)


def test_from_npz_over_glb_and_obj_nothing_changes(tmp_path):
    body = body_from_path("embedded")
    people = (body.v_template[None] + np.array([[[0, 0, 3]], [[1, 0, 6]]])).astype(np.float32)
    np.savez(tmp_path / "people.npz", vertices=people, faces=body.faces)
    stored = read_npz(tmp_path / "people.npz", ["vertices", "faces"])
    data = glb_bytes(list(stored["vertices"]), stored["faces"])
    for number, expected in enumerate(people):
        np.testing.assert_array_equal(glb_vertices(data, number), expected)
        # What another program reads from the GLB and writes as OBJ is still the same.
        scene = trimesh.load(io.BytesIO(data), file_type="glb", process=False)
        read = scene.geometry[scene.graph[f"person_{number}"][1]]
        text = obj_text((read.vertices * CAMERA_TO_GLTF).astype("f4"), read.faces)
        np.testing.assert_array_equal(obj_vertices(text).astype("f4"), expected)


def test_meshes_of_more_than_65535_vertices_keep_their_triangles():
    points = np.random.default_rng(0).random((70_000, 3)).astype(np.float32) + 1
    faces = np.array([[0, 69_999, 65_536], [65_535, 1, 2]])
    scene = trimesh.load(
        io.BytesIO(glb_bytes([points], faces)), file_type="glb", process=False
    )  # fmt: skip
    (mesh,) = scene.geometry.values()
    np.testing.assert_array_equal(mesh.faces, faces)
    np.testing.assert_array_equal((mesh.vertices * CAMERA_TO_GLTF).astype("f4"), points)
