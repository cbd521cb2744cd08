"""Shards to training workers: Ray Data reads encoded rows, each worker decodes them in threads.

Decoded pixels are ten times the bytes of a JPEG, and every hop through the object store copies
them; therefore bytes travel and the consumer decodes (`data.decode_in=tasks` turns that around).

Each worker reads its own part of the order (`rayhmr.data.order`), from any step on, so a run that
resumes sees the very next row. While the last rows of an epoch are used, the next epoch's are read.
Where the node has a cache of the rows (`rayhmr.data.cache`), the same batches come out of that.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from hmr.structures import Batch
from rayhmr.config import DataConfig
from rayhmr.data.batches import decoded_ahead, to_batch
from rayhmr.data.cache import Cached, CachedSplit, first_rows, step_rows, window_rows
from rayhmr.data.order import EpochOrder, Slice, Window, in_order, reading_order
from rayhmr.data.reading import Fetch
from rayhmr.data.schema import DatasetInfo

WINDOWS_AHEAD = 2
"""Windows that are read and not yet begun."""


def split_files(
    info: DatasetInfo, split: str, fraction: float = 1.0
) -> tuple[tuple[str, int], ...]:
    """Names and rows of a split's files, or of the first part of them."""
    names = info.names(split, fraction)
    rows = {file["name"]: int(file["rows"]) for file in info.files[split]}
    return tuple((name, rows[name]) for name in names)


class _Reader:
    """Windows in order, read ahead by a thread. `all_read` is set when it has read all of them."""

    def __init__(self, fetch: Fetch, windows: Sequence[Window]) -> None:
        self._tables: queue.Queue[tuple[Window, pa.Table] | BaseException | None]
        self._tables = queue.Queue(WINDOWS_AHEAD)
        self._fetch, self._windows = fetch, windows
        self.stopped, self.all_read = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="read-windows", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            tables = self._fetch(self._windows)
            for window, table in zip(self._windows, tables, strict=True):
                if not self._put((window, table)):
                    return
            self._put(None)
        except BaseException as error:  # raised again where the rows are used
            self._put(error)
        finally:
            self.all_read.set()

    def _put(self, item: tuple[Window, pa.Table] | BaseException | None) -> bool:
        while not self.stopped.is_set():
            try:
                self._tables.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[tuple[Window, pa.Table]]:
        while (item := self._tables.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


class _Lanes:
    """The rows of a rank's lanes that were read and not yet used."""

    def __init__(self, windows: Iterator[tuple[Window, pa.Table]]) -> None:
        self._incoming = windows
        self._held: dict[int, list[tuple[int, pa.Table]]] = {}

    def take(self, part: Slice) -> list[pa.Table]:
        """The rows of a slice; earlier rows of its lane are forgotten."""
        held = self._held.setdefault(part.lane, [])
        while not held or held[-1][0] + len(held[-1][1]) < part.stop:
            window, table = next(self._incoming)
            self._held.setdefault(window.lane, []).append((window.first, table))
        held[:] = [(first, t) for first, t in held if first + len(t) > part.start]
        pieces = []
        for first, table in held:
            start, stop = max(part.start, first), min(part.stop, first + len(table))
            if start < stop:
                pieces.append(table.slice(start - first, stop - start))
        return pieces


class ShardStream:
    """One worker's part of the data set, as `hmr.training.TrainData`.

    fetch: reads training rows. fetch_val: validation rows, of which this worker keeps its share,
    encoded, in memory; validation sets are small. cached: the same rows, which this object then
    closes; nothing is read besides.
    """

    def __init__(
        self, info: DatasetInfo, *, config: DataConfig, fetch: Fetch, fetch_val: Fetch,
        batch_size: int, image_size: int, seed: int, epochs: int, lanes: int, rank: int,
        world_size: int, cached: Cached | None = None,
    ) -> None:  # fmt: skip
        self._info, self._config = info, config
        self._fetch, self._fetch_val = fetch, fetch_val
        self._batch_size, self._image_size = batch_size, image_size
        self._seed, self._epochs, self._lanes = seed, epochs, lanes
        self._rank, self._world_size = rank, world_size
        self._files = split_files(info, "train", config.train_fraction)
        self.steps_per_epoch = self.order(0).steps
        self._next: tuple[int, _Reader] | None = None
        self._val: list[pa.Table] | None = None
        self._cached = cached

    def order(self, epoch: int) -> EpochOrder:
        """The order of an epoch."""
        return EpochOrder(self._files, self._seed, epoch, self._lanes, self._batch_size)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """This rank's part of the steps from `first_step` on, of which there are
        `steps_per_epoch - first_step`."""
        if self._cached is not None:
            rows = step_rows(self.order(epoch), first_step, self._rank, self._world_size)
            yield from self._taken(rows, self._cached.train)
            return
        reader = self._reader(epoch, first_step)
        tables = self._step_tables(reader, self.order(epoch), first_step)
        try:
            yield from self._decoded(self._with_next(tables, reader, epoch))
        finally:
            reader.stopped.set()

    def _reader(self, epoch: int, first_step: int) -> _Reader:
        begun, self._next = self._next, None
        if begun is not None and begun[0] == epoch and first_step == 0:
            return begun[1]
        if begun is not None:
            begun[1].stopped.set()
        windows = reading_order(self.order(epoch), first_step, self._rank, self._world_size)
        return _Reader(self._fetch, list(windows))

    def _step_tables(
        self, reader: _Reader, order: EpochOrder, first_step: int
    ) -> Iterator[pa.Table]:
        lanes = _Lanes(iter(reader))
        for step in range(first_step, order.steps):
            parts = order.part(step, self._rank, self._world_size)
            pieces = [piece for p in parts if p.start < p.stop for piece in lanes.take(p)]
            yield pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces)

    def _with_next(
        self, tables: Iterator[pa.Table], reader: _Reader, epoch: int
    ) -> Iterator[pa.Table]:
        """The same tables; the next epoch's reading begins once this one's has ended."""
        for table in tables:
            if self._next is None and epoch + 1 < self._epochs and reader.all_read.is_set():
                self._next = epoch + 1, self._reader(epoch + 1, 0)
            yield table

    def val_batches(self) -> Iterator[Batch]:
        """This worker's share of the validation rows; the shares are disjoint and complete."""
        files = split_files(self._info, "val")
        windows = in_order(files, self._rank, self._world_size)
        size = max(1, self._batch_size // self._world_size)
        if self._cached is not None:
            first = first_rows(files)
            numbers = (window_rows(window, first) for window in windows)
            parts = (
                rows[start : start + size]
                for rows in numbers
                for start in range(0, len(rows), size)
            )
            yield from self._taken(parts, self._cached.val)
            return
        if self._val is None:
            self._val = list(self._fetch_val(windows))
        for table in self._val:
            parts = (table.slice(start, size) for start in range(0, len(table), size))
            yield from self._decoded(parts)

    def close(self) -> None:
        """Stop reading ahead, and let the cache go."""
        if self._next is not None:
            self._next[1].stopped.set()
            self._next = None
        if self._cached is not None:
            self._cached.close()

    def _decoded(self, tables: Iterator[pa.Table]) -> Iterator[Batch]:
        return decoded_ahead(
            tables, lambda table: to_batch(table, self._image_size),
            threads=self._config.decode_threads, ahead=self._config.prefetch_batches,
        )  # fmt: skip

    def _taken(self, rows: Iterator[np.ndarray], split: CachedSplit) -> Iterator[Batch]:
        return decoded_ahead(
            rows, split.batch, threads=self._config.decode_threads,
            ahead=self._config.prefetch_batches,
        )  # fmt: skip
