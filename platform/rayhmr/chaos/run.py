"""One training job as a subprocess, watched through what it writes, and ended when it takes too
long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmr.errors import HmrError
from hmr.manifest import sha256
from rayhmr.chaos.cluster import ChaosCluster

POLL_S = 0.1
PATIENCE_S = 420.0
"""Longest wait for anything: what takes longer hangs."""


class OverdueError(HmrError):
    """Something did not happen in the time it had."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended. results: the last line of stdout; none unless the exit code is 0."""

    code: int
    results: dict[str, Any] | None
    stderr: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a worker recorded about one step of one start (`data.record_samples`)."""

    epoch: int
    step: int
    rank: int
    start: int
    ids: tuple[str, ...]


def job_script(name: str) -> Path:
    """jobs/<name>.py of this checkout; HmrError where there is none."""
    path = Path(__file__).resolve().parents[3] / "jobs" / f"{name}.py"
    if not path.is_file():
        raise HmrError(
            f"{path}: is not there; this needs the repository, not the installed package"
        )
    return path


class JobProcess:
    """`python jobs/<name>.py key=value …` on a cluster.

    prefix: a command that runs it elsewhere, as `ip netns exec one`.
    """

    def __init__(
        self, name: str, settings: Mapping[str, Any], cluster: ChaosCluster, *,
        prefix: Sequence[str] = (),
    ) -> None:  # fmt: skip
        words = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        command = [*prefix, sys.executable, str(job_script(name)), *words]
        self._out = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115, closed with the job
        self._err = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, f"cluster.address={cluster.address}"], stdin=subprocess.DEVNULL,
            stdout=self._out, stderr=self._err, text=True, start_new_session=True,
            env=cluster.environment,
        )  # fmt: skip

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """A signal to the job, and to nothing else."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> Outcome:
        """The end of the job; OverdueError when it does not come."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise OverdueError(
                f"no end within {timeout_s:g} s; last words: {self.words()}"
            ) from error
        self._out.seek(0)
        self._err.seek(0)
        lines = self._out.read().strip().splitlines()
        results = json.loads(lines[-1]) if code == 0 else None
        return Outcome(code=code, results=results, stderr=self._err.read())

    def words(self) -> str:
        """What it said last."""
        # A second handle: the job writes at the place where this one reads.
        text = Path(f"/proc/self/fd/{self._err.fileno()}").read_text(errors="replace")
        return text[-600:].strip()

    def close(self) -> None:
        """End it if it runs."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._out.close()
        self._err.close()


