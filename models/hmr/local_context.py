"""A TrainContext without a launcher: one process, checkpoints in a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from torch import nn

from hmr.checkpoint import is_complete


class LocalContext:
    """Train here: on the first GPU when there is one, else on the CPU.

    folder: gets `epoch-0001/`, `epoch-0002/`, …, of which the newest `keep` stay; a run with the
    same folder continues from the newest complete one. `reports` holds the metrics of every report
    of this process.
    """

    rank = 0
    world_size = 1

    def __init__(
        self, folder: str | os.PathLike[str], device: str | None = None, *, keep: int = 2
    ) -> None:
        self.folder = Path(folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.keep = keep
        self.reports: list[dict[str, float]] = []

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model

    def report(self, metrics: dict[str, float], checkpoint_dir: str | None) -> None:
        """Keep the metrics, copy the checkpoint; only a complete copy gets its final name."""
        self.reports.append(metrics)
        if checkpoint_dir is None:
            return
        target = self.folder / f"epoch-{int(metrics['epoch']):04d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(checkpoint_dir, partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        # Only those up to this one count: what is newer was passed over as damaged.
        for old in [folder for folder in self._folders() if folder <= target][self.keep :]:
            shutil.rmtree(old)

    def latest_checkpoint(self) -> str | None:
        """The newest folder whose files are all there and unchanged."""
        for folder in self._folders():
            if is_complete(folder):
                return str(folder)
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-????"), reverse=True)
