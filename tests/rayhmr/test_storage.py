"""Files whole or not at all, by path or by address."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hmr.errors import ConfigError
from rayhmr.storage import Folder, absolute


@pytest.fixture(params=["path", "uri"])
def folder(request, tmp_path):
    place = tmp_path / "data"
    return Folder(str(place) if request.param == "path" else place.as_uri())


def test_a_file_comes_back_as_it_was_written(folder, tmp_path):
    assert folder.names() == []
    folder.write("b.bin", b"\x00\xff\n")
    folder.write("below/deeper/a.txt", b"abc")
    assert folder.read("b.bin") == b"\x00\xff\n"
    assert (folder.size("b.bin"), folder.size("below/deeper/a.txt")) == (3, 3)
    assert folder.names() == ["b.bin", "below"], "and nothing half-written"
    assert (tmp_path / "data/below/deeper/a.txt").read_bytes() == b"abc"
    assert Path(folder.path("b.bin")).read_bytes() == b"\x00\xff\n"


def test_a_folder_is_no_file(folder):
    folder.write("below/a.txt", b"abc")
    assert folder.exists("below/a.txt")
    assert not folder.exists("below")
    assert folder.size("below") is None
    assert not folder.exists("nowhere")
    assert folder.size("nowhere") is None


def test_a_file_is_no_folder(folder):
    folder.write("a.txt", b"abc")
    with pytest.raises(ConfigError, match=r"a\.txt: is a file; give the folder it is in"):
        Folder(folder.path("a.txt")).names()


def test_removal_takes_files_and_folders_and_minds_nothing_missing(folder):
    for name in ("a", "below/b", "below/c", "kept"):
        folder.write(name, b"1")
    folder.remove("a")
    folder.remove("below")
    folder.remove("nowhere")
    assert folder.names() == ["kept"]


def test_json_is_sorted_and_comes_back(folder):
    value = {"b": [1, 2.5, None], "a": {"c": "é"}}
    folder.write_json("facts.json", value)
    assert folder.read_json("facts.json") == value
    text = folder.read("facts.json").decode()
    assert list(json.loads(text)) == ["a", "b"]
    assert text.endswith("}\n")
    folder.write_json("again.json", dict(reversed(value.items())))
    assert folder.read("again.json") == folder.read("facts.json")


def test_a_value_that_is_no_json_leaves_the_old_file(folder):
    folder.write_json("facts.json", {"step": 1})
    with pytest.raises(TypeError):
        folder.write_json("facts.json", {"step": object()})
    assert folder.read_json("facts.json") == {"step": 1}


def test_a_reader_sees_the_old_content_or_the_new_one(folder):
    contents = [bytes([number]) * 300_000 for number in range(2)]
    folder.write("state", contents[0])
    seen = set()
    stop = threading.Event()

    def read():
        while not stop.is_set():
            seen.add(folder.read("state"))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for number in range(60):
                folder.write("state", contents[number % 2])
        finally:
            stop.set()
        reader.result()
    assert seen <= set(contents)


def test_a_relative_folder_stays_where_it_was_named(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = Folder("data/")
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder.write("a", b"1")
    assert (tmp_path / "data/a").read_bytes() == b"1"
    assert folder.location == str(tmp_path / "data")


def test_addresses_stay_and_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("s3://bucket/data") == "s3://bucket/data"
    assert absolute("data") == str(tmp_path / "data")
    assert absolute("~/data") == "/home/somebody/data"


def test_an_address_of_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"nope://x: cannot be opened .*give a local path or an"):
        Folder("nope://x")
