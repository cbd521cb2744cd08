"""A disk that is full in the middle of a save: the save fails, what was saved stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hmr.checkpoint_place import step_name
from hmr.checkpoint_store import CheckpointStore
from hmr.errors import HmrError
from hmr.manifest import write_json, write_manifest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def state(step: int, size: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step]) * size)
        write_json(folder / "state.json", {"step": step})
        write_manifest(folder, {"kind": "training state"})

    return write


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_a_full_disk_leaves_the_old_checkpoints(small_disk: Path) -> None:
    warnings: list[str] = []
    store = CheckpointStore(small_disk / "run", 3, warn=warnings.append)
    assert store.save(step_name(1), state(1, 200_000), wait=True)
    assert store.save(step_name(2), state(2, 200_000), wait=True)
    # There is room for two and a half like the last one, but not for this one.
    for number in (1, 2):
        assert not store.save(step_name(2 + number), state(3, 900_000), wait=True)
        assert f"failure {number} of 3 in a row: [Errno 28] No space left" in warnings[-1]
        assert sorted(os.listdir(small_disk / "run")) == [step_name(1), step_name(2)]
        assert store.newest_name() == step_name(2)
    assert store.save(step_name(5), state(5, 200_000), wait=True), "a smaller one fits"
    # Now there is not: the attempt is not even made.
    assert not store.save(step_name(6), state(6, 200_000), wait=True)
    assert "bytes are free, saving step-00000006 needs" in warnings[-1]
    store.save(step_name(7), state(7, 200_000), wait=True)
    with pytest.raises(HmrError, match="3 checkpoints in a row could not be saved"):
        store.save(step_name(8), state(8, 200_000), wait=True)
    assert sorted(os.listdir(small_disk / "run")) == [step_name(n) for n in (1, 2, 5)]
    assert store.newest_name() == step_name(5)


LIMITED = """
import resource, sys
from pathlib import Path

from hmr.checkpoint_place import epoch_name
from hmr.checkpoint_store import CheckpointStore
from hmr.errors import HmrError
from hmr.manifest import write_json, write_manifest


def state(step, size):
    def write(folder):
        (folder / "model.safetensors").write_bytes(bytes([step]) * size)
        write_json(folder / "state.json", {"step": step})
        write_manifest(folder, {"kind": "training state"})
    return write


run = Path(sys.argv[1])
store = CheckpointStore(run, 3)
assert store.save(epoch_name(1), state(1, 100_000), wait=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
assert not store.save(epoch_name(2), state(2, 200_000), wait=True)
assert not store.save(epoch_name(2), state(2, 200_000), wait=True)
assert store.save(epoch_name(2), state(2, 120_000), wait=True)
for epoch in (3, 4, 5):
    store.save(epoch_name(epoch), state(epoch, 200_000))
try:
    store.wait()
except HmrError as error:
    sys.exit(str(error))
"""


def test_a_run_that_cannot_write_any_more_ends_with_the_reason(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "run")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 6
    assert "epoch-0002 could not be saved, failure 2 of 3 in a row: [Errno 27] File too" in lines[1]
    assert "3 checkpoints in a row could not be saved, the last one (epoch-0005)" in lines[-1]
    assert "cure the cause and start the same command again" in lines[-1]
    assert sorted(os.listdir(tmp_path / "run")) == ["epoch-0001", "epoch-0002"]
    assert CheckpointStore(tmp_path / "run", 3).newest_name() == "epoch-0002"
