"""The output of batch prediction: every picture once, every number as it was, whole or not."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmr.errors import ConfigError, HmrError
from hmr.structures import Person
from rayhmr.people_table import (
    ITERATIONS_SCHEMA,
    PEOPLE_SCHEMA,
    PERSON_NUMBERS,
    RESULT_SCHEMA,
    file_names,
    person_row,
    result_schema,
)
from rayhmr.pictures import table_of
from rayhmr.prediction_files import ROW_GROUP, write_people
from rayhmr.prediction_parts import PART_ROWS, PredictionParts, identity, publish, unfinished


def a_person(number):
    rng = np.random.default_rng(number)
    sizes = {"joints_2d": (24, 2), "joints_3d": (24, 3)}
    numbers = {
        name: rng.normal(size=sizes.get(name, size)).astype(np.float32)
        for name, (size, _) in PERSON_NUMBERS.items()
    }
    steps = tuple(
        {"global_orient": np.full(3, k), "body_pose": np.full(69, k), "betas": np.full(10, k),
         "pred_cam": np.full(3, k)}
        for k in range(4)
    )  # fmt: skip
    return Person(**numbers, vertices=np.zeros((5, 3), np.float32), iterations=steps)


def row_of(image, number, version=3, **more):
    return person_row(a_person(number), 1.2, **more) | {
        "sample_id": f"{image}/{number}", "image_size": [640, 480],
        "image": image, "image_width": 640, "image_height": 480, "person": number,
        "model": "hmr", "model_version": version, "model_sha256": "f00d",
    }  # fmt: skip


def found(number, path, people, overlay=None):
    return {"number": number, "path": path, "people": people, "overlay": overlay}


def refused(number, path, reason, detail="why"):
    return {"number": number, "path": path, "reason": reason, "detail": detail}


def listing_of(paths):
    return table_of([{"path": path} for path in paths])


def parts_of(folder, paths, schema=RESULT_SCHEMA):
    folder.mkdir(exist_ok=True)
    return PredictionParts(folder, listing_of(paths), schema)


def add(parts, *results, schema=RESULT_SCHEMA):
    parts.add(pa.Table.from_pylist(list(results), schema))


def written(parts, folder, schema=PEOPLE_SCHEMA):
    parts.check_complete()
    folder.mkdir(exist_ok=True)
    write_people(parts, folder, schema)
    return pq.read_table(folder / "people.parquet")


def rejected_of(folder):
    with (folder / "rejected/rejected.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_people_come_back_from_parquet_bit_for_bit(tmp_path):
    parts = parts_of(tmp_path / "work", ["a.jpg", "b.jpg"])
    add(parts, found(1, "b.jpg", [row_of("b.jpg", 2, version=None)]))
    add(parts, found(0, "a.jpg", [row_of("a.jpg", 0), row_of("a.jpg", 1)]))
    table = written(parts, tmp_path / "out")
    assert table.schema.equals(PEOPLE_SCHEMA)
    assert table.schema.metadata == PEOPLE_SCHEMA.metadata
    for field, ours in zip(table.schema, PEOPLE_SCHEMA, strict=True):
        assert field.metadata[b"description"] == ours.metadata[b"description"], field.name
    rows = table.to_pylist()
    assert [(row["image"], row["person"]) for row in rows] == [
        ("a.jpg", 0), ("a.jpg", 1), ("b.jpg", 2)
    ], "in the order of the listing"  # fmt: skip
    assert [row["model_version"] for row in rows] == [3, 3, None]
    for row in rows:
        person = a_person(row["person"])
        for name in PERSON_NUMBERS:
            np.testing.assert_array_equal(
                np.array(row[name], np.float32), getattr(person, name).reshape(-1), err_msg=name
            )
        assert row["n_iter"] == 3, "entry 0 of the iterations is the start"
        assert row["pose"] == row["global_orient"] + row["body_pose"]
        assert row["transl"] == row["cam_t"]
        assert row["intrinsics"] == row["focal_length"] + row["principal_point"]


def test_the_square_is_the_fields():
    person = a_person(0)
    person.box_xyxy[:] = [10, 20, 110, 220]
    row = person_row(person, 1.2)
    np.testing.assert_allclose(row["center"], [60, 120])
    assert row["scale"] == pytest.approx(1.2 * 200 / 200)
    person.box_xyxy[:] = [0, 0, 640, 480]
    row = person_row(person, None)
    np.testing.assert_allclose(row["center"], [320, 240])
    assert row["scale"] == pytest.approx(640 / 200), "the square around the whole picture"


def test_every_iteration_is_there_when_it_is_asked_for(tmp_path):
    schema = result_schema(ITERATIONS_SCHEMA)
    parts = parts_of(tmp_path / "work", ["a.jpg"], schema)
    add(parts, found(0, "a.jpg", [row_of("a.jpg", 0, iterations=True)]), schema=schema)
    (row,) = written(parts, tmp_path / "out", ITERATIONS_SCHEMA).to_pylist()
    for name, size in (("pose", 72), ("betas", 10), ("pred_cam", 3)):
        assert row[f"iterations_{name}"] == [[float(step)] * size for step in range(4)]


def test_what_was_predicted_and_what_was_refused_is_counted(tmp_path):
    parts = parts_of(tmp_path / "work", ["a.jpg", "b.jpg", "c.jpg", "d,\n.jpg"])
    add(
        parts,
        found(0, "a.jpg", [row_of("a.jpg", 0), row_of("a.jpg", 1)]),
        refused(1, "b.jpg", "truncated", 'breaks off, "here"'),
    )
    assert parts.done == 2
    add(parts, found(2, "c.jpg", []), refused(3, "d,\n.jpg", "truncated"))
    assert (parts.predicted, parts.people, parts.done) == (2, 2, 4)
    assert parts.reasons == {"truncated": 2}
    assert len(written(parts, tmp_path / "out")) == 2
    assert rejected_of(tmp_path / "out") == [
        ["id", "reason", "detail"],
        ["b.jpg", "truncated", 'breaks off, "here"'],
        ["d,\n.jpg", "truncated", "why"],
    ]


def test_more_people_than_a_row_group_are_all_there_in_order(tmp_path):
    row = row_of("x", 0)
    parts = parts_of(tmp_path / "work", ["a", "b", "c"])
    for number in (2, 0, 1):
        people = [row | {"person": 1000 * number + k} for k in range(ROW_GROUP // 2 + 7)]
        add(parts, found(number, "abc"[number], people))
    people = written(parts, tmp_path / "out")["person"].to_pylist()
    assert len(people) == parts.people == 3 * (ROW_GROUP // 2 + 7)
    assert people == sorted(people)


def test_a_folder_of_refused_files_has_an_empty_table(tmp_path):
    parts = parts_of(tmp_path / "work", ["a.jpg"])
    add(parts, refused(0, "a.jpg", "zero_byte"))
    table = written(parts, tmp_path / "out")
    assert len(table) == 0
    assert table.schema.names == PEOPLE_SCHEMA.names


def test_a_second_result_a_stranger_and_a_missing_result_are_errors(tmp_path):
    parts = parts_of(tmp_path / "work", ["a.jpg", "b.jpg", "c.jpg"])
    add(parts, found(0, "a.jpg", [row_of("a.jpg", 0)]))
    for number in (0, 7):
        with pytest.raises(HmrError, match=rf"picture {number}: a second result for one picture"):
            add(parts, refused(number, "?", "truncated"))
    with pytest.raises(HmrError, match="picture 1: a second result"):
        add(parts, refused(1, "b.jpg", "truncated"), refused(1, "b.jpg", "truncated"))
    assert parts.done == 1
    with pytest.raises(HmrError, match=r"2 listed pictures had no result, among them b\.jpg; run"):
        parts.check_complete()


COUNT = 2 * PART_ROWS + 9


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), stops=st.sets(st.integers(0, COUNT - 1), min_size=1, max_size=4)
)
def test_a_killed_prediction_goes_on_and_ends_the_same(tmp_path_factory, seed, stops):
    """Whatever the order of results, wherever it was killed: every picture once, in order."""
    folder = tmp_path_factory.mktemp("parts")
    paths = [f"{number}.jpg" for number in range(COUNT)]
    row = row_of("x", 0)

    def result(number):
        if number % 7 == 0:
            return refused(number, paths[number], "r")
        return found(number, paths[number], [row | {"person": number}])

    parts, todo = parts_of(folder / "work", paths), set(range(COUNT))
    order = np.random.default_rng(seed).permutation(COUNT).tolist()
    for place, number in enumerate(order):
        if place in stops:
            before = parts.done
            parts = parts_of(folder / "work", paths)
            assert parts.found == parts.done <= before
            todo = set(parts.missing(listing_of(paths))["number"].to_pylist())
        if number in todo:
            add(parts, result(number))
    for number in parts.missing(listing_of(paths))["number"].to_pylist():
        add(parts, result(number))
    people = written(parts, folder / "out")["person"].to_pylist()
    assert people == [number for number in range(COUNT) if number % 7]
    ids = [line[0] for line in rejected_of(folder / "out")[1:]]
    assert ids == [paths[number] for number in range(0, COUNT, 7)]


def test_overlays_lie_where_their_images_lay(tmp_path):
    paths = ["a.png", "album/a.png", "album/a.webp", "none.png"]
    parts = parts_of(tmp_path / "work", paths)
    for number, path in enumerate(paths[:3]):
        add(parts, found(number, path, [row_of(path, 0)], overlay=bytes([number])))
    add(parts, found(3, "none.png", []))
    overlays = tmp_path / "work/result/overlays"
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
    names = file_names(paths)
    assert set(names) == paths
    assert len(set(names.values())) == len(paths)
    assert all(name.endswith(".jpg") for name in names.values())


def test_an_overlay_is_never_called_like_a_folder_of_others():
    names = file_names(["a.png", "a.jpg/b.png"])
    assert names == {"a.png": "a.png.jpg", "a.jpg/b.png": "a.jpg/b.jpg"}


# The folder


def finish(target, fingerprint, name):
    """A prediction with one file, from its beginning to its end; the run's name."""
    with unfinished(target, fingerprint, name) as (folder, run):
        (folder / "result").mkdir(exist_ok=True)
        (folder / "result/predictions.json").write_text(json.dumps({"run": run}))
        (folder / "result" / name).write_text("")
        publish(folder, target)
    return run


