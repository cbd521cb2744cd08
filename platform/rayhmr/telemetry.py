"""What a run tells people and files while it goes on: lines on stderr, metrics.jsonl, TensorBoard.

Facts are made in the training workers and shown by the driver. A `Board` carries them: an actor
without CPU to which workers post and from which the driver takes. A worker never waits for it, and
a lost board costs lines, not the run.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

POLL_S = 1.0


def say(text: str) -> None:
    """A line for people, on stderr; stdout belongs to the results."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class _BoardState:
    """The actor behind a Board. Old facts are dropped when nobody takes them."""

    def __init__(self, limit: int = 10_000) -> None:
        self.facts: list[dict[str, Any]] = []
        self.limit = limit

    def post(self, facts: dict[str, Any]) -> None:
        self.facts.append(facts)
        del self.facts[: -self.limit]

    def take(self) -> list[dict[str, Any]]:
        taken, self.facts = self.facts, []
        return taken


class Board:
    """A place where workers leave facts for the driver; travels to them by pickling."""

    def __init__(self) -> None:
        actor = ray.remote(num_cpus=0, max_restarts=-1)(_BoardState)
        self._state: Any = actor.remote()

    def post(self, facts: dict[str, Any]) -> None:
        """Leave facts; returns at once."""
        self._state.post.remote(facts)

    def take(self, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """Everything posted since the last call; nothing when the board cannot be reached."""
        try:
            taken: list[dict[str, Any]] = ray.get(self._state.take.remote(), timeout=timeout_s)
        except (ray.exceptions.RayError, TimeoutError):
            return []
        return taken


@contextmanager
def watching(board: Board, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Call `show` with every fact, from a thread, until the block ends; then with the rest."""
    stop = threading.Event()

    def drain() -> None:
        for facts in board.take():
            show(facts)

    def loop() -> None:
        while not stop.wait(POLL_S):
            drain()

    thread = threading.Thread(target=loop, name="rayhmr-board", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        drain()


def worker_facts(rank: int) -> dict[str, Any]:
    """Where a training worker runs, for the log."""
    return {"kind": "worker", "rank": rank, "pid": os.getpid(), "host": socket.gethostname()}


class RunLog:
    """metrics.jsonl and TensorBoard events in a run's folder on this machine.

    Each line of metrics.jsonl is one fact with the time it was written. A run that resumes appends;
    of two lines with one step the later one counts.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(logdir=str(folder / "tensorboard"), flush_secs=10)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._board.close()

    def write(self, facts: dict[str, Any]) -> None:
        """Keep one fact; the numbers of steps and epochs also go to TensorBoard."""
        self._lines.write(json.dumps({"time": round(time.time(), 3)} | facts) + "\n")
        self._lines.flush()
        if facts["kind"] == "step":
            numbers = {f"step/{name}": value for name, value in facts["losses"].items()}
            numbers |= {"step/lr": facts["lr"], "step/images_per_s": facts["images_per_s"]}
        elif facts["kind"] == "epoch":
            numbers = {k: v for k, v in facts.items() if isinstance(v, float) and "/" in k}
        else:
            return
        for name, value in numbers.items():
            self._board.add_scalar(name, value, int(facts["step"]))
