"""What trials gain by what a node shares: `jobs/benchmark.py tune`.

The same trial, without Ray, takes turns: it reads shards, it reads decoded pixels, and, where its
encoder is frozen, it reads features. A turn is a whole trial of few epochs, from a new model to the
last validation; making a cache is measured beside it, since it happens once a study and node.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hmr.body import Body
from hmr.config import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.local_context import LocalContext
from hmr.training import fit
from rayhmr.benchmark_people import make_frames, make_shards
from rayhmr.config import DataConfig, TrainJob
from rayhmr.data.cache import Cached, open_cached
from rayhmr.data.reading import fetch_here
from rayhmr.data.schema import DatasetInfo
from rayhmr.data.stream import ShardStream, split_files
from rayhmr.starting_model import encoding_of, starting_model
from rayhmr.telemetry import say

EPOCHS = 2
"""Of a trial's turn."""
MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """people: drawn anew; each stands `copies` times in `files` files, the last of which is the
    validation split. image_size: stored and seen."""

    people: int = 64
    copies: int = 36
    files: int = 9
    image_size: int = 64
    batch_size: int = 64


@dataclass(frozen=True)
class Candidate:
    """A kind of `data.cache` for a trial with a frozen or a trained encoder."""

    cache: str
    frozen: bool

    @property
    def name(self) -> str:
        """As in the figures."""
        return self.cache if self.frozen else f"{self.cache}_trained"


CANDIDATES = (
    Candidate("none", True), Candidate("decoded", True), Candidate("features", True),
    Candidate("none", False), Candidate("decoded", False),
)  # fmt: skip


def sizes() -> Sizes:
    """ResNet-50 at 224 px where there is a GPU, else the small encoder at 64 px."""
    if torch.cuda.is_available():
        return Sizes(people=128, copies=72, image_size=224, batch_size=256)
    return Sizes()


def trial_job(candidate: Candidate, size: Sizes, folder: Path) -> TrainJob:
    """The settings of a trial; they differ in the cache alone, and in what is trained."""
    on_gpu = torch.cuda.is_available()
    return TrainJob(
        data=DataConfig(
            cache=candidate.cache, cache_folder=str(folder / "cache"),
            decode_threads=4 if on_gpu else 1,
        ),
        model=ModelConfig(encoder="resnet50", image_size=size.image_size, hidden=1024) if on_gpu
        else ModelConfig(image_size=size.image_size),
        train=TrainConfig(
            epochs=EPOCHS, batch_size=size.batch_size, precision="auto", log_every=10_000,
            freeze_encoder=candidate.frozen, optimizer=OptimizerConfig(lr=1e-4),
            losses=LossConfig(keypoint_error="l1", scale=1.0),
            augment=AugmentConfig(preset="none" if candidate.frozen else "default"),
        ),
    )  # fmt: skip


class _Unkept(LocalContext):
    """Keeps nothing: the disk has no say in the times."""

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """No checkpoint."""

    def report(self, metrics: dict[str, float], checkpoint: str) -> None:
        """Nothing to wait for."""


def _shards(folder: Path, size: Sizes) -> DatasetInfo:
    """The training files, and the last one to validate on."""
    people = make_frames(folder, people=size.people, side=3 * size.image_size)
    info = make_shards(
        folder, people, image_size=size.image_size, copies=size.copies, files=size.files
    )
    *train, val = info.files["train"]
    return replace(
        info, fingerprint="benchmark", files={"train": train, "val": [val]},
        statistics={"labelled": 0},
    )  # fmt: skip


def run_trial(job: TrainJob, info: DatasetInfo, folder: Path) -> Cached | None:
    """A whole trial on this machine, all that a worker does but Ray; what it read from, closed."""
    context = _Unkept(folder / "unkept")
    torch.set_num_threads(job.train.threads)
    model = starting_model(job, info).to(context.device)
    files, batch_size = split_files(info, "train"), job.train.batch_size
    encoding = None
    if job.data.cache == "features":
        encoding = encoding_of(model, job.train, batch_size=batch_size)
    cached = open_cached(
        info, files, split_files(info, "val"), config=job.data, encoding=encoding, warn=say,
        image_size=job.model.image_size,
    )  # fmt: skip
    fetch = fetch_here(info.location)
    stream = ShardStream(
        info, config=job.data, fetch=fetch, fetch_val=fetch, batch_size=batch_size,
        image_size=job.model.image_size, seed=job.train.seed, epochs=job.train.epochs, lanes=1,
        rank=0, world_size=1, cached=cached,
    )  # fmt: skip
    with closing(stream):
        fit(
            job.train, model=model, body=Body.from_config(job.body), data=stream, context=context,
            log=lambda facts: None,
        )  # fmt: skip
    return cached


