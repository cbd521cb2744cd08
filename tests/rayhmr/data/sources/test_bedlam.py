"""BEDLAM's label files: cameras, posed joints, and scenes that are stored turned."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hmr.body import Body
from hmr.errors import DataError
from hmr.pose_prior import rodrigues
from hmr.skeleton import JOINT49_SOURCE
from rayhmr.data.sources.bedlam import BedlamSource

SIZE = (320, 240)
COUNT = 3


def labels():
    """People before a camera, with joints as the camera sees them."""
    rng = np.random.default_rng(2)
    pose = rng.normal(0, 0.2, (COUNT, 72))
    pose[:, :3] = [np.pi, 0, 0]  # upright: SMPL's y is up, the camera's down
    shape = rng.normal(0, 1, (COUNT, 10))
    cam_ext = np.tile(np.eye(4), (COUNT, 1, 1))
    cam_ext[:, :3, 3] = [0.1, -0.2, 1.0]
    trans = np.column_stack([rng.uniform(-0.3, 0.3, (COUNT, 2)), rng.uniform(3, 4, COUNT)])
    cam_int = np.tile([[280.0, 0, 161], [0, 285.0, 118], [0, 0, 1]], (COUNT, 1, 1))
    rotmats = torch.from_numpy(rodrigues(pose.reshape(-1, 24, 3))).float()
    joints = Body.embedded()(rotmats, torch.tensor(shape).float()).joints.numpy()
    placed = joints + (cam_ext[:, :3, 3] + trans)[:, None]
    pixels = (placed / placed[..., 2:]) @ cam_int.transpose(0, 2, 1)
    low, high = pixels[..., :2].min(1), pixels[..., :2].max(1)
    return {
        "imgname": np.array([f"seq_{n:06d}/seq_{n:06d}_0000.png" for n in range(COUNT)]),
        "center": (low + high) / 2, "scale": 1.2 * (high - low).max(1) / 200,
        "pose_cam": pose, "pose_world": pose, "shape": np.column_stack([shape, np.zeros(COUNT)]),
        "trans_cam": trans, "trans_world": trans, "cam_int": cam_int, "cam_ext": cam_ext,
        "gtkps": pixels, "gender": np.array(["neutral"] * COUNT),
        "sub": np.array(["rp_anna", "rp_ben", "rp_anna"]),
    }  # fmt: skip


@pytest.fixture
def data_set(tmp_path, draw):
    """Write a scene; its pictures lie below images/<scene>/png."""

    def write(scene="20221010_suburb_6fps", stored=lambda picture: picture, **changes):
        columns = {key: v for key, v in (labels() | changes).items() if v is not None}
        (tmp_path / "labels").mkdir(exist_ok=True)
        np.savez(tmp_path / f"labels/{scene}.npz", **columns)
        images = tmp_path / "images" / scene / "png"
        for name, joints in zip(labels()["imgname"], labels()["gtkps"], strict=True):
            draw(images / name, SIZE, joints[:, :2])
            with Image.open(images / name) as image:
                turned = stored(np.array(image))
            Image.fromarray(turned).save(images / name)
        return {"labels": str(tmp_path / f"labels/{scene}.npz"), "images": str(images)}

    return write


def projected(row):
    joints = np.reshape(row["keypoints_3d"], (49, 4))[:, :3] + row["transl"]
    fx, fy, cx, cy = row["intrinsics"]
    return joints[:, :2] / joints[:, 2:] * [fx, fy] + [cx, cy]


@pytest.mark.parametrize("scene", ["20221010_suburb_6fps", "20221011_closeup_suburb_a_6fps"])
def test_3d_joints_land_on_2d_joints_and_on_the_picture(
    scene, data_set, prepared, crop_of, in_frame, brightness_at
):
    turned = "closeup" in scene
    counter_clockwise = np.rot90 if turned else np.asarray
    found = prepared("bedlam", files=data_set(scene, counter_clockwise))
    wanted = labels()
    assert (found.rejected, len(found.rows)) == ([], COUNT)
    of_smpl = np.array(JOINT49_SOURCE) < 24
    for number, row in enumerate(found.rows):
        joints = in_frame(row)
        np.testing.assert_allclose(
            joints[of_smpl, :2], wanted["gtkps"][number][np.array(JOINT49_SOURCE)[of_smpl], :2],
            atol=1e-3,
        )  # fmt: skip
        assert np.array_equal(joints[:, 2] > 0, of_smpl)
        assert np.abs(projected(row) - joints[:, :2])[of_smpl].max() < 0.01
        in_crop = np.reshape(row["keypoints_2d"], (49, 3))[of_smpl, :2]
        assert (brightness_at(crop_of(row), in_crop) > 200).all()
        assert row["image_size"] == list(SIZE)
        np.testing.assert_allclose(row["pose"], wanted["pose_cam"][number], rtol=1e-6)
        np.testing.assert_allclose(row["betas"], wanted["shape"][number, :10], rtol=1e-6)
    assert [row["subject"] for row in found.rows] == ["rp_anna", "rp_ben", "rp_anna"]


def test_true_labels_have_no_error_and_a_turn_has_that_of_its_chords(data_set, prepared, mpjpe):
    found = prepared("bedlam", files=data_set())
    assert mpjpe(found, "synthetic").max() < 0.01
    assert mpjpe(found, "mpi_inf_3dhp").max() < 0.01
    angle = 0.3
    turn = torch.from_numpy(rodrigues(np.array([[0, 0, angle]], np.float32)))[0]

    def turned(rotmats):
        changed = rotmats.clone()
        changed[:, 0] = turn @ rotmats[:, 0]
        return changed

    pose, shape = (torch.tensor(labels()[key]).float() for key in ("pose_cam", "shape"))
    rotmats = torch.from_numpy(rodrigues(pose.numpy().reshape(-1, 24, 3)))
    joints = Body.embedded()(rotmats, shape[:, :10]).joints
    arms = (joints - joints[:, :1])[..., :2].norm(dim=-1)
    chords = 1000 * 2 * np.sin(angle / 2) * arms.mean(dim=1)
    np.testing.assert_allclose(mpjpe(found, "synthetic", turned), chords, atol=0.01)


def test_a_folder_of_scenes_finds_the_pictures_of_each(data_set, prepared, tmp_path):
    data_set("scene_b")
    data_set("closeup_a", np.rot90)
    files = {"labels": str(tmp_path / "labels"), "images": str(tmp_path / "images")}
    found = prepared("bedlam", files=files)
    assert (found.rejected, len(found.rows)) == ([], 2 * COUNT)
    assert [row["sample_id"].split("/")[1] for row in found.rows] == (
        ["closeup_a"] * COUNT + ["scene_b"] * COUNT
    )
    assert {tuple(row["image_size"]) for row in found.rows} == {SIZE}


def test_people_of_another_bodys_gender_have_no_3d_joints(data_set, prepared):
    found = prepared("bedlam", files=data_set(gender=np.array(["f", "neutral", "m"])))
    has_3d = [any(row["keypoints_3d"]) for row in found.rows]
    assert has_3d == [False, True, False]
    assert [row["gender"] for row in found.rows] == ["female", "neutral", "male"]


def test_keypoints_with_confidence_and_files_without_a_camera(data_set, prepared, in_frame):
    points = labels()["gtkps"]
    points[0, 4] = [np.nan, np.nan, 0]  # left knee
    files = data_set(gtkps=points, trans_cam=None, cam_int=None)
    found = prepared("bedlam", files=files)
    assert (len(found.rows), found.rejected) == (COUNT, [])
    of_knee = np.array(JOINT49_SOURCE) == 4
    assert not in_frame(found.rows[0])[of_knee, 2].any()
    assert in_frame(found.rows[1])[of_knee, 2].all()
    assert (found.rows[0]["transl"], found.rows[0]["intrinsics"]) == (None, None)


def test_bad_rows_are_rejected_and_good_ones_stay(data_set, prepared):
    pose, names = labels()["pose_cam"], labels()["imgname"].astype("U80")
    pose[0, 3], names[1] = np.nan, "/etc/hostname"
    found = prepared("bedlam", files=data_set(pose_cam=pose, imgname=names))
    assert (len(found.rows), sorted(found.reasons)) == (
        1, ["label_nonfinite", "path_outside_root"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose_cam": np.zeros((COUNT, 165))}, "165 numbers a person, SMPL has 72; SMPL-X"),
        ({"shape": np.zeros((COUNT, 8))}, r"shape has rows of shape \(8,\), 10 or more"),
        ({"gtkps": np.zeros((COUNT, 17, 2))}, r"gtkps has rows of shape \(17, 2\); at least"),
    ],
)
def test_files_of_another_body_are_refused(data_set, changes, message):
    source = BedlamSource(labels=data_set(**changes)["labels"], split="train", body="embedded")
    with pytest.raises(DataError, match=message):
        list(source.people(source.units(9)[0]))
