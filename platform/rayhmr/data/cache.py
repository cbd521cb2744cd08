"""Splits that a node's runs share: every row decoded, or seen by a frozen encoder, once.

A cached split is two files that are mapped into memory: `values.npy`, the pixels (N, S, S, 3) uint8
or features (N, C) float32 of its rows in the order of the shards, and `labels.arrow`, the other
training columns in one piece. Batches made of them are those that the shards give, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import simplejpeg
import torch

from hmr.features import as_features
from hmr.structures import Batch
from rayhmr.config import DataConfig
from rayhmr.data.batches import decoded_ahead, with_labels
from rayhmr.data.cache_store import CacheStore, Held, NoRoomError, cache_root
from rayhmr.data.decode import SIDE, pixels
from rayhmr.data.order import EpochOrder, Slice, Window, in_order
from rayhmr.data.reading import fetch_here
from rayhmr.data.schema import DatasetInfo

VERSION = 1
"""Of the files' layout; others are never opened."""
LABEL_BYTES = 2300
"""Of a row besides its picture: joints, pose, shape and a name of 200 letters."""
Files = Sequence[tuple[str, int]]
"""Names and rows of shards."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """A frozen encoder. identity: of everything its features depend on besides the picture. width:
    C of its features. features: (B, 3, S, S) uint8 to (B, C) float32 on the CPU, B at most
    `batch_size`."""

    identity: str
    width: int
    features: Callable[[torch.Tensor], torch.Tensor]
    batch_size: int


class CachedSplit:
    """The rows of a split, mapped into memory. image_size: side of the crops."""

    def __init__(self, folder: Path, image_size: int) -> None:
        self._image_size = image_size
        self._values = np.asarray(np.load(folder / "values.npy", mmap_mode="r"))
        self._labels = pa.ipc.open_file(pa.memory_map(str(folder / "labels.arrow"))).read_all()

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows with these numbers; `rayhmr.data.batches.to_batch` gives the same."""
        values = torch.from_numpy(np.take(self._values, rows, axis=0))
        labels = self._labels.take(pa.array(rows))
        sides = labels[SIDE].to_numpy()
        if values.ndim == 4:
            return with_labels(values.permute(0, 3, 1, 2), sides, labels)
        return as_features(with_labels(values, sides, labels), values, self._image_size)

    def __len__(self) -> int:
        return len(self._values)


class Cached:
    """Both splits of a data set. held: their folders, which stay until `close`."""

    def __init__(self, train: Held, val: Held, image_size: int) -> None:
        self._held = (train, val)
        self.train = CachedSplit(train.path, image_size)
        self.val = CachedSplit(val.path, image_size)

    def close(self) -> None:
        """Others may remove the files; what is mapped stays readable."""
        for held in self._held:
            held.close()


def open_cached(
    info: DatasetInfo, files: Files, val_files: Files, *, config: DataConfig, image_size: int,
    encoding: Encoding | None, warn: Callable[[str], None], store: CacheStore | None = None,
) -> Cached | None:  # fmt: skip
    """The splits in the form of `config.cache`, made unless another process of this node has; none
    when it is `none` or there is no room, which `warn` is told.

    encoding: for `features`. store: none: that of `config.cache_folder`.
    """
    if config.cache == "none":
        return None
    store = store or CacheStore(cache_root(config.cache_folder))
    encoding = encoding if config.cache == "features" else None
    width = 4 * encoding.width if encoding else 3 * image_size**2
    held: list[Held] = []
    try:
        for split, chosen in (("train", files), ("val", val_files)):
            make = partial(
                _make, info=info, files=chosen, image_size=image_size, encoding=encoding,
                threads=config.decode_threads,
            )  # fmt: skip
            rows = sum(count for _, count in chosen)
            key = cache_key(info, split, chosen, image_size, encoding)
            held.append(store.hold(key, rows * (width + LABEL_BYTES), make))
        train, val = held
        return Cached(train, val, image_size)
    except BaseException as error:
        for one in held:
            one.close()
        if not isinstance(error, NoRoomError):
            raise
        warn(f"data.cache={config.cache}: {error}; this worker reads the shards instead")
        return None


