"""The embedded body: its numbers, the laws of its mesh, rig and pose directions, and its cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch

from hmr import embedded_body
from hmr.body_arrays import BodyArrays, lbs_numpy, load_body, save_body
from hmr.embedded_correctives import dual_quaternion_skinning, pose_directions, rest_space_offsets
from hmr.embedded_field import (
    SOLE_HEIGHT,
    Primitives,
    distances,
    gradient,
    primitives,
    rest_joints,
    signed_distance,
)
from hmr.embedded_mesh import unique_edges
from hmr.embedded_rig import SHAPE_DIRECTIONS, landmark_order
from hmr.pose_prior import rodrigues, sample_pose
from hmr.skeleton import SMPL_FLIP, SMPL_PARENTS, SMPL_VERTEX_IDS, smpl_index

MM = 1000.0


@pytest.fixture(scope="module")
def built() -> BodyArrays:
    """Computed now, so that a change of the code shows; read only."""
    return embedded_body.build_embedded_body()


@pytest.fixture(scope="module")
def landmarks(built: BodyArrays) -> dict[str, np.ndarray]:
    places = built.v_template[built.landmark_vertices]
    return dict(zip(SMPL_VERTEX_IDS, places, strict=True))


def volume(vertices: np.ndarray, faces: np.ndarray) -> float:
    """Sum of the signed tetrahedra over the origin."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return float((a * np.cross(b, c)).sum() / 6)


def assert_same(ours: BodyArrays, theirs: BodyArrays) -> None:
    for field in fields(BodyArrays):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        assert np.array_equal(one, other), field.name
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None), field.name


# The same numbers everywhere


def test_faces_are_these_ones_on_every_machine(built: BodyArrays) -> None:
    """Models know the body by them; a wanted change also raises EMBEDDED_VERSION."""
    digest = hashlib.sha256(built.faces.astype("<i4").tobytes()).hexdigest()
    assert digest == "ac8f7bc969f0430f926e7ea5fda3310533fa6642dc9e9367a9f794e6f71ba06e"
    expected = "f018b831cccc371af01fef88130fdd81c154a01ac41348c13d7d1bc1b1f48d99"
    assert built.content_hash() == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v_template", 8.812421726340),
        ("shapedirs", -0.816014780210),
        ("lbs_weights", -15.488044953048),
        ("posedirs", -0.294639697076),
    ],
)
def test_arrays_have_these_checksums(built: BodyArrays, name: str, expected: float) -> None:
    array = getattr(built, name)
    found = np.cos(np.arange(array.size)) @ array.ravel().astype(np.float64)
    # posedirs are rounded to float32, where the last digit depends on the machine.
    assert found == pytest.approx(expected, abs=1e-5 if name == "posedirs" else 1e-8)


def test_a_new_build_equals_the_one_in_use(built: BodyArrays, embedded_arrays: BodyArrays) -> None:
    assert np.array_equal(built.faces, embedded_arrays.faces)
    assert np.array_equal(built.landmark_vertices, embedded_arrays.landmark_vertices)
    for name in ("v_template", "shapedirs", "J_regressor", "J_regressor_extra", "lbs_weights"):
        np.testing.assert_allclose(getattr(built, name), getattr(embedded_arrays, name), atol=1e-9)
    np.testing.assert_allclose(built.posedirs, embedded_arrays.posedirs, atol=1e-7)


# Mesh


def test_mesh_is_closed_oriented_and_in_one_piece(built: BodyArrays) -> None:
    faces = built.faces
    assert built.num_vertices == 6890
    assert len(faces) == 13776
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    assert (directed[:, 0] != directed[:, 1]).all()
    there = {tuple(edge) for edge in directed.tolist()}
    assert len(there) == len(directed)  # no directed edge twice
    assert there == {(b, a) for a, b in there}  # each has its opposite: two faces an edge
    edges = unique_edges(faces)
    assert 2 * len(edges) == len(directed)
    assert 6890 - len(edges) + 13776 == 2  # Euler: genus 0 when it is one piece
    labels = np.arange(6890)
    while True:
        lowest = labels.copy()
        np.minimum.at(lowest, edges[:, 0], labels[edges[:, 1]])
        np.minimum.at(lowest, edges[:, 1], labels[edges[:, 0]])
        if np.array_equal(lowest, labels):
            break
        labels = lowest
    assert (labels == 0).all()


