"""Training with Ray Train over Ray Data: the loop of `hmr.training` under Ray's launcher.

A run lives in <storage>/<name>/: checkpoints (`step-…` inside an epoch, `epoch-…` at its end),
run.json (its settings), metrics.jsonl, tensorboard/ and, at the end, bundle/. The same command with
the same settings goes on where the run stopped, with any number of workers.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.validation_config import ValidationConfig

from hmr.body import Body
from hmr.checkpoint import load_model_weights, save_bundle
from hmr.errors import ConfigError
from hmr.model import build_model
from hmr.progress import epoch_line, progress_line
from hmr.regressor import MeanParameters
from hmr.rotations import nearest_rotation
from hmr.structures import Batch
from hmr.training import fit
from rayhmr.cluster import connect
from rayhmr.config import TrainJob, differences
from rayhmr.data.decode import decode_table
from rayhmr.data.order import EpochOrder, check_order
from rayhmr.data.reading import fetch_with_ray
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.data.stream import ShardStream, split_files
from rayhmr.evaluate import baseline_means
from rayhmr.ray_context import RayContext
from rayhmr.registry import Registry
from rayhmr.run_checkpoints import RunCheckpoints, best_epoch, repair_index
from rayhmr.stopping import StopFlag, terminating
from rayhmr.storage import Folder, absolute
from rayhmr.telemetry import Board, RunLog, say, watching, worker_facts
from rayhmr.validation import validate_checkpoint

RUN = "run.json"
BUNDLE = "bundle"
SAMPLES = "samples"
_NOT_THE_RUN: dict[str, Any] = {
    "storage": True, "registry": True, "register_as": True, "max_failures": True,
    "keep_checkpoints": True, "cluster": True, "select_by": True, "mlflow": True, "scaling": True,
    "data": {"path", "lanes", "decode_in", "decode_threads", "prefetch_batches", "record_samples"},
    "train": {"log_every", "save_every", "hang_timeout_s", "pictures_every"},
}  # fmt: skip
"""Settings that do not change what a run computes."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """All that a training worker needs to know. folder: the run's. lanes: of its data order. label:
    stands before its progress lines."""

    job: TrainJob
    info: DatasetInfo
    board: Board
    stop: StopFlag
    folder: str
    lanes: int
    label: str = ""

    def post(self, facts: dict[str, Any]) -> None:
        """Tell the driver."""
        self.board.post(facts | {"label": self.label})


def mean_parameters(info: DatasetInfo) -> MeanParameters | None:
    """The mean pose and shape of the training people; none without SMPL labels."""
    if not info.statistics["labelled"]:
        return None
    rotmats = torch.tensor(info.statistics["mean_rotmats"], dtype=torch.float64)
    betas = torch.tensor(info.statistics["mean_betas"], dtype=torch.float32)
    return MeanParameters.from_rotations(nearest_rotation(rotmats).float(), betas)


def data_order(job: TrainJob, info: DatasetInfo, lanes: int) -> EpochOrder:
    """The order of the first epoch; ConfigError when the workers cannot share its batches."""
    files = split_files(info, "train", job.data.train_fraction)
    order = EpochOrder(files, job.train.seed, 0, lanes, job.train.batch_size)
    for workers in {job.scaling.min_workers or job.scaling.num_workers, job.scaling.num_workers}:
        check_order(order, workers)
    return order


def shard_stream(
    task: WorkerTask, rank: int, world_size: int, epochs: int | None = None
) -> ShardStream:
    """This worker's part of the data, read by Ray Data. epochs: when not those of the job."""
    job, location = task.job, task.info.location
    in_tasks = job.data.decode_in == "tasks"
    decode = partial(decode_table, image_size=job.model.image_size) if in_tasks else None
    return ShardStream(
        task.info, config=job.data, fetch=fetch_with_ray(location, tasks=2, decode=decode),
        fetch_val=fetch_with_ray(location, tasks=2), batch_size=job.train.batch_size,
        image_size=job.model.image_size, seed=job.train.seed, epochs=epochs or job.train.epochs,
        lanes=task.lanes, rank=rank, world_size=world_size,
    )  # fmt: skip


class _Recorded:
    """A stream that notes which samples were used at which step: one JSON line a step, in a file of
    its own for each start of the worker."""

    def __init__(self, stream: ShardStream, folder: Folder, rank: int) -> None:
        self._stream, self._rank = stream, rank
        self.steps_per_epoch, self.val_batches = stream.steps_per_epoch, stream.val_batches
        self.close = stream.close
        target = Path(folder.location) / SAMPLES
        target.mkdir(exist_ok=True)
        self._file = (target / f"{time.time_ns()}-rank{rank}.jsonl").open("w", encoding="utf-8")

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        batches = self._stream.train_batches(epoch, first_step)
        for step, batch in enumerate(batches, start=first_step):
            line = {"epoch": epoch, "step": step, "rank": self._rank, "ids": batch.sample_ids}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            yield batch


