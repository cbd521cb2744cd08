"""Reading .npz files: arrays or a ValueError that says why, and no file stays open."""

from __future__ import annotations

import gc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hmr.npz import read_npz


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "arrays.npz"
    np.savez_compressed(path, a=np.arange(1000.0), b=np.eye(3, dtype=np.float32))
    return path


def test_arrays_come_back_by_name(file: Path) -> None:
    found = read_npz(file)
    assert found.keys() == {"a", "b"}
    assert np.array_equal(found["a"], np.arange(1000.0))
    assert found["b"].dtype == np.float32
    assert np.array_equal(found["b"], np.eye(3))
    assert read_npz(file, {"b", "c"}).keys() == {"b"}


@pytest.mark.parametrize("kept", [0, 3, 50, 0.5, 0.9, -1])
def test_a_cut_file_is_refused_and_closed(file: Path, kept: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r"\w"):
            read_npz(file)
        gc.collect()
    assert not [warning.message for warning in caught]


def test_a_flipped_byte_is_found(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"CRC|decompress|invalid"):
        read_npz(file)


def test_other_files_say_what_they_are(tmp_path: Path) -> None:
    single, objects = tmp_path / "single.npz", tmp_path / "objects.npz"
    with single.open("wb") as target:
        np.save(target, np.arange(3))
    with pytest.raises(ValueError, match="it holds a single array"):
        read_npz(single)
    np.savez(objects, a=np.array([{"code": "runs when unpickled"}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_npz(objects)
    with pytest.raises(ValueError, match="No such file"):
        read_npz(tmp_path / "nowhere.npz")
    with pytest.raises(ValueError, match="directory"):
        read_npz(tmp_path)


def test_a_header_that_is_no_literal_is_an_error_of_the_file(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': ('''"
    header += b" " * (117 - len(header)) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("a.npy", member)
    with pytest.raises(ValueError, match=r"."):
        read_npz(tmp_path / "bad.npz")
