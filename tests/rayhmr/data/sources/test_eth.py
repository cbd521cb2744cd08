"""The course project's frames: people land where the camera saw them, bad files are named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.errors import ConfigError, DataError
from hmr.pose_prior import rodrigues, sample_pose
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr.skeleton import joint49_index
from rayhmr.data.sources.eth import COURSE_SUBJECTS, EthSource
from rayhmr.data.sources.record import RawPerson, RejectedRow

# As printed in the course's description: id, fx, fy, cx, cy.
CAMERAS = {
    "54138969": (1145.0494, 1143.7811, 512.5415, 515.4515),
    "55011271": (1149.6757, 1147.5917, 508.8486, 508.0649),
    "58860488": (1149.1407, 1148.7990, 519.8159, 501.4026),
    "60457274": (1145.5114, 1144.7739, 514.9682, 501.8820),
}


def labels_of(seed: int) -> dict[str, np.ndarray]:
    """The arrays of one frame, in the documented form."""
    rng = np.random.default_rng(seed)
    pose = sample_pose(rng, 1.0)
    return {
        "betas": rng.standard_normal(10),
        "root_loc": np.array([rng.uniform(-1, 1), rng.uniform(-0.5, 0.5), rng.uniform(4, 6)]),
        "root_orient": np.array([np.pi - 0.2, 0.1, 0.3]) * rng.uniform(0.9, 1),
        "pose_body": pose[3:66],
        "pose_hand": pose[66:72],
        "scale_img": np.array(rng.uniform(2, 3)),
        "center_img": rng.uniform(300, 700, 2),
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., dict[str, np.ndarray]]:
    """Write a frame below the test's folder; keywords replace arrays, None leaves one out."""

    def write_frame(name: str, seed: int = 0, **changes: Any) -> dict[str, np.ndarray]:
        values = {k: v for k, v in (labels_of(seed) | changes).items() if v is not None}
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **values)
        return values

    return write_frame


def source_at(root: Path, **changes: Any) -> EthSource:
    return EthSource(**({"labels": str(root), "body": "embedded",
                         "subjects": {"train": ("S1",)}} | changes))  # fmt: skip


def rows_of(source: EthSource, rows_per_file: int = 1000) -> list[RawPerson | RejectedRow]:
    return [row for unit in source.units(rows_per_file) for row in source.people(unit)]


def only_person(source: EthSource) -> RawPerson:
    (row,) = rows_of(source)
    assert isinstance(row, RawPerson), row
    return row


@pytest.mark.parametrize("camera", CAMERAS)
def test_joints_lie_where_the_camera_sees_the_body(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path, camera: str
) -> None:
    values = write(f"S1/Walking 1.{camera}/7.npz", seed=int(camera) % 100)
    person = only_person(source_at(tmp_path))
    theta = np.concatenate([values["root_orient"], values["pose_body"], values["pose_hand"]])
    rotmats = axis_angle_to_matrix(torch.tensor(theta).view(1, 24, 3))
    points = Body.embedded().landmarks(rotmats, torch.tensor(values["betas"])[None])[0].numpy()
    assert np.allclose(person.keypoints_3d[:, :3], points, atol=1e-4)
    placed = points + values["root_loc"]
    fx, fy, cx, cy = CAMERAS[camera]
    pixels = np.column_stack(
        [fx * placed[:, 0] / placed[:, 2] + cx, fy * placed[:, 1] / placed[:, 2] + cy]
    )
    assert np.abs(person.keypoints_2d[:, :2] - pixels).max() < 0.05
    assert (person.keypoints_2d[:, 2] == 1).all()
    assert (person.keypoints_3d[:, 3] == 1).all()