def train_worker(task: WorkerTask) -> None:
    """What each worker does."""
    job, folder = task.job, Folder(task.folder)
    checkpoints = RunCheckpoints(folder, keep=job.keep_checkpoints, warn=partial(_warn, task))
    context = RayContext(
        checkpoints, task.stop, hang_timeout_s=job.train.hang_timeout_s,
        validate_in_task=job.validate_in == "task",
    )  # fmt: skip
    task.post(worker_facts(context.rank))
    torch.manual_seed(job.train.seed)
    data: Any = shard_stream(task, context.rank, context.world_size)
    if job.data.record_samples:
        data = _Recorded(data, folder, context.rank)
    with closing(data):
        last = fit(
            job.train,
            model=build_model(job.model, mean_parameters(task.info)),
            body=Body.from_config(job.body),
            data=data,
            context=context,
            log=task.post,
            validating=job.validate_in == "workers",
        )
    if context.rank == 0 and "stopped" in last:
        task.post({"kind": "stopped", "step": last.get("step")})


def _warn(task: WorkerTask, text: str) -> None:
    task.post({"kind": "warning", "text": text})


def run_training(
    task: WorkerTask, *, storage: str, name: str, callbacks: Sequence[Any] = ()
) -> Result:
    """One Ray Train run, from its newest checkpoint if there is one. Raises what the workers raise
    once `max_failures` is used up."""
    job, scaling = task.job, task.job.scaling
    gpus = 1 if scaling.use_gpu else 0
    elastic = scaling.min_workers not in (None, scaling.num_workers)
    validation = None
    if job.validate_in == "task":
        validation = ValidationConfig(
            fn=partial(validate_checkpoint, task), ray_remote_kwargs={"num_cpus": 1}
        )
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scaling.min_workers, scaling.num_workers) if elastic
            else scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, "GPU": gpus},
        ),
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        validation_config=validation,
        run_config=RunConfig(
            name=name, storage_path=storage, callbacks=list(callbacks),
            failure_config=FailureConfig(
                max_failures=job.max_failures, controller_failure_limit=job.max_failures + 1
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=job.keep_checkpoints, checkpoint_score_attribute=score_of(job),
                checkpoint_score_order="min",
            ),
        ),
    )  # fmt: skip
    return trainer.fit()


def score_of(job: TrainJob) -> str:
    """The metric by which the best epoch is chosen; the lowest wins."""
    return f"val/{job.select_by}"


def show(facts: dict[str, Any]) -> None:
    """A line for people about facts from a worker; nothing for what has no line."""
    label = f"{facts['label']}: " if facts.get("label") else ""
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "worker": lambda f: f"worker {f['rank']} runs on {f['host']}, process {f['pid']}",
        "resume": lambda f: f"going on after step {f['step']}, from {f['checkpoint']}",
        "warning": lambda f: f"warning: {f['text']}",
        "step": progress_line, "epoch": epoch_line, "validation": epoch_line,
        "stopped": lambda f: "stopped early; the same command goes on with this run",
    }  # fmt: skip
    if line := lines.get(facts["kind"]):
        say(label + line(facts))


def settings_of(job: TrainJob, info: DatasetInfo, lanes: int) -> dict[str, Any]:
    """What makes two runs the same run."""
    settings: dict[str, Any] = job.model_dump(mode="json", exclude=_NOT_THE_RUN)
    return settings | {"data_fingerprint": info.fingerprint, "lanes": lanes}


def lanes_of(job: TrainJob, folder: Folder) -> int:
    """The lanes of the run's data order: as given, or as at its first start."""
    stored = folder.read_json(RUN).get("lanes") if folder.exists(RUN) else None
    return job.data.lanes or stored or job.scaling.num_workers


def claim_run(folder: Folder, settings: dict[str, Any]) -> None:
    """Make the folder this run's; ConfigError when it belongs to a run with other settings."""
    if folder.exists(RUN):
        if changed := list(differences(folder.read_json(RUN), settings)):
            raise ConfigError(
                f"{folder.location}: holds a run with other settings: {'; '.join(changed[:5])}; "
                "give this one another name, or remove that folder"
            )
        say(f"{folder.location}: going on with this run")
    else:
        folder.write_json(RUN, settings)


def absolute_job(job: TrainJob) -> TrainJob:
    """The same job for processes that work in other folders."""
    data = job.data.model_copy(update={"path": absolute(job.data.path)})
    body = job.body
    if body.path != "embedded":
        body = body.model_copy(update={"path": absolute(body.path)})
    return job.model_copy(
        update={
            "storage": absolute(job.storage), "registry": absolute(job.registry), "data": data,
            "body": body,
        }
    )  # fmt: skip


