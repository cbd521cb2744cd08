"""3DPW's sequences: moving cameras, gendered bodies, frames that the data set itself rules out."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.body_arrays import body_from_path, save_body
from hmr.errors import DataError
from hmr.pose_prior import rodrigues, sample_pose
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr.skeleton import joint49_index
from rayhmr.data.sources.record import RawPerson, RejectedRow
from rayhmr.data.sources.threedpw import ThreeDPWSource

FRAMES = 3
INTRINSICS = np.array([[1961.9, 0, 540.0], [0, 1969.2, 960.0], [0, 0, 1]])
DETECTED = [
    joint49_index(f"op_{name}")
    for name in (
        "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder",
        "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle", "left_hip",
        "left_knee", "left_ankle", "right_eye", "left_eye", "right_ear", "left_ear",
    )
]  # fmt: skip


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A female body, and a male one that is larger and shaped in other directions."""
    folder = tmp_path_factory.mktemp("bodies")
    female = body_from_path("embedded")
    male = replace(
        female, v_template=1.07 * female.v_template, shapedirs=female.shapedirs[:, :, ::-1]
    )
    for gender, arrays in (("female", female), ("male", male)):
        save_body(folder / f"{gender}.npz", arrays)
    return {gender: str(folder / f"{gender}.npz") for gender in ("female", "male")}


body_of = functools.cache(Body.from_file)


def in_world(path: str, pose: np.ndarray, betas: np.ndarray, trans: np.ndarray) -> np.ndarray:
    """The 49 joints of a body that stands in the world, by the body layer."""
    rotmats = axis_angle_to_matrix(torch.tensor(pose).view(1, 24, 3))
    joints = body_of(path).landmarks(rotmats, torch.tensor(betas)[None])[0]
    return joints.numpy().astype(np.float64) + trans


def pixels_of(points: np.ndarray, camera: np.ndarray) -> np.ndarray:
    seen = (points @ camera[:3, :3].T + camera[:3, 3]) @ INTRINSICS.T
    return seen[:, :2] / seen[:, 2:]


def sequence_of(bodies: dict[str, str], genders: str = "mf", seed: int = 0) -> dict[str, Any]:
    """A sequence in the documented form: people 4 to 6 m before a camera that moves."""
    rng = np.random.default_rng(seed)
    cam_poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    for pose in cam_poses:
        pose[:3, :3] = rodrigues(rng.normal(0, 1, 3))
        pose[:3, 3] = rng.normal(0, 1, 3)
    content: dict[str, Any] = {
        "sequence": f"downtown_walk_{seed:02d}", "cam_poses": cam_poses,
        "cam_intrinsics": INTRINSICS, "genders": list(genders),
        "img_frame_ids": np.arange(0, 2 * FRAMES, 2),
        "campose_valid": [np.ones(FRAMES, np.int64) for _ in genders],
        "betas": [rng.standard_normal(300) for _ in genders], "poses": [], "trans": [],
        "poses2d": [],
    }  # fmt: skip
    for gender, betas in zip(genders, content["betas"], strict=True):
        poses = np.stack([sample_pose(rng, 1.0) for _ in range(FRAMES)])
        trans = np.zeros((FRAMES, 3))
        detections = np.zeros((FRAMES, 3, 18))
        path = bodies["male" if gender == "m" else "female"]
        for frame, camera in enumerate(cam_poses):
            poses[frame, :3] = rng.normal(0, 1, 3)
            before = np.array([*rng.uniform(-0.5, 0.5, 2), rng.uniform(4, 6)])
            trans[frame] = camera[:3, :3].T @ (before - camera[:3, 3])
            points = in_world(path, poses[frame], betas[:10], trans[frame])[DETECTED]
            detections[frame, :2] = pixels_of(points, camera).T
            detections[frame, 2] = rng.uniform(0.3, 1, 18)
        for key, value in (("poses", poses), ("trans", trans), ("poses2d", detections)):
            content[key].append(value)
    return content


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Write a sequence as Python 2 would have, below the test's folder."""

    def write_sequence(content: Any, folder: str = "test", name: str = "walk") -> None:
        path = tmp_path / folder / f"{name}.pkl"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content, protocol=2))

    return write_sequence


def rows_of(
    root: Path,
    bodies: dict[str, str],
    rows_per_file: int = 1000,
    splits: tuple[str, ...] = ("test",),
) -> list[RawPerson | RejectedRow]:
    source = ThreeDPWSource(labels=str(root), bodies=bodies, splits=splits)
    return [row for unit in source.units(rows_per_file) for row in source.people(unit)]