def test_a_folder_appears_when_it_is_finished_and_replaces_an_earlier_one(tmp_path):
    target = tmp_path / "below" / "out"
    for name in ("first", "second"):
        assert finish(target, "same", name) == name
        assert json.loads((target / "predictions.json").read_text())["run"] == name
    assert sorted(p.name for p in target.iterdir()) == ["predictions.json", "second"]
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def stop(target, fingerprint, name):
    with unfinished(target, fingerprint, name) as (folder, run):
        (folder / "parts").mkdir(exist_ok=True)
        (folder / "parts" / name).write_text("")
        return run


def test_what_was_begun_goes_on_and_something_else_begins_anew(tmp_path):
    target = tmp_path / "out"
    finish(target, "old", "old")
    assert stop(target, "one", "first") == "first"
    assert stop(target, "one", "second") == "first", "goes on"
    parts = tmp_path / ".out.unfinished/parts"
    assert sorted(p.name for p in parts.iterdir()) == ["first", "second"]
    assert json.loads((target / "predictions.json").read_text())["run"] == "old", "still complete"
    assert stop(target, "other pictures", "third") == "third"
    assert [p.name for p in parts.iterdir()] == ["third"]


def test_a_job_killed_after_the_last_rename_is_finished(tmp_path):
    target = tmp_path / "out"
    stop(target, "one", "first")
    target.mkdir()
    (target / "predictions.json").write_text(json.dumps({"run": "first"}))
    assert stop(target, "one", "second") == "second", "a new prediction of the same"


