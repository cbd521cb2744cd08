"""What each training worker does: its part of the data, the loop, and notes to the driver."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hmr.body import Body
from hmr.errors import DivergedError
from hmr.model import build_model
from hmr.structures import Batch
from hmr.training import fit
from rayhmr.config import TrainJob
from rayhmr.data.decode import decode_table
from rayhmr.data.reading import fetch_with_ray
from rayhmr.data.schema import DatasetInfo
from rayhmr.data.stream import ShardStream
from rayhmr.ray_context import RayContext
from rayhmr.run_bundle import mean_parameters
from rayhmr.run_checkpoints import RunCheckpoints
from rayhmr.stopping import StopFlag
from rayhmr.storage import Folder
from rayhmr.telemetry import Board, worker_facts

SAMPLES = "samples"
"""Folder of a run with the ids of the samples of every step, where they are recorded."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """All that a training worker needs to know. folder: the run's. lanes: of its data order. label:
    stands before its progress lines."""

    job: TrainJob
    info: DatasetInfo
    board: Board
    stop: StopFlag
    folder: str
    lanes: int
    label: str = ""

    def post(self, facts: dict[str, Any]) -> None:
        """Tell the driver."""
        self.board.post(facts | {"label": self.label})


def shard_stream(
    task: WorkerTask, rank: int, world_size: int, epochs: int | None = None
) -> ShardStream:
    """This worker's part of the data, read by Ray Data. epochs: when not those of the job."""
    job, location = task.job, task.info.location
    in_tasks = job.data.decode_in == "tasks"
    decode = partial(decode_table, image_size=job.model.image_size) if in_tasks else None
    return ShardStream(
        task.info, config=job.data, fetch=fetch_with_ray(location, tasks=2, decode=decode),
        fetch_val=fetch_with_ray(location, tasks=2), batch_size=job.train.batch_size,
        image_size=job.model.image_size, seed=job.train.seed, epochs=epochs or job.train.epochs,
        lanes=task.lanes, rank=rank, world_size=world_size,
    )  # fmt: skip


class _Recorded:
    """A stream that notes which samples were used at which step: one JSON line a step, in a file of
    its own for each start of the worker."""

    def __init__(self, stream: ShardStream, folder: Folder, rank: int) -> None:
        self._stream, self._rank = stream, rank
        self.steps_per_epoch, self.val_batches = stream.steps_per_epoch, stream.val_batches
        self.close = stream.close
        target = Path(folder.root) / SAMPLES
        target.mkdir(exist_ok=True)
        self._file = (target / f"{time.time_ns()}-rank{rank}.jsonl").open("w", encoding="utf-8")

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        batches = self._stream.train_batches(epoch, first_step)
        for step, batch in enumerate(batches, start=first_step):
            line = {"epoch": epoch, "step": step, "rank": self._rank, "ids": batch.sample_ids}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            yield batch


def train_worker(task: WorkerTask) -> str | None:
    """What each worker does. A training that has diverged would do so again: the reason is
    returned, on all workers, where an error would only make Ray start it anew."""
    job, folder = task.job, Folder(task.folder)
    checkpoints = RunCheckpoints(folder, keep=job.keep_checkpoints, warn=partial(_warn, task))
    context = RayContext(
        checkpoints, task.stop, hang_timeout_s=job.train.hang_timeout_s,
        validate_in_task=job.validate_in == "task",
    )  # fmt: skip
    task.post(worker_facts(context.rank))
    torch.manual_seed(job.train.seed)
    data: Any = shard_stream(task, context.rank, context.world_size)
    if job.data.record_samples:
        data = _Recorded(data, folder, context.rank)
    with closing(data):
        try:
            last = fit(
                job.train,
                model=build_model(job.model, mean_parameters(task.info)),
                body=Body.from_config(job.body),
                data=data,
                context=context,
                log=task.post,
                validating=job.validate_in == "workers",
            )
        except DivergedError as error:
            return str(error)
    if context.rank == 0 and "stopped" in last:
        task.post({"kind": "stopped", "step": last.get("step")})
    return None


def _warn(task: WorkerTask, text: str) -> None:
    task.post({"kind": "warning", "text": text})
