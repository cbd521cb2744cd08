"""COCO's keypoint annotations, with every way in which one of them can be bad."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hmr.errors import DataError
from hmr.skeleton import JOINT49_NAMES, joint49_index
from rayhmr.data.sources import coco
from rayhmr.data.sources.coco import NAMES, CocoSource

SIZE = (200, 150)
# Numbers of pixels, as COCO counts: the centres are half a pixel further.
POINTS = [(40 + 7 * n, 30 + 5 * n + 3 * (n % 3)) for n in range(17)]


def annotation(number, image_id=1, **changes):
    keypoints = [value for x, y in POINTS for value in (x, y, 2)]
    values = {
        "id": number, "image_id": image_id, "category_id": 1, "iscrowd": 0, "num_keypoints": 17,
        "bbox": [35.5, 25.5, 120.0, 100.0], "keypoints": keypoints, "area": 12000.0,
        "segmentation": [[1.0, 2.0, 3.0, 4.0]],
    }  # fmt: skip
    return {key: value for key, value in (values | changes).items() if value is not None}


@pytest.fixture
def data_set(tmp_path, draw):
    """Write annotations (and two pictures); the settings that read them."""
    names = {1: "train2017/000000000001.png", 7: "train2017/000000000007.png"}
    for name in names.values():
        draw(tmp_path / name, SIZE, np.array(POINTS) + 0.5)

    def write(*annotations, file="keypoints.json", sizes=SIZE, **content):
        images = [
            {"id": n, "file_name": name, "width": sizes[0], "height": sizes[1], "license": 1}
            for n, name in names.items()
        ]
        whole = {
            "info": {"year": 2017}, "licenses": [{"id": 1}], "annotations": list(annotations),
            "images": images, "categories": [{"id": 1, "name": "person"}],
        }  # fmt: skip
        (tmp_path / file).write_text(json.dumps(whole | content))
        coco._people.cache_clear()
        return {"labels": str(tmp_path / file), "images": str(tmp_path), "crop_size": 144}

    return write


def test_joints_lie_on_their_pixels(data_set, prepared, crop_of, in_frame, brightness_at):
    found = prepared("coco", files=data_set(annotation(5)))
    (row,) = found.rows
    assert row["sample_id"] == "coco/train2017/000000000001.png/5"
    assert (row["center"], row["scale"]) == ([95.5, 75.5], pytest.approx(144 / 200))
    labelled = [joint49_index(f"op_{name}") for name in NAMES]
    joints = in_frame(row)
    np.testing.assert_allclose(joints[labelled, :2], np.array(POINTS) + 0.5, atol=1e-3)
    assert np.flatnonzero(joints[:, 2]).tolist() == sorted(labelled)
    in_crop = np.reshape(row["keypoints_2d"], (49, 3))[labelled, :2]
    assert (brightness_at(crop_of(row), in_crop) > 230).all(), "the dots are under the joints"
    assert not any(row["keypoints_3d"])
    assert (row["has_smpl"], row["source"], row["gender"]) == (False, "coco", "neutral")


def test_sides_are_those_of_the_person():
    assert JOINT49_NAMES[joint49_index("op_left_shoulder")] == "op_left_shoulder"
    assert (NAMES[5], NAMES[6], NAMES[0], NAMES[16]) == (
        "left_shoulder", "right_shoulder", "nose", "right_ankle"
    )  # fmt: skip


def test_joints_without_a_label_are_none_and_hidden_ones_are(data_set, prepared):
    keypoints = annotation(1)["keypoints"]
    keypoints[0:3], keypoints[3:6] = [0, 0, 0], [41, 37, 1]
    (row,) = prepared("coco", files=data_set(annotation(1, keypoints=keypoints))).rows
    joints = np.reshape(row["keypoints_2d"], (49, 3))
    assert not joints[joint49_index("op_nose")].any()
    assert joints[joint49_index("op_left_eye"), 2] == 1


def test_people_that_nobody_labelled_are_no_rows(data_set, prepared):
    few = annotation(1)["keypoints"][: 3 * 5] + [0] * 3 * 12
    found = prepared(
        "coco",
        files=data_set(
            annotation(1), annotation(2, keypoints=[0] * 51), annotation(3, keypoints=few),
            annotation(4, iscrowd=1), annotation(5, category_id=3),
        ),
    )  # fmt: skip
    assert (len(found.rows), found.rejected) == (1, [])


def test_bad_annotations_are_rejected_and_good_ones_stay(data_set, prepared):
    nan = annotation(0)["keypoints"]
    nan[6] = float("nan")
    found = prepared(
        "coco",
        files=data_set(
            annotation(1), annotation(1), annotation(2, bbox=None), annotation(3, keypoints=None),
            annotation(4, image_id=99), annotation(5, image_id=None), annotation(6, bbox=[1, 2]),
            annotation(7, keypoints=nan), annotation(8, bbox=[500, 500, 20, 20]),
            annotation(9, bbox=[10, 10, 0, 20]), annotation(10, bbox=["x", 1, 2, 3]),
            annotation(11), annotation(12, image_id=7),
        ),
    )  # fmt: skip
    ids = [row["sample_id"].split("/")[-1] for row in found.rows]
    assert ids == ["1", "11", "12"]
    assert {i.split("/")[-1]: reason for i, reason, _ in found.rejected} == {
        "1": "duplicate_id", "2": "missing_field", "3": "missing_field", "4": "missing_field",
        "5": "missing_field", "6": "label_shape", "7": "label_nonfinite",
        "8": "box_outside_frame", "9": "box_empty", "10": "label_shape",
    }  # fmt: skip


def test_annotations_without_an_id_are_different_people(data_set, prepared):
    bare = annotation(1)
    del bare["id"]
    found = prepared("coco", files=data_set(bare, bare))
    assert (len(found.rows), found.rejected) == (2, [])


def test_labels_of_a_picture_of_another_size_are_rejected(data_set, prepared):
    files = data_set(annotation(1), sizes=(400, 300))
    with pytest.raises(DataError, match=r"frame_size_differs +1 +100\.0%"):
        prepared("coco", files=files)


def test_people_of_a_picture_follow_each_other_in_any_cut(data_set):
    rows = [annotation(n, image_id=(1, 7)[n % 2]) for n in range(7)]
    files = data_set(*rows)
    source = CocoSource(labels=files["labels"], split="val")
    units = source.units(2)
    assert [(u.start, u.stop, u.split) for u in units] == [
        (0, 1, "val"), (1, 3, "val"), (3, 5, "val"), (5, 7, "val"),
    ]  # fmt: skip
    ids = [p.sample_id[-1] for unit in units for p in source.people(unit)]
    assert ids == ["0", "2", "4", "6", "1", "3", "5"]


def test_several_files_and_files_that_are_none(data_set, prepared, tmp_path):
    (tmp_path / "labels").mkdir()
    data_set(annotation(1), file="labels/a.json")
    files = data_set(annotation(2), annotation(3), file="labels/b.json")
    found = prepared("coco", files=files | {"labels": str(tmp_path / "labels"), "name": "both"})
    assert [row["sample_id"][-1] for row in found.rows] == ["1", "2", "3"]
    assert {row["source"] for row in found.rows} == {"both"}
    for content in ('{"annotations": [1]}', '{"annotations": [{"id": 1', "[]", '{"images": [{}]}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=r"bad\.json: is no COCO keypoint file"):
            CocoSource(labels=str(tmp_path / "bad.json"), split="train").units(10)
    with pytest.raises(DataError, match=r"none\.json: is not there; give a label file"):
        CocoSource(labels=str(tmp_path / "none.json"), split="train").units(10)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has no \.json file"):
        CocoSource(labels=str(tmp_path / "empty"), split="train").units(10)