def people_of(root: Path, bodies: dict[str, str]) -> list[RawPerson]:
    rows = rows_of(root, bodies)
    assert all(isinstance(row, RawPerson) for row in rows), rows
    return [row for row in rows if isinstance(row, RawPerson)]


def test_joints_lie_where_the_world_and_the_camera_put_them(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies)
    write(content)
    people = people_of(tmp_path, bodies)
    assert [row.gender for row in people] == ["male"] * FRAMES + ["female"] * FRAMES
    for number, row in enumerate(people):
        person, frame = divmod(number, FRAMES)
        camera = content["cam_poses"][frame]
        points = in_world(
            bodies[row.gender], content["poses"][person][frame], content["betas"][person][:10],
            content["trans"][person][frame],
        )  # fmt: skip
        assert row.transl is not None
        before_camera = points @ camera[:3, :3].T + camera[:3, 3]
        assert np.allclose(row.keypoints_3d[:, :3] + row.transl, before_camera, atol=1e-4)
        assert np.abs(row.keypoints_2d[:, :2] - pixels_of(points, camera)).max() < 0.1
        detected = content["poses2d"][person][frame, :2].T
        assert np.abs(row.keypoints_2d[DETECTED, :2] - detected).max() < 0.1
        assert (row.keypoints_2d[:, 2] == 1).all()
        assert np.array_equal(row.intrinsics, [1961.9, 1969.2, 540, 960])


