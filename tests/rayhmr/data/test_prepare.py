"""Shards made on a real cluster: every person is there once, whatever happened on the way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from hmr.errors import ConfigError, DataError
from rayhmr.config import PrepareJob, SyntheticConfig
from rayhmr.data import prepare as prepare_module
from rayhmr.data.prepare import Part, parts_of, prepare
from rayhmr.data.schema import read_info

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
    parts = parts_of({"train": count}, rows_per_file)
    assert [row for p in parts for row in range(p.start, p.stop)] == list(range(count))
    sizes = [part.stop - part.start for part in parts]
    assert max(sizes) <= rows_per_file
    assert max(sizes) - min(sizes) <= 1
    assert parts[0] == Part("train", 0, len(parts), 0, sizes[0])
