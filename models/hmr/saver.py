"""Saving in the background: one thread, one step checkpoint in the queue, failures counted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from hmr.errors import HmrError


@dataclass
class _Save:
    name: str
    work: Callable[[], None]
    droppable: bool


class Saver:
    """Runs saves one after the other while its caller goes on.

    Of droppable saves only the newest waits: a slow disk must cost checkpoints, neither steps nor
    memory. A failed save is told through `warn`, from the thread, and counted in `failures`; the
    next one that works sets that to 0. After `limit` failures in a row `check` and `put` raise.
    """

    def __init__(self, what: str, warn: Callable[[str], None], limit: int) -> None:
        self.what, self.warn, self.limit = what, warn, limit
        self.failures = 0
        self._waiting: list[_Save] = []
        self._current: _Save | None = None
        self._failed: set[str] = set()
        self._state = threading.Condition()
        self._last: tuple[str, Exception] | None = None

    def put(self, name: str, work: Callable[[], None], *, droppable: bool) -> None:
        """Queue a save."""
        self.check()
        save = _Save(name, work, droppable)
        with self._state:
            self._failed |= {older.name for older in self._waiting if older.droppable}
            self._waiting = [older for older in self._waiting if not older.droppable] + [save]
            if self._current is None:
                self._current = self._waiting.pop(0)
                # The thread ends with its work and is no daemon: a process that ends normally
                # waits for the save under way, and needs no call for that.
                threading.Thread(target=self._run, name="checkpoint-saver").start()

    def check(self) -> None:
        """HmrError when the last `limit` saves have failed."""
        if self.failures < self.limit or self._last is None:
            return
        name, error = self._last
        raise HmrError(
            f"{self.what}: {self.failures} checkpoints in a row could not be saved, the last one "
            f"({name}) because: {error}; what was saved before is intact: cure the cause and "
            "start the same command again"
        ) from error

    def wait(self, name: str | None = None) -> bool:
        """Wait until the save of that name has ended, or until nothing is queued; whether it, or
        the last one, has worked. A save that was dropped for a newer one has not."""
        with self._state:
            if name is None:
                self._state.wait_for(lambda: self._current is None)
                return self.failures == 0
            self._state.wait_for(lambda: name not in self._queued())
            return name not in self._failed

    def _queued(self) -> list[str]:
        return [save.name for save in (self._current, *self._waiting) if save is not None]

    def _run(self) -> None:
        save = self._current
        while save is not None:
            self._do(save)
            with self._state:
                # What this thread does next it learns while nobody else can queue anything.
                save = self._current = self._waiting.pop(0) if self._waiting else None
                self._state.notify_all()

    def _do(self, save: _Save) -> None:
        try:
            save.work()
        except Exception as error:
            self._last = (save.name, error)
            self._failed.add(save.name)
            self.failures += 1
            self.warn(
                f"{self.what}: {save.name} could not be saved, failure {self.failures} of "
                f"{self.limit} in a row: {error}"
            )
        else:
            self._failed.discard(save.name)
            self.failures = 0
