"""Ending a run early without losing a step: SIGTERM to the driver becomes a wish of the workers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from rayhmr.telemetry import say


class _Flag:
    """The actor behind a StopFlag."""

    def __init__(self) -> None:
        self.wanted = False

    def want(self) -> None:
        self.wanted = True

    def is_wanted(self) -> bool:
        return self.wanted


class StopFlag:
    """What the driver says to its workers; travels to them by pickling."""

    def __init__(self) -> None:
        self._flag: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Flag).remote()

    def want(self) -> None:
        """Ask for the end; returns at once."""
        self._flag.want.remote()

    def is_wanted(self, timeout_s: float = 10.0) -> bool:
        """Whether the end was asked for; no when the flag cannot be reached."""
        try:
            return bool(ray.get(self._flag.is_wanted.remote(), timeout=timeout_s))
        except (ray.exceptions.RayError, TimeoutError):
            return False


@contextmanager
def terminating(then: Callable[[], None]) -> Iterator[threading.Event]:
    """While the block runs, the first SIGTERM calls `then`, from a thread, and sets the event; the
    second one ends the process. Outside the main thread nothing changes."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.getsignal(signal.SIGTERM)

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise SystemExit(128 + number)
        asked.set()
        say("SIGTERM: keeping a checkpoint, then ending; once more to end at once")
        # A signal may come in the middle of anything; Ray is called from elsewhere.
        threading.Thread(target=then, daemon=True).start()

    signal.signal(signal.SIGTERM, heard)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
