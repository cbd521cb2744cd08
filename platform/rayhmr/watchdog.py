"""A worker that hangs is worse than one that dies: nobody restarts it. So it is made to die."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from collections.abc import Callable

EXIT_CODE = 70
"""Of a process that its watchdog ended."""


def _end_process() -> None:
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)


class Watchdog:
    """Ends this process, with the stack of every thread on stderr, when `alive` is not called for
    `timeout_s` after it was called once: how long a start takes is not its business. In
    data-parallel training the others wait for the one that hangs, and theirs end them as well."""

    def __init__(self, timeout_s: float, end: Callable[[], None] = _end_process) -> None:
        self._timeout_s, self._end = timeout_s, end
        self._seen = math.inf
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def alive(self) -> None:
        """A sign of life."""
        self._seen = time.monotonic()

    def pause(self) -> None:
        """Watch again from the next sign of life on."""
        self._seen = math.inf

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._timeout_s / 4)):
            silent = time.monotonic() - self._seen
            if silent > self._timeout_s:
                sys.stderr.write(
                    f"no training step for {silent:.0f} s (train.hang_timeout_s="
                    f"{self._timeout_s:g}): this worker hangs and is ended; the run restarts\n"
                )
                self._end()
                return
