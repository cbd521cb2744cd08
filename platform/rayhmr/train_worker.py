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
import torch.distributed as dist

from hmr.body import Body
from hmr.errors import DivergedError
from hmr.model import HMR
from hmr.structures import Batch
from hmr.training import fit
from rayhmr.config import TrainJob
from rayhmr.data.cache import Cached, open_cached
from rayhmr.data.decode import decode_table
from rayhmr.data.reading import fetch_with_ray
from rayhmr.data.schema import DatasetInfo
from rayhmr.data.stream import ShardStream, split_files
from rayhmr.metrics import Counted, trial_of
from rayhmr.ray_context import RayContext
from rayhmr.run_checkpoints import RunCheckpoints
from rayhmr.starting_model import encoding_of, starting_model
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

    @property
    def run(self) -> str:
        """The name of the run, or of the study that the trial is of."""
        names = self.folder.rstrip("/").split("/")
        return names[-3] if self.label else names[-1]

    def post(self, facts: dict[str, Any]) -> None:
        """Tell the driver."""
        self.board.post(facts | {"label": self.label})


def shard_stream(
    task: WorkerTask, rank: int, world_size: int, epochs: int | None = None,
    cached: Cached | None = None,
) -> ShardStream:  # fmt: skip
    """This worker's part of the data, read by Ray Data unless this node has it `cached`. epochs:
    when not those of the job."""
    job, location = task.job, task.info.location
    in_tasks = job.data.decode_in == "tasks"
    decode = partial(decode_table, image_size=job.model.image_size) if in_tasks else None
    return ShardStream(
        task.info, config=job.data, fetch=fetch_with_ray(location, tasks=2, decode=decode),
        fetch_val=fetch_with_ray(location, tasks=2), batch_size=job.train.batch_size,
        image_size=job.model.image_size, seed=job.train.seed, epochs=epochs or job.train.epochs,
        lanes=task.lanes, rank=rank, world_size=world_size, cached=cached,
    )  # fmt: skip


def cached_data(task: WorkerTask, model: HMR, world_size: int) -> Cached | None:
    """The rows as `data.cache` says, shared with the other runs on this node; none without it, or
    without room for it. model: on the device where it trains."""
    job, encoding = task.job, None
    if job.data.cache == "features":
        torch.set_num_threads(job.train.threads)
        share = max(1, job.train.batch_size // world_size)
        encoding = encoding_of(model, job.train, batch_size=share)
    return open_cached(
        task.info, split_files(task.info, "train", job.data.train_fraction),
        split_files(task.info, "val"), config=job.data, image_size=job.model.image_size,
        encoding=encoding, warn=partial(_warn, task),
    )  # fmt: skip


class _Recorded:
    """A stream that notes which samples were used at which step: one JSON line a step, in a file of
    its own for each start of the worker; the files of one start begin with the same number."""

    def __init__(self, stream: ShardStream, folder: Folder, rank: int) -> None:
        self._stream, self._rank = stream, rank
        self.steps_per_epoch, self.val_batches = stream.steps_per_epoch, stream.val_batches
        self.close = stream.close
        target = Path(folder.root) / SAMPLES
        target.mkdir(exist_ok=True)
        self._file = (target / f"{_start_number()}-rank{rank}.jsonl").open("w", encoding="utf-8")

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        batches = self._stream.train_batches(epoch, first_step)
        for step, batch in enumerate(batches, start=first_step):
            line = {"epoch": epoch, "step": step, "rank": self._rank, "ids": batch.sample_ids}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            yield batch


def _start_number() -> int:
    """When the workers started, the same on every rank, in nanoseconds."""
    number = [time.time_ns()]
    if dist.is_initialized():
        dist.broadcast_object_list(number, 0)
    return number[0]


def train_worker(task: WorkerTask) -> str | None:
    """What each worker does. A training that has diverged would do so again: the reason is
    returned, on all workers, where an error would only make Ray start it anew."""
    job, folder = task.job, Folder(task.folder)
    checkpoints = RunCheckpoints(
        folder, keep=job.keep_checkpoints, warn=partial(_warn, task), saved=task.post
    )
    context = RayContext(
        checkpoints, task.stop, hang_timeout_s=job.train.hang_timeout_s,
        validate_in_task=job.validate_in == "task",
    )  # fmt: skip
    task.post(worker_facts(context.rank))
    model = starting_model(job, task.info).to(context.device)
    cached = cached_data(task, model, context.world_size)
    data: Any = shard_stream(task, context.rank, context.world_size, cached=cached)
    if job.data.record_samples:
        data = _Recorded(data, folder, context.rank)
    with closing(data):
        data = Counted(data, run=task.run, trial=trial_of({"label": task.label}))
        try:
            last = fit(
                job.train,
                model=model,
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
