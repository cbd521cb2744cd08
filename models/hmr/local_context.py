"""A TrainContext without a launcher: one process, checkpoints in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from hmr.checkpoint_store import CheckpointStore
from hmr.exchange import Wish


class LocalContext:
    """Train here: on the first GPU when there is one, else on the CPU.

    folder: gets `epoch-0001/`, `epoch-0002/`, …, of which the newest `keep` stay and the best by
    `score`, and inside epochs `step-00000120/`, …, of which the newest `keep` stay; a run with the
    same folder continues from the newest complete one. `reports` holds the metrics of every report
    of this process.
    """

    rank = 0
    world_size = 1

    def __init__(
        self, folder: str | os.PathLike[str], device: str | None = None, *, keep: int = 2,
        score: str = "val/pa_mpjpe_mm",
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.store = CheckpointStore(self.folder, keep, keep_epochs=keep, score=score)
        self.store.tidy()
        self.reports: list[dict[str, float]] = []

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def wish(self) -> Wish:
        """Nobody can ask for anything."""
        return Wish.NOTHING

    def alive(self) -> None:
        """Nobody watches."""

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """Write a checkpoint in the background; see `CheckpointStore.save`."""
        self.store.save(name, write)

    def report(self, metrics: dict[str, float], checkpoint: str) -> None:
        """Keep the metrics, and wait for the epoch's checkpoint: at the end of a run it is there.

        HmrError when it is the third in a row that cannot be written.
        """
        self.reports.append(metrics)
        self.store.wait(checkpoint)

    def resumed(self, metrics: dict[str, float], checkpoint: str) -> None:
        """A report is never lost here."""

    def latest_checkpoint(self) -> str | None:
        """The newest folder whose files are all there and unchanged."""
        newest = self.store.newest()
        return None if newest is None else str(newest)

    def close(self) -> None:
        """Wait for the checkpoints that are being written."""
        self.store.close()
