"""HumanData files: joints by name, compressed or not; SMPL labels; cameras; what is refused."""

from __future__ import annotations

import copy
import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.errors import ConfigError, DataError
from hmr.pose_prior import sample_pose
from hmr.protocols import places
from hmr.rotations import axis_angle_to_matrix
from hmr.skeleton import JOINT49_NAMES, SMPL54_NAMES, SMPL_JOINT_NAMES, joint49_index
from hmr.skeleton import JOINT49_SOURCE as SOURCES
from rayhmr.data.sources.humandata import HumanDataSource
from rayhmr.data.sources.record import RawPerson, RejectedRow

N = 7
# The 190 in the order of mmhuman3d's convention; groups that we do not read are only counted.
NAMES = [
    *SMPL_JOINT_NAMES[:22], *["jaw and eyeballs"] * 3, *["finger"] * 30, "nose", "right_eye",
    "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel",
    "right_big_toe", "right_small_toe", "right_heel", *["finger tip"] * 10, *["face"] * 68,
    *SMPL54_NAMES[45:], *JOINT49_NAMES[:25], *["3dhp"] * 7, *["h36m and posetrack"] * 3,
    "left_hand", "right_hand",
]  # fmt: skip
FOCAL, CENTRE = (1100.0, 1150.0), (480.0, 260.0)


