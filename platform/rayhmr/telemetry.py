"""What a run tells people and files while it goes on: lines on stderr, metrics.jsonl, TensorBoard,
pictures.

Facts are made in the training workers and shown by the driver. A `Board` carries them: an actor
without CPU to which workers post and from which the driver takes. A worker never waits for it, and
a lost board costs lines, not the run.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from rayhmr.log import say as say

POLL_S = 1.0
METRICS = "metrics.jsonl"
PICTURES = "pictures"


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


def numbers_of(facts: dict[str, Any]) -> dict[str, float]:
    """The curves' names and values in a fact: `loss/<term>`, `weighted/<term>` and `step/<what>` of
    a step, whatever has a `/` in its name of an epoch or a validation, nothing of other facts."""
    if facts["kind"] in ("epoch", "validation"):
        return {k: v for k, v in facts.items() if isinstance(v, float) and "/" in k}
    if facts["kind"] != "step":
        return {}
    numbers = {f"loss/{_TOTAL.get(k, k)}": v for k, v in facts["losses"].items()}
    numbers |= {f"weighted/{k}": v for k, v in facts.get("weighted", {}).items()}
    return numbers | {f"step/{k}": facts[k] for k in _STEP_NUMBERS if facts.get(k) is not None}


_TOTAL = {"loss": "total"}
_STEP_NUMBERS = (
    "lr", "lr_encoder", "images_per_s", "data_wait", "step_s", "grad_norm", "skipped_steps",
)  # fmt: skip


class RunLog:
    """metrics.jsonl, TensorBoard events and pictures/ in a run's folder on this machine.

    Each line of metrics.jsonl is one fact with the time it was written. A run that resumes appends;
    `read_metrics` knows which lines count. Of a fact of kind "pictures" the image, PNG bytes or
    (H, W, 3) uint8, becomes a file, which the line names. mirror: gets every fact, too.

    Where the files cannot be written, lines are lost, not the run; it is said once.
    """

    def __init__(
        self, folder: Path, mirror: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        from tensorboardX import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._mirror, self._failed = folder, mirror, False
        # Without a buffer, nothing of a line that could not be written comes later.
        self._lines = (folder / METRICS).open("ab+", buffering=0)
        self._torn = _ends_torn(self._lines)
        self._board = SummaryWriter(
            logdir=str(folder / "tensorboard"), flush_secs=10,
            # The name alone has seconds; another start within one would write over the file.
            filename_suffix=f".{time.time_ns()}",
        )  # fmt: skip
        # Its thread would die of a full disk, and whoever gives it numbers then wait for ever.
        events = self._board.file_writer.event_writer._ev_writer
        for name in ("write_event", "flush", "close"):
            setattr(events, name, _forgiving(getattr(events, name)))

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
        """Keep one fact; numbers and pictures also go to TensorBoard."""
        if facts["kind"] == "pictures" and not isinstance(facts["image"], bytes):
            from hmr.validation_pictures import to_png  # with torch, which not all who speak need

            facts = facts | {"image": to_png(facts["image"])}
        try:
            self._keep(facts)
        except OSError as error:
            if not self._failed:
                say(f"{self.folder}: cannot be written ({error}); lines are lost, the run goes on")
            self._failed = True
        if self._mirror is not None:
            self._mirror(facts)

    def _keep(self, facts: dict[str, Any]) -> None:
        line = {"time": round(time.time(), 3)} | facts
        if facts["kind"] == "pictures":
            from hmr.crops import decode_image

            image = line.pop("image")
            line["file"] = self._keep_picture(image, int(facts["step"]))
            self._board.add_image(
                "validation/people", decode_image(image), int(facts["step"]), dataformats="HWC"
            )
        elif facts["kind"] == "resume":
            self._forget_after(int(facts["step"]))
        self._append((json.dumps(line) + "\n").encode())
        for name, value in numbers_of(facts).items():
            self._board.add_scalar(name, value, int(facts["step"]))

    def _append(self, content: bytes) -> None:
        if self._torn:
            content = b"\n" + content
        self._torn = True
        while content:  # a file without a buffer may take a part
            content = content[self._lines.write(content) :]
        self._torn = False

    def _keep_picture(self, image: bytes, step: int) -> str:
        """The file's name in the run's folder."""
        name = f"{PICTURES}/step-{step:08d}.png"
        (self.folder / PICTURES).mkdir(exist_ok=True)
        partial = self.folder / PICTURES / ".partial"
        partial.write_bytes(image)
        partial.replace(self.folder / name)
        return name

    def _forget_after(self, step: int) -> None:
        """TensorBoard shows no earlier point of a later step any more."""
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        self._board.file_writer.add_event(Event(step=step + 1, session_log=start))


def _forgiving(write: Callable[..., object]) -> Callable[..., None]:
    """The same, but what cannot be written is lost."""

    def call(*arguments: object) -> None:
        with suppress(OSError):
            write(*arguments)

    return call


def _ends_torn(file: FileIO) -> bool:
    """Whether the last line of a file has no end."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that count, in the order they were written.

    A run that resumes does some steps again. So a line takes the place of earlier ones of its kind
    with the same or a later step, and a resume that of all earlier ones with a later step. What a
    kill left of a line is passed over.
    """
    kept: list[dict[str, Any]] = []
    later: dict[tuple[str | None, str], float] = {}
    for line in reversed(list(_whole_lines(path))):
        step = line.get("step")
        if step is None:
            kept.append(line)
            continue
        # Runs side by side have labels.
        own, resumed = (line.get("label"), line["kind"]), (line.get("label"), "resume")
        again = line["kind"] != "resume" and step >= later.get(own, math.inf)
        if not again and step <= later.get(resumed, math.inf):
            kept.append(line)
        later[own] = min(step, later.get(own, math.inf))
    return kept[::-1]


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for content in file:
            try:
                line = json.loads(content)
            except ValueError:  # also of bytes that are no UTF-8
                continue
            if isinstance(line, dict) and "kind" in line:
                yield line
