"""The TrainContext of a Ray Train worker."""

from __future__ import annotations

import shutil
import tempfile

import ray.train
import ray.train.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class RayContext:
    """See `hmr.training.TrainContext`."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._downloaded: str | None = None

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over the workers."""
        if self.world_size == 1:
            return model
        # The loop itself levels the batch norms' statistics, once an epoch.
        return DistributedDataParallel(
            model, device_ids=[self.device] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
        )  # fmt: skip

    def report(self, metrics: dict[str, float], checkpoint_dir: str | None) -> None:
        """Hand over metrics and, on rank 0, a checkpoint; every worker waits for the upload."""
        self._forget_download()
        checkpoint = None
        if checkpoint_dir is not None:
            checkpoint = ray.train.Checkpoint.from_directory(checkpoint_dir)
        name = f"epoch-{int(metrics['epoch']):04d}"
        ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)

    def latest_checkpoint(self) -> str | None:
        """A local copy of the newest checkpoint."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        self._downloaded = tempfile.mkdtemp(prefix="rayhmr-resume-")
        return str(checkpoint.to_directory(self._downloaded))

    def _forget_download(self) -> None:
        if self._downloaded is not None:
            shutil.rmtree(self._downloaded, ignore_errors=True)
            self._downloaded = None