def smpl_of(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    poses = np.stack([sample_pose(rng, 1.0) for _ in range(N)]).reshape(N, 24, 3)
    return {
        "global_orient": rng.normal(0, 1, (N, 3)), "body_pose": poses[:, 1:],
        "betas": rng.standard_normal((N, 10)),
        "transl": np.column_stack([rng.uniform(-0.5, 0.5, (N, 2)), rng.uniform(4, 6, N)]),
    }  # fmt: skip


def joints54(smpl: dict[str, np.ndarray]) -> np.ndarray:
    """(N, 54, 3) joints before the camera, by the body layer; NaN for those that 49 do not show."""
    poses = np.concatenate([smpl["global_orient"][:, None], smpl["body_pose"]], axis=1)
    joints49 = Body.embedded().landmarks(
        axis_angle_to_matrix(torch.tensor(poses)), torch.tensor(smpl["betas"])
    )
    joints = np.full((N, 54, 3), np.nan)
    joints[:, list(SOURCES)] = joints49.numpy()
    return joints + smpl["transl"][:, None]


def pixels_of(points: np.ndarray) -> np.ndarray:
    return np.asarray(FOCAL) * points[..., :2] / points[..., 2:] + CENTRE


def content_of(seed: int = 0, openpose: bool = True) -> dict[str, Any]:
    """The dict of a HumanData file with joints of SMPL, and of OpenPose where asked."""
    return copy.deepcopy(_content_of(seed, openpose))


@functools.cache
def _content_of(seed: int, openpose: bool) -> dict[str, Any]:
    smpl = smpl_of(seed)
    points = joints54(smpl)
    labels_3d = np.zeros((N, 190, 4))
    for place, name in enumerate(NAMES):
        if name.startswith("op_") and openpose:
            labels_3d[:, place, :3] = points[:, SOURCES[JOINT49_NAMES.index(name)]]
            labels_3d[:, place, 3] = 0.5
        elif name in SMPL54_NAMES and not np.isnan(points[0, SMPL54_NAMES.index(name), 0]):
            labels_3d[:, place, :3] = points[:, SMPL54_NAMES.index(name)]
            labels_3d[:, place, 3] = 1
    mask = labels_3d[0, :, 3] > 0
    labels_2d = np.zeros((N, 190, 3))
    labels_2d[:, mask, :2] = pixels_of(labels_3d[:, mask, :3])
    labels_2d[..., 2] = labels_3d[..., 3]
    return {
        "image_path": [f"images/{seed}/{number}.jpg" for number in range(N)],
        "bbox_xywh": np.tile([100.0, 50.0, 200.0, 360.0, 1.0], (N, 1)),
        "keypoints2d_original": labels_2d, "keypoints2d_original_mask": mask.astype(np.uint8),
        "keypoints3d_original": labels_3d, "keypoints3d_original_mask": mask.astype(np.uint8),
        "smpl": smpl, "meta": {"gender": ["male", "f", "neutral", "m", "female", "n", "m"]},
        "misc": {"focal_length": np.array([FOCAL]), "principal_point": np.array([CENTRE]),
                 "bbox_body_scale": 1.2},
        "config": "made",
    }  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file as HumanData.dump does; keywords replace members, None leaves one out."""

    def write_file(content: dict[str, Any], name: str = "made.npz", **changes: Any) -> Path:
        flags = {"__key_strict__": False, "__temporal_len__": N, "__keypoints_compressed__": False}
        members = {k: v for k, v in (flags | content | changes).items() if v is not None}
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        np.savez_compressed(path, **members)
        return path

    return write_file


def rows_of(path: Path, rows_per_file: int = 1000, **options: Any) -> list[RawPerson | RejectedRow]:
    source = HumanDataSource(**({"labels": str(path), "split": "train"} | options))
    return [row for unit in source.units(rows_per_file) for row in source.people(unit)]


def people_of(path: Path, rows_per_file: int = 1000, **options: Any) -> list[RawPerson]:
    rows = rows_of(path, rows_per_file, **options)
    assert all(isinstance(row, RawPerson) for row in rows), rows
    return [row for row in rows if isinstance(row, RawPerson)]


def assert_same(first: list[RawPerson], second: list[RawPerson]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for key, value in vars(one).items():
            assert np.array_equal(value, getattr(other, key)), key


def test_the_order_of_the_190_is_complete() -> None:
    assert len(NAMES) == 190


@pytest.mark.parametrize("openpose", [True, False])
def test_joints_are_found_by_name_and_project_onto_each_other(
    write: Callable[..., Path], openpose: bool
) -> None:
    """Without OpenPose's, its 25 are SMPL's joints of the same name, as in our body."""
    content = content_of(openpose=openpose)
    points = joints54(content["smpl"])[:, list(SOURCES)]
    people = people_of(write(content))
    assert len(people) == N
    for number, row in enumerate(people):
        assert row.transl is not None
        placed = row.keypoints_3d[:, :3] + row.transl
        assert np.allclose(placed, points[number], atol=1e-6)
        assert row.intrinsics is not None
        projected = row.intrinsics[:2] * placed[:, :2] / placed[:, 2:]
        assert np.abs(projected + row.intrinsics[2:] - row.keypoints_2d[:, :2]).max() < 0.01
        assert np.abs(pixels_of(points[number]) - row.keypoints_2d[:, :2]).max() < 0.01
        assert (row.keypoints_2d[:25, 2] == (0.5 if openpose else 1)).all()
        assert (row.keypoints_3d[25:, 3] == 1).all()


def test_pose_shape_and_translation_give_the_joints_of_the_row(write: Callable[..., Path]) -> None:
    content = content_of()
    for number, row in enumerate(people_of(write(content))):
        assert row.pose is not None
        assert row.betas is not None
        rotmats = axis_angle_to_matrix(torch.tensor(row.pose).view(1, 24, 3))
        joints = Body.embedded().landmarks(rotmats, torch.tensor(row.betas)[None])[0].numpy()
        assert np.allclose(joints, row.keypoints_3d[:, :3], atol=1e-5)
        assert np.array_equal(row.pose[:3], content["smpl"]["global_orient"][number])


def test_joints_without_a_place_before_the_camera_stay_as_they_are(
    write: Callable[..., Path],
) -> None:
    content = content_of()
    original = content["keypoints3d_original"][:, NAMES.index("left_knee")]
    aligned = people_of(write(content, misc={"kps3d_root_aligned": True}))
    del content["smpl"]["transl"]
    for rows in (aligned, people_of(write(content)), people_of(write(content, smpl=None))):
        knees = [row.keypoints_3d[joint49_index("gt_left_knee")] for row in rows]
        assert np.array_equal(knees, original)


def test_compressed_files_hold_the_same_people(write: Callable[..., Path]) -> None:
    content = content_of(openpose=False)
    whole = people_of(write(content))
    mask = content["keypoints2d_original_mask"] > 0
    small = {key: content[key][:, mask] for key in ("keypoints2d_original", "keypoints3d_original")}
    assert mask.sum() < 60
    assert_same(whole, people_of(write(content, **small, __keypoints_compressed__=True)))


def test_older_files_have_keys_without_an_ending(write: Callable[..., Path]) -> None:
    content = content_of()
    whole = people_of(write(content))
    older = {key.replace("_original", ""): value for key, value in content.items()}
    assert "keypoints2d" in older
    assert_same(whole, people_of(write(older)))


def test_masked_joints_are_no_labels_whatever_stands_there(write: Callable[..., Path]) -> None:
    content = content_of()
    hidden = [NAMES.index(name) for name in ("left_wrist", "op_left_wrist", "op_nose")]
    content["keypoints2d_original_mask"][hidden] = 0
    content["keypoints2d_original"][:, hidden] = np.nan
    for row in people_of(write(content)):
        for name in ("gt_left_wrist", "op_left_wrist"):
            assert not row.keypoints_2d[joint49_index(name)].any()
            assert row.keypoints_3d[joint49_index(name), 3] > 0
        assert row.keypoints_2d[joint49_index("op_nose"), 2] == 1, "the nose stands in"


@pytest.mark.parametrize("rows_per_file", [3, 100])
def test_every_row_comes_once_whatever_the_pieces(
    write: Callable[..., Path], rows_per_file: int
) -> None:
    content = content_of()
    folder = write(content, "b/one.npz").parent.parent
    write(content_of(seed=1), "a/one.npz")
    people = people_of(folder, rows_per_file)
    assert [row.sample_id for row in people] == [
        f"humandata/{part}/one/images/{seed}/{number}.jpg/row{number:07d}"
        for part, seed in (("a", 1), ("b", 0))
        for number in range(N)
    ]
    assert [row.image for row in people] == [
        f"images/{seed}/{number}.jpg" for seed in (1, 0) for number in range(N)
    ]
    assert_same(people[N:], [
        row for row in people_of(folder) if row.sample_id.startswith("humandata/b")
    ])  # fmt: skip


def test_boxes_are_taken_as_they_are_and_genders_are_spelled_out(
    write: Callable[..., Path],
) -> None:
    people = people_of(write(content_of()), split="val")
    assert np.allclose([row.center for row in people], [200, 230])
    assert {row.scale for row in people} == {360 / 200}
    assert {row.split for row in people} == {"val"}
    assert [row.gender for row in people] == [
        "male", "female", "neutral", "male", "female", "neutral", "male",
    ]  # fmt: skip
    four = people_of(write(content_of(), bbox_xywh=content_of()["bbox_xywh"][:, :4], meta=None))
    assert_same(people_of(write(content_of(), meta=None)), four)
    assert {row.gender for row in four} == {"neutral"}


def test_files_without_joints_get_those_of_the_body(write: Callable[..., Path]) -> None:
    content = content_of()
    without = {key: value for key, value in content.items() if not key.startswith("keypoints")}
    rows = people_of(write(without), bodies={"neutral": "embedded", "male": "embedded"})
    for labelled, row in zip(people_of(write(content)), rows, strict=True):
        if row.gender == "female":
            assert not row.keypoints_3d.any()
            assert not row.keypoints_2d.any()
            continue
        assert np.allclose(row.keypoints_3d[:, :3], labelled.keypoints_3d[:, :3], atol=1e-4)
        assert np.abs(row.keypoints_2d[:, :2] - labelled.keypoints_2d[:, :2]).max() < 0.1


def test_cameras_of_rows_come_before_those_of_the_file(write: Callable[..., Path]) -> None:
    content = content_of()
    focal = [np.array([[900.0 + number, 950]]) for number in range(N)]
    size = {"height": [400] * N, "width": [600 + 2 * number for number in range(N)]}
    content["meta"] = {"focal_length": focal, **size}
    cases = {
        "centre of the file": (content["misc"], CENTRE),
        "middle of the picture": ({}, None),
    }
    for misc, centre in cases.values():
        for number, row in enumerate(people_of(write(content, misc=misc))):
            expected = centre or (300 + number, 200)
            assert row.intrinsics == pytest.approx([900 + number, 950, *expected])
    square = people_of(write(content, meta={"focal_length": [800.0] * N, **size}, misc=None))
    assert square[0].intrinsics == pytest.approx([800, 800, 300, 200])
    assert people_of(write(content, meta=None, misc=None))[0].intrinsics is None


def test_rows_without_smpl_labels_have_none(write: Callable[..., Path]) -> None:
    content = content_of()
    has_smpl = np.array([1, 0, 1, 1, 0, 1, 1])
    people = people_of(write(content, has_smpl=has_smpl))
    assert [row.pose is not None for row in people] == list(has_smpl > 0)
    assert [row.betas is not None for row in people] == list(has_smpl > 0)
    assert {row.pose is None for row in people_of(write(content, smpl=None))} == {True}


def test_bad_rows_are_rejected_and_their_neighbours_stay(write: Callable[..., Path]) -> None:
    content = content_of()
    content["smpl"]["body_pose"][1, 5, 0] = np.nan
    content["bbox_xywh"][2, 0] = np.inf
    content["keypoints2d_original"][3, NAMES.index("left_knee"), 1] = np.nan
    content["meta"]["gender"][4] = "?"
    rows = rows_of(write(content))
    reasons = {n: row.reason for n, row in enumerate(rows) if isinstance(row, RejectedRow)}
    assert reasons == {
        1: "label_nonfinite", 2: "label_nonfinite", 3: "label_nonfinite", 4: "gender_unknown",
    }  # fmt: skip
    assert [row.sample_id.rpartition("/")[2] for row in rows] == [f"row{n:07d}" for n in range(N)]


def test_nobody_is_followed_from_picture_to_picture(write: Callable[..., Path]) -> None:
    """The files do not say who is who, so no acceleration may be measured."""
    videos, tracks, frames = places([row.sample_id for row in rows_of(write(content_of()))])
    assert frames.tolist() == list(range(N))
    assert len(set(videos.tolist())) == 1
    assert len(set(tracks.tolist())) == N


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox_xywh": None}, "'bbox_xywh' cannot be read"),
        ({"bbox_xywh": np.zeros((N - 1, 5))}, "bbox_xywh must hold 7 rows of 4 or 5 numbers"),
        (
            {"keypoints2d_original": np.zeros((N, 144, 3))},
            "keypoints2d_original: 144 joints and a mask of 190",
        ),
        ({"keypoints3d_original": np.zeros((1, 190, 4))}, r"keypoints3d_original: \(1, 190, 4\)"),
        ({"smpl": {"body_pose": np.zeros((N, 23, 3))}}, "smpl.global_orient must hold 7 rows of 3"),
        ({"smpl": smpl_of() | {"betas": np.zeros((N, 16))}}, "smpl.betas must hold 7 rows of 10"),
        ({"smpl": np.zeros(3)}, "smpl is a ndarray, it must be a dict"),
        ({"meta": {"gender": ["m"]}}, "meta.gender holds 1 rows, image_path 7"),
        ({"misc": {"focal_length": "unknown"}}, "misc.focal_length must hold 1 rows"),
        ({"image_path": None}, "'image_path' cannot be read"),
    ],
)
def test_files_of_another_shape_are_errors_that_name_the_key(
    write: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    path = write(content_of(), **changes)
    with pytest.raises(DataError, match=rf"made\.npz: {message}"):
        rows_of(path)


def test_a_set_of_joints_that_is_not_there_is_an_error(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(content_of())
    with pytest.raises(DataError, match=r"it has keypoints2d_original, .*joints=original, smpl"):
        rows_of(path, joints="smpl")
    with pytest.raises(ConfigError, match="joints='coco'; choose one of original, smpl, smplx"):
        rows_of(path, joints="coco")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.npz below it"):
        rows_of(tmp_path / "empty")


class Runs:
    """Unpickled by an ordinary reader, this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_file_that_would_run_code_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(content_of(), misc={"focal_length": Runs(f"touch {tmp_path}/ran")})
    with pytest.raises(DataError, match=r"made\.npz: 'misc': .*system"):
        rows_of(path)
    assert not (tmp_path / "ran").exists()


def test_the_source_travels(write: Callable[..., Path]) -> None:
    source = HumanDataSource(labels=str(write(content_of())), split="test", joints="original")
    assert pickle.loads(pickle.dumps(source)) == source
