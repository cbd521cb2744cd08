"""The two windows of the training loop to its surroundings: its launcher and its data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from hmr.exchange import Wish
from hmr.structures import Batch


class TrainContext(Protocol):
    """The loop's only window to its launcher."""

    rank: int
    world_size: int
    device: torch.device

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """The model as it trains here, for example wrapped for data-parallel gradients."""
        ...

    def latest_checkpoint(self) -> str | None:
        """Local folder of the newest complete checkpoint, the same on all ranks; none for a fresh
        run."""
        ...

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Keep a checkpoint, which `write` puts into a folder. Only rank 0 calls this; it returns
        at once. HmrError when checkpoints cannot be written any more."""
        ...

    def report(self, metrics: dict[str, float], checkpoint: str) -> None:
        """Called by every rank at the end of an epoch with the same errors and the name under
        which rank 0 saves its checkpoint."""
        ...

    def resumed(self, metrics: dict[str, float], checkpoint: str) -> None:
        """Called by every rank when it goes on from the end of an epoch, whose report may have
        been lost."""
        ...

    def wish(self) -> Wish:
        """What this rank wants before the next step; asked once a step."""
        ...

    def alive(self) -> None:
        """A sign of life between two steps, such as after each batch of a long validation."""
        ...

    def close(self) -> None:
        """The run is over: wait until what was saved is there."""
        ...


class TrainData(Protocol):
    """Batches of this rank: the same number on every rank, and the same in every run."""

    steps_per_epoch: int

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of the steps from `first_step` on: `steps_per_epoch - first_step`."""
        ...

    def val_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation split; the shares together are the whole split."""
        ...
