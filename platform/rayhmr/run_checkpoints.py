"""The checkpoints of a run under Ray Train, by path or URI.

We write them (`hmr.checkpoint_store`), and tell Ray Train of those at the ends of epochs, which it
then removes by its own rule. What a run goes on from, and which epoch is best, is read from the
folders alone: they know themselves whether they are complete.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ray.train import Checkpoint

from hmr.checkpoint_store import CheckpointStore
from rayhmr.ray_index import repair_index as repair_index
from rayhmr.remote_place import place_of
from rayhmr.storage import Folder
from rayhmr.telemetry import say


class RunCheckpoints(CheckpointStore):
    """See `CheckpointStore`. keep: checkpoints inside epochs."""

    def __init__(self, folder: Folder, keep: int, *, warn: Callable[[str], None] = say) -> None:
        super().__init__(place_of(folder), keep, warn=warn)
        self._folder = folder

    def as_ray(self, name: str) -> Checkpoint:
        """The checkpoint as Ray Train knows it: a place, whatever is there."""
        return Checkpoint(self._folder.path(name), self._folder.files)


def best_epoch(
    folder: Folder, score: str, *, warn: Callable[[str], None] = say
) -> tuple[Path, dict[str, float]]:
    """See `CheckpointStore.best_epoch`. A downloaded copy stays until the process ends."""
    return RunCheckpoints(folder, keep=1, warn=warn).best_epoch(score)
