"""From the settings of a job to shards and an evaluation, for readers with bodies or pictures of
their own: true labels have no error."""

from __future__ import annotations

import io
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from hmr.body import Body
from hmr.body_arrays import save_body
from hmr.pose_prior import sample_pose
from hmr.rotations import axis_angle_to_matrix
from hmr.skeleton import joint49_index
from rayhmr.data.sources.threedpw import DETECTED

FOCAL, CENTRE = 300.0, np.array([160.0, 120.0])


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    path = tmp_path_factory.mktemp("bodies") / "body.npz"
    save_body(path, Body.embedded().arrays)
    return {"female": str(path), "male": str(path)}


def labels(seed):
    """Pose with the root upright before the camera, shape, translation, placed 49 joints."""
    rng = np.random.default_rng(seed)
    pose, betas = sample_pose(rng, 1.0), rng.standard_normal(10)
    pose[:3] = [np.pi - 0.1, 0.1, 0.2]
    transl = np.array([0.1, 0.2, 4.0])
    rotmats = axis_angle_to_matrix(torch.tensor(pose).view(1, 24, 3)).float()
    joints = Body.embedded().landmarks(rotmats, torch.tensor(betas)[None].float())[0].numpy()
    return pose, betas, transl, joints + transl


def pixels(points):
    return FOCAL * points[:, :2] / points[:, 2:] + CENTRE


def write_picture(path, size=(320, 240)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 150)).save(path)


def of_the_test_split(found):
    return replace(found, rows=[row for row in found.rows if row["split"] == "test"])


def assert_true_labels_have_no_error_and_a_turn_that_of_its_chords(found, mpjpe):
    """A person turned by an angle about the axis of view is off by a chord at every joint."""
    assert mpjpe(found, "synthetic").max() < 0.01
    angle = 0.3
    turn = axis_angle_to_matrix(torch.tensor([0.0, 0.0, angle]))

    def turned(rotmats):
        return torch.cat([(turn @ rotmats[:, 0])[:, None], rotmats[:, 1:]], dim=1)

    poses = torch.tensor([row["pose"] for row in found.rows]).view(-1, 24, 3)
    betas = torch.tensor([row["betas"] for row in found.rows])
    joints = Body.embedded().joints_only(axis_angle_to_matrix(poses), betas)
    arms = (joints - joints[:, :1])[..., :2].norm(dim=-1).mean(dim=1)
    expected = 1000 * 2 * np.sin(angle / 2) * arms.numpy()
    assert expected.min() > 50
    np.testing.assert_allclose(mpjpe(found, "synthetic", turned), expected, atol=0.02)


def test_the_course_tree_goes_into_its_own_splits(tmp_path, prepared, mpjpe):
    for number, subject in enumerate(("S1", "S5", "S6", "S7", "S8", "S9", "S11")):
        pose, betas, _, _ = labels(number)
        path = tmp_path / "labels" / subject / "Walking.54138969" / "4.npz"
        path.parent.mkdir(parents=True)
        np.savez(
            path, betas=betas, root_loc=[0.0, 0.1, 5.0], root_orient=pose[:3],
            pose_body=pose[3:66], pose_hand=pose[66:], scale_img=2.5, center_img=[512.0, 515.0],
        )  # fmt: skip
        write_picture(
            tmp_path / "images" / subject / "Images" / "Walking.54138969" / "000005.jpg",
            (1000, 1002),
        )
    files = {"labels": str(tmp_path / "labels"), "images": str(tmp_path / "images")}
    found = prepared("eth", files=files)
    splits = sorted((row["split"], row["subject"]) for row in found.rows)
    assert splits == [
        ("test", "S11"), ("test", "S9"), ("train", "S1"), ("train", "S5"), ("train", "S6"),
        ("train", "S7"), ("val", "S8"),
    ]  # fmt: skip
    assert mpjpe(of_the_test_split(found), "eth").max() < 0.01
    assert_true_labels_have_no_error_and_a_turn_that_of_its_chords(of_the_test_split(found), mpjpe)