def test_no_vertex_pinches_the_mesh(built: BodyArrays) -> None:
    """Around each one all neighbours are met on a single round, from face to face."""
    a, b, c = built.faces.T
    corners = np.concatenate([np.stack([a, b, c]), np.stack([b, c, a]), np.stack([c, a, b])], 1).T
    after: list[dict[int, int]] = [{} for _ in range(built.num_vertices)]
    for vertex, left, right in corners.tolist():
        after[vertex][left] = right
    for fan in after:
        met = [next(iter(fan))]
        while (beside := fan[met[-1]]) not in met:
            met.append(beside)
        assert len(met) == len(fan) >= 3


def test_size_is_a_persons(built: BodyArrays) -> None:
    low, high = built.v_template.min(0), built.v_template.max(0)
    assert volume(built.v_template, built.faces) == pytest.approx(0.0674719, abs=1e-6)
    assert high[1] - low[1] == pytest.approx(1.77703, abs=1e-4)
    assert high[0] == pytest.approx(-low[0])
    assert high[0] - low[0] == pytest.approx(1.60638, abs=1e-4)
    edges = built.v_template[unique_edges(built.faces)]
    lengths = np.linalg.norm(edges[:, 0] - edges[:, 1], axis=1)
    assert MM * np.median(lengths) == pytest.approx(17.07, abs=0.1)
    assert MM * lengths.max() < 31


def test_vertices_lie_on_the_surface_and_faces_look_outward(built: BodyArrays) -> None:
    parts, vertices = primitives(), built.v_template
    assert np.abs(signed_distance(parts, vertices)).max() < 1e-5
    a, b, c = np.moveaxis(vertices[built.faces], 1, 0)
    normals = np.cross(b - a, c - a)
    outward = (normals * gradient(parts, (a + b + c) / 3)).sum(1) > 0
    area = np.linalg.norm(normals, axis=1)
    # Between the fingers, which melt together, and behind the ears a few small faces fold over.
    assert area[outward].sum() > 0.997 * area.sum()
    trunk_and_limbs = (np.abs(a[:, 0]) < 0.65) & (a[:, 1] < 0.55)
    assert outward[trunk_and_limbs].all()


def test_soles_are_flat(built: BodyArrays) -> None:
    y = built.v_template[:, 1]
    assert y.min() == pytest.approx(SOLE_HEIGHT, abs=1e-6)
    assert (y < SOLE_HEIGHT + 1e-5).sum() > 80


# Distance field


def hand_made(count: int = 1) -> Primitives:
    """Spheres of radius 0.1 at (0, 0, 0), and a rod along x from 1 to 2 that thickens."""
    return Primitives(
        centers=np.zeros((count, 3)), radii=np.full((count, 3), 0.1),
        a=np.array([[1.0, 0, 0]]), b=np.array([[2.0, 0, 0]]),
        radius_a=np.array([0.1]), radius_b=np.array([0.3]), bones=np.arange(count + 1),
    )  # fmt: skip


def test_distances_to_a_sphere_and_a_rod() -> None:
    points = np.array([[0.3, 0, 0], [0, 0.1, 0], [0.05, 0, 0], [1.5, 0.7, 0], [2.0, 0, 0]])
    found = distances(hand_made(), points)
    np.testing.assert_allclose(found[:3, 0], [0.2, 0, -0.05], atol=1e-12)
    np.testing.assert_allclose(found[3:, 1], [0.7 - 0.2, -0.3], atol=1e-12)
    assert found[0, 1] == pytest.approx(0.7 - 0.1)  # the rod's end is round


@pytest.mark.parametrize(
    ("shift", "softness"),
    [((0, 0, 0), 0.011), ((0, 0.6, 0), 0.006), ((-0.8, 0, 0), 0.0035), ((0.8, 0.6, 0), 0.0035)],
    ids=["body", "head", "hand", "raised hand"],
)
def test_the_union_is_softer_on_the_body_than_at_head_and_hands(
    shift: tuple[float, float, float], softness: float
) -> None:
    place = np.array([[0, 0, 0.15]]) + shift
    offset, far = np.array(shift), np.array([0, 0, 5])
    two = hand_made(2)
    two = two._replace(centers=two.centers + offset, a=two.a + far, b=two.b + far)
    # Of two equal distances the soft minimum is lower by softness x log 2.
    assert signed_distance(two, place)[0] == pytest.approx(0.05 - softness * np.log(2))


