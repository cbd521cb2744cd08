"""Ending a run early without losing a step: signals to the driver become wishes of the workers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
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


class Asked(threading.Event):
    """Set by a signal. number: which one it was."""

    number: int = signal.SIGTERM

    @property
    def exit_code(self) -> int:
        """What a process ends with that such a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.number


@contextmanager
def terminating(
    then: Callable[[], None], numbers: Sequence[signal.Signals] = (signal.SIGTERM,)
) -> Iterator[Asked]:
    """While the block runs, the first of these signals calls `then`, from a thread, and sets the
    event; the second one ends the process. Outside the main thread nothing changes."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in numbers}

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise SystemExit(128 + number)
        asked.number = number
        asked.set()
        name = signal.Signals(number).name
        say(f"{name}: keeping a checkpoint, then ending; once more to end at once")
        # A signal may come in the middle of anything; Ray is called from elsewhere.
        threading.Thread(target=then, daemon=True).start()

    for number in numbers:
        signal.signal(number, heard)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
