"""The TrainContext of a Ray Train worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2._internal.execution.context import get_train_context
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hmr.errors import HmrError
from hmr.exchange import Wish
from rayhmr.run_checkpoints import RunCheckpoints
from rayhmr.stopping import StopFlag
from rayhmr.watchdog import Watchdog

POLL_S = 1.0
"""Seconds between two looks at the stop flag, and between two checkpoints of a node that will be
taken away."""


class RayContext:
    """See `hmr.training.TrainContext`.

    checkpoints: the run's, written by rank 0 alone and read by all. validate_in_task: every epoch's
    checkpoint goes to Ray Train's validation.
    """

    def __init__(
        self, checkpoints: RunCheckpoints, stop: StopFlag, *, hang_timeout_s: float,
        validate_in_task: bool,
    ) -> None:  # fmt: skip
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # where torch.distributed puts what it sends
        self._checkpoints, self._validate_in_task = checkpoints, validate_in_task
        self._watchdog = Watchdog(hang_timeout_s)
        self._preemption = get_train_context().preemption_context
        self._saved_at = 0.0
        self._stop_wanted = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._ask, args=(stop,), name="stop-flag", daemon=True).start()

    def _ask(self, stop: StopFlag) -> None:
        while not self._closed.wait(POLL_S):
            if stop.is_wanted():
                self._stop_wanted.set()
                return

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the workers."""
        if self.world_size == 1:
            return model
        # The loop itself levels the batch norms' statistics, once an epoch.
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False, gradient_as_bucket_view=True,
        )  # fmt: skip

    def wish(self) -> Wish:
        """Stop when the driver was told to; a checkpoint now and then while a node is about to be
        taken away, since Ray restarts the run from the newest one when it is."""
        self.alive()
        if self._stop_wanted.is_set():
            return Wish.STOP
        # Ray's public function is a barrier of all ranks; the loop spreads wishes by itself.
        if self._preemption.preemption_info is None or time.monotonic() - self._saved_at < POLL_S:
            return Wish.NOTHING
        self._saved_at = time.monotonic()
        return Wish.CHECKPOINT

    def alive(self) -> None:
        """The watchdog hears it."""
        self._watchdog.alive()

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """See `CheckpointStore.save`."""
        self._checkpoints.save(name, write)

    def report(self, metrics: dict[str, float], checkpoint: str) -> None:
        """Tell Ray about an epoch, and about its checkpoint when that could be written."""
        self._watchdog.pause()  # a slow upload is no hanging step
        mine = None
        # Waited for: Ray would list, and on a new start miss, a folder that failed to be written.
        if self.rank == 0 and self._checkpoints.wait(checkpoint):
            mine = self._checkpoints.as_ray(checkpoint)
        ray.train.report(
            metrics, checkpoint=mine, checkpoint_dir_name=checkpoint,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
            validation=self._validate_in_task and mine is not None,
        )  # fmt: skip
        self.alive()

    def resumed(self, metrics: dict[str, float], checkpoint: str) -> None:
        """Report the epoch again when its worker died before Ray had heard of it."""
        known = ray.train.get_checkpoint()
        if known is None or known.path.rstrip("/").rpartition("/")[2] < checkpoint:
            self.report(metrics, checkpoint)

    def latest_checkpoint(self) -> str | None:
        """The folder that rank 0 finds newest, so that all ranks go on from the same one."""
        newest: str | None = None
        problem: HmrError | None = None
        if self.rank == 0:
            try:
                self._checkpoints.tidy()
                newest = self._checkpoints.newest_name()
            except HmrError as error:  # told to the others, who would wait for ever
                problem = error
        found: list[Any] = [newest, problem]
        if self.world_size > 1:
            dist.broadcast_object_list(found, src=0)
        if found[1] is not None:
            raise found[1]
        return None if found[0] is None else str(self._checkpoints.fetch(found[0]))

    def close(self) -> None:
        """Wait for the last checkpoint, and stop watching."""
        self._closed.set()
        self._watchdog.stop()
        self._checkpoints.close()