def test_primitives_come_in_mirrored_pairs() -> None:
    parts = primitives()
    assert len(parts.centers) == 37
    assert len(parts.a) == 26
    points = np.random.default_rng(0).uniform([-0.9, -1, -0.2], [0.9, 0.8, 0.2], (500, 3))
    mirrored = points * [-1, 1, 1]
    np.testing.assert_allclose(
        signed_distance(parts, points), signed_distance(parts, mirrored), atol=1e-12
    )
    ours, theirs = distances(parts, points), distances(parts, mirrored)
    for bone in range(24):
        np.testing.assert_allclose(
            ours[:, parts.bones == bone].min(1),
            theirs[:, parts.bones == SMPL_FLIP[bone]].min(1),
            atol=1e-12,
        )


# Rig


def test_every_joint_lies_inside_the_body() -> None:
    assert signed_distance(primitives(), rest_joints()).max() < -0.005


def test_the_regressor_gives_the_joints_exactly(built: BodyArrays) -> None:
    np.testing.assert_allclose(built.J_regressor @ built.v_template, rest_joints(), atol=1e-14)
    np.testing.assert_allclose(built.J_regressor.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(built.J_regressor_extra.sum(1), 1, atol=1e-12)
    assert built.J_regressor.min() > -0.008
    counts = (built.J_regressor != 0).sum(1)
    assert counts.min() == 40
    assert counts.max() == 320


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("pelvis", (0, 0, 0)), ("left_hip", (0.085, -0.085, -0.005)),
        ("right_ankle", (-0.095, -0.885, -0.035)), ("spine3", (0, 0.3, -0.01)),
        ("head", (0, 0.59, 0)), ("right_wrist", (-0.675, 0.44, -0.04)),
    ],
)  # fmt: skip
def test_joints_lie_where_the_table_says(
    built: BodyArrays, name: str, place: tuple[float, float, float]
) -> None:
    np.testing.assert_allclose(built.rest_joints[smpl_index(name)], place, atol=1e-14)


def test_skinning_weights_are_shares_of_the_nearest_bones(built: BodyArrays) -> None:
    weights = built.lbs_weights
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-14)
    assert weights.min() == 0
    assert weights.max(0).min() > 0.4  # every bone moves something
    assert (weights > 0).sum(1).mean() == pytest.approx(2.52, abs=0.01)
    parts = primitives()
    gaps = distances(parts, built.v_template)
    of_bone = np.stack([gaps[:, parts.bones == bone].min(1) for bone in range(24)], axis=1)
    nearest = of_bone.min(1)
    at_nearest = np.take_along_axis(weights, of_bone.argmin(1)[:, None], 1)[:, 0]
    np.testing.assert_allclose(at_nearest, weights.max(1), atol=1e-8)
    # Each share is exp(-(how much farther that bone is) / 22 mm) of the largest.
    expected = np.exp(-(of_bone - nearest[:, None]) / 0.022) * at_nearest[:, None]
    blended = weights > 0
    np.testing.assert_allclose(weights[blended], expected[blended], atol=1e-8)
    dropped = np.where(blended, 0, expected).max(1)
    kept = np.where(blended, expected, 1).min(1)
    assert (dropped <= np.maximum(kept, 0.01) + 1e-8).all()


def test_a_beta_moves_the_body_by_so_much(built: BodyArrays) -> None:
    motion = MM * np.sqrt((built.shapedirs**2).sum(1).mean(0))
    expected = [31.8, 7.8, 16.6, 8.3, 18.8, 6.0, 6.2, 4.1, 2.8, 3.0]
    np.testing.assert_allclose(motion, expected, atol=0.06)
    tall = built.v_template[:, 1, None] + built.shapedirs[:, 1]
    growth = MM * (np.ptp(tall, axis=0) - np.ptp(built.v_template[:, 1]))
    np.testing.assert_allclose(growth, [97.7, 0, 40.1, 0, 35.4, 0, 0, 0, 0, 13.3], atol=0.06)


def test_a_beta_moves_only_its_own_part(built: BodyArrays) -> None:
    k = list(SHAPE_DIRECTIONS).index
    motion = np.linalg.norm(built.shapedirs, axis=1)
    y, x = built.v_template[:, 1], np.abs(built.v_template[:, 0])
    legs, hands, head = y < -0.4, x > 0.7, y > 0.65
    for name in ("arms", "shoulders", "head"):
        assert motion[legs, k(name)].max() == 0, name
    for name in ("legs", "belly"):  # the belly's bump fades, it does not end
        assert motion[head | hands, k(name)].max() < 1e-10, name
    assert motion[hands, k("arms")].min() > 0.015
    feet = y < -0.9
    assert (built.shapedirs[feet, 1, k("legs")] < -0.03).all()


