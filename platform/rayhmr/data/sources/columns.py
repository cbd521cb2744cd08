"""The columns of label files that are .npz of one row a person: checked, a range of rows each."""

from __future__ import annotations

import io
import math

import numpy as np

from hmr.errors import DataError
from hmr.safe_pickle import read_pickle
from rayhmr.data.sources.label_files import label_files
from rayhmr.data.sources.npz_rows import NpzRows
from rayhmr.data.sources.record import Unit, cut
from rayhmr.storage import Folder

NAMES = "imgname"
"""The column that every file has; its length is the number of people."""


READ_AHEAD = 1 << 22
"""Bytes that are asked of a store at once: an archive is read in small steps."""


def _table(folder: Folder, file: str) -> NpzRows:
    if folder.is_local:
        return NpzRows(folder.path(file), read_pickle)

    def opened() -> io.BufferedReader:
        return io.BufferedReader(folder.open(file), READ_AHEAD)

    return NpzRows(folder.at(file), read_pickle, opened)


def npz_units(labels: str, split: str, rows_per_file: int) -> list[Unit]:
    """Pieces of one .npz or of those of a folder; only headers are read."""
    folder, files = label_files(labels, ".npz")
    units = []
    for file in files:
        table = _table(folder, file)
        if NAMES not in table.keys:
            raise DataError(
                f"{folder.at(file)}: has no {NAMES}, only {', '.join(sorted(table.keys)[:8])}; "
                "it is no label file of this kind"
            )
        units += cut(split, file, table.count(NAMES), rows_per_file)
    return units


class Columns:
    """The rows of a unit. DataError, which names file and key, for what is not as documented."""

    def __init__(self, labels: str, unit: Unit) -> None:
        folder, _ = label_files(labels, ".npz")
        self._path, self._unit = folder.at(unit.file), unit
        self._table = _table(folder, unit.file)
        self._total = self._table.count(NAMES)

    def __len__(self) -> int:
        return self._unit.stop - self._unit.start

    def has(self, key: str) -> bool:
        """Whether the file has a column."""
        return key in self._table.keys

    def _rows(self, key: str) -> np.ndarray:
        if not self.has(key):
            raise DataError(f"{self._path}: has no {key}, which every file of this kind has")
        if (count := self._table.count(key)) != self._total:
            raise DataError(
                f"{self._path}: {key} has {count} rows and {NAMES} has {self._total}; the file is "
                "damaged, get it again"
            )
        return self._table.rows(key, self._unit.start, self._unit.stop)

    def numbers(self, key: str, *shape: int) -> np.ndarray:
        """(n, *shape) float64; rows of as many numbers in another shape are taken as well."""
        found = self.any_numbers(key)
        if found[0].size != math.prod(shape):
            raise DataError(
                f"{self._path}: {key} has rows of shape {found.shape[1:]}, {shape} expected"
            )
        return found.reshape(len(found), *shape)

    def any_numbers(self, key: str) -> np.ndarray:
        """(n, ...) float64 of any shape."""
        try:
            return self._rows(key).astype(np.float64)
        except (TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self._path}: {key} does not hold numbers ({error})") from error

    def optional(self, key: str, *shape: int) -> np.ndarray:
        """The same; zeros, as everywhere in the field, where the file has no such column."""
        return self.numbers(key, *shape) if self.has(key) else np.zeros((len(self), *shape))

    def texts(self, key: str) -> list[str]:
        """n strings; empty ones where the file has no such column."""
        if not self.has(key):
            return [""] * len(self)
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v)
                for v in self._rows(key).tolist()]  # fmt: skip