def test_pose_shape_and_translation_give_the_joints_of_the_row(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies)
    write(content)
    for number, row in enumerate(people_of(tmp_path, bodies)):
        assert row.pose is not None
        assert row.betas is not None
        joints = in_world(bodies[row.gender], row.pose, row.betas, np.zeros(3))
        assert np.allclose(joints, row.keypoints_3d[:, :3], atol=1e-4)
        original = content["poses"][number // FRAMES][number % FRAMES]
        assert np.array_equal(row.pose[3:], original[3:])
        assert np.array_equal(row.betas, content["betas"][number // FRAMES][:10])


def test_turning_the_world_and_turning_the_camera_back_changes_nothing(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies)
    write(content)
    before = people_of(tmp_path, bodies)
    turn = rodrigues(np.array([0.7, -1.1, 0.4]))
    for person, gender in enumerate(content["genders"]):
        path = bodies["male" if gender == "m" else "female"]
        rest = body_of(path).joints_only(
            torch.eye(3).expand(1, 24, 3, 3), torch.tensor(content["betas"][person][None, :10])
        )
        pelvis = rest[0, 0].numpy().astype(np.float64)
        trans = content["trans"][person]
        trans[:] = (trans + pelvis) @ turn.T - pelvis
        for pose in content["poses"][person]:
            root = torch.tensor(turn @ rodrigues(pose[:3]))
            pose[:3] = matrix_to_axis_angle(root).numpy()
    content["cam_poses"][:, :3, :3] = content["cam_poses"][:, :3, :3] @ turn.T
    write(content)
    for old, new in zip(before, people_of(tmp_path, bodies), strict=True):
        assert old.pose is not None
        assert new.pose is not None
        assert np.allclose(rodrigues(old.pose[:3]), rodrigues(new.pose[:3]), atol=1e-6)
        assert old.transl == pytest.approx(new.transl, abs=1e-5)
        assert np.allclose(old.keypoints_2d, new.keypoints_2d, atol=0.02)


def test_genders_have_their_own_bodies(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies)
    write(content)
    right = people_of(tmp_path, bodies)
    swapped = people_of(tmp_path, {"female": bodies["male"], "male": bodies["female"]})
    for one, other in zip(right, swapped, strict=True):
        assert np.abs(one.keypoints_3d - other.keypoints_3d).max() > 0.03


def test_frames_whose_camera_does_not_fit_are_rejected_for_that_person_only(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies)
    content["campose_valid"] = [np.array([1, 0, 1]), np.array([True, True, False])]
    write(content)
    rows = rows_of(tmp_path, bodies)
    rejected = {row.sample_id: row.reason for row in rows if isinstance(row, RejectedRow)}
    assert rejected == {
        "threedpw/downtown_walk_00/00001/0": "camera_invalid",
        "threedpw/downtown_walk_00/00002/1": "camera_invalid",
    }
    assert len(rows) == 2 * FRAMES


def test_boxes_surround_what_was_detected(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies, "m")
    detections = content["poses2d"][0]
    detections[0] = 0
    detections[0, :, 3:6] = [[100, 400, 250], [50, 80, 650], [0.5, 0.9, 0.1]]
    detections[1, 2] = 0
    write(content)
    first, second, third = rows_of(tmp_path, bodies)
    assert isinstance(first, RawPerson)
    assert np.allclose(first.center, [250, 350])
    assert first.scale == pytest.approx(1.2 * 600 / 200)
    assert isinstance(second, RejectedRow)
    assert second.reason == "label_missing"
    assert isinstance(third, RawPerson)


def test_without_a_body_the_detections_are_the_joints(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies)
    content["poses2d"][1][:, :, 4] = [7, 8, 0]
    write(content)
    rows = people_of(tmp_path, {"male": bodies["male"]})
    with_body = people_of(tmp_path, bodies)
    for number, row in enumerate(rows[FRAMES:], start=FRAMES):
        detected = content["poses2d"][1][number - FRAMES].T.copy()
        detected[4] = 0
        assert np.array_equal(row.keypoints_2d[DETECTED], detected)
        others = np.delete(row.keypoints_2d, DETECTED, axis=0)
        assert not others.any()
        assert not row.keypoints_3d.any()
        assert row.transl is None
        assert np.array_equal(row.pose, with_body[number].pose)
        assert np.array_equal(row.betas, with_body[number].betas)
    assert np.array_equal(rows[0].keypoints_3d, with_body[0].keypoints_3d)


@pytest.mark.parametrize("rows_per_file", [2, 100])
def test_every_person_of_every_frame_comes_once(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str], rows_per_file: int
) -> None:
    for seed, (folder, genders) in enumerate(
        [("train", "f"), ("train", "mf"), ("validation", "m"), ("test", "ff")]
    ):
        write(sequence_of(bodies, genders, seed), folder, f"walk{seed}")
    rows = rows_of(tmp_path, {}, rows_per_file, ("train", "val", "test"))
    assert [row.sample_id for row in rows] == [
        f"threedpw/downtown_walk_{seed:02d}/{frame:05d}/{person}"
        for seed, people in enumerate([1, 2, 1, 2])
        for person in range(people)
        for frame in range(FRAMES)
    ]
    splits = [row.split for row in rows if isinstance(row, RawPerson)]
    assert splits == ["train"] * 9 + ["val"] * 3 + ["test"] * 6
    last = rows[-1]
    assert isinstance(last, RawPerson)
    assert last.image == "imageFiles/downtown_walk_03/image_00002.jpg"


def test_bad_numbers_and_unknown_genders_are_rejected(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    content = sequence_of(bodies, "mm")
    content["genders"] = ["m", "x"]
    content["poses"][0][0, 40] = np.nan
    content["cam_poses"][1, 0, 0] = np.nan
    content["trans"][0][2, 1] = np.inf
    write(content)
    reasons = [row.reason for row in rows_of(tmp_path, bodies) if isinstance(row, RejectedRow)]
    assert reasons == ["label_nonfinite"] * 3 + ["gender_unknown"] * 3


class Runs:
    """Unpickled by an ordinary reader, this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_file_that_would_run_code_is_refused(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    write(sequence_of(bodies, "m") | {"texture_maps": Runs(f"touch {tmp_path}/ran")})
    with pytest.raises(DataError, match=r"walk\.pkl.*system"):
        rows_of(tmp_path, bodies)
    assert not (tmp_path / "ran").exists()


def test_files_of_another_kind_are_errors_that_name_them(
    write: Callable[..., None], tmp_path: Path, bodies: dict[str, str]
) -> None:
    write({"poses": []})
    with pytest.raises(DataError, match=r"walk\.pkl: not a sequence of 3DPW \(KeyError"):
        rows_of(tmp_path, bodies)
    content = sequence_of(bodies, "m")
    content["trans"][0] = content["trans"][0][:-1]
    write(content)
    with pytest.raises(DataError, match=r"walk\.pkl: not a sequence of 3DPW"):
        rows_of(tmp_path, bodies)
    with pytest.raises(DataError, match="leave the split val out"):
        rows_of(tmp_path, bodies, splits=("val",))


def test_the_source_travels(bodies: dict[str, str]) -> None:
    source = ThreeDPWSource(labels="x", bodies=bodies)
    assert pickle.loads(pickle.dumps(source)) == source