def test_every_beta_grows_both_sides_alike(built: BodyArrays) -> None:
    mirrored = built.joint_shapedirs[list(SMPL_FLIP)] * np.array([-1, 1, 1])[:, None]
    # The regressors of left and right read slightly different vertices.
    np.testing.assert_allclose(built.joint_shapedirs, mirrored, atol=2e-3)
    assert np.abs(built.joint_shapedirs).max(axis=(0, 1)).min() > 1e-3


# Landmarks


def test_landmarks_carry_the_vertex_numbers_of_smpl(built: BodyArrays) -> None:
    assert built.landmark_vertices.tolist() == list(SMPL_VERTEX_IDS.values())


def test_landmarks_find_their_numbers_however_the_vertices_are_sorted(built: BodyArrays) -> None:
    shuffle = np.random.default_rng(0).permutation(built.num_vertices)
    vertices, weights = built.v_template[shuffle], built.lbs_weights[shuffle]
    order = landmark_order(vertices, weights, rest_joints())
    assert np.array_equal(np.sort(order), np.arange(built.num_vertices))
    numbers = built.landmark_vertices
    np.testing.assert_array_equal(vertices[order][numbers], built.v_template[numbers])


def test_face_feet_and_hands_are_where_a_person_has_them(landmarks: dict[str, np.ndarray]) -> None:
    at = landmarks
    joint = dict(zip(("ankle", "wrist"), rest_joints()[[7, 20]], strict=True))
    assert at["nose"] == pytest.approx([0, 0.6633, 0.1356], abs=1e-3)
    eye, ear = at["left_eye"], at["left_ear"]
    assert eye == pytest.approx(at["nose"] + [0.032, 0.035, -0.03], abs=0.008)
    assert ear[0] > eye[0] > 0
    assert ear[2] < eye[2] < at["nose"][2]
    big, small, heel = at["left_big_toe"], at["left_small_toe"], at["left_heel"]
    assert 0 < big[0] < small[0]
    assert big[2] > small[2] > joint["ankle"][2] + 0.1
    assert heel[2] < joint["ankle"][2] - 0.03
    assert max(big[1], small[1], heel[1]) < joint["ankle"][1]
    fingers = [at[f"left_{name}"] for name in ("thumb", "index", "middle", "ring", "pinky")]
    across = [finger[2] for finger in fingers]
    assert across == sorted(across, reverse=True)  # the thumb points forward in the T-pose
    assert min(finger[0] for finger in fingers) > joint["wrist"][0] + 0.05
    assert min(finger[0] for finger in fingers[1:]) > fingers[0][0]


def test_right_landmarks_mirror_the_left_ones(landmarks: dict[str, np.ndarray]) -> None:
    for name, place in landmarks.items():
        if name.startswith("left_"):
            other = landmarks[name.replace("left", "right")]
            np.testing.assert_allclose(other * [-1, 1, 1], place, atol=1e-3, err_msg=name)


def test_smplx_finds_its_45_joints_on_this_body(
    built: BodyArrays, landmarks: dict[str, np.ndarray]
) -> None:
    structure = smplx.utils.Struct(
        v_template=built.v_template, shapedirs=built.shapedirs, posedirs=built.posedirs,
        J_regressor=built.J_regressor, weights=built.lbs_weights, f=built.faces,
        kintree_table=np.stack([built.parents, np.arange(24)]),
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        layer = smplx.SMPLLayer(model_path="", data_struct=structure)
    with torch.inference_mode():
        found = layer().joints[0]
    expected = np.concatenate([rest_joints(), np.stack(list(landmarks.values()))])
    np.testing.assert_allclose(found, expected, atol=1e-6)


# Pose directions


def turn_about_x(degrees: float) -> np.ndarray:
    return rodrigues(np.radians([[degrees, 0.0, 0.0]]))[0]


@pytest.mark.parametrize(("angle", "half"), [(90, 45), (-90, -45), (179, 89.5), (200, -80), (0, 0)])
def test_dual_quaternions_meet_half_way_and_keep_the_distance(angle: float, half: float) -> None:
    """Between a bone at rest and a turned one; beyond half a turn the short way is the other."""
    turns = np.stack([np.eye(3), turn_about_x(angle)])[None]
    weights = np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])
    points = np.tile([0.3, 0.1, 0.0], (3, 1))
    found = dual_quaternion_skinning(points, weights, turns, np.zeros((1, 2, 3)))[0]
    expected = [turn_about_x(a) @ points[0] for a in (half, 0, angle)]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_dual_quaternions_move_one_bones_points_rigidly() -> None:
    rng = np.random.default_rng(0)
    turns = rodrigues(rng.standard_normal((5, 24, 3)))
    moves = rng.standard_normal((5, 24, 3))
    points = rng.standard_normal((24, 3))
    found = dual_quaternion_skinning(points, np.eye(24), turns, moves)
    expected = np.einsum("bjrc,jc->bjr", turns, points) + moves
    np.testing.assert_allclose(found, expected, atol=1e-12)


