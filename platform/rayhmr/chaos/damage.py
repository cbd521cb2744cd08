"""What is damaged, not killed: labels, disks, the files of a run; and killing without end."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hmr.errors import HmrError
from hmr.manifest import read_json, sha256, write_json
from rayhmr.chaos.lab import STEPS_PER_EPOCH, Lab, Record
from rayhmr.chaos.scenarios import expect
from rayhmr.data.schema import MANIFEST, ROW_GROUP, fingerprint
from rayhmr.ray_index import INDEX

KILL_EVERY_S = 20.0


def _poisoned(lab: Lab) -> tuple[Path, str]:
    """A copy of the data set in which one person's shape is no number; where, and who."""
    folder = lab.folder / "poisoned"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(lab.shards, folder)
    path = min(folder.glob("train-*.parquet"))
    table = pq.read_table(path)
    betas = np.array(table["betas"].to_pylist(), np.float32)
    betas[7] = np.nan
    column = pa.FixedSizeListArray.from_arrays(pa.array(betas.ravel()), betas.shape[1])
    number = table.schema.get_field_index("betas")
    table = table.set_column(number, table.schema.field(number), column.cast(table["betas"].type))
    pq.write_table(table, path, row_group_size=ROW_GROUP)
    # As if the person had been labelled so from the beginning.
    info = read_json(folder / MANIFEST)
    for file in info["files"]["train"]:
        if file["name"] == path.name:
            file |= {"bytes": path.stat().st_size, "sha256": sha256(path)}
    write_json(folder / MANIFEST, info | {"fingerprint": fingerprint(info["files"])})
    return folder, table["sample_id"][7].as_py()


def nan_skipped(lab: Lab) -> Record:
    """A person whose labels make the loss NaN: its step is left out and counted (R15)."""
    with lab.shared() as cluster:
        folder, _ = _poisoned(lab)
        with lab.run("nan_skipped", data__path=str(folder)) as run:
            run.start(cluster)
            outcome = run.job.wait()
            expect(outcome.code == 0, f"ended with {outcome.code}: {outcome.stderr[-400:]}")
            skipped = [fact["skipped_steps"] for fact in run.facts("epoch")]
            expected = list(range(1, lab.epochs + 1))
            expect(skipped == expected, f"skipped after each epoch: {skipped}, not {expected}")
            expect(len(run.starts()) == 1, "the workers were started again")
            return Record(
                scenario="nan_skipped", survived=True,
                note="its step left out once an epoch, counted",
            )  # fmt: skip


