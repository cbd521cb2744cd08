"""HMR2's tars: pictures and people come out together, and nothing in a pickle is executed."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hmr.body import Body
from hmr.crops import decode_image
from hmr.errors import DataError
from hmr.pose_prior import sample_pose
from hmr.rotations import axis_angle_to_matrix
from rayhmr.data.sources.hmr2_tar import Hmr2TarSource
from rayhmr.data.sources.record import RawPerson, RejectedRow

FOCAL, CENTRE, TRANSL = 500.0, np.array([64.0, 48.0]), np.array([0.1, -0.2, 6.0])


def picture(shade: int, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (128, 96), (shade, shade, shade)).save(stream, kind)
    return stream.getvalue()


def person(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """The labels of one person, in the documented form."""
    rng = np.random.default_rng(seed)
    pose = sample_pose(rng, 1.0)
    pose[:3] = [np.pi - 0.1, 0.1, 0.2]
    betas = rng.standard_normal(10)
    rotmats = axis_angle_to_matrix(torch.tensor(pose).view(1, 24, 3))
    joints = Body.embedded().landmarks(rotmats, torch.tensor(betas)[None])[0, :44].numpy()
    placed = joints + TRANSL
    return {
        "keypoints_2d": np.column_stack(
            [FOCAL * placed[:, :2] / placed[:, 2:] + CENTRE, rng.uniform(0.3, 1, 44)]
        ),
        "keypoints_3d": np.column_stack([joints, np.ones(44)]),
        "center": np.array([60.0, 50.0]), "scale": np.array([40.0, 90.0]) / 200,
        "body_pose": pose, "betas": betas, "has_body_pose": np.float32(1), "has_betas": 1.0,
        "extra_info": {"fitting_loss": {"reprojection_loss": 0.1}, "detection_npz_idx": 3},
    } | changes  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a tar of members, given by name; whatever is not bytes is pickled."""

    def write_tar(members: dict[str, Any], name: str = "shard.tar") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w") as archive:
            for member, value in members.items():
                content = value if isinstance(value, bytes) else pickle.dumps(value)
                info = tarfile.TarInfo(member)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return write_tar


def rows_of(path: Path, rows_per_file: int = 1000) -> list[RawPerson | RejectedRow]:
    source = Hmr2TarSource(labels=str(path), split="train")
    return [row for unit in source.units(rows_per_file) for row in source.people(unit)]


def people_of(path: Path) -> list[RawPerson]:
    rows = rows_of(path)
    assert all(isinstance(row, RawPerson) for row in rows), rows
    return [row for row in rows if isinstance(row, RawPerson)]


def test_labels_and_picture_arrive_together(write: Callable[..., Path]) -> None:
    labels = [person(0), person(1)]
    path = write({"a/0001.jpg": picture(200), "a/0001.data.pyd": labels})
    people = people_of(path)
    assert [row.sample_id for row in people] == [
        "hmr2_tar/shard/a/0001/0", "hmr2_tar/shard/a/0001/1",
    ]  # fmt: skip
    for row, label in zip(people, labels, strict=True):
        assert isinstance(row.image, bytes)
        assert decode_image(row.image).mean() == pytest.approx(200, abs=2)
        assert np.array_equal(row.keypoints_2d[:44], label["keypoints_2d"])
        assert np.array_equal(row.keypoints_3d[:44], label["keypoints_3d"])
        assert not row.keypoints_2d[44:].any()
        assert not row.keypoints_3d[44:].any()
        assert np.array_equal(row.pose, label["body_pose"])
        assert np.array_equal(row.betas, label["betas"])
        placed = row.keypoints_3d[:44, :3] + TRANSL
        pixels = FOCAL * placed[:, :2] / placed[:, 2:] + CENTRE
        assert np.abs(pixels - row.keypoints_2d[:44, :2]).max() < 0.01


