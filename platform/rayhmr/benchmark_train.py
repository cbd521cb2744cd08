"""How much of a training step's speed the whole pipeline keeps: `jobs/benchmark.py train`.

(a) the step on one batch that is there already, its ceiling; (b) the same loop fed by the platform:
Ray Data reads, threads decode; (c) the same loop fed by a plain torch DataLoader with one process,
which makes whole batches from the same shards. They take turns in one training worker under Ray
Train. (d) a whole training under Ray Train against the same one started without Ray.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from hmr.body import Body
from hmr.config import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.device_feed import on_device
from hmr.local_context import LocalContext
from hmr.model import build_model
from hmr.structures import Batch
from hmr.training import Trainer, fit
from rayhmr.benchmark_loaders import ShardBatches
from rayhmr.cluster import connect
from rayhmr.config import (
    ClusterConfig,
    DataConfig,
    PrepareJob,
    ScalingConfig,
    SyntheticConfig,
    TrainJob,
)
from rayhmr.data.prepare import prepare
from rayhmr.data.reading import fetch_here
from rayhmr.data.schema import read_info
from rayhmr.data.stream import ShardStream
from rayhmr.stopping import StopFlag
from rayhmr.telemetry import Board, say, watching
from rayhmr.train import run_training
from rayhmr.train_worker import WorkerTask, shard_stream

STEPS = 40
"""Steps of one candidate's turn."""
UNCOUNTED = 8
"""Steps before each turn, for what was prepared while others had theirs."""
TURNS_OF_RUNS = 3
"""Whole trainings with and without Ray."""


def settings(folder: Path) -> TrainJob:
    """A ResNet-50 at 224 px where there is a GPU, else the small encoder at 64 px on one CPU."""
    on_gpu = torch.cuda.is_available()
    return TrainJob(
        name="benchmark", storage=str(folder / "runs"), max_failures=0,
        data=DataConfig(path=str(folder / "shards"), decode_threads=4 if on_gpu else 1),
        model=ModelConfig(encoder="resnet50", image_size=224, hidden=1024, dropout=0.0) if on_gpu
        else ModelConfig(encoder="small", encoder_width=24, image_size=64, dropout=0.0),
        train=TrainConfig(
            epochs=2, batch_size=256 if on_gpu else 64, precision="auto", log_every=10_000,
            optimizer=OptimizerConfig(lr=1e-4), losses=LossConfig(keypoint_error="l1", scale=1.0),
            augment=AugmentConfig(channel_noise=0.2),
        ),
        scaling=ScalingConfig(num_workers=1, use_gpu=on_gpu),
    )  # fmt: skip


class _Alone(LocalContext):
    """One worker that keeps nothing."""

    def save(self, name: str, write: Callable[[Path], object]) -> None:
        """No checkpoint disturbs the measurement."""


def take_turns(trainer: Trainer, sources: dict[str, Iterator[Batch]], rounds: int) -> list[Any]:
    """Images per second of each source in each round."""
    rows = []
    for _ in range(rounds):
        row = {}
        for name, batches in sources.items():
            for batch in itertools.islice(batches, UNCOUNTED):
                trainer.train_step(batch)
            _wait_for_device()
            start, people = time.perf_counter(), 0
            for batch in itertools.islice(batches, STEPS):
                trainer.train_step(batch)
                people += len(batch)
            _wait_for_device()
            row[name] = people / (time.perf_counter() - start)
        rows.append(row)
    return rows


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _for_ever(passes: Callable[[int], Iterator[Batch]]) -> Iterator[Batch]:
    return itertools.chain.from_iterable(map(passes, itertools.count()))


@dataclass(frozen=True)
class Turns:
    """What the measuring worker does. folder: for its result."""

    task: WorkerTask
    rounds: int
    folder: str

    def __call__(self, _: Any = None) -> None:
        """Measure, and write measured.json."""
        job = self.task.job
        torch.set_num_threads(job.train.threads)
        stream = shard_stream(self.task, 0, 1, epochs=10**6)
        context = _Alone(Path(self.folder) / "alone")
        model, body = build_model(job.model), Body.from_config(job.body)
        trainer = Trainer(job.train, model, body, stream, context, lambda facts: None)
        trainer.wrapped.train()
        loader = DataLoader(
            ShardBatches(self.task.info, job.train.batch_size), batch_size=None, num_workers=1,
            persistent_workers=True,
        )  # fmt: skip
        pipeline = _for_ever(stream.train_batches)
        device = context.device
        sources = {
            "resident": itertools.repeat(next(on_device(pipeline, device))),
            "pipeline": on_device(pipeline, device),
            "torch loader": on_device(_for_ever(lambda _: iter(loader)), device),
        }
        measured = {
            "rows": take_turns(trainer, sources, self.rounds),
            "profile": profile_of(trainer, next(sources["resident"])),
        }
        stream.close()
        (Path(self.folder) / "measured.json").write_text(json.dumps(measured))