def test_tars_bring_their_pictures(tmp_path, prepared, mpjpe):
    pose, betas, _, placed = labels(1)
    picture = io.BytesIO()
    Image.new("RGB", (320, 240), (90, 120, 150)).save(picture, "JPEG")
    person = {
        "keypoints_2d": np.column_stack([pixels(placed[:44]), np.ones(44)]),
        "keypoints_3d": np.column_stack([placed[:44], np.ones(44)]),
        "center": CENTRE, "scale": np.array([0.6, 0.8]), "body_pose": pose, "betas": betas,
        "has_body_pose": 1.0, "has_betas": 1.0, "extra_info": {},
    }  # fmt: skip
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        members = {"a.jpg": picture.getvalue(), "a.data.pyd": pickle.dumps([person])}
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    found = prepared("hmr2_tar", files={"labels": str(tmp_path / "shard.tar")})
    assert_true_labels_have_no_error_and_a_turn_that_of_its_chords(found, mpjpe)
    nose = joint49_index("op_nose")
    affine = np.reshape(found.rows[0]["crop_to_frame"], (2, 3))
    seen = np.reshape(found.rows[0]["keypoints_2d"], (49, 3))[nose, :2]
    np.testing.assert_allclose(affine[:, :2] @ seen + affine[:, 2], pixels(placed)[nose], atol=0.01)


def test_people_of_3dpw_have_the_body_of_their_gender(tmp_path, prepared, mpjpe, bodies):
    pose, betas, transl, placed = labels(2)
    intrinsics = np.array([[FOCAL, 0, CENTRE[0]], [0, FOCAL, CENTRE[1]], [0, 0, 1]])
    detections = np.ones((1, 3, 18))
    detections[0, :2] = pixels(placed[list(DETECTED)]).T
    content = {
        "sequence": "walk", "cam_poses": np.eye(4)[None], "cam_intrinsics": intrinsics,
        "genders": ["f"], "img_frame_ids": np.array([0]), "campose_valid": [np.ones(1, int)],
        "betas": [betas], "poses": [pose[None]], "trans": [transl[None]], "poses2d": [detections],
    }  # fmt: skip
    root = tmp_path / "3dpw"
    for folder in ("train", "validation", "test"):
        path = root / "sequenceFiles" / folder / "walk.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps(content | {"sequence": f"walk_{folder}"}, protocol=2))
        write_picture(root / f"imageFiles/walk_{folder}/image_00000.jpg")
    found = prepared(
        "threedpw",
        files={"labels": str(root / "sequenceFiles"), "images": str(root), "bodies": bodies},
    )
    people = of_the_test_split(found)
    assert len(people.rows) == 1
    assert people.rows[0]["gender"] == "female"
    assert mpjpe(people, "3dpw").max() < 0.01
    assert_true_labels_have_no_error_and_a_turn_that_of_its_chords(people, mpjpe)


def test_humandata_without_joints_takes_those_of_the_body(tmp_path, prepared, mpjpe, bodies):
    pose, betas, transl, placed = labels(3)
    np.savez(
        tmp_path / "made.npz", image_path=["a.jpg"], bbox_xywh=[[60.0, 20.0, 200.0, 200.0, 1.0]],
        smpl={"global_orient": pose[None, :3], "body_pose": pose[3:].reshape(1, 23, 3),
              "betas": betas[None], "transl": transl[None]},
        meta={"gender": ["male"]},
        misc={"focal_length": np.array([FOCAL]), "principal_point": CENTRE[None]},
        __keypoints_compressed__=False,
    )  # fmt: skip
    write_picture(tmp_path / "a.jpg")
    found = prepared(
        "humandata",
        files={"labels": str(tmp_path / "made.npz"), "images": str(tmp_path), "bodies": bodies},
    )
    assert_true_labels_have_no_error_and_a_turn_that_of_its_chords(found, mpjpe)
    affine = np.reshape(found.rows[0]["crop_to_frame"], (2, 3))
    joints = np.reshape(found.rows[0]["keypoints_2d"], (49, 3))
    labelled = joints[:, 2] > 0
    assert labelled.sum() >= 24
    seen = joints[:, :2] @ affine[:, :2].T + affine[:, 2]
    np.testing.assert_allclose(seen[labelled], pixels(placed)[labelled], atol=0.5)