def test_labels_keep_their_order_and_the_picture_counts_from_one(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    values = write("S1/Eating.55011271/41.npz", pose_hand=np.arange(6.0))
    person = only_person(source_at(tmp_path))
    assert person.pose is not None
    assert np.array_equal(person.pose[:3], values["root_orient"])
    assert np.array_equal(person.pose[3:66], values["pose_body"])
    assert np.array_equal(person.pose[66:], np.arange(6.0))
    assert np.array_equal(person.betas, values["betas"])
    assert np.array_equal(person.transl, values["root_loc"])
    assert np.array_equal(person.center, values["center_img"])
    assert person.scale == values["scale_img"]
    assert not person.unlabelled
    assert person.image == "S1/Images/Eating.55011271/000042.jpg"
    assert person.sample_id == "eth/S1/Eating.55011271/41/0"
    assert (person.subject, person.split, person.gender) == ("S1", "train", "neutral")


def test_a_person_turned_about_the_axis_of_view_is_seen_turned(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    quarter = rodrigues(np.array([0, 0, np.pi / 2]))
    seen = []
    for turn in (np.eye(3), quarter):
        root = torch.tensor(turn @ rodrigues(labels_of(0)["root_orient"]))
        write("S1/A.60457274/1.npz", root_orient=matrix_to_axis_angle(root).numpy())
        seen.append(only_person(source_at(tmp_path)).keypoints_3d[:, :3])
    before, after = (joints - joints[joint49_index("op_mid_hip")] for joints in seen)
    assert np.allclose(after, before @ quarter.T, atol=1e-4)
    assert np.abs(after - before).max() > 0.3


@pytest.mark.parametrize("rows_per_file", [1, 7, 1000])
def test_every_frame_comes_once_in_the_order_of_time(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path, rows_per_file: int
) -> None:
    frames = [5, 10, 1]
    for subject in ("S1", "S5", "S8"):
        for camera in ("54138969", "60457274"):
            for frame in frames:
                write(f"{subject}/Posing.{camera}/{frame}.npz", seed=frame)
    source = source_at(tmp_path, subjects={"train": ("S1", "S5"), "val": ("S8",)})
    units = source.units(rows_per_file)
    assert all(0 < unit.stop - unit.start <= rows_per_file for unit in units)
    rows = rows_of(source, rows_per_file)
    assert [row.sample_id for row in rows] == [
        f"eth/{subject}/Posing.{camera}/{frame}/0"
        for subject in ("S1", "S5", "S8")
        for camera in ("54138969", "60457274")
        for frame in sorted(frames)
    ]
    splits = {row.subject: row.split for row in rows if isinstance(row, RawPerson)}
    assert splits == {"S1": "train", "S5": "train", "S8": "val"}


def test_bad_files_are_rejected_by_name_and_their_neighbours_stay(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    folder = "S1/Sitting.58860488"
    write(f"{folder}/1.npz")
    write(f"{folder}/2.npz", betas=None)
    write(f"{folder}/3.npz", pose_body=np.zeros(69))
    write(f"{folder}/4.npz", root_orient=np.array([0, np.nan, 0]))
    write(f"{folder}/5.npz", root_loc=np.array([0, np.inf, 5]))
    write(f"{folder}/6.npz", scale_img=None)
    (tmp_path / folder / "7.npz").write_bytes(b"PK\x03\x04 cut")
    write(f"{folder}/8.npz", betas=np.array([{"a": 1}] * 10, object))
    write(f"{folder}/9.npz", center_img=np.array(["a", "b"]))
    write(f"{folder}/10.npz", seed=1)
    write("S1/Sitting.12345678/1.npz")
    write(f"{folder}/mean.npz")
    rows = rows_of(source_at(tmp_path))
    reasons = {
        row.sample_id.removeprefix("eth/S1/Sitting."): row.reason
        for row in rows
        if isinstance(row, RejectedRow)
    }
    assert reasons == {
        "12345678/1/0": "camera_unknown", "58860488/mean/0": "frame_unknown",
        "58860488/2/0": "label_missing", "58860488/3/0": "label_missing",
        "58860488/4/0": "label_nonfinite", "58860488/5/0": "label_nonfinite",
        "58860488/6/0": "label_missing", "58860488/7/0": "label_unreadable",
        "58860488/8/0": "label_unreadable", "58860488/9/0": "label_missing",
    }  # fmt: skip
    good = [row.sample_id for row in rows if isinstance(row, RawPerson)]
    assert good == ["eth/S1/Sitting.58860488/1/0", "eth/S1/Sitting.58860488/10/0"]


def test_people_whose_labels_were_kept_secret_have_a_box_and_a_place(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    hidden = dict.fromkeys(("betas", "root_orient", "pose_body", "pose_hand"))
    values = write("S9/Waiting.54138969/3.npz", **hidden)
    person = only_person(source_at(tmp_path, subjects={"test": ("S9",)}))
    assert person.unlabelled
    assert person.pose is None
    assert person.betas is None
    assert not person.keypoints_2d.any()
    assert not person.keypoints_3d.any()
    assert np.array_equal(person.transl, values["root_loc"])
    assert np.array_equal(person.center, values["center_img"])


def test_joints_behind_the_camera_have_no_pixels(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    write("S1/A.54138969/1.npz", root_loc=np.array([0, 0, -3.0]))
    person = only_person(source_at(tmp_path))
    assert not person.keypoints_2d.any()
    assert (person.keypoints_3d[:, 3] == 1).all()


def test_nobody_is_trained_and_tested_on() -> None:
    with pytest.raises(ConfigError, match="S8 would be in two splits"):
        EthSource(labels="x", body="embedded", subjects={"train": ("S1", "S8"), "val": ("S8",)})
    everyone = [subject for people in COURSE_SUBJECTS.values() for subject in people]
    assert sorted(everyone) == ["S1", "S11", "S5", "S6", "S7", "S8", "S9"]


def test_a_missing_subject_is_an_error_and_the_source_travels(
    write: Callable[..., dict[str, np.ndarray]], tmp_path: Path
) -> None:
    write("S1/A.54138969/1.npz")
    with pytest.raises(DataError, match="S5: no <action>"):
        source_at(tmp_path, subjects={"train": ("S1", "S5")}).units(10)
    source = source_at(tmp_path)
    travelled = pickle.loads(pickle.dumps(source))
    assert travelled == source
    assert rows_of(travelled)[0].sample_id == "eth/S1/A.54138969/1/0"
