"""Shards made on a real cluster: every person is there once, whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hmr.errors import ConfigError, DataError
from rayhmr.config import FilesConfig, PrepareJob, SyntheticConfig
from rayhmr.data import prepare as prepare_module
from rayhmr.data.parts import Part, WritePart, parts_of, repeated_ids, short_id
from rayhmr.data.prepare import prepare
from rayhmr.data.schema import read_info
from rayhmr.data.sources.kinds import source_of
from rayhmr.data.sources.record import cut
from rayhmr.storage import Folder

PEOPLE = SyntheticConfig(image_size=32, train=50, val=11, test=7, seed=3)


def job_for(folder, **changes):
    job = PrepareJob(output=str(folder), rows_per_file=10, synthetic=PEOPLE)
    return job.model_copy(update=changes)


@pytest.fixture(scope="module")
def finished(local_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "shards"
    return folder, prepare(job_for(folder))


def rows_of(folder, split):
    info = read_info(str(folder))
    return [row for path in info.paths(split) for row in pq.read_table(path).to_pylist()]


@pytest.mark.ray
def test_every_person_is_in_the_shards_once_and_in_order(finished):
    folder, results = finished
    assert results["rows"] == {"train": 50, "val": 11, "test": 7}
    assert (results["made"], results["rejected"]) == (68, 0)
    subjects = set()
    for split, count in results["rows"].items():
        rows = rows_of(folder, split)
        numbers = [row["sample_id"].split("/")[2] for row in rows]
        assert numbers == [f"{number:07d}" for number in range(count)]
        assert {row["split"] for row in rows} == {split}
        subjects |= {row["subject"] for row in rows}
    assert len(subjects) == 68, "nobody is in two splits"


@pytest.mark.ray
def test_the_manifest_tells_the_truth_about_the_files(finished):
    folder, results = finished
    stored = json.loads((folder / "dataset.json").read_text())
    files = [file for inside in stored["files"].values() for file in inside]
    assert {f["name"] for f in files} == {p.name for p in folder.glob("*.parquet")}
    for file in files:
        content = (folder / file["name"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert pq.ParquetFile(folder / file["name"]).metadata.num_rows == file["rows"]
    assert stored["fingerprint"] == results["fingerprint"]
    betas = np.array([row["betas"] for row in rows_of(folder, "train")])
    np.testing.assert_allclose(stored["statistics"]["mean_betas"], betas.mean(0), atol=1e-6)
    assert not (folder / ".parts").exists()


@pytest.mark.ray
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(finished, tmp_path, monkeypatch):
    folder, results = finished
    unfinished = tmp_path / "shards"
    real = prepare_module._write_all

    def stopped_after_two(*arguments):
        notes = real(*arguments)
        yield next(notes)
        yield next(notes)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "_write_all", stopped_after_two)
    with pytest.raises(KeyboardInterrupt):
        prepare(job_for(unfinished))
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"has no dataset\.json, so it was never finished"):
        read_info(str(unfinished))
    # What a crash of the machine can leave: a note about a file that is not whole.
    cut = next(unfinished.glob("*.parquet"))
    cut.write_bytes(cut.read_bytes()[:-100])

    again = prepare(job_for(unfinished))
    assert 0 < again["made"] < 68, "finished files are kept, the others made"
    assert again["fingerprint"] == results["fingerprint"]
    for path in folder.glob("*.parquet"):
        assert (unfinished / path.name).read_bytes() == path.read_bytes()


@pytest.mark.ray
def test_the_cut_into_files_does_not_change_the_people(finished, tmp_path):
    folder, _ = finished
    prepare(job_for(tmp_path / "shards", rows_per_file=100))
    assert rows_of(tmp_path / "shards", "train") == rows_of(folder, "train")


@pytest.mark.ray
def test_the_same_command_again_makes_nothing(finished):
    folder, results = finished
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = prepare(job_for(folder))
    assert (again["made"], again["fingerprint"]) == (0, results["fingerprint"])
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.ray
def test_a_folder_with_something_else_is_refused(finished, tmp_path):
    folder, _ = finished
    other = job_for(folder, synthetic=PEOPLE.model_copy(update={"seed": 4}))
    with pytest.raises(ConfigError, match=r"synthetic\.seed is 3 there and 4 now"):
        prepare(other)
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"holds files and no data set \(photo\.jpg\)"):
        prepare(job_for(tmp_path))
    assert Path(tmp_path / "photo.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize(("count", "rows_per_file"), [(1, 10), (10, 10), (11, 10), (29, 7)])
def test_parts_cover_every_row_once_and_are_even(count, rows_per_file):
    units = cut("train", "", count, rows_per_file)
    parts = parts_of(units, rows_per_file)
    assert [p.units for p in parts] == [(unit,) for unit in units]
    assert [row for u in units for row in range(u.start, u.stop)] == list(range(count))
    sizes = [part.rows for part in parts]
    assert max(sizes) <= rows_per_file
    assert max(sizes) - min(sizes) <= 1
    assert parts[0] == Part("train", 0, len(parts), (units[0],))
    assert [Part.from_json(part.to_json()) for part in parts] == parts


def test_files_of_the_training_split_hold_rows_of_everywhere():
    units = [u for split in ("train", "val") for u in cut(split, f"{split}.npz", 1000, 10)]
    parts = parts_of(units, 100, mixed=True)
    by_split = {split: [p for p in parts if p.split == split] for split in ("train", "val")}
    for split, inside in by_split.items():
        assert [(p.number, p.of, p.rows, p.shuffled) for p in inside] == [
            (n, 10, 100, split == "train") for n in range(10)
        ]
        starts = [u.start for p in inside for u in p.units]
        assert sorted(starts) == list(range(0, 1000, 10)), "every unit once"
        assert (starts == sorted(starts)) == (split == "val"), "others stay in order"
    for part in by_split["train"]:
        assert np.ptp([unit.start for unit in part.units]) > 500
    assert parts_of(units, 100, mixed=True) == parts


# Files


def picture(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 48), colour).save(path)


def folder_job(tmp_path, output="out", **changes):
    files = FilesConfig(
        images=str(tmp_path / "images"),
        labels=str(tmp_path / "boxes.csv"),
        crop_size=32,
        split="test",
    )
    job = PrepareJob(source="folder", output=str(tmp_path / output), rows_per_file=4, files=files)
    return job.model_copy(update=changes)


@pytest.fixture
def pictures(tmp_path):
    """20 people in two pictures; lines 3, 9 and 18 are the same, line 12 names no picture."""
    picture(tmp_path / "images/a.png", (200, 20, 20))
    picture(tmp_path / "images/b.png", (20, 20, 200))
    lines = [f"{'ab'[n % 2]}.png,{n},4,{n + 20},34" for n in range(20)]
    lines[8] = lines[17] = lines[2]
    lines[11] = "c.png,4,4,24,34"
    table = ["image,x1,y1,x2,y2", *lines]
    (tmp_path / "boxes.csv").write_text("\n".join(table) + "\n")
    return tmp_path


@pytest.mark.ray
def test_a_person_that_stands_in_several_files_enters_once(local_cluster, pictures):
    results = prepare(folder_job(pictures, max_rejected_fraction=0.15))
    assert (results["rows"], results["rejected"]) == ({"train": 0, "val": 0, "test": 17}, 3)
    rows = rows_of(pictures / "out", "test")
    assert len({row["sample_id"] for row in rows}) == 17
    # The file of the first of the three keeps it.
    first = pq.read_table(pictures / "out/test-00000-of-00005.parquet").to_pylist()
    assert "folder/a.png/12.00_19.00_36.00" in {row["sample_id"] for row in first}
    stored = json.loads((pictures / "out/dataset.json").read_text())
    assert stored["rejected"] == {"duplicate_id": 2, "unreadable": 1}
    assert (stored["source"], stored["image_size"]) == ("folder", 32)
    again = prepare(folder_job(pictures, max_rejected_fraction=0.15))
    assert (again["made"], again["fingerprint"]) == (0, results["fingerprint"])
    # Another cut has other files and the same people.
    prepare(folder_job(pictures, "other", rows_per_file=100, max_rejected_fraction=0.15))
    ids = {row["sample_id"] for row in rows}
    assert {row["sample_id"] for row in rows_of(pictures / "other", "test")} == ids


@pytest.mark.ray
def test_workers_write_the_bytes_that_one_process_writes_in_another_order(local_cluster, tmp_path):
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = rng.integers(0, 255, (60, 80, 3), np.uint8)
        path = tmp_path / f"images/{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    np.savez(
        tmp_path / "labels.npz", imgname=np.array([f"{'abc'[n % 3]}.png" for n in range(30)]),
        center=rng.uniform(20, 60, (30, 2)), scale=rng.uniform(0.1, 0.3, 30),
        pose=rng.normal(0, 0.3, (30, 72)), shape=rng.normal(size=(30, 10)),
    )  # fmt: skip
    files = FilesConfig(
        labels=str(tmp_path / "labels.npz"), images=str(tmp_path / "images"), crop_size=32
    )
    job = PrepareJob(source="spin", output=str(tmp_path / "out"), rows_per_file=7, files=files)
    results = prepare(job)
    assert (results["rows"]["train"], results["rejected"]) == (30, 0)
    source, alone = source_of(job), Folder(str(tmp_path / "alone"))
    writer = WritePart(source, alone.location, job.jpeg_quality)
    parts = parts_of(source.units(1), 7, mixed=True)
    notes = [writer.write(part, alone) for part in reversed(parts)]
    for part in parts:
        assert (tmp_path / "out" / part.file).read_bytes() == alone.read(part.file)
    facts = prepare_module._finish(job, alone, {}, notes)
    assert facts["fingerprint"] == results["fingerprint"]
    stored = json.loads((tmp_path / "out/dataset.json").read_text())
    assert facts["statistics"] == stored["statistics"]
    assert stored["statistics"]["labelled"] == 30


@pytest.mark.ray
def test_too_many_rejected_rows_fail_the_job_with_a_table(local_cluster, pictures):
    with pytest.raises(DataError) as caught:
        prepare(folder_job(pictures))
    message = str(caught.value)
    assert "3 of 20 rows (15.0%) were rejected, at most 5.0% may be" in message
    assert re.search(r"duplicate_id +2 +10\.0% +a person with this id", message)
    assert re.search(r"unreadable +1 +5\.0% +c\.png: cannot be read", message)
    with pytest.raises(DataError, match="was never finished"):
        read_info(str(pictures / "out"))
    assert len((pictures / "out/rejected/rejected.csv").read_text().splitlines()) == 1 + 3
    # Nothing is made again to go on without these rows.
    results = prepare(folder_job(pictures, max_rejected_fraction=0.2))
    assert (results["made"], results["rows"]["test"]) == (0, 17)


@pytest.mark.ray
def test_a_table_that_breaks_off_is_an_error_with_its_name(local_cluster, pictures):
    table = pictures / "boxes.csv"
    job = folder_job(pictures)
    source = source_of(job)
    units = source.units(4)
    table.write_bytes(table.read_bytes()[:150] + b"\xff\xff\n")
    with pytest.raises(DataError, match=r"boxes\.csv: is no readable CSV"):
        list(
            prepare_module._write_all(
                source, parts_of(units, 4), Folder(str(pictures / "x")), 92, {}
            )
        )


@pytest.mark.ray
def test_labels_that_changed_do_not_mix_with_files_of_before(local_cluster, pictures):
    with pytest.raises(DataError, match="were rejected"):
        prepare(folder_job(pictures))
    with (pictures / "boxes.csv").open("a") as file:
        file.write("a.png,1,1,30,30\n" * 4)
    with pytest.raises(ConfigError, match=r"labels_hash is '.*' there and '.*' now"):
        prepare(folder_job(pictures))


def test_only_repetitions_in_later_files_are_found():
    ids = [short_id(name) for name in "abcd"]
    notes = [
        {"file": {"name": "1"}, "ids": "".join(ids[:2])},
        {"file": {"name": "2"}, "ids": ids[2]},
        {"file": {"name": "3"}, "ids": "".join([ids[3], ids[1], ids[2]])},
        {"file": {"name": "4"}, "ids": ""},
    ]
    assert repeated_ids(notes) == {"3": [ids[1], ids[2]]}