def profile_of(trainer: Trainer, batch: Batch, steps: int = 5, top: int = 6) -> list[Any]:
    """Where the time of a step on a resident batch goes: share of the dearest operations."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(steps):
            trainer.train_step(batch)
        _wait_for_device()
    on_gpu = torch.cuda.is_available()
    times = {
        event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total
        for event in profile.key_averages()
    }
    total = sum(times.values())
    dearest = sorted(times, key=lambda key: -times[key])[:top]
    return [{"operation": key[:60], "share of a step": times[key] / total} for key in dearest]


@contextmanager
def peak_of_object_store() -> Iterator[list[float]]:
    """The most MB that Ray's object store held during the block, as the list's only number."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    peak, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            used = get_memory_info_reply(state).store_stats.object_store_bytes_used
            peak[0] = max(peak[0], used / 1e6)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def bare(folder: str) -> None:
    """The training of `settings` without Ray, read by a thread of this process; prints images/s."""
    job = settings(Path(folder))
    info = read_info(job.data.path)
    torch.manual_seed(job.train.seed)
    fetch = fetch_here(info.location)
    stream = ShardStream(
        info, config=job.data, fetch=fetch, fetch_val=fetch, batch_size=job.train.batch_size,
        image_size=job.model.image_size, seed=job.train.seed, epochs=job.train.epochs, lanes=1,
        rank=0, world_size=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as checkpoints:
        metrics = fit(
            job.train, model=build_model(job.model), body=Body.from_config(job.body), data=stream,
            context=LocalContext(checkpoints), log=lambda facts: None,
        )  # fmt: skip
    print(json.dumps(metrics))  # noqa: T201


def _bare_run(folder: Path) -> float:
    code = f"from rayhmr.benchmark_train import bare; bare({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["train/images_per_s"])


def _task(job: TrainJob, name: str) -> WorkerTask:
    info = read_info(job.data.path)
    return WorkerTask(
        job=job, info=info, board=Board(), stop=StopFlag(), lanes=1,
        folder=f"{job.storage}/{name}",
    )  # fmt: skip


def _ray_run(job: TrainJob, name: str) -> list[dict[str, Any]]:
    """What was reported after each epoch of a training under Ray Train."""
    task, epochs = _task(job, name), list[dict[str, Any]]()

    def keep(facts: dict[str, Any]) -> None:
        if facts["kind"] == "epoch":
            epochs.append(facts)

    Path(task.folder).mkdir(parents=True)
    with watching(task.board, keep):
        run_training(task, storage=job.storage, name=name)
    return epochs


def _turns(folder: Path, job: TrainJob, rounds: int) -> dict[str, Any]:
    from ray.train import RunConfig
    from ray.train import ScalingConfig as Workers
    from ray.train.torch import TorchTrainer

    turns = Turns(_task(job, "turns"), rounds, str(folder))
    gpus = 1 if job.scaling.use_gpu else 0
    TorchTrainer(
        turns,
        scaling_config=Workers(
            num_workers=1, use_gpu=bool(gpus), resources_per_worker={"CPU": 1, "GPU": gpus}
        ),
        run_config=RunConfig(name="turns", storage_path=job.storage),
    ).fit()
    measured: dict[str, Any] = json.loads((folder / "measured.json").read_text())
    return measured


def train_ratios(rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The table and the ratios; (b) to (d) of the module's first lines."""
    with tempfile.TemporaryDirectory(prefix="rayhmr-benchmark-") as temporary:
        folder = Path(temporary)
        job = settings(folder)
        size = job.model.image_size
        with connect(ClusterConfig(address="local", num_cpus=3), 3):
            people = SyntheticConfig(image_size=size, train=4096, val=64, test=1)
            prepare(PrepareJob(output=job.data.path, rows_per_file=1024, synthetic=people))
            with peak_of_object_store() as peak:
                measured = _turns(folder, job, rounds)
            with_ray, without = [], []
            for number in range(TURNS_OF_RUNS):
                without.append(_bare_run(folder))
                with_ray.append(_ray_run(job, f"run-{number}"))
    rates = {n: statistics.median(r[n] for r in measured["rows"]) for n in measured["rows"][0]}
    whole = statistics.median(epochs[-1]["train/images_per_s"] for epochs in with_ray)
    rows = [{"loop": name, "images/s": rate} for name, rate in rates.items()]
    rows += [
        {"loop": "training, Ray Train", "images/s": whole},
        {"loop": "training, no Ray", "images/s": statistics.median(without)},
    ]
    for line in measured["profile"]:
        say(f"{100 * line['share of a step']:5.1f} % of a step  {line['operation']}")
    first = [statistics.median(e[n]["train/first_batch_s"] for e in with_ray) for n in (0, 1)]
    return rows, {
        "images_per_s_resident": rates["resident"], "images_per_s_pipeline": rates["pipeline"],
        "images_per_s_torch_loader": rates["torch loader"],
        "images_per_s_ray_train": whole, "images_per_s_no_ray": statistics.median(without),
        "pipeline_over_ceiling": rates["pipeline"] / rates["resident"],
        "ray_over_torch_loader": rates["pipeline"] / rates["torch loader"],
        "ray_over_bare_loop": whole / statistics.median(without),
        "first_batch_s": first[0], "first_batch_of_next_epoch_s": first[1],
        "object_store_peak_mb": peak[0],
    }  # fmt: skip
