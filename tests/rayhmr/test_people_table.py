"""The output of batch prediction: every file once, every number as it was, whole or not at all."""

from __future__ import annotations

import csv
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmr.errors import ConfigError, HmrError
from hmr.structures import Person
from rayhmr.people_table import (
    PEOPLE_SCHEMA,
    PERSON_NUMBERS,
    RESULT_SCHEMA,
    ROW_GROUP,
    PeopleWriter,
    finished_folder,
    overlay_names,
    person_row,
)


def a_person(number):
    rng = np.random.default_rng(number)
    sizes = {"joints_2d": (24, 2), "joints_3d": (24, 3)}
    numbers = {
        name: rng.normal(size=sizes.get(name, size)).astype(np.float32)
        for name, (size, _) in PERSON_NUMBERS.items()
    }
    return Person(**numbers, vertices=np.zeros((5, 3), np.float32), iterations=({},) * 4)


def row_of(image, number, version=3):
    return person_row(a_person(number)) | {
        "image": image, "image_width": 640, "image_height": 480, "person": number,
        "model": "hmr", "model_version": version, "model_sha256": "f00d",
    }  # fmt: skip


def found(path, people, overlay=None):
    return {"path": path, "reason": None, "detail": None, "people": people, "overlay": overlay}


def refused(path, reason, detail="why"):
    return {"path": path, "reason": reason, "detail": detail, "people": None, "overlay": None}


@contextmanager
def open_writer(folder, paths):
    """A writer whose files are closed also when a test ends early."""
    folder.mkdir(exist_ok=True)
    writer = PeopleWriter(folder, paths)
    try:
        yield writer
    finally:
        if not writer._csv.closed:
            writer.awaited.clear()
            writer.close()


