"""SPIN's label files with every field, with none of the optional ones, and with bad rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.errors import DataError
from hmr.pose_prior import rodrigues
from hmr.skeleton import JOINT49_NAMES
from rayhmr.data.sources.spin import SpinSource

SIZE = (240, 200)
COUNT = 6


def labels(count=COUNT):
    """Columns of a file; the last three rows share a picture."""
    rng = np.random.default_rng(0)
    center = np.column_stack([rng.uniform(100, 140, count), rng.uniform(80, 120, count)])
    part = np.zeros((count, 24, 3))
    part[..., :2] = center[:, None] + rng.uniform(-35, 35, (count, 24, 2))
    part[..., 2] = 1
    openpose = np.zeros((count, 25, 3))
    openpose[..., :2] = center[:, None] + rng.uniform(-35, 35, (count, 25, 2))
    openpose[..., 2] = rng.uniform(0.2, 0.9, (count, 25))
    joints = rng.normal(0, 0.4, (count, 24, 4))
    joints[..., 3] = 1
    return {
        "imgname": np.array([f"seq/{min(n, 3):06d}.png" for n in range(count)]),
        "center": center, "scale": np.linspace(0.5, 0.6, count), "part": part,
        "openpose": openpose, "S": joints, "pose": rng.normal(0, 0.3, (count, 72)),
        "shape": rng.normal(0, 1, (count, 10)), "has_smpl": np.ones(count),
        "gender": np.array(list("mfmfxm"))[:count],
    }  # fmt: skip


@pytest.fixture
def data_set(tmp_path, draw):
    """Write a file with these columns changed (None: left out), and its pictures."""

    def write(**changes):
        columns = labels() | changes
        columns = {key: value for key, value in columns.items() if value is not None}
        for number in range(4):
            picture = tmp_path / f"images/seq/{number:06d}.png"
            if not picture.exists():
                draw(picture, SIZE, labels()["part"][number, :3, :2])
        np.savez(tmp_path / "labels.npz", **columns)
        return {"labels": str(tmp_path / "labels.npz"), "images": str(tmp_path / "images"),
                "crop_size": 128}  # fmt: skip

    return write


def test_every_field_arrives(data_set, prepared, crop_of, in_frame, brightness_at):
    wanted = labels()
    found = prepared("spin", files=data_set(), rows_per_file=4)
    assert (found.rejected, len(found.rows)) == ([], COUNT)
    for number, row in enumerate(found.rows):
        x, y = wanted["center"][number]
        side = 200 * wanted["scale"][number]
        assert row["sample_id"] == f"spin/{wanted['imgname'][number]}/{x:.2f}_{y:.2f}_{side:.2f}"
        np.testing.assert_allclose(row["center"], [x, y], rtol=1e-6)
        assert row["scale"] == pytest.approx(side / 200)
        np.testing.assert_allclose(row["pose"], wanted["pose"][number], rtol=1e-6)
        np.testing.assert_allclose(row["betas"], wanted["shape"][number], rtol=1e-6)
        joints = in_frame(row)
        np.testing.assert_allclose(joints[:25], wanted["openpose"][number], atol=1e-3)
        np.testing.assert_allclose(joints[25:], wanted["part"][number], atol=1e-3)
        joints = np.reshape(row["keypoints_3d"], (49, 4))
        assert not joints[:25].any()
        np.testing.assert_allclose(joints[25:], wanted["S"][number], rtol=1e-6)
        assert (row["transl"], row["intrinsics"], row["has_smpl"]) == (None, None, True)
    assert [row["gender"] for row in found.rows] == [
        "male", "female", "male", "female", "neutral", "male",
    ]  # fmt: skip
    # Three joints of each picture's first person are dots in it.
    for row in found.rows[:4]:
        dots = np.reshape(row["keypoints_2d"], (49, 3))[25:28, :2]
        assert (brightness_at(crop_of(row), dots) > 200).all()


def test_a_test_set_of_boxes_and_smpl_labels_alone_is_kept(data_set, prepared):
    files = data_set(part=None, openpose=None, S=None, has_smpl=None, gender=None)
    found = prepared("spin", files=files)
    assert (len(found.rows), found.rejected) == (COUNT, [])
    for row in found.rows:
        assert row["has_smpl"] is True
        assert not any(row["keypoints_2d"] + row["keypoints_3d"])
        assert (row["gender"], row["split"]) == ("neutral", "test")


def test_joints_alone_are_kept_without_smpl_labels(data_set, prepared):
    found = prepared("spin", files=data_set(pose=None, shape=None, S=None, openpose=None))
    assert [row["has_smpl"] for row in found.rows] == [False] * COUNT
    assert not any(found.rows[0]["pose"])


def test_has_smpl_takes_the_labels_of_a_row_away(data_set, prepared):
    keep = np.array([1, 0, 1, 1, 0, 1])
    found = prepared("spin", files=data_set(has_smpl=keep))
    assert [row["has_smpl"] for row in found.rows] == [bool(v) for v in keep]


def test_bad_rows_are_rejected_and_good_ones_stay(data_set, prepared, tmp_path):
    columns = labels(9) | {"gender": None}
    names = columns["imgname"].astype("U40")
    names[1], names[2] = "../labels.npz", "seq/none.png"
    columns["imgname"] = names
    columns["center"][3] = [900, 900]
    columns["scale"][4] = 0
    columns["pose"][5, 7] = np.nan
    columns["part"][6, 2, 0] = np.inf
    for column in columns.values():
        if column is not None:
            column[8] = column[7]
    (tmp_path / "images/seq").mkdir(parents=True)
    found = prepared("spin", files=data_set(**columns))
    assert [row["center"][0] for row in found.rows] == pytest.approx(columns["center"][[0, 7], 0])
    assert found.reasons == [
        "path_outside_root", "unreadable", "box_outside_frame", "box_empty", "label_nonfinite",
        "label_nonfinite", "duplicate_id",
    ]  # fmt: skip


def test_a_row_without_any_label_lacks_one(data_set, prepared):
    part = labels()["part"]
    part[2, 5:, 2] = 0
    found = prepared("spin", files=data_set(part=part, pose=None, S=None, openpose=None))
    assert (len(found.rows), found.reasons) == (COUNT - 1, ["label_missing"])


def test_true_labels_have_no_error_and_a_known_offset_is_found(data_set, prepared, mpjpe):
    pose, shape = labels()["pose"], labels()["shape"]
    rotmats = torch.from_numpy(rodrigues(pose.reshape(-1, 24, 3)))
    joints = Body.embedded().landmarks(rotmats.float(), torch.tensor(shape).float())[:, 25:]
    measured = np.concatenate([joints.numpy(), np.ones((COUNT, 24, 1))], axis=2)
    found = prepared("spin", files=data_set(S=measured))
    assert mpjpe(found, "synthetic").max() < 0.01
    assert mpjpe(found, "mpi_inf_3dhp").max() < 0.01
    pelvis = JOINT49_NAMES[25:].index("gt_pelvis")
    measured[:, np.arange(24) != pelvis, :3] += [0.03, 0, 0.04]
    found = prepared("spin", files=data_set(S=measured))
    np.testing.assert_allclose(mpjpe(found, "mpi_inf_3dhp"), 50 * 16 / 17, atol=0.01)


def test_a_file_of_another_kind_is_refused(data_set):
    def read(**changes):
        source = SpinSource(labels=data_set(**changes)["labels"], split="train")
        return [row for unit in source.units(3) for row in source.people(unit)]

    assert len(read()) == COUNT
    with pytest.raises(DataError, match="has no center"):
        read(center=None)
    with pytest.raises(DataError, match=r"S has rows of shape \(17, 4\), \(24, 4\) expected"):
        read(S=np.zeros((COUNT, 17, 4)))


def test_training_rows_stand_in_another_order_that_is_always_the_same(data_set, prepared):
    def ids(split):
        found = prepared("spin", files=data_set() | {"split": split})
        return [row["sample_id"] for row in found.rows]

    in_order, mixed = ids("val"), ids("train")
    assert mixed != in_order
    assert sorted(mixed) == sorted(in_order)
    assert ids("train") == mixed
