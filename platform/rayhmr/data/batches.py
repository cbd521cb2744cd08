"""Rows of shards to batches of tensors. No Ray: training workers, evaluation and tests share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hmr.pose_prior import rodrigues
from hmr.structures import Batch
from rayhmr.data.decode import pixels
from rayhmr.data.schema import TRAINING_COLUMNS, DatasetInfo, J
from rayhmr.storage import Folder

Rows = TypeVar("Rows")
Decoded = TypeVar("Decoded")


def _matrix(table: pa.Table, name: str, *shape: int) -> np.ndarray:
    """A fixed-size list column as (B, *shape) float32."""
    column = table[name].combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(table), *shape)


def to_batch(table: pa.Table, image_size: int) -> Batch:
    """The columns of TRAINING_COLUMNS as a Batch; crops of another size are resampled.

    table: with JPEG, or decoded for this size by `rayhmr.data.decode.decode_table`: the result is
    the same. DataError names the row whose picture cannot be decoded.
    """
    images, sides = pixels(table, image_size)
    return with_labels(torch.from_numpy(images).permute(0, 3, 1, 2), sides, table)


def with_labels(images: torch.Tensor, sides: np.ndarray, table: pa.Table) -> Batch:
    """Pictures, or features in their place, with the labels in the rows of a table. sides: (B,)
    pixels of the stored crops, in which the 2D keypoints are."""
    keypoints_2d = _matrix(table, "keypoints_2d", J, 3).copy()
    sides = sides.astype(np.float32)[:, None, None]
    keypoints_2d[..., :2] = 2 * keypoints_2d[..., :2] / sides - 1
    pose = _matrix(table, "pose", 24, 3)
    return Batch(
        images=images,
        keypoints_2d=torch.from_numpy(keypoints_2d),
        keypoints_3d=torch.from_numpy(_matrix(table, "keypoints_3d", J, 4).copy()),
        rotmats=torch.from_numpy(rodrigues(pose)),
        betas=torch.from_numpy(_matrix(table, "betas", 10).copy()),
        has_smpl=torch.tensor(table["has_smpl"].to_pylist()),
        sample_ids=tuple(table["sample_id"].to_pylist()),
    )


def smpl_labels(table: pa.Table) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations (N, 24, 3, 3) and betas (N, 10) of the rows with SMPL labels."""
    labelled = table.filter(table["has_smpl"])
    rotmats = rodrigues(_matrix(labelled, "pose", 24, 3))
    return torch.from_numpy(rotmats), torch.from_numpy(_matrix(labelled, "betas", 10).copy())


def decoded_ahead(
    tables: Iterable[Rows], decode: Callable[[Rows], Decoded], *, threads: int, ahead: int
) -> Iterator[Decoded]:
    """Batches in the order of the tables; up to `ahead` are decoded while one is used.

    A batch is one task, so its thread never waits for others; decoding releases the interpreter
    lock.
    """
    cv2.setNumThreads(1)  # the pool's threads are the parallelism
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[Decoded]] = deque()
    try:
        for table in tables:
            waiting.append(pool.submit(decode, table))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read_tables(
    info: DatasetInfo, split: str, batch_size: int, columns: Sequence[str] = TRAINING_COLUMNS
) -> Iterator[pa.Table]:
    """A split from beginning to end in tables of at most `batch_size` rows, without Ray."""
    folder = Folder(info.location)
    for file in info.files[split]:
        with (
            folder.files.open_input_file(folder.path(file["name"])) as stream,
            pq.ParquetFile(stream) as shard,
        ):
            for batch in shard.iter_batches(batch_size, columns=list(columns)):
                yield pa.Table.from_batches([batch])


def read_batches(
    info: DatasetInfo, split: str, *, batch_size: int, image_size: int, threads: int = 1
) -> Iterator[Batch]:
    """The same, decoded."""
    tables = read_tables(info, split, batch_size)
    return decoded_ahead(tables, lambda t: to_batch(t, image_size), threads=threads, ahead=2)