def _timed(job: TrainJob, info: DatasetInfo, folder: Path) -> tuple[float, float]:
    """Wall and CPU seconds of an epoch of a trial."""
    wall, cpu = time.perf_counter(), time.process_time()
    run_trial(job, info, folder)
    return (time.perf_counter() - wall) / EPOCHS, (time.process_time() - cpu) / EPOCHS


def alone(folder: str, number: int) -> None:
    """One trial of a candidate in a process of its own; prints the most memory it held, in MB."""
    place = Path(folder)
    stored = json.loads((place / "trial.json").read_text())
    job = trial_job(CANDIDATES[number], Sizes(**stored["sizes"]), place)
    run_trial(job, DatasetInfo(**stored["info"]), place)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 / MB)  # noqa: T201


def _peak_mb(folder: Path, number: int) -> float:
    code = f"from rayhmr.benchmark_tune import alone; alone({str(folder)!r}, {number})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1])


def _built(folder: Path, kind: str) -> float:
    """MB of the caches of a kind."""
    files = (folder / "cache").glob(f"{kind}-*/*")
    return sum(file.stat().st_size for file in files) / MB


def tune_rates(
    rounds: int, size: Sizes | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The table, and figures: seconds of a trial's epoch; how many times as many epochs a second
    come out of each cache as without it, and the same by CPU seconds; what a cache costs."""
    size = size or sizes()
    seconds: dict[str, list[tuple[float, float]]] = {c.name: [] for c in CANDIDATES}
    with tempfile.TemporaryDirectory(prefix="rayhmr-benchmark-") as temporary:
        folder = Path(temporary)
        info = _shards(folder, size)
        (folder / "trial.json").write_text(
            json.dumps({"sizes": asdict(size), "info": asdict(info)})
        )
        jobs = {c.name: trial_job(c, size, folder) for c in CANDIDATES}
        first = {name: _timed(job, info, folder)[0] for name, job in jobs.items()}
        for _ in range(rounds):
            for name, job in jobs.items():
                seconds[name].append(_timed(job, info, folder))
        peaks = {c.name: _peak_mb(folder, number) for number, c in enumerate(CANDIDATES)}
        stored = {kind: _built(folder, kind) for kind in ("decoded", "features")}
    wall = {name: median(turn[0] for turn in turns) for name, turns in seconds.items()}
    cpu = {name: median(turn[1] for turn in turns) for name, turns in seconds.items()}
    rows = [
        {
            "data.cache": c.cache, "encoder": "frozen" if c.frozen else "trained",
            "s per trial-epoch": wall[c.name], "CPU s": cpu[c.name], "peak MB": peaks[c.name],
        }
        for c in CANDIDATES
    ]  # fmt: skip
    return rows, figures(wall, cpu, peaks, stored, first)


def figures(
    wall: dict[str, float], cpu: dict[str, float], peaks: dict[str, float],
    stored: dict[str, float], first: dict[str, float],
) -> dict[str, float]:  # fmt: skip
    """Quotients and costs. first: seconds of an epoch of each candidate's first trial, which makes
    its cache."""
    found: dict[str, float] = {}
    for name in ("decoded", "features", "decoded_trained"):
        without = "none_trained" if name.endswith("trained") else "none"
        found[f"{name}_over_{without}"] = wall[without] / wall[name]
        found[f"{name}_over_{without}_cpu"] = cpu[without] / cpu[name]
    found |= {f"{name}_s_per_trial_epoch": value for name, value in wall.items()}
    found |= {f"{name}_peak_mb": value for name, value in peaks.items()}
    for kind, size in stored.items():
        found[f"{kind}_cache_mb"] = size
        found[f"{kind}_made_in_s"] = max(0.0, EPOCHS * (first[kind] - wall[kind]))
    return found
