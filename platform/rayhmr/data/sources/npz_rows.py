"""Some rows of the arrays in an .npz, without ever holding a whole array.

Members of an .npz are compressed streams: the rows before are unpacked and dropped, the rows after
are never touched. Members of Python objects go through a reader of pickles that executes nothing.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from hmr.errors import DataError

MAX_BYTES = 2**30
"""The most that one answer may hold."""
_BLOCK = 2**20
_DAMAGED = (
    OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error,
    RuntimeError, MemoryError, OverflowError, tokenize.TokenError,
)  # fmt: skip


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


class NpzRows:
    """path: an .npz. read: the value of a pickle's bytes, `hmr.safe_pickle.read_pickle`. opened:
    gives the file anew, to read anywhere in; none: it is one of this machine.

    Every method raises DataError, naming file and key, where the file is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], read: Callable[[bytes], Any],
        opened: Callable[[], IO[bytes]] | None = None,
    ) -> None:  # fmt: skip
        self._path, self._read = path, read
        self._opened = opened or self._open_here
        with self._errors("its list of members"), self._archive() as archive:
            self.keys = {name.removesuffix(".npy") for name in archive.namelist()}

    def count(self, key: str) -> int:
        """The number of an array's rows; reads its header only."""
        with self._member(key) as (_, header, size):
            if not header.shape:
                raise ValueError("it is a single value, not an array of rows")
            if header.shape[0] > size:
                raise ValueError(f"it promises {header.shape[0]} rows in {size} bytes")
            return header.shape[0]

    def rows(self, key: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop-1; an array of objects comes as an array of what the reader gave."""
        with self._member(key) as (file, header, size):
            if header.dtype.hasobject or header.fortran:
                return np.asarray(self._whole(file, header, size))[start:stop]
            row = math.prod(header.shape[1:]) * header.dtype.itemsize
            start, stop, _ = slice(start, stop).indices(header.shape[0])
            count = max(stop - start, 0)
            if count * row > MAX_BYTES:
                raise ValueError(f"{count} rows of {row} bytes, at most {MAX_BYTES} bytes are read")
            _skip(file, start * row)
            data = file.read(count * row)
            return np.ndarray((count, *header.shape[1:]), header.dtype, data).copy()

    def value(self, key: str) -> Any:
        """All of a member: an array, or the Python object that was stored as one."""
        with self._member(key) as (file, header, size):
            return self._whole(file, header, size)

    def _whole(self, file: IO[bytes], header: _Header, size: int) -> Any:
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes, at most {MAX_BYTES} are read at once")
        data = file.read(MAX_BYTES)
        if header.dtype.hasobject:
            return self._read(data)
        array = np.ndarray(
            header.shape, header.dtype, data, order="F" if header.fortran else "C"
        ).copy()
        return array if array.shape else array.item()

    @contextmanager
    def _member(self, key: str) -> Iterator[tuple[IO[bytes], _Header, int]]:
        """The stream of a member, its header, and how many bytes it unpacks to."""
        with self._errors(repr(key)), self._archive() as archive:
            name = f"{key}.npy"
            with archive.open(name) as file:
                yield file, _header(file), archive.getinfo(name).file_size

    def _open_here(self) -> IO[bytes]:
        return Path(self._path).open("rb")

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        with self._opened() as file, zipfile.ZipFile(file) as archive:
            yield archive

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except DataError as error:
            raise DataError(f"{self._path}: {what}: {error}") from error
        except _DAMAGED as error:
            raise DataError(
                f"{self._path}: {what} cannot be read ({error}). Get the file again."
            ) from error


def _header(file: IO[bytes]) -> _Header:
    formats = np.lib.format
    version = formats.read_magic(file)
    if version == (1, 0):
        return _Header(*formats.read_array_header_1_0(file))
    if version == (2, 0):
        return _Header(*formats.read_array_header_2_0(file))
    raise ValueError(f"the .npy version {version} is not 1.0 or 2.0")


def _skip(file: IO[bytes], size: int) -> None:
    while size > 0:
        block = file.read(min(size, _BLOCK))
        if not block:
            raise EOFError("the array is shorter than its header says")
        size -= len(block)
