"""Pictures without labels: everybody in a picture, or in the boxes of a CSV."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from hmr.errors import ConfigError, DataError
from rayhmr.config import PrepareJob
from rayhmr.data.sources.folder import FolderSource

SIZE = (160, 120)
DOT = (100.0, 40.0)


@pytest.fixture
def images(tmp_path, draw):
    root = tmp_path / "images"
    for name in ("b.png", "a.PNG", "deep/er/a.png"):
        draw(root / name, SIZE, [DOT])
    (root / "notes.txt").write_text("no picture")
    (root / ".hidden.png").write_bytes(b"")
    (root / ".cache").mkdir()
    (root / ".cache/a.png").write_bytes(b"")
    return root


def boxes(tmp_path, *lines, header="image,x1,y1,x2,y2"):
    path = tmp_path / "boxes.csv"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return str(path)


def test_every_picture_is_one_person_without_labels(images, prepared):
    found = prepared("folder", files={"images": str(images), "crop_size": 160})
    assert [row["sample_id"] for row in found.rows] == [
        "folder/a.PNG/0", "folder/b.png/0", "folder/deep/er/a.png/0",
    ]  # fmt: skip
    assert (found.rejected, found.facts["rows"]) == ([], {"train": 0, "val": 0, "test": 3})
    for row in found.rows:
        assert (row["source"], row["split"], row["has_smpl"]) == ("folder", "test", False)
        assert not any(row["keypoints_2d"] + row["keypoints_3d"] + row["pose"] + row["betas"])
        assert (row["center"], row["scale"]) == ([80, 60], pytest.approx(0.8))
        assert row["image_size"] == list(SIZE)
        np.testing.assert_allclose(row["crop_to_frame"], [1, 0, 0, 0, 1, -20], atol=1e-5)


def test_boxes_are_enlarged_to_a_square_and_the_picture_is_in_place(
    images, prepared, tmp_path, crop_of, brightness_at
):
    path = boxes(
        tmp_path, "b.png,80,20,120,70,0.9", "deep/er/a.png,10,10,50,50,0.8",
        header="image,x1,y1,x2,y2,score",
    )  # fmt: skip
    found = prepared(
        "folder", files={"images": str(images), "labels": path, "crop_size": 64, "name": "mine"}
    )
    first, second = found.rows
    assert first["sample_id"] == "mine/b.png/100.00_45.00_60.00"
    assert (first["center"], first["scale"]) == ([100, 45], pytest.approx(0.3))
    where = (np.array(DOT) - [100, 45]) * 64 / 60 + 32
    assert brightness_at(crop_of(first), [where]) > 230
    assert crop_of(second).max() < 30, "the dot is outside of this box"


def test_bad_lines_are_rejected_and_good_ones_stay(images, prepared, tmp_path):
    path = boxes(
        tmp_path,
        "b.png,80,20,120,70", "b.png,80,20,120,70", "b.png,80,20,,70", "b.png,80,20,x,70",
        "b.png,120,20,80,70", "b.png,300,20,340,70", "b.png,nan,20,120,70", "c.png,80,20,120,70",
        "../a.png,80,20,120,70", "b.png,80,20", ",80,20,120,70", "b.png,80,20,121,70",
    )  # fmt: skip
    found = prepared("folder", files={"images": str(images), "labels": path})
    assert [row["center"] for row in found.rows] == [[100, 45], [100.5, 45]]
    assert sorted(found.reasons) == sorted([
        "duplicate_id", "missing_field", "label_not_a_number", "box_empty", "box_outside_frame",
        "label_nonfinite", "unreadable", "path_outside_root", "missing_field", "missing_field",
    ])  # fmt: skip


def test_any_cut_gives_the_same_people(images, tmp_path):
    lines = [f"b.png,{n},20,{n + 40},70" for n in range(7)]
    for path in (None, boxes(tmp_path, *lines)):
        source = FolderSource(images=str(images), boxes=path, split="train")
        whole = [p.sample_id for unit in source.units(100) for p in source.people(unit)]
        assert len(source.units(2)) > 1
        assert whole == [p.sample_id for unit in source.units(2) for p in source.people(unit)]


def test_folders_and_tables_that_are_none(images, tmp_path):
    def units(folder, path=None):
        return FolderSource(images=str(folder), boxes=path, split="train").units(10)

    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.jpg, \.jpeg, \.png, \.webp below the folder"):
        units(tmp_path / "empty")
    with pytest.raises(ConfigError, match=r"files\.images=.*cannot be listed"):
        units(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"lacks the columns x2, y2; its first line must be image,"):
        units(images, boxes(tmp_path, "b.png,1,2", header="image,x1,y1"))
    with pytest.raises(DataError, match="is no readable CSV"):
        units(images, str(tmp_path / "none.csv"))
    (tmp_path / "binary.csv").write_bytes(b"image,x1,y1,x2,y2\n\xff\xfe\xff,1,2,3,4\n")
    with pytest.raises(DataError, match="is no readable CSV"):
        units(images, str(tmp_path / "binary.csv"))


def test_a_source_of_files_needs_its_files():
    with pytest.raises(ValidationError, match=r"source=folder reads files: set files\.images"):
        PrepareJob(source="folder")