class TrainRun:
    """A training job with samples recorded, started once or several times."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {"data.record_samples": True} | dict(settings)
        self.folder = Path(settings["storage"]) / settings["name"]
        self.steps_per_epoch: int = settings["steps_per_epoch"]
        del self.settings["steps_per_epoch"]
        self._job: JobProcess | None = None

    @property
    def job(self) -> JobProcess:
        """The job as it was started last; HmrError before that."""
        if self._job is None:
            raise HmrError(f"{self.folder.name}: was not started")
        return self._job

    def start(self, cluster: ChaosCluster, prefix: Sequence[str] = ()) -> JobProcess:
        """Start the job, again if need be. prefix: see `JobProcess`."""
        self.close()
        self._job = JobProcess("train", self.settings, cluster, prefix=prefix)
        return self._job

    def close(self) -> None:
        """End the job if it runs."""
        if self._job is not None:
            self._job.close()

    def __enter__(self) -> TrainRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def facts(self, kind: str) -> list[dict[str, Any]]:
        """What the workers told of this kind, in order."""
        path = self.folder / "metrics.jsonl"
        lines = _whole_lines(path) if path.exists() else []
        return [fact for fact in lines if fact.get("kind") == kind]

    def starts(self) -> list[dict[int, Path]]:
        """For each start of the workers the file of every rank's samples."""
        starts: dict[int, dict[int, Path]] = {}
        for path in (self.folder / "samples").glob("*.jsonl"):
            number, _, rank = path.stem.partition("-rank")
            starts.setdefault(int(number), {})[int(rank)] = path
        return [starts[number] for number in sorted(starts)]

    def lines(self) -> list[Line]:
        """What was recorded, in the order of the starts."""
        return [
            Line(
                epoch=line["epoch"], step=line["step"], rank=line["rank"], start=number,
                ids=tuple(line["ids"]),
            )
            for number, files in enumerate(self.starts())
            for path in files.values()
            for line in _whole_lines(path)
        ]  # fmt: skip

    def position(self) -> int:
        """Steps begun since the beginning of the run, by the newest start that made one."""
        begun = [line for line in self.lines() if line.rank == 0]
        if not begun:
            return 0
        newest = max(line.start for line in begun)
        last = max((line.epoch, line.step) for line in begun if line.start == newest)
        return last[0] * self.steps_per_epoch + last[1] + 1

    def until(
        self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S
    ) -> float:
        """Wait until something is so; how many seconds it took. OverdueError when it takes longer,
        HmrError when the job ends before."""
        begun = time.monotonic()
        while not condition():
            if not self.job.running:
                outcome = self.job.wait()
                if condition():
                    break
                raise HmrError(f"ended with {outcome.code} before {what}: {outcome.stderr[-600:]}")
            if time.monotonic() - begun > timeout_s:
                raise OverdueError(f"{what}: not within {timeout_s:g} s; {self.job.words()}")
            time.sleep(POLL_S)
        return time.monotonic() - begun

    def until_step(self, step: int) -> None:
        """Wait until that many steps were begun."""
        self.until(lambda: self.position() >= step, f"step {step}")

    def recovery(self) -> Callable[[], float]:
        """To be called now, before a fault: a function that waits until workers that start later
        have made one step, and says how many seconds after now that was."""
        before, begun = len(self.starts()), time.monotonic()

        def stepped() -> bool:
            return any(line.start >= before and line.rank == 0 for line in self.lines())

        def wait() -> float:
            self.until(stepped, "a step after the fault")
            return time.monotonic() - begun

        return wait

    def worker(self, rank: int) -> int:
        """The process of a rank, as it was started last; waits until all ranks are known."""
        known = len(self.starts())
        self.until(
            lambda: len([f for f in self.facts("worker") if f["rank"] == rank]) >= known,
            f"news of rank {rank}",
        )
        pids = [f["pid"] for f in self.facts("worker") if f["rank"] == rank]
        return int(pids[-1])

    def steps_lost(self, total: int) -> int:
        """Steps that were begun more than once."""
        return len([line for line in self.lines() if line.rank == 0]) - total

    def repeated_or_missing(self, ids: set[str]) -> list[str]:
        """Samples that did not count exactly once in every epoch; what was done again counts
        once."""
        valid: dict[tuple[int, int], int] = {}
        lines = self.lines()
        for line in lines:
            if line.rank == 0:
                at = line.epoch, line.step
                valid[at] = max(valid.get(at, 0), line.start)
        seen: dict[int, Counter[str]] = {}
        for line in lines:
            if line.start == valid.get((line.epoch, line.step)):
                seen.setdefault(line.epoch, Counter()).update(line.ids)
        return sorted(
            {name for counts in seen.values() for name in ids | set(counts) if counts[name] != 1}
        )


def weights_hash(outcome: Outcome) -> str:
    """sha256 of the final weights; HmrError when the job did not get so far."""
    if outcome.results is None:
        raise HmrError(f"ended with {outcome.code}: {outcome.stderr[-600:].strip()}")
    return sha256(Path(outcome.results["bundle"]) / "model.safetensors")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """What is in the lines of a file; not those that are being written, or that a kill cut off."""
    whole = []
    for text in path.read_bytes().splitlines(keepends=True):
        with suppress(ValueError):
            if text.endswith(b"\n"):
                whole.append(json.loads(text))
    return whole
