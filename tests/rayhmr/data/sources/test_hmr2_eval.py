"""HMR2's evaluation files: sizes in pixels, two sets of joints."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hmr.body import Body
from hmr.errors import DataError
from hmr.pose_prior import rodrigues
from rayhmr.data.sources.hmr2_eval import Hmr2EvalSource

SIZE = (240, 200)
COUNT = 4


def labels():
    rng = np.random.default_rng(1)

    def points(joints, dimensions):
        values = np.ones((COUNT, joints, dimensions + 1))
        if dimensions == 2:
            values[..., :2] = rng.uniform(70, 150, (COUNT, joints, 2))
        else:
            values[..., :3] = rng.normal(0, 0.4, (COUNT, joints, 3))
        return values

    return {
        "imgname": np.array(["a.png", "b.png", "a.png", "a.png"]),
        "center": np.tile([120.0, 100.0], (COUNT, 1)),
        "scale": np.array([[90.0, 160.0], [120.0, 120.0], [90.0, 160.0], [100.0, 90.0]]),
        "body_pose": rng.normal(0, 0.3, (COUNT, 72)), "has_body_pose": np.array([1.0, 1, 1, 0]),
        "betas": rng.normal(0, 1, (COUNT, 10)), "has_betas": np.array([1.0, 1, 1, 1]),
        "body_keypoints_2d": points(25, 2), "extra_keypoints_2d": points(19, 2),
        "body_keypoints_3d": points(25, 3), "extra_keypoints_3d": points(19, 3),
        "personid": np.array([0, 0, 1, 2]), "extra_info": np.array([{"a": 1}] * COUNT, object),
    }  # fmt: skip


@pytest.fixture
def data_set(tmp_path, draw):
    def write(**changes):
        columns = {key: v for key, v in (labels() | changes).items() if v is not None}
        np.savez(tmp_path / "labels.npz", **columns)
        return {"labels": str(tmp_path / "labels.npz"), "images": str(tmp_path)}

    draw(tmp_path / "a.png", SIZE, labels()["body_keypoints_2d"][0, :2, :2])
    draw(tmp_path / "b.png", SIZE, [])
    return write


def test_every_field_arrives(data_set, prepared, crop_of, in_frame, brightness_at):
    wanted = labels()
    found = prepared("hmr2_eval", files=data_set())
    assert found.rejected == []
    order = [0, 2, 3, 1]  # people of a picture follow each other
    for row, n in zip(found.rows, order, strict=True):
        assert row["sample_id"].startswith(f"hmr2_eval/{wanted['imgname'][n]}/120.00_100.00_")
        joints = in_frame(row)
        np.testing.assert_allclose(joints[:25], wanted["body_keypoints_2d"][n], atol=1e-3)
        np.testing.assert_allclose(joints[25:44], wanted["extra_keypoints_2d"][n], atol=1e-3)
        assert not joints[44:, 2].any()
        joints = np.reshape(row["keypoints_3d"], (49, 4))
        np.testing.assert_allclose(joints[25:44], wanted["extra_keypoints_3d"][n], rtol=1e-6)
        assert np.flatnonzero(joints[:25, 3]).tolist() == [0, *range(15, 25)]
        np.testing.assert_allclose(joints[0], wanted["body_keypoints_3d"][n, 0], rtol=1e-6)
        assert row["has_smpl"] is (n != 3)
        if n != 3:
            np.testing.assert_allclose(row["pose"], wanted["body_pose"][n], rtol=1e-6)
            np.testing.assert_allclose(row["betas"], wanted["betas"][n], rtol=1e-6)
    dots = np.reshape(found.rows[0]["keypoints_2d"], (49, 3))[:2, :2]
    assert (brightness_at(crop_of(found.rows[0]), dots) > 200).all()


def test_true_labels_have_no_error_and_a_known_offset_is_found(data_set, prepared, mpjpe):
    rotmats = torch.from_numpy(rodrigues(labels()["body_pose"].reshape(-1, 24, 3)))
    betas = torch.tensor(labels()["betas"]).float()
    joints = Body.embedded().landmarks(rotmats.float(), betas)[:, 25:44].numpy()
    extra = np.concatenate([joints, np.ones((COUNT, 19, 1))], axis=2)
    extra[:, np.arange(19) != 14, :3] += [0.03, 0, 0.04]  # all but gt_pelvis
    columns = {"extra_keypoints_3d": extra, "has_body_pose": np.ones(COUNT)}
    found = prepared("hmr2_eval", files=data_set(**columns))
    assert mpjpe(found, "synthetic").max() < 0.01
    np.testing.assert_allclose(mpjpe(found, "mpi_inf_3dhp"), 50 * 16 / 17, atol=0.01)


def test_boxes_grow_to_hmr2s_aspect(data_set, prepared):
    rows = {row["sample_id"]: row["scale"] for row in prepared("hmr2_eval", files=data_set()).rows}
    assert list(rows.values()) == pytest.approx([160 / 200, 160 / 200, 400 / 3 / 200, 160 / 200])


@pytest.mark.parametrize("shape", [(COUNT,), (COUNT, 1)])
def test_one_size_is_a_square(data_set, prepared, shape):
    found = prepared("hmr2_eval", files=data_set(scale=np.full(shape, 90.0)))
    assert [row["scale"] for row in found.rows] == pytest.approx([120 / 200] * COUNT)


def test_what_is_missing_counts_as_zero(data_set, prepared):
    few = data_set(has_betas=None, body_keypoints_3d=None, extra_keypoints_2d=None, personid=None)
    found = prepared("hmr2_eval", files=few)
    # Rows 0 and 2 have the same box and nothing else that tells them apart.
    assert found.reasons == ["duplicate_id"]
    for row in found.rows:
        assert row["has_smpl"] is False
        assert np.flatnonzero(np.reshape(row["keypoints_2d"], (49, 3))[:, 2]).max() == 24
        assert np.flatnonzero(np.reshape(row["keypoints_3d"], (49, 4))[:, 3]).min() == 25


def test_bad_rows_are_rejected_and_good_ones_stay(data_set, prepared):
    center, scale, betas = labels()["center"], labels()["scale"], labels()["betas"]
    center[0, 0], betas[1, 9], scale[2] = np.nan, np.inf, -3
    found = prepared("hmr2_eval", files=data_set(center=center, scale=scale, betas=betas))
    assert (len(found.rows), sorted(found.reasons)) == (
        1, ["box_empty", "label_nonfinite", "label_nonfinite"]
    )  # fmt: skip


def test_a_size_of_three_numbers_is_refused(data_set):
    source = Hmr2EvalSource(labels=data_set(scale=np.ones((COUNT, 3)))["labels"], split="test")
    with pytest.raises(DataError, match="scale has 3 numbers a person, not 1 or 2"):
        list(source.people(source.units(9)[0]))


def test_a_picture_that_exif_turns_does_not_fit_its_labels(data_set, prepared, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(tmp_path / "b.png") as picture:
        picture.save(tmp_path / "b.png", exif=exif)
    found = prepared("hmr2_eval", files=data_set())
    assert (len(found.rows), found.reasons) == (COUNT - 1, ["exif_conflict"])