def cache_key(
    info: DatasetInfo, split: str, files: Files, image_size: int, encoding: Encoding | None
) -> str:
    """Name of a cached split: equal where all that its values depend on is equal."""
    parts = {
        "version": VERSION, "fingerprint": info.fingerprint, "files": list(files),
        "image_size": image_size, "encoder": encoding and encoding.identity,
        "decoders": [simplejpeg.__version__, cv2.__version__],
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"{'features' if encoding else 'decoded'}-{split}-{digest[:32]}"


def _make(
    folder: Path, *, info: DatasetInfo, files: Files, image_size: int, encoding: Encoding | None,
    threads: int,
) -> None:  # fmt: skip
    tables = _tables(info, files, encoding.batch_size if encoding else None)
    blocks = decoded_ahead(
        tables, lambda table: (*pixels(table, image_size), table), threads=threads, ahead=threads
    )
    shape = (encoding.width,) if encoding else (image_size, image_size, 3)
    dtype = np.dtype(np.float32 if encoding else np.uint8)
    labels = []
    with (folder / "values.npy").open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False,
                  "shape": (sum(count for _, count in files), *shape)}  # fmt: skip
        np.lib.format.write_array_header_1_0(file, header)
        # Written, not mapped: a full disk is an error here and would end the process there.
        for images, sides, table in blocks:
            file.write(_values(images, encoding).data)
            labels.append(table.drop_columns(["image"]).append_column(SIDE, pa.array(sides)))
        file.flush()
        os.fsync(file.fileno())
    joined = pa.concat_tables(labels).combine_chunks()
    with (
        pa.OSFile(str(folder / "labels.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, joined.schema) as writer,
    ):
        writer.write_table(joined)


def _tables(info: DatasetInfo, files: Files, batch_size: int | None) -> Iterator[pa.Table]:
    """The rows of the files in order, in tables of at most `batch_size`."""
    for table in fetch_here(info.location)(in_order(files, 0, 1)):
        size = batch_size or len(table)
        yield from (table.slice(start, size) for start in range(0, len(table), size))


def _values(images: np.ndarray, encoding: Encoding | None) -> np.ndarray:
    if encoding is None:
        return images
    return encoding.features(torch.from_numpy(images).permute(0, 3, 1, 2)).contiguous().numpy()


def first_rows(files: Files) -> dict[str, int]:
    """Number of each file's first row in a cached split."""
    counts = [count for _, count in files]
    return dict(zip((name for name, _ in files), np.cumsum([0, *counts]).tolist(), strict=False))


def window_rows(window: Window, first: dict[str, int]) -> np.ndarray:
    """Numbers of a window's rows in a cached split, in the window's order."""
    rows = [first[chunk.file] + np.arange(chunk.start, chunk.stop) for chunk in window.chunks]
    return np.concatenate(rows)[window.permutation()]


def step_rows(
    order: EpochOrder, first_step: int, rank: int, world_size: int
) -> Iterator[np.ndarray]:
    """For each step of a rank the numbers of its rows, in the order in which the shards give
    them."""
    first = first_rows(order.files)
    held: dict[int, tuple[int, np.ndarray]] = {}

    def of_window(lane: int, number: int) -> np.ndarray:
        if lane not in held or held[lane][0] != number:
            held[lane] = number, window_rows(order.window(lane, number), first)
        return held[lane][1]

    def taken(part: Slice) -> Iterable[np.ndarray]:
        last, start = order.windows(part.lane) - 1, part.start
        while start < part.stop:
            number = min(start // order.window_rows, last)
            rows, before = of_window(part.lane, number), number * order.window_rows
            stop = min(part.stop, before + len(rows))
            yield rows[start - before : stop - before]
            start = stop

    for step in range(first_step, order.steps):
        parts = order.part(step, rank, world_size)
        yield np.concatenate([rows for part in parts for rows in taken(part)])