def write_bundle(
    job: TrainJob, info: DatasetInfo, checkpoint: Path, metrics: dict[str, float],
    target: Folder, provenance: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The checkpoint in a local folder as a bundle in `target`/bundle; the figures in it."""
    body = Body.from_config(job.body)
    model = build_model(job.model, mean_parameters(info))
    figures = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
    figures |= {f"baseline_{k}": v for k, v in baseline_means(info, "val", body).items()}
    with tempfile.TemporaryDirectory(prefix="rayhmr-bundle-") as temporary:
        load_model_weights(checkpoint, model)
        bundle = save_bundle(
            f"{temporary}/{BUNDLE}", model=model, model_config=job.model, body=body,
            metrics=figures,
            provenance=provenance | {
                "data_fingerprint": info.fingerprint, "measured_on": "validation split",
                "settings": job.model_dump(mode="json", include={"data", "model", "train"}),
            },
        )  # fmt: skip
        target.remove(BUNDLE)
        target.files.create_dir(target.path(BUNDLE), recursive=True)
        pafs.copy_files(
            str(bundle), target.path(BUNDLE), source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=target.files,
        )  # fmt: skip
    return figures


def register(folder: Folder, registry: str, name: str, alias: str = "best") -> int:
    """Put <folder>/bundle into the registry, point the alias at it, return its version."""
    with tempfile.TemporaryDirectory(prefix="rayhmr-register-") as temporary:
        pafs.copy_files(
            folder.path(BUNDLE), temporary, source_filesystem=folder.files,
            destination_filesystem=pafs.LocalFileSystem(),
        )  # fmt: skip
        version = Registry(registry).register(name, temporary)
    Registry(registry).set_alias(name, alias, version)
    say(f"registered {registry}/{name}@{version} as {alias}")
    return version


def train(job: TrainJob) -> dict[str, Any]:
    """Train, write the bundle of the best epoch, and register it if `register_as` is set.

    Returns paths, errors on the validation split beside the mean pose's, speed and restarts. After
    SIGTERM the run keeps a checkpoint and ends: SystemExit with status 143.
    """
    job = absolute_job(job)
    info = read_info(job.data.path)
    folder = Folder(f"{job.storage}/{job.name}")
    lanes = lanes_of(job, folder)
    data_order(job, info, lanes)
    claim_run(folder, settings_of(job, info, lanes))
    repair_index(folder, say, score_of(job))
    workers, each = job.scaling.min_workers or job.scaling.num_workers, job.scaling.cpus_per_worker
    start = time.perf_counter()
    # One more whole CPU, or Ray Data could never read.
    with (
        connect(job.cluster, workers * each + 1, workers if job.scaling.use_gpu else 0),
        _run_log(folder) as log,
    ):
        progress = _Progress(log)
        task = WorkerTask(
            job=job, info=info, board=Board(), stop=StopFlag(), folder=folder.location,
            lanes=lanes,
        )  # fmt: skip
        with watching(task.board, progress.keep), terminating(task.stop.want) as asked:
            run_training(task, storage=job.storage, name=job.name)
        if asked.is_set():
            raise SystemExit(143)
        checkpoint, metrics = best_epoch(folder, score_of(job))
        figures = write_bundle(job, info, checkpoint, metrics, folder, {"run": job.name})
    results: dict[str, Any] = {
        "run": folder.location, "bundle": f"{folder.location}/{BUNDLE}",
        "epochs": job.train.epochs, "best_epoch": int(metrics["epoch"]),
        **{name: round(value, 3) for name, value in figures.items()},
        "images_per_s": progress.images_per_s, "restarts": max(progress.starts - 1, 0),
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    if job.register_as is not None:
        results["version"] = register(folder, job.registry, job.register_as)
    _say_next(job, folder)
    return results


class _Progress:
    """Shows and keeps what the workers tell."""

    def __init__(self, log: RunLog) -> None:
        self._log, self._speeds = log, list[float]()
        self.starts = 0

    def keep(self, facts: dict[str, Any]) -> None:
        """One fact."""
        show(facts)
        self._log.write(facts)
        self.starts += facts["kind"] == "worker" and facts["rank"] == 0
        if facts["kind"] == "epoch":
            self._speeds.append(facts["train/images_per_s"])

    @property
    def images_per_s(self) -> float | None:
        """Mean over the epochs of this start; none when there was none."""
        return round(sum(self._speeds) / len(self._speeds), 1) if self._speeds else None


def _run_log(folder: Folder) -> RunLog:
    """In the run's folder, or, when that is not on this machine, in a folder of this one."""
    if folder.is_local:
        return RunLog(Path(folder.location))
    local = Path(tempfile.mkdtemp(prefix="rayhmr-log-"))
    say(f"metrics.jsonl and tensorboard/ are written to {local} on this machine")
    return RunLog(local)


def _say_next(job: TrainJob, folder: Folder) -> None:
    say(
        f"bundle    {folder.location}/{BUNDLE}\n"
        f"curves    tensorboard --logdir {folder.location}/tensorboard\n"
        f"evaluate  python jobs/evaluate.py model={folder.location}/{BUNDLE} data={job.data.path}"
    )
