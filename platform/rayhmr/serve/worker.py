"""The process with the model: it dials the one that answers HTTP, and computes what it is sent.

One thread, blocking reads: nothing stands between a batch and the model. A connection that breaks
is dialled again, so either side may die and come back.
"""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence

from rayhmr.serve import exchange, wire
from rayhmr.serve.exchange import Introduction
from rayhmr.serve.inference import Computed, Prepared

DIAL_EVERY_S = 0.2
IDLE_S = 1.0

Compute = Callable[[Sequence[Prepared]], Sequence[Computed | Exception]]

_log = logging.getLogger(__name__)


class Worker:
    """Computes batches for whoever listens at a Unix socket, until `stop`."""

    def __init__(self, compute: Compute, introduction: Introduction, address: str) -> None:
        self._compute, self._address = compute, address
        self._hello = exchange.introduction_message(introduction)
        self._stopped = threading.Event()
        self._connection: socket.socket | None = None
        self._lock = threading.Lock()
        self._load, self._answered = 0, time.monotonic()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def load(self) -> int:
        """Pictures of the last batch, and those that waited behind it; 0 once nothing comes."""
        return self._load if time.monotonic() - self._answered < IDLE_S else 0

    @property
    def is_alive(self) -> bool:
        """Whether it computes or dials."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Dial from now on."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End what is under way, take nothing more, hang up."""
        self._stopped.set()
        with self._lock:
            if self._connection is not None:
                # Wakes a thread that waits for a batch; an answer can still be sent.
                self._connection.shutdown(socket.SHUT_RD)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(self._address)
                    self._serve(connection)
            except OSError:  # nobody listens (yet), or the other side has died
                pass
            except Exception:
                _log.exception("a message that cannot be read; dialling again")
            self._load = 0
            self._stopped.wait(DIAL_EVERY_S)

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            if self._stopped.is_set():
                return
            self._connection = connection
        try:
            wire.send(connection, *self._hello)
            while (message := wire.receive(connection)) is not None:
                items = exchange.read_batch(message)
                self._load = len(items) + message[0]["waiting"]
                self._answered = math.inf  # not yet, however long it takes
                results = self._compute(items)
                wire.send(connection, *exchange.answer_message(results))
                self._answered = time.monotonic()
        finally:
            with self._lock:
                self._connection = None