def sampled_rotations(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    poses = np.stack([sample_pose(rng, 0.8) for _ in range(count)])
    return rodrigues(poses.reshape(-1, 24, 3))


def test_offsets_carry_linear_skinning_to_dual_quaternion_skinning(
    small_arrays: BodyArrays,
) -> None:
    """Checked with the body layer's own skinning: offsets become the template."""
    rotmats = sampled_rotations(2, seed=3)[:1]
    arrays = replace(small_arrays, posedirs=np.zeros_like(small_arrays.posedirs))
    # Gentle bending: larger offsets would be cut at 5 cm.
    rotmats = rodrigues(0.2 * np.random.default_rng(1).standard_normal((1, 24, 3)))
    joints, weights = arrays.rest_joints, arrays.lbs_weights
    offsets = rest_space_offsets(arrays.v_template, weights, joints, rotmats)
    assert 1e-3 < np.abs(offsets).max() < 0.05
    corrected = arrays.v_template + offsets[0]
    turns, places = rotmats[0].copy(), joints.copy()
    for j, parent in enumerate(SMPL_PARENTS[1:], start=1):
        turns[j] = turns[parent] @ rotmats[0, j]
        places[j] = places[parent] + turns[parent] @ (joints[j] - joints[parent])
    moves = places - np.einsum("jrc,jc->jr", turns, joints)
    linear = np.einsum("vj,jrc,vc->vr", weights, turns, corrected) + weights @ moves
    rigid = dual_quaternion_skinning(arrays.v_template, weights, turns[None], moves[None])[0]
    np.testing.assert_allclose(linear, rigid, atol=1e-6)


def test_a_body_that_turns_as_a_whole_needs_no_correction(built: BodyArrays) -> None:
    rotmats = np.tile(np.eye(3), (2, 24, 1, 1))
    rotmats[1, 0] = rodrigues(np.array([[0.4, -2.0, 1.1]]))[0]
    vertices, weights = built.v_template[::20], built.lbs_weights[::20]
    offsets = rest_space_offsets(vertices, weights, rest_joints(), rotmats)
    np.testing.assert_allclose(offsets, 0, atol=1e-9)


def test_pose_directions_predict_the_offsets_of_new_poses(built: BodyArrays) -> None:
    rotmats = sampled_rotations(6, seed=7)
    wanted = rest_space_offsets(built.v_template, built.lbs_weights, rest_joints(), rotmats)
    features = (rotmats[:, 1:] - np.eye(3)).reshape(6, 207)
    found = np.einsum("vck,bk->bvc", built.posedirs, features, optimize=True)
    gap = np.linalg.norm(wanted, axis=2).mean(0)
    left = np.linalg.norm(wanted - found, axis=2).mean(0)
    bent = gap > 1e-3
    assert MM * gap[bent].mean() > 3.5
    assert left[bent].mean() < 0.4 * gap[bent].mean()


def test_pose_directions_keep_the_volume_of_bent_bodies(built: BodyArrays) -> None:
    rotmats, betas = sampled_rotations(6, seed=8), np.zeros((6, 10))
    plain = replace(built, posedirs=np.zeros_like(built.posedirs))
    rest = volume(built.v_template, built.faces)
    lost = []
    for arrays in (built, plain):
        vertices, _ = lbs_numpy(arrays, rotmats, betas)
        assert vertices is not None
        lost.append([abs(1 - volume(v, built.faces) / rest) for v in vertices])
    assert np.mean(lost[0]) < 0.6 * np.mean(lost[1])
    assert np.mean(lost[0]) < 0.01


def test_pose_directions_act_only_where_bones_blend(built: BodyArrays) -> None:
    weights, directions = built.lbs_weights, np.abs(built.posedirs).max(1)
    by_joint = directions.reshape(len(weights), 23, 9).max(2)
    rigid = weights.max(1) >= 0.98
    assert rigid.sum() > 1000
    assert by_joint[rigid].max() == 0
    for joint, parent in enumerate(SMPL_PARENTS[1:], start=1):
        unconcerned = (weights[:, joint] == 0) & (weights[:, parent] == 0)
        assert by_joint[unconcerned, joint - 1].max() == 0
        assert by_joint[:, joint - 1].max() > 0
    assert built.posedirs.dtype == np.float32


def test_a_vertex_gets_its_pose_directions_whoever_is_beside_it(built: BodyArrays) -> None:
    few = pose_directions(built.v_template[::40], built.lbs_weights[::40], rest_joints())
    again = pose_directions(built.v_template[::40], built.lbs_weights[::40], rest_joints())
    assert np.array_equal(few, again)
    np.testing.assert_allclose(few, built.posedirs[::40], atol=1e-7)


# Cache

Cached = Callable[[], tuple[BodyArrays, int]]


def test_a_file_keeps_every_digit(built: BodyArrays, tmp_path: Path) -> None:
    save_body(tmp_path / "embedded.npz", built)
    assert_same(replace(load_body(tmp_path / "embedded.npz"), licence="project"), built)


@pytest.fixture
def computed(small_arrays: BodyArrays) -> BodyArrays:
    """Stands for the embedded body below: it is small, and written in no time."""
    return replace(small_arrays, name="embedded", licence="project")


@pytest.fixture
def cached(
    computed: BodyArrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], tuple[BodyArrays, int]]:
    """`embedded_body` with a cache of its own, and how often it computed the body by then."""
    monkeypatch.setenv("RAYHMR_CACHE", str(tmp_path / "cache"))
    builds: list[int] = []

    def build() -> BodyArrays:
        builds.append(1)
        return computed

    monkeypatch.setattr(embedded_body, "build_embedded_body", build)
    return lambda: (embedded_body.embedded_body(), len(builds))


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_the_second_call_reads_the_same_body_from_the_cache(
    computed: BodyArrays, cached: Cached, tmp_path: Path
) -> None:
    first, builds = cached()
    assert builds == 1
    second, builds = cached()
    assert builds == 1
    assert second is not first
    assert_same(second, computed)
    assert second.content_hash() == computed.content_hash()
    assert only_file(tmp_path / "cache").name == "embedded-body-1.npz"


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"no archive" * 100,
        lambda data: data[:5000] + bytes(b ^ 0xFF for b in data[5000:5100]) + data[5100:],
    ],
    ids=["cut", "empty", "foreign", "flipped bits"],
)
def test_a_damaged_cache_file_is_replaced(
    computed: BodyArrays, cached: Cached, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    damage: Callable[[bytes], bytes],
) -> None:  # fmt: skip
    cached()
    file = only_file(tmp_path / "cache")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    body, builds = cached()
    assert builds == 2
    assert_same(body, computed)
    assert "damaged and is computed again" in caplog.text
    assert str(file) in caplog.text
    body, builds = cached()
    assert builds == 2
    assert_same(body, computed)
    assert only_file(tmp_path / "cache") == file


