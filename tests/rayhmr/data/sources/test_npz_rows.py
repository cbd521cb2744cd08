"""Rows of an .npz: the same as slicing the whole, and damage is named."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hmr.errors import DataError
from hmr.safe_pickle import read_pickle
from rayhmr.data.sources.npz_rows import NpzRows

ARRAYS: dict[str, Any] = {
    "numbers": np.arange(60.0).reshape(10, 2, 3),
    "large": np.arange(600_000, dtype=np.float32).reshape(10, 60_000),
    "columns_first": np.asfortranarray(np.arange(20).reshape(10, 2)),
    "names": np.array([f"a/{number}.jpg" for number in range(10)]),
    "empty": np.zeros((0, 5)),
    "objects": np.array([f"b/{number}.jpg" for number in range(10)], object),
    "dict": {"betas": np.ones((10, 2)), "source": "made"},
    "flag": True,
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("npz") / "made.npz"
    np.savez_compressed(path, **ARRAYS)
    return path


@pytest.mark.parametrize("key", ["numbers", "large", "columns_first", "names", "empty", "objects"])
@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 4), (7, 99), (4, 4)])
def test_rows_are_those_of_the_whole_array(path: Path, key: str, start: int, stop: int) -> None:
    rows = NpzRows(path, read_pickle).rows(key, start, stop)
    assert np.array_equal(rows, ARRAYS[key][start:stop])
    assert NpzRows(path, read_pickle).count(key) == len(ARRAYS[key])


def test_values_come_whole(path: Path) -> None:
    file = NpzRows(path, read_pickle)
    assert file.keys == ARRAYS.keys()
    assert file.value("flag") is True
    assert np.array_equal(file.value("numbers"), ARRAYS["numbers"])
    assert np.array_equal(file.value("columns_first"), ARRAYS["columns_first"])
    found = file.value("dict")
    assert found["source"] == "made"
    assert np.array_equal(found["betas"], np.ones((10, 2)))


def test_only_objects_are_unpickled_and_only_by_the_given_reader(path: Path) -> None:
    asked = []

    def read(data: bytes) -> Any:
        asked.append(data)
        return "read"

    file = NpzRows(path, read)
    assert file.value("dict") == "read"
    assert file.rows("numbers", 0, 1).shape == (1, 2, 3)
    assert len(asked) == 1
    assert pickle.loads(asked[0]).item()["source"] == "made"


def test_missing_keys_single_values_and_broken_files_are_errors_that_name_them(
    path: Path, tmp_path: Path
) -> None:
    file = NpzRows(path, read_pickle)
    with pytest.raises(DataError, match=r"made\.npz: 'poses' cannot be read"):
        file.rows("poses", 0, 1)
    with pytest.raises(DataError, match=r"'flag' cannot be read .*single value"):
        file.count("flag")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"broken\.npz: its list of members"):
        NpzRows(broken, read_pickle)
    with pytest.raises(DataError, match=r"none\.npz"):
        NpzRows(tmp_path / "none.npz", read_pickle)


def test_damage_inside_an_array_is_an_error(path: Path, tmp_path: Path) -> None:
    stored = tmp_path / "stored.npz"
    np.savez(stored, numbers=ARRAYS["numbers"])
    content = bytearray(stored.read_bytes())
    place = content.index(np.float64(59.0).tobytes())
    content[place : place + 8] = b"\xff" * 8
    stored.write_bytes(content)
    with pytest.raises(DataError, match="'numbers' cannot be read"):
        NpzRows(stored, read_pickle).value("numbers")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (b"(99, 4)", "shorter|buffer is too small"),
        (b"(9999999999, 4)", "promises 9999999999 rows in 448 bytes"),
        (b"(10, 4)(", ""),
        (b"(10, 99999999999999999999)", "at most|shorter"),
    ],
)
@pytest.mark.parametrize("start", [0, 50])
def test_headers_that_lie_are_errors(tmp_path: Path, shape: bytes, reason: str, start: int) -> None:
    stream = io.BytesIO()
    np.save(stream, np.zeros((10, 4)))
    old, new = (text.ljust(40) for text in (b"(10, 4), }", shape + b", }"))
    assert stream.getvalue().count(old) == 1
    path = tmp_path / "liar.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("numbers.npy", stream.getvalue().replace(old, new))
    file = NpzRows(path, read_pickle)
    with pytest.raises(DataError, match=rf"liar\.npz: 'numbers' cannot be read .*({reason})"):
        file.rows("numbers", start, file.count("numbers"))
