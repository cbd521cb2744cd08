"""Windows of shards as tables: with Ray Data, whose tasks read while training goes on, or here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rayhmr.data.order import Chunk, Window
from rayhmr.data.schema import TRAINING_COLUMNS
from rayhmr.storage import Folder

Fetch = Callable[[Sequence[Window]], Iterator[pa.Table]]
"""The rows of windows, one table after the other, each in its window's order."""


def _row_groups(shard: pq.ParquetFile, chunk: Chunk) -> tuple[list[int], int]:
    """The row groups that hold a chunk, and the number of their first row in the file."""
    counts = [shard.metadata.row_group(i).num_rows for i in range(shard.num_row_groups)]
    before = np.cumsum([0, *counts])
    first = int(np.searchsorted(before, chunk.start, "right")) - 1
    last = int(np.searchsorted(before, chunk.stop, "left"))
    return list(range(first, last)), int(before[first])


def read_window(
    folder: Folder, window: Window, columns: Sequence[str] = TRAINING_COLUMNS
) -> pa.Table:
    """The rows of a window in its order; each file is opened once."""
    chunks = sorted(enumerate(window.chunks), key=lambda pair: pair[1].file)
    tables: dict[int, pa.Table] = {}
    opened: tuple[str, pq.ParquetFile] | None = None
    for place, chunk in chunks:
        if opened is None or opened[0] != chunk.file:
            if opened is not None:
                opened[1].close(force=True)
            source = folder.open(chunk.file)
            opened = chunk.file, pq.ParquetFile(source)
        groups, first = _row_groups(opened[1], chunk)
        rows = opened[1].read_row_groups(groups, columns=list(columns))
        tables[place] = rows.slice(chunk.start - first, chunk.stop - chunk.start)
    if opened is not None:
        opened[1].close(force=True)
    ordered = pa.concat_tables([tables[place] for place in sorted(tables)])
    return ordered.combine_chunks().take(pa.array(window.permutation()))


def fetch_here(location: str) -> Fetch:
    """Read in this process, without Ray."""

    def fetch(windows: Sequence[Window]) -> Iterator[pa.Table]:
        folder = Folder(location)
        for window in windows:
            yield read_window(folder, window)

    return fetch


def _to_json(window: Window) -> str:
    return json.dumps(asdict(window))


def _from_json(text: str) -> Window:
    values = json.loads(text)
    chunks = tuple(Chunk(**chunk) for chunk in values.pop("chunks"))
    seed = values.pop("seed")
    return Window(**values, chunks=chunks, seed=None if seed is None else tuple(seed))


@dataclass(frozen=True)
class ReadWindows:
    """What a task of Ray Data does: read, and perhaps decode."""

    location: str
    decode: Callable[[pa.Table], pa.Table] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        folder = Folder(self.location)
        rows = pa.concat_tables(
            read_window(folder, _from_json(text)) for text in table["window"].to_pylist()
        )
        return rows if self.decode is None else self.decode(rows)


def fetch_with_ray(
    location: str, *, tasks: int, decode: Callable[[pa.Table], pa.Table] | None = None
) -> Fetch:
    """Read in at most `tasks` tasks of Ray Data at a time, one CPU each."""

    def fetch(windows: Sequence[Window]) -> Iterator[pa.Table]:
        import ray.data

        if not windows:
            return
        names = [{"window": _to_json(window)} for window in windows]
        rows = ray.data.from_items(names, override_num_blocks=len(names)).map_batches(
            ReadWindows(location, decode), batch_size=1, batch_format="pyarrow",
            compute=ray.data.TaskPoolStrategy(tasks),
        )  # fmt: skip
        rows.context.enable_progress_bars = False
        # In order: then what arrives is what was asked for.
        rows.context.execution_options.preserve_order = True
        pieces: Any = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        yield from whole_windows(pieces, windows)

    return fetch


def whole_windows(pieces: Iterable[pa.Table], windows: Sequence[Window]) -> Iterator[pa.Table]:
    """The same rows as one table a window, however they were cut on the way."""
    held: list[pa.Table] = []
    incoming = iter(pieces)
    for window in windows:
        while sum(map(len, held)) < window.rows:
            held.append(next(incoming))
        rows = held[0] if len(held) == 1 else pa.concat_tables(held)
        yield rows.slice(0, window.rows)
        held = [rows.slice(window.rows)] if len(rows) > window.rows else []