def test_a_cache_file_that_is_no_body_is_replaced(
    computed: BodyArrays, cached: Cached, tmp_path: Path
) -> None:
    weights = computed.lbs_weights.copy()
    weights[0] *= 2
    save_body(tmp_path / "cache/embedded-body-1.npz", replace(computed, lbs_weights=weights))
    body, builds = cached()
    assert builds == 1
    assert_same(body, computed)
    assert cached()[1] == 1


@pytest.mark.parametrize("name", ["file/below", "x" * 300], ids=["below a file", "no valid name"])
def test_without_a_place_for_the_cache_the_body_is_computed_each_time(
    computed: BodyArrays, cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, name: str,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RAYHMR_CACHE", str(tmp_path / name))
    with caplog.at_level(logging.WARNING):
        for count in (1, 2):
            body, builds = cached()
            assert builds == count
            assert_same(body, computed)
    assert "the body is not cached" in caplog.text


def test_the_cache_lies_where_the_environment_says(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, folder in (("", "xdg/rayhmr"), (str(tmp_path / "mine"), "mine")):
        monkeypatch.setenv("RAYHMR_CACHE", value)
        cached()
        assert only_file(tmp_path / folder).suffix == ".npz"
    monkeypatch.delenv("RAYHMR_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    _, builds = cached()
    assert builds == 3
    assert only_file(tmp_path / "home/.cache/rayhmr").suffix == ".npz"