def nan_stopped(lab: Lab) -> Record:
    """The same with train.max_skipped=1: the run stops and names the samples (R15)."""
    with lab.shared() as cluster:
        folder, name = _poisoned(lab)
        settings = {"data__path": str(folder), "train__max_skipped": 1, "max_failures": 1}
        with lab.run("nan_stopped", **settings) as run:
            run.start(cluster)
            outcome = run.job.wait()
            expect(outcome.code == 1, f"ended with {outcome.code}")
            expect(name in outcome.stderr, f"{name} is not named: {outcome.stderr[-400:]}")
            return Record(
                scenario="nan_stopped", survived=True,
                note=f"exit 1, {name} named, {len(run.starts())} starts",
            )  # fmt: skip


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A file system of that size; HmrError where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise HmrError(f"not tried: a small disk needs root and mount ({error})") from error
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def fill(disk: Path) -> Path:
    """A file that leaves no room."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return ballast


def full_disk(lab: Lab) -> Record:
    """The disk of the checkpoints is full for a while (R13)."""
    with (
        small_disk(lab.folder / "disk", 200) as disk,
        lab.shared() as cluster,
        lab.run("full_disk", storage=str(disk / "runs"), data__record_samples=False) as run,
    ):
        run.start(cluster)

        def saved() -> list[str]:
            return sorted(path.name for path in run.folder.glob("step-*"))

        run.until(lambda: bool(run.facts("epoch")) and bool(saved()), "a checkpoint in epoch 2")
        ballast, before = fill(disk), saved()
        run.until(lambda: "could not be saved" in run.job.words(), "a failed save", 60)
        ballast.unlink()
        run.until(lambda: saved() > before, "a checkpoint after that", 60)
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than with an empty disk")
        restarts = (outcome.results or {})["restarts"]
        return Record(
            scenario="full_disk", survived=True,
            note=f"saves failed until there was room; {restarts} restarts, same weights",
        )  # fmt: skip


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damaged_files(lab: Lab) -> Record:
    """Between two runs Ray's index is emptied, and the newest checkpoint changed (R11, R12)."""
    with lab.shared() as cluster, lab.run("damaged_files") as run:
        run.start(cluster)

        def newest_step() -> Path:
            return max(run.folder.glob("step-*"), default=run.folder / "step-00000000")

        run.until(
            lambda: (
                int(newest_step().name[5:]) > STEPS_PER_EPOCH + 5 and (run.folder / INDEX).exists()
            ),
            "a second checkpoint in epoch 2",
        )
        wait = run.recovery()
        run.close()
        (run.folder / INDEX).write_bytes(b"")
        newest = newest_step()
        _flip_a_byte(newest / "model.safetensors")
        run.start(cluster)
        seconds = wait()
        outcome = run.job.wait()
        expect(f"{newest.name}" in outcome.stderr, f"{newest.name} is not reported")
        expect("index of checkpoints is empty" in outcome.stderr, "the index is not reported")
        expect(lab.same_weights(outcome), "other weights than without the damage")
        return Record(
            scenario="damaged_files", survived=True, kills=1, seconds=(seconds,),
            steps_lost=run.steps_lost(lab.total),
            note=f"index made again, {newest.name} passed over; both reported; same weights",
        )  # fmt: skip


def _memory(pid: int) -> tuple[int, int]:
    """Resident MB and open files of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20, len(os.listdir(f"/proc/{pid}/fd"))


def kills_without_end(lab: Lab) -> Record:
    """SIGKILL to a worker every 20 s for as long as the lab says (R17)."""
    epochs = max(lab.epochs, round(lab.kill_for_s / 10))
    total = epochs * STEPS_PER_EPOCH
    settings = {"train__epochs": epochs, "max_failures": 1000}
    with lab.shared() as cluster, lab.run("kills_without_end", **settings) as run:
        run.start(cluster)
        run.until_step(5)
        begun, seconds, growth = time.monotonic(), list[float](), list[tuple[int, int]]()
        while time.monotonic() - begun < lab.kill_for_s and run.position() < total - 20:
            killed = time.monotonic()
            pid = run.worker(len(seconds) % 2)
            wait = run.recovery()
            os.kill(pid, signal.SIGKILL)
            seconds.append(wait())
            growth.append(_memory(cluster.workers("ray::TrainController")[0]))
            time.sleep(max(0.0, killed + KILL_EVERY_S - time.monotonic()))
        outcome = run.job.wait(lab.kill_for_s + 240)
        wall = time.monotonic() - begun
        expect(outcome.code == 0, f"ended with {outcome.code}: {outcome.stderr[-400:]}")
        expect(not run.repeated_or_missing(lab.ids()), "samples did not count exactly once")
        left = [path.name for path in run.folder.glob("step-*")]
        expect(len(left) <= 2, f"{len(left)} checkpoints were left behind")
        step = statistics.median(fact["step_s"] for fact in run.facts("step"))
        (first_mb, first_files), (last_mb, last_files) = growth[0], growth[-1]
        return Record(
            scenario="kills_without_end", survived=True, kills=len(seconds),
            steps_lost=run.steps_lost(total), seconds=tuple(seconds),
            note=f"goodput {min(1.0, total * step / wall):.0%} of {wall:.0f} s; controller "
            f"{first_mb} to {last_mb} MB, {first_files} to {last_files} open files",
        )  # fmt: skip
