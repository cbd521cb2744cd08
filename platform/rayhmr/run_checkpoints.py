"""The checkpoints of a run under Ray Train, by path or URI.

We write them (`hmr.checkpoint_store`), and tell Ray Train of those at the ends of epochs, which it
then removes by its own rule. What a run goes on from, and which epoch is best, is read from the
folders alone: they know themselves whether they are complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.train import Checkpoint

from hmr.checkpoint_store import CheckpointStore
from rayhmr.ray_index import repair_index as repair_index
from rayhmr.remote_place import place_of
from rayhmr.storage import Folder
from rayhmr.telemetry import say


class RunCheckpoints(CheckpointStore):
    """See `CheckpointStore`. keep: checkpoints inside epochs. saved: gets a fact about each one
    that was written, from the saving thread."""

    def __init__(
        self, folder: Folder, keep: int, *, warn: Callable[[str], None] = say,
        saved: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(place_of(folder), keep, warn=warn)
        self._folder, self._saved = folder, saved

    def _save_now(self, name: str, write: Callable[[Path], object]) -> None:
        start = time.perf_counter()
        super()._save_now(name, write)
        if self._saved is not None:
            seconds = round(time.perf_counter() - start, 3)
            self._saved({"kind": "checkpoint", "checkpoint": name, "seconds": seconds})

    def as_ray(self, name: str) -> Checkpoint:
        """The checkpoint as Ray Train knows it: a place, whatever is there."""
        return Checkpoint(self._folder.path(name), self._folder.files)


def best_epoch(
    folder: Folder, score: str, *, warn: Callable[[str], None] = say
) -> tuple[Path, dict[str, float]]:
    """See `CheckpointStore.best_epoch`. A downloaded copy stays until the process ends."""
    return RunCheckpoints(folder, keep=1, warn=warn).best_epoch(score)