def test_pose_and_shape_give_the_joints_of_the_row(write: Callable[..., Path]) -> None:
    (row,) = people_of(write({"1.png": picture(9, "PNG"), "1.data.pyd": [person(4)]}))
    assert row.pose is not None
    rotmats = axis_angle_to_matrix(torch.tensor(row.pose).view(1, 24, 3))
    joints = Body.embedded().landmarks(rotmats, torch.tensor(row.betas)[None])[0].numpy()
    assert np.allclose(joints[:44], row.keypoints_3d[:44, :3], atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "side"), [([90, 100], 120), ([40, 90], 90), ([75, 100], 100), ([60], 80)]
)
def test_boxes_grow_to_the_aspect_of_hmr2(
    write: Callable[..., Path], scale: list[float], side: float
) -> None:
    labels = person(scale=np.array(scale) / 200)
    (row,) = people_of(write({"1.jpg": picture(0), "1.data.pyd": [labels]}))
    assert 200 * row.scale == pytest.approx(side)
    assert np.array_equal(row.center, [60, 50])


def test_labels_that_a_person_does_not_have_are_none(write: Callable[..., Path]) -> None:
    hidden = person(keypoints_3d=np.full((44, 4), np.nan) * [1, 1, 1, 0])
    hidden["keypoints_3d"][:, 3] = 0
    labels = [person(has_body_pose=0.0), person(has_betas=np.array([0])), hidden]
    rows = people_of(write({"1.jpg": picture(0), "1.data.pyd": labels}))
    assert [row.pose is None for row in rows] == [True, True, False]
    assert [row.betas is None for row in rows] == [True, True, False]
    assert not rows[2].keypoints_3d.any()


@pytest.mark.parametrize("rows_per_file", [2, 100])
def test_every_person_comes_once_whatever_the_pieces(
    write: Callable[..., Path], rows_per_file: int
) -> None:
    counts = [1, 0, 3, 2, 1]
    for shard in "ba":
        members: dict[str, Any] = {}
        for number, count in enumerate(counts):
            members[f"{number}.detection.npz"] = b"not read"
            members[f"{number}.jpg"] = picture(number)
            members[f"{number}.data.pyd"] = [person()] * count
        path = write(members, f"shards/{shard}.tar")
    assert [row.sample_id for row in rows_of(path.parent, rows_per_file)] == [
        f"hmr2_tar/{shard}/{number}/{one}"
        for shard in "ab"
        for number, count in enumerate(counts)
        for one in range(count)
    ]


def test_bad_samples_and_people_are_rejected_and_their_neighbours_stay(
    write: Callable[..., Path],
) -> None:
    nan = person()
    nan["keypoints_2d"][3, 0] = np.nan
    without = person()
    del without["center"]
    people = [person(), nan, without, person(betas=np.zeros(11)), "nobody", person(1)]
    rows = rows_of(write({
        "mixed.jpg": picture(0), "mixed.data.pyd": people,
        "blind.data.pyd": [person()],
        "mute.jpg": picture(0),
        "dict.jpg": picture(0), "dict.data.pyd": person(),
        "torn.jpg": picture(0), "torn.data.pyd": pickle.dumps([person()])[:-40],
        "last.jpeg": picture(0), "last.data.pyd": [person()],
    }))  # fmt: skip
    outcome = {
        row.sample_id.removeprefix("hmr2_tar/shard/"): getattr(row, "reason", "good")
        for row in rows
    }
    assert outcome == {
        "mixed/0": "good", "mixed/1": "label_nonfinite", "mixed/2": "label_missing",
        "mixed/3": "label_missing", "mixed/4": "label_missing", "mixed/5": "good",
        "blind": "unreadable", "mute": "label_missing", "dict": "label_unreadable",
        "torn": "label_unreadable", "last/0": "good",
    }  # fmt: skip
    assert len(rows) == len(outcome)


class Runs:
    """Unpickled by an ordinary reader, this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_sample_that_would_run_code_is_rejected(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    labels = [person(extra_info=Runs(f"touch {tmp_path}/ran"))]
    (row,) = rows_of(write({"1.jpg": picture(0), "1.data.pyd": labels}))
    assert isinstance(row, RejectedRow)
    assert row.reason == "label_unreadable"
    assert "system" in row.detail
    assert not (tmp_path / "ran").exists()


def test_torn_tars_and_empty_folders_are_errors_that_name_them(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write({"1.jpg": picture(0), "1.data.pyd": [person()]})
    content = path.read_bytes()
    for kept in (700, 300, 0):
        path.write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"shard\.tar: is no readable tar"):
            rows_of(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no \.tar file"):
        rows_of(tmp_path / "empty")


def test_the_source_travels() -> None:
    source = Hmr2TarSource(labels="x", split="val")
    assert pickle.loads(pickle.dumps(source)) == source
