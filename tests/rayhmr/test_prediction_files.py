"""The forms for other programs hold what people.parquet holds, and other programs can read them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import trimesh

from hmr.body import Body
from hmr.camera import perspective_projection
from hmr.mesh_files import CAMERA_TO_GLTF
from hmr.rotations import axis_angle_to_matrix, rotation_angle
from hmr.skeleton import joint49_index
from hmr.structures import Person
from rayhmr.config import TrackConfig
from rayhmr.data.sources.coco import CocoSource
from rayhmr.data.sources.spin import SpinSource
from rayhmr.people_table import PEOPLE_SCHEMA, RESULT_SCHEMA, person_row
from rayhmr.people_tracks import CAMERA_TO_Z_UP, write_tracks
from rayhmr.pictures import table_of
from rayhmr.prediction_files import write_coco, write_meshes, write_npz, write_people
from rayhmr.prediction_parts import PredictionParts

SIZE = (640, 480)
FOCAL = 800.0


@pytest.fixture(scope="module")
def body():
    return Body.embedded()


def a_person(body, pose, betas, transl, box):
    output = body(
        axis_angle_to_matrix(torch.tensor(pose).view(1, 24, 3)), torch.tensor(betas)[None]
    )
    joints = output.joints[0]
    focal, center = torch.tensor([[FOCAL, FOCAL]]), torch.tensor([[320.0, 240.0]])
    joints_2d = perspective_projection(joints[None], torch.tensor(transl)[None], focal, center)[0]
    return Person(
        box_xyxy=box, global_orient=pose[:3], body_pose=pose[3:], betas=betas,
        pred_cam=np.ones(3, np.float32), cam_t=transl,
        focal_length=np.full(2, FOCAL, np.float32),
        principal_point=np.array([320, 240], np.float32), vertices=output.vertices[0].numpy(),
        joints_3d=joints.numpy(), joints_2d=joints_2d.numpy(), iterations=({},) * 4,
    )  # fmt: skip


def written(folder, images):
    """people.parquet of {image: [Person]}, and the listing."""
    listing = table_of(
        [{"path": path, "sequence": "clip", "frame": n} for n, path in enumerate(images)]
    )
    (folder / "work").mkdir()
    parts = PredictionParts(folder / "work", listing, RESULT_SCHEMA)
    results = [
        {
            "number": number, "path": path,
            "people": [
                person_row(person, 1.2) | {
                    "sample_id": f"{path}/{n}", "image": path, "image_width": SIZE[0],
                    "image_height": SIZE[1], "image_size": SIZE, "person": n, "model": "m",
                    "model_version": None, "model_sha256": "f",
                }
                for n, person in enumerate(people)
            ],
        }
        for number, (path, people) in enumerate(images.items())
    ]  # fmt: skip
    parts.add(pa.Table.from_pylist(results, RESULT_SCHEMA))
    write_people(parts, folder, PEOPLE_SCHEMA)
    return listing


def drawn(rng, depth=4.0):
    pose = rng.normal(0, 0.3, 72).astype(np.float32)
    betas = rng.normal(0, 1, 10).astype(np.float32)
    return pose, betas, np.array([0.1, -0.2, depth], np.float32)


@pytest.fixture(scope="module")
def output(body, tmp_path_factory):
    """Three images: two people, nobody, one person."""
    folder, rng = tmp_path_factory.mktemp("out"), np.random.default_rng(0)
    people = [
        a_person(body, *drawn(rng), np.array([10, 20, 210 + k, 400], np.float32)) for k in range(3)
    ]
    images = {"a.jpg": people[:2], "deep/b.jpg": [], "deep/c.png": people[2:]}
    return folder, written(folder, images), people


def test_npz_to_parquet_to_glb_and_obj_are_the_same_vertices(output, body):
    folder, listing, people = output
    write_npz(folder, body, listing)
    for kind in ("glb", "obj"):
        write_meshes(folder, body, listing, kind)
    with np.load(folder / "people.npz") as archive:
        stored = dict(archive)
    rows = pq.read_table(folder / "people.parquet").to_pylist()
    np.testing.assert_array_equal(stored["pose"], [row["pose"] for row in rows])
    rotmats = axis_angle_to_matrix(torch.tensor(stored["pose"]).view(-1, 24, 3))
    vertices = body(rotmats, torch.tensor(stored["shape"])).vertices.numpy()
    vertices = vertices + stored["trans_cam"][:, None]
    files = sorted(p.relative_to(folder / "glb").as_posix() for p in folder.glob("glb/**/*.glb"))
    assert files == ["a.glb", "deep/c.glb"]
    found = []
    for name in files:
        scene = trimesh.load(folder / "glb" / name, process=False)
        found += [scene.geometry[key] for key in scene.geometry]
    objs = [folder / f"obj/{name}" for name in
            ("a/person_0.obj", "a/person_1.obj", "deep/c/person_0.obj")]  # fmt: skip
    assert sorted(folder.glob("obj/**/*.obj")) == objs
    for mesh, path, expected, person in zip(found, objs, vertices, people, strict=True):
        np.testing.assert_allclose(mesh.vertices * CAMERA_TO_GLTF, expected, atol=1e-6)
        np.testing.assert_allclose(trimesh.load(path, process=False).vertices, expected, atol=1e-6)
        np.testing.assert_allclose(expected, person.vertices + person.cam_t, atol=2e-6)


def test_the_npz_is_read_as_spins_and_has_the_cameras(output, body):
    folder, listing, people = output
    write_npz(folder, body, listing)
    source = SpinSource(labels=str(folder / "people.npz"), split="train")
    (unit,) = source.units(100)
    rows = list(source.people(unit))
    assert [row.image for row in rows] == ["a.jpg", "a.jpg", "deep/c.png"]
    for row, person in zip(rows, people, strict=True):
        np.testing.assert_array_equal(row.pose[3:], person.body_pose)
        np.testing.assert_array_equal(row.betas, person.betas)
        x1, y1, x2, y2 = person.box_xyxy
        np.testing.assert_allclose(row.center, [(x1 + x2) / 2, (y1 + y2) / 2])
        assert row.scale == pytest.approx(1.2 * max(x2 - x1, y2 - y1) / 200)
    with np.load(folder / "people.npz") as archive:
        pixels = np.einsum(
            "nij,nkj->nki", archive["cam_int"],
            archive["joints3d"] + archive["trans_cam"][:, None],
        )  # fmt: skip
        np.testing.assert_allclose(
            pixels[..., :2] / pixels[..., 2:], archive["joints2d"], atol=1e-2
        )


def test_coco_keypoints_are_where_the_bodys_joints_are_seen(output, body, tmp_path):
    folder, listing, people = output
    write_coco(folder, body, listing)
    tree = json.loads((folder / "coco.json").read_text())
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in tree["images"]] == [
        (0, "a.jpg", 640, 480), (2, "deep/c.png", 640, 480)
    ]  # fmt: skip
    assert [a["image_id"] for a in tree["annotations"]] == [0, 0, 2]
    names = tree["categories"][0]["keypoints"]
    for annotation, person in zip(tree["annotations"], people, strict=True):
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], person.box_xyxy)
        marks = dict(zip(names, np.reshape(annotation["keypoints"], (17, 3)), strict=True))
        for name, joint in (("left_knee", 4), ("right_wrist", 21), ("left_shoulder", 16)):
            inside = ((person.joints_2d[joint] >= 0) & (person.joints_2d[joint] < SIZE)).all()
            assert (marks[name][2] == 2) == inside
            if inside:
                # COCO counts from the centre of the first pixel.
                np.testing.assert_allclose(
                    marks[name][:2] + 0.5, person.joints_2d[joint], atol=0.01
                )
    # Our own reader of COCO finds the same people.
    source = CocoSource(labels=str(folder / "coco.json"), split="train")
    rows = [row for unit in source.units(100) for row in source.people(unit)]
    assert [row.image for row in rows] == ["a.jpg", "a.jpg", "deep/c.png"]
    knee = rows[0].keypoints_2d[joint49_index("op_left_knee")]
    np.testing.assert_allclose(knee[:2], people[0].joints_2d[4], atol=0.01)


FRAMES = 30


@pytest.fixture(scope="module")
def walked(body, tmp_path_factory):
    """Two people who walk past each other, in changing order, with jitter; one is missing for
    three frames."""
    folder, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(1)
    starts = [drawn(rng), drawn(rng, depth=6.0)]
    images = {}
    for frame in range(FRAMES):
        people = []
        for who, (pose, betas, transl) in enumerate(starts):
            moved = pose + 0.02 * frame + rng.normal(0, 0.02, 72).astype(np.float32)
            place = transl + np.array([0.02 * frame * (1 - 2 * who), 0, 0], np.float32)
            x = 100 + 5 * frame if who == 0 else 400 - 5 * frame
            box = np.array([x, 50 + 60 * who, x + 90, 300 + 60 * who], np.float32)
            if not (who == 1 and 10 <= frame < 13):
                people.append(a_person(body, moved.astype(np.float32), betas, place, box))
        images[f"clip#{frame:06d}"] = people[:: 1 if frame % 2 else -1]
    listing = written(folder, images)
    facts = write_tracks(folder, body, listing, TrackConfig(), 25.0, amass=True)
    return folder, facts


def test_people_are_followed_filled_in_and_smoothed(walked):
    folder, facts = walked
    assert facts["tracks"] == 2
    assert facts["acceleration_mm_after"] < 0.5 * facts["acceleration_mm_before"]
    rows = pq.read_table(folder / "tracks.parquet").to_pylist()
    assert [row["frame"] for row in rows if row["track"] == 0] == list(range(FRAMES))
    people = {row["sample_id"]: row for row in pq.read_table(folder / "people.parquet").to_pylist()}
    missing = [(row["track"], row["frame"]) for row in rows if not row["observed"]]
    assert [frame for _, frame in missing] == [10, 11, 12]
    for row in rows:
        if not row["observed"]:
            continue
        raw = people[row["sample_id"]]
        np.testing.assert_allclose(row["transl"], raw["transl"], atol=0.02)
        angle = rotation_angle(*(
            axis_angle_to_matrix(torch.tensor(some["pose"]).view(24, 3)) for some in (row, raw)
        ))  # fmt: skip
        assert angle.max() < 0.2
    for track in (0, 1):
        betas = {tuple(row["betas"]) for row in rows if row["track"] == track}
        assert len(betas) == 1, "a person has one shape"


def test_amass_files_have_the_keys_of_blenders_add_ons_and_the_same_body(walked, body):
    folder, _ = walked
    rows = pq.read_table(folder / "tracks.parquet").to_pylist()
    for track in (0, 1):
        with np.load(folder / f"amass/clip/track_{track}.npz") as archive:
            motion = dict(archive)
        assert motion["poses"].shape == (FRAMES, 156)
        assert motion["trans"].shape == (FRAMES, 3)
        assert motion["betas"].shape == (10,)
        assert str(motion["gender"]) == "neutral"
        assert motion["mocap_framerate"] == motion["mocap_frame_rate"] == 25
        assert not motion["poses"][:, 66:].any()
        mine = [row for row in rows if row["track"] == track]
        pose = torch.tensor([row["pose"] for row in mine])
        pose[:, 66:] = 0  # SMPL-H has no such joints
        betas = torch.tensor(motion["betas"]).float().expand(FRAMES, 10)
        camera = body(axis_angle_to_matrix(pose.view(-1, 24, 3)), betas).vertices
        camera = camera + torch.tensor([row["transl"] for row in mine])[:, None]
        poses = torch.tensor(motion["poses"][:, :72]).float()
        world = body(axis_angle_to_matrix(poses.view(-1, 24, 3)), betas).vertices
        world = world + torch.tensor(motion["trans"]).float()[:, None]
        np.testing.assert_allclose(world, camera.numpy() @ CAMERA_TO_Z_UP.T, atol=1e-5)


def test_up_is_up():
    assert pytest.approx([0, 0, 1]) == CAMERA_TO_Z_UP @ [0, -1, 0]
    assert np.linalg.det(CAMERA_TO_Z_UP) == pytest.approx(1), "no mirror"
