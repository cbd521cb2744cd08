"""Shards to training workers: Ray Data streams encoded rows, each worker decodes them in threads.

Decoded pixels are ten times the bytes of a JPEG, and every hop through the object store copies
them; therefore bytes travel and the consumer decodes.

Every epoch a worker sees the same rows in another order. Which rows, and the order, are functions
of the data set, the seed, the epoch, the rank and the number of workers, so a run that resumes sees
what an uninterrupted one would have seen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import ray.train
from ray.data import DataIterator, Dataset, ExecutionOptions

from hmr.errors import ConfigError
from hmr.structures import Batch
from rayhmr.config import DataConfig
from rayhmr.data.batches import decoded_ahead, shuffled, to_batch
from rayhmr.data.schema import TRAINING_COLUMNS, DatasetInfo
from rayhmr.storage import Folder

WINDOW_ROWS = 2000
"""Encoded rows among which a worker draws the next batch."""
FETCHED_ROWS = 500


def _dataset(info: DatasetInfo, split: str, fraction: float) -> Dataset:
    folder = Folder(info.location)
    names = [path.rpartition("/")[2] for path in info.paths(split, fraction)]
    rows = ray.data.read_parquet(
        [folder.path(name) for name in names], filesystem=folder.files,
        columns=list(TRAINING_COLUMNS),
    )  # fmt: skip
    rows.context.enable_progress_bars = False
    return rows


def datasets(info: DatasetInfo, config: DataConfig) -> dict[str, Callable[[], Dataset]]:
    """For TorchTrainer: made anew whenever a group of workers starts."""
    return {
        "train": lambda: _dataset(info, "train", config.train_fraction),
        "val": lambda: _dataset(info, "val", 1.0),
    }


def ingest_config() -> ray.train.DataConfig:
    """Training rows are split among the workers; everybody gets all validation rows."""
    # In order: only then do the same rows go to the same worker in every run.
    options = ExecutionOptions(preserve_order=True)
    return ray.train.DataConfig(
        datasets_to_split=["train"], execution_options=options, enable_shard_locality=False
    )


def batch_of_worker(batch_size: int, num_workers: int) -> int:
    """Samples of one worker's step; ConfigError when the workers cannot share a batch evenly."""
    if batch_size % num_workers:
        raise ConfigError(
            f"train.batch_size={batch_size}: must be a multiple of scaling.num_workers="
            f"{num_workers}, since every worker takes an equal part"
        )
    return batch_size // num_workers


def steps_per_epoch(
    info: DatasetInfo, config: DataConfig, *, batch_size: int, num_workers: int
) -> int:
    """Optimizer steps of one pass; ConfigError when there are not rows enough for one."""
    rows = info.rows("train", config.train_fraction)
    steps = rows // num_workers // batch_of_worker(batch_size, num_workers)
    if steps == 0:
        raise ConfigError(
            f"train.batch_size={batch_size}: the {rows} training rows of {info.location} do not "
            "fill one batch; lower it, or raise data.train_fraction"
        )
    return steps


class ShardStream:
    """One worker's part of the data set, as `hmr.training.TrainData`.

    train: this worker's split. val: all validation rows, of which this worker keeps a share, chosen
    by sample_id, encoded in memory; validation sets are small.
    """

    def __init__(
        self, train: DataIterator, val: DataIterator, *, config: DataConfig, steps: int,
        batch_size: int, image_size: int, seed: int, rank: int, world_size: int,
    ) -> None:  # fmt: skip
        self.steps_per_epoch = steps
        self._train, self._config = train, config
        self._batch_size, self._image_size = batch_size, image_size
        self._seed, self._rank = seed, rank
        self._val = [
            share
            for table in _tables(val)
            if len(share := _share(table, rank, world_size))
        ]  # fmt: skip

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Exactly `steps_per_epoch` batches."""
        rng = np.random.default_rng([self._seed, epoch, self._rank])
        tables = shuffled(
            _tables(self._train), batch_size=self._batch_size, window=WINDOW_ROWS, rng=rng
        )
        limited = (table for table, _ in zip(tables, range(self.steps_per_epoch), strict=False))
        return self._decoded(limited)

    def val_batches(self) -> Iterator[Batch]:
        """This worker's share of the validation rows; the shares are disjoint and complete."""
        for table in self._val:
            parts = (
                table.slice(start, self._batch_size)
                for start in range(0, len(table), self._batch_size)
            )
            yield from self._decoded(parts)

    def _decoded(self, tables: Iterator[pa.Table]) -> Iterator[Batch]:
        return decoded_ahead(
            tables, lambda table: to_batch(table, self._image_size),
            threads=self._config.decode_threads, ahead=self._config.prefetch_batches,
        )  # fmt: skip


def _tables(rows: DataIterator) -> Iterator[pa.Table]:
    batches: Any = rows.iter_batches(
        batch_size=FETCHED_ROWS, batch_format="pyarrow", prefetch_batches=2
    )
    yield from batches


def _share(table: pa.Table, rank: int, world_size: int) -> pa.Table:
    """By name and not by place: workers may read the rows in different orders."""
    keep = [zlib.crc32(name.encode()) % world_size == rank for name in
            table["sample_id"].to_pylist()]  # fmt: skip
    return table.filter(pa.array(keep))
