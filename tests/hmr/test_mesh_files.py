"""Mesh files read back by an independent reader."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import trimesh

from hmr.body_arrays import body_from_path
from hmr.mesh_files import CAMERA_TO_GLTF, glb_bytes, obj_text


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