def test_two_processes_never_write_one_output(tmp_path):
    with (
        unfinished(tmp_path / "out", "one", "first"),
        pytest.raises(ConfigError, match="another process is writing"),
        unfinished(tmp_path / "out", "one", "second"),
    ):
        pass


def test_when_the_last_rename_fails_the_earlier_folder_comes_back(tmp_path):
    target = tmp_path / "out"
    finish(target, "one", "first")
    with unfinished(target, "two", "second") as (folder, _), pytest.raises(FileNotFoundError):
        publish(folder, target)
    assert json.loads((target / "predictions.json").read_text())["run"] == "first"


def test_only_an_empty_folder_or_a_prediction_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    finish(tmp_path / "empty", "one", "first")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with (
            pytest.raises(ConfigError, match=rf"{name}: is there and holds no predictions\.json"),
            unfinished(tmp_path / name, "one", "first"),
        ):
            pass
    assert (tmp_path / "mine/thesis.tex").read_text() == "x"
    assert (tmp_path / "file").read_text() == "x"


def test_other_pictures_and_other_settings_are_another_prediction():
    listing = listing_of(["a", "b"])
    base = identity(listing, {"n_iter": 3})
    assert base == identity(listing_of(["a", "b"]), {"n_iter": 3})
    changed = table_of([{"path": "a", "stamp": "newer"}, {"path": "b"}])
    others = [
        identity(listing_of(["a", "c"]), {"n_iter": 3}),
        identity(listing, {"n_iter": 4}),
        identity(changed, {"n_iter": 3}),
    ]
    assert len({base, *others}) == 4