def rejected_of(folder):
    with (folder / "rejected/rejected.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_people_come_back_from_parquet_bit_for_bit(tmp_path):
    results = [
        found("a.jpg", [row_of("a.jpg", 0), row_of("a.jpg", 1)]),
        found("b.jpg", [row_of("b.jpg", 2, version=None)]),
    ]
    # On the way they pass through Arrow.
    results = pa.Table.from_pylist(results, RESULT_SCHEMA).to_pylist()
    with open_writer(tmp_path / "out", ["a.jpg", "b.jpg"]) as writer:
        for result in results:
            writer.add(result)
        writer.close()
    table = pq.read_table(tmp_path / "out/people.parquet")
    assert table.schema.equals(PEOPLE_SCHEMA)
    assert table.schema.metadata == PEOPLE_SCHEMA.metadata
    for field, ours in zip(table.schema, PEOPLE_SCHEMA, strict=True):
        assert field.metadata[b"description"] == ours.metadata[b"description"], field.name
    rows = table.to_pylist()
    assert [(row["image"], row["person"]) for row in rows] == [
        ("a.jpg", 0), ("a.jpg", 1), ("b.jpg", 2)
    ]  # fmt: skip
    assert [row["model_version"] for row in rows] == [3, 3, None]
    for row in rows:
        person = a_person(row["person"])
        for name in PERSON_NUMBERS:
            np.testing.assert_array_equal(
                np.array(row[name], np.float32), getattr(person, name).reshape(-1), err_msg=name
            )
        assert row["n_iter"] == 3, "entry 0 of the iterations is the start"


def test_what_was_predicted_and_what_was_refused_is_counted(tmp_path):
    paths = ["a.jpg", "b.jpg", "c.jpg", "d,\n.jpg"]
    with open_writer(tmp_path / "out", paths) as writer:
        writer.add(found("a.jpg", [row_of("a.jpg", 0), row_of("a.jpg", 1)]))
        writer.add(refused("b.jpg", "truncated", 'breaks off, "here"'))
        assert writer.done == 2
        writer.add(found("c.jpg", []))
        writer.add(refused("d,\n.jpg", "truncated"))
        writer.close()
    assert (writer.predicted, writer.people, writer.done) == (2, 2, 4)
    assert writer.reasons == {"truncated": 2}
    assert rejected_of(tmp_path / "out") == [
        ["id", "reason", "detail"],
        ["b.jpg", "truncated", 'breaks off, "here"'],
        ["d,\n.jpg", "truncated", "why"],
    ]
    assert pq.read_metadata(tmp_path / "out/people.parquet").num_rows == 2


def test_more_people_than_a_row_group_are_all_there_in_order(tmp_path):
    rows = [row_of("x", 0) | {"person": number} for number in range(2 * ROW_GROUP + 7)]
    paths = [f"{start}" for start in range(0, len(rows), 300)]
    with open_writer(tmp_path / "out", paths) as writer:
        for path in paths:
            writer.add(found(path, rows[int(path) : int(path) + 300]))
        writer.close()
    stored = pq.read_table(tmp_path / "out/people.parquet", columns=["person"])
    assert stored["person"].to_pylist() == list(range(len(rows)))
    assert writer.people == len(rows)


def test_a_folder_of_refused_files_has_an_empty_table(tmp_path):
    with open_writer(tmp_path / "out", ["a.jpg"]) as writer:
        writer.add(refused("a.jpg", "zero_byte"))
        writer.close()
    table = pq.read_table(tmp_path / "out/people.parquet")
    assert len(table) == 0
    assert table.schema.names == PEOPLE_SCHEMA.names


def test_a_second_result_a_stranger_and_a_missing_result_are_errors(tmp_path):
    with open_writer(tmp_path / "out", ["a.jpg", "b.jpg", "c.jpg"]) as writer:
        writer.add(found("a.jpg", [row_of("a.jpg", 0)]))
        for path in ("a.jpg", "z.jpg"):
            with pytest.raises(HmrError, match=rf"{path}: a second result for one file, or"):
                writer.add(refused(path, "truncated"))
        assert writer.done == 1
        with pytest.raises(
            HmrError, match=r"2 listed files had no result, among them b\.jpg; run the job again"
        ):
            writer.close()


def test_overlays_lie_where_their_images_lay(tmp_path):
    paths = ["a.png", "album/a.png", "album/a.webp", "none.png"]
    with open_writer(tmp_path / "out", paths) as writer:
        for number, path in enumerate(paths[:3]):
            writer.add(found(path, [row_of(path, 0)], overlay=bytes([number])))
        writer.add(found("none.png", []))
        writer.close()
    overlays = tmp_path / "out/overlays"
    files = {str(p.relative_to(overlays)): p.read_bytes() for p in overlays.rglob("*.jpg")}
    assert files == {"a.jpg": b"\0", "album/a.png.jpg": b"\1", "album/a.webp.jpg": b"\2"}


@given(
    st.sets(
        st.builds(
            "".join,
            st.tuples(
                st.sampled_from(["", "x/", "x.png/"]),
                st.sampled_from(["a", "b"]),
                st.lists(st.sampled_from([".jpg", ".png"]), max_size=3).map("".join),
            ),
        )
    )
)
def test_no_two_images_share_an_overlay(paths):
    names = overlay_names(paths)
    assert set(names) == paths
    assert len(set(names.values())) == len(paths)
    assert all(name.endswith(".jpg") for name in names.values())


def test_an_overlay_is_never_called_like_a_folder_of_others():
    names = overlay_names(["a.png", "a.jpg/b.png"])
    assert names == {"a.png": "a.png.jpg", "a.jpg/b.png": "a.jpg/b.jpg"}


# The folder


def test_a_folder_appears_when_it_is_finished_and_replaces_an_earlier_one(tmp_path):
    target = tmp_path / "below" / "out"
    for text in ("first", "second"):
        with finished_folder(target) as folder:
            (folder / "predictions.json").write_text(text)
            (folder / text).write_text("")
            assert not target.exists() or (target / "predictions.json").read_text() == "first"
        assert (target / "predictions.json").read_text() == text
    assert sorted(p.name for p in target.iterdir()) == ["predictions.json", "second"]
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_after_an_error_the_earlier_folder_is_as_it_was(tmp_path):
    target = tmp_path / "out"

    def fails():
        with finished_folder(target) as folder:
            (folder / "predictions.json").write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        fails()
    assert list(tmp_path.iterdir()) == []
    with finished_folder(target) as folder:
        (folder / "predictions.json").write_text("whole")
    with pytest.raises(OSError, match="the disk is full"):
        fails()
    assert (target / "predictions.json").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_when_the_last_rename_fails_the_earlier_folder_comes_back(tmp_path):
    target = tmp_path / "out"
    with finished_folder(target) as folder:
        (folder / "predictions.json").write_text("whole")
    with pytest.raises(FileNotFoundError), finished_folder(target) as folder:
        folder.rename(tmp_path / "taken away")
    assert (target / "predictions.json").read_text() == "whole"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "taken away"]


def test_only_an_empty_folder_or_a_prediction_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    with finished_folder(tmp_path / "empty") as folder:
        (folder / "predictions.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with (
            pytest.raises(ConfigError, match=rf"{name}: is there and holds no predictions\.json"),
            finished_folder(tmp_path / name),
        ):
            pass
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"
    assert (tmp_path / "file").read_text() == "x"
