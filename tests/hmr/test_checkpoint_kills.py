"""SIGKILL at any moment of a save: nothing torn is accepted, nothing that was kept is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hmr.checkpoint_store import CheckpointStore
from hmr.manifest import read_json

NURSERY = r"""
import os, sys
from pathlib import Path

from hmr.checkpoint_store import CheckpointStore
from hmr.checkpoint_place import epoch_name, step_name
from hmr.manifest import read_json, write_json, write_manifest

RUN, KEPT = Path(sys.argv[1]), Path(sys.argv[2])
STEPS_AN_EPOCH = 5


def state_of(step):
    def write(folder):
        content = step.to_bytes(8, "little") * (500 + step % 7)
        for number in range(3):
            (folder / f"part-{number}.bin").write_bytes(content)
        epoch, rest = divmod(step, STEPS_AN_EPOCH)
        history = [] if rest else [{"val/pa_mpjpe_mm": float(-step)}]
        write_json(folder / "state.json", {"step": step, "history": history})
        write_manifest(folder, {"kind": "training state"})
    return write


def save_for_ever():
    store = CheckpointStore(RUN, 1, keep_epochs=1, score="val/pa_mpjpe_mm")
    store.tidy()
    newest = store.newest()
    step = 1 if newest is None else read_json(newest / "state.json")["step"]
    kept = os.open(KEPT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while True:
        # First the newest once more: replacing a checkpoint can be cut off, too.
        epoch, rest = divmod(step, STEPS_AN_EPOCH)
        store.save(step_name(step) if rest else epoch_name(epoch), state_of(step))
        if store.wait():
            os.write(kept, b"%d\n" % step)
        step += 1


print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        try:
            save_for_ever()
        finally:
            os._exit(1)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""
"""Starts one writer for each line it reads: a fork costs milliseconds, an interpreter does not."""


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(tmp_path / "run"), str(tmp_path / "kept")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def kill_a_writer(nursery: subprocess.Popen[str], after_s: float) -> None:
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write("\n")
    nursery.stdin.flush()
    writer = int(nursery.stdout.readline())
    time.sleep(after_s)
    os.kill(writer, signal.SIGKILL)
    assert nursery.stdout.readline() == "dead\n"


def assert_whole(folder: Path) -> int:
    """The step of a checkpoint whose files all belong to that step."""
    step = int(read_json(folder / "state.json")["step"])
    for number in range(3):
        expected = step.to_bytes(8, "little") * (500 + step % 7)
        assert (folder / f"part-{number}.bin").read_bytes() == expected
    return step


def kill_many(nursery: subprocess.Popen[str], tmp_path: Path, times: int) -> None:
    rng = random.Random(7)
    run, kept = tmp_path / "run", tmp_path / "kept"
    caught, reached, life_s = 0, 0, 0.06
    for _ in range(times):
        before = reached
        kill_a_writer(nursery, rng.uniform(0, life_s))
        caught += any(run.glob(".*")) if run.exists() else 0
        warnings: list[str] = []
        store = CheckpointStore(run, 1, warn=warnings.append)
        store.tidy()
        left = sorted(path.name for path in run.iterdir()) if run.exists() else []
        assert not [name for name in left if name.startswith(".")]
        newest = store.newest()
        promised = [int(line) for line in kept.read_text().split()] if kept.exists() else []
        if promised:
            assert newest is not None
        if newest is not None:
            # At most the last save was finished without its writer living to say so.
            step = assert_whole(newest)
            assert step >= max([*promised, reached])
            reached = step
        assert warnings == [], "no checkpoint in sight is damaged"
        assert len(left) <= 3, "one inside an epoch, one at the end of one, and one more"
        # About as long as a save takes on this machine at this moment.
        life_s *= 0.92 if reached > before else 1.06
    assert reached > times / 5, "the writers have come on"
    assert caught > times / 10, "and were caught in the act"


def test_two_hundred_kills_lose_nothing(nursery: subprocess.Popen[str], tmp_path: Path) -> None:
    kill_many(nursery, tmp_path, 200)


@pytest.mark.chaos
def test_two_thousand_kills_lose_nothing(nursery: subprocess.Popen[str], tmp_path: Path) -> None:
    kill_many(nursery, tmp_path, 2000)
