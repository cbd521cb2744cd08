"""Checkpoints that survive whatever happens to their writer: saved in the background, whole or not
at all, found again even when some of them are damaged. No torch here."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from hmr.checkpoint_place import (
    LocalPlace,
    Place,
    epoch_metrics,
    is_checkpoint,
    is_epoch,
    number_of,
    state_of,
)
from hmr.errors import BundleError, HmrError
from hmr.saver import Saver

MAX_FAILURES = 3
"""Saves that may fail in a row before the run is stopped."""
FREE_FACTOR = 2.5
"""A save begins only with room for so many checkpoints of the last one's size: the new one beside
the old ones, and logs."""


def to_stderr(text: str) -> None:
    """A line for people."""
    sys.stderr.write(text + "\n")


class CheckpointStore:
    """The checkpoints of one run, for its one writer and any number of readers.

    place: a folder, or another kind of storage. keep: of the checkpoints inside epochs the newest
    so many stay. keep_epochs: of those at the ends of epochs the newest so many stay, and the best
    by `score`; none: all of them, somebody else removes them. warn: gets a line for each failed
    save, from the saving thread, and for each checkpoint that was passed over as damaged.
    """

    def __init__(
        self, place: Place | str | os.PathLike[str], keep: int, *, keep_epochs: int | None = None,
        score: str | None = None, warn: Callable[[str], None] = to_stderr,
    ) -> None:  # fmt: skip
        self.place = LocalPlace(place) if isinstance(place, str | os.PathLike) else place
        self.keep, self.keep_epochs, self.score, self.warn = keep, keep_epochs, score, warn
        self._saver = Saver(self.place.location, warn, MAX_FAILURES)
        self._damaged: set[str] = set()
        self._last_size: int | None = None

    @property
    def failures(self) -> int:
        """Saves that have failed since the last one that worked."""
        return self._saver.failures

    def save(self, name: str, write: Callable[[Path], object], *, wait: bool = False) -> bool:
        """Save what `write` puts into an empty folder, its manifest included, as `name`.

        Returns at once; a step checkpoint that has to wait is left out when a newer one comes. With
        `wait` it returns when the save has ended: whether it worked. HmrError after three failures
        in a row.
        """
        if not is_checkpoint(name):
            raise HmrError(f"{name!r}: is no checkpoint's name; use step_name or epoch_name")
        self._saver.put(name, partial(self._save_now, name, write), droppable=not is_epoch(name))
        return wait and self.wait(name)

    def check(self) -> None:
        """HmrError after three failures in a row."""
        self._saver.check()

    def wait(self, name: str | None = None) -> bool:
        """Wait for that save, or for all; whether it, or the last one, worked. HmrError after three
        failures in a row."""
        worked = self._saver.wait(name)
        self._saver.check()
        return worked

    def close(self) -> None:
        """Wait for the saves that are queued, then forget local copies."""
        self._saver.wait()
        self.place.close()

    def tidy(self) -> None:
        """Clean up after dead writers. For the one writer, at its start."""
        self._saver.wait()
        self.place.tidy()

    def newest(self) -> Path | None:
        """Local folder of the newest complete checkpoint; none when there is none.

        By steps, and at the same step the end of an epoch is the newer one. Damaged ones are passed
        over with a warning each. HmrError when there are some and the storage gives none of them:
        a run must not start anew because of an outage.
        """
        found = self._find_newest()
        return None if found is None else found[1]

    def newest_name(self) -> str | None:
        """The name of what `newest` returns."""
        found = self._find_newest()
        return None if found is None else found[0]

    def _find_newest(self) -> tuple[str, Path] | None:
        unreadable: OSError | None = None
        for name in self._newest_first():
            try:
                return name, self.place.fetch(name)
            except BundleError as error:
                self._pass_over(name, error)
            except OSError as error:
                self.warn(f"{self.place.location}/{name}: passed over, it cannot be read: {error}")
                unreadable = error
        if unreadable is not None:
            raise HmrError(
                f"{self.place.location}: there are checkpoints, but none can be read now "
                f"({unreadable}); start the same command again when the storage answers"
            ) from unreadable
        return None

    def fetch(self, name: str) -> Path:
        """Local folder of that checkpoint; BundleError when it is not complete."""
        return self.place.fetch(name)

    def best_epoch(self, score: str) -> tuple[Path, dict[str, float]]:
        """The complete end of an epoch with the lowest `score`, and what is known about it.

        The last of equal ones; a score that is no number is the worst. What stands in
        validation/<name>.json counts more than what the run itself reported. HmrError when no epoch
        has the score.
        """
        known = {n: m for n, m in self._metrics(self._epochs()).items() if score in m}
        for name in sorted(known, key=lambda name: _rank(known[name], score, name)):
            try:
                return self.place.fetch(name), known[name]
            except BundleError as error:
                self._pass_over(name, error)
        raise HmrError(
            f"{self.place.location}: no complete checkpoint at the end of an epoch has {score!r}; "
            "train one epoch, and wait for its validation"
        )

    def _save_now(self, name: str, write: Callable[[Path], object]) -> None:
        self._check_room(name)
        self.place.put(name, write)
        self._damaged.discard(name)
        self._last_size = self.place.size(name)
        try:
            self._prune(name)
        except OSError as error:
            self.warn(f"{self.place.location}: an old checkpoint could not be removed: {error}")

    def _check_room(self, name: str) -> None:
        if self._last_size is None:
            self._last_size = max(map(self.place.size, self.place.names()), default=0)
        if self._last_size == 0:
            return
        free, needed = self.place.free(), math.ceil(FREE_FACTOR * self._last_size)
        if free < needed:
            raise HmrError(
                f"{self.place.location}: {free} bytes are free, saving {name} needs {needed} "
                f"({FREE_FACTOR:g} times the last checkpoint); remove files from that disk, or "
                "keep fewer checkpoints"
            )

    def _prune(self, saved: str) -> None:
        """Remove what `saved` made superfluous. What is newer was passed over as damaged and will
        be written again: it neither counts nor goes."""
        keep = self.keep_epochs if is_epoch(saved) else self.keep
        if keep is None:
            return
        kind = [n for n in self.place.names() if is_epoch(n) == is_epoch(saved)]
        older = [n for n in kind if number_of(n) <= number_of(saved)]
        older.sort(key=lambda name: (name in self._damaged, -number_of(name)))
        kept = set(older[:keep])
        if is_epoch(saved) and self.score is not None:
            known = {n: m for n, m in self._metrics(older).items() if self.score in m}
            kept |= set(sorted(known, key=lambda n: _rank(known[n], str(self.score), n))[:1])
        for name in older:
            if name not in kept:
                self.place.remove(name)

    def _epochs(self) -> list[str]:
        return [name for name in self.place.names() if is_epoch(name)]

    def _metrics(self, epochs: Iterable[str]) -> dict[str, dict[str, float]]:
        """What is known about each epoch whose state is not damaged."""
        known = {}
        for name in epochs:
            try:
                known[name] = epoch_metrics(self.place, name)
            except BundleError as error:
                self._pass_over(name, error)
        return known

    def _newest_first(self) -> list[str]:
        positions = {}
        for name in self.place.names():
            try:
                step = int(state_of(self.place, name)["step"])
            except BundleError as error:
                self._pass_over(name, error)
            except OSError:
                # Nothing is known: try it first, and say what is wrong when that fails as well.
                positions[name] = (math.inf, True, number_of(name))
            else:
                positions[name] = (step, is_epoch(name), number_of(name))
        return sorted(positions, key=positions.__getitem__, reverse=True)

    def _pass_over(self, name: str, error: Exception) -> None:
        if name not in self._damaged:
            self.warn(f"{self.place.location}/{name}: passed over: {error}")
        self._damaged.add(name)


def _rank(metrics: dict[str, float], score: str, name: str) -> tuple[bool, float, int]:
    """Sorts the best first."""
    value = float(metrics[score])
    broken = not math.isfinite(value)
    return broken, 0.0 if broken else value, -number_of(name)
