"""Training with Ray Train over Ray Data: the loop of `hmr.training` under Ray's launcher.

A run lives in <storage>/<name>/: checkpoints, run.json (its settings), metrics.jsonl, tensorboard/
and, at the end, bundle/. The same command with the same settings goes on where the run stopped.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, Result, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer

from hmr.body import Body
from hmr.checkpoint import load_model_weights, save_bundle
from hmr.errors import ConfigError, HmrError
from hmr.model import build_model
from hmr.progress import epoch_line, progress_line
from hmr.regressor import MeanParameters
from hmr.rotations import nearest_rotation
from hmr.training import fit
from rayhmr.cluster import connect
from rayhmr.config import TrainJob, differences
from rayhmr.data import stream
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.evaluate import baseline_means
from rayhmr.ray_context import RayContext
from rayhmr.registry import Registry
from rayhmr.storage import Folder, absolute
from rayhmr.telemetry import Board, RunLog, say, watching, worker_facts

RUN = "run.json"
BUNDLE = "bundle"
SCORE = "val/pa_mpjpe_mm"
_NOT_THE_RUN = {"storage", "registry", "register_as", "max_failures", "keep_checkpoints", "cluster"}
"""Settings that do not change what a run computes."""


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """All that a training worker needs to know. label: stands before its progress lines."""

    job: TrainJob
    info: DatasetInfo
    board: Board
    label: str = ""


def mean_parameters(info: DatasetInfo) -> MeanParameters | None:
    """The mean pose and shape of the training people; none without SMPL labels."""
    if not info.statistics["labelled"]:
        return None
    rotmats = torch.tensor(info.statistics["mean_rotmats"], dtype=torch.float64)
    betas = torch.tensor(info.statistics["mean_betas"], dtype=torch.float32)
    return MeanParameters.from_rotations(nearest_rotation(rotmats).float(), betas)


def train_worker(task: WorkerTask) -> None:
    """What each worker does."""
    job, info = task.job, task.info
    context = RayContext()
    torch.manual_seed(job.train.seed)
    data = stream.ShardStream(
        ray.train.get_dataset_shard("train"), ray.train.get_dataset_shard("val"),
        config=job.data,
        steps=stream.steps_per_epoch(
            info, job.data, batch_size=job.train.batch_size, num_workers=context.world_size
        ),
        batch_size=stream.batch_of_worker(job.train.batch_size, context.world_size),
        image_size=job.model.image_size, seed=job.train.seed, rank=context.rank,
        world_size=context.world_size,
    )  # fmt: skip
    task.board.post(worker_facts(context.rank) | {"label": task.label})
    fit(
        job.train,
        model=build_model(job.model, mean_parameters(info)),
        body=Body.from_config(job.body),
        data=data,
        context=context,
        log=lambda facts: task.board.post(facts | {"label": task.label}),
    )


def run_training(
    task: WorkerTask, *, storage: str, name: str, callbacks: Sequence[Any] = ()
) -> Result:
    """One Ray Train run, from its newest checkpoint if there is one. Raises what the workers raise
    once `max_failures` is used up."""
    job = task.job
    gpus = 1 if job.scaling.use_gpu else 0
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=task,
        datasets=stream.datasets(task.info, job.data),
        dataset_config=stream.ingest_config(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=job.scaling.num_workers, use_gpu=job.scaling.use_gpu,
            resources_per_worker={"CPU": job.scaling.cpus_per_worker, "GPU": gpus},
        ),
        torch_config=TorchConfig(backend="nccl" if job.scaling.use_gpu else "gloo"),
        run_config=RunConfig(
            name=name, storage_path=storage, callbacks=list(callbacks),
            failure_config=FailureConfig(
                max_failures=job.max_failures, controller_failure_limit=job.max_failures + 1
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=job.keep_checkpoints, checkpoint_score_attribute=SCORE,
                checkpoint_score_order="min",
            ),
        ),
    )  # fmt: skip
    return trainer.fit()


def best_checkpoint(result: Result) -> tuple[Checkpoint, dict[str, float]]:
    """The checkpoint with the lowest validation PA-MPJPE and what was measured with it."""
    if not result.best_checkpoints:
        raise HmrError(f"{result.path}: the run ended without a checkpoint; see its log")
    return min(result.best_checkpoints, key=lambda pair: pair[1][SCORE])


def show(facts: dict[str, Any]) -> None:
    """A line for people about facts from a worker."""
    label = f"{facts['label']}: " if facts.get("label") else ""
    if facts["kind"] == "worker":
        say(f"{label}worker {facts['rank']} runs on {facts['host']}, process {facts['pid']}")
    else:
        say(label + (progress_line if facts["kind"] == "step" else epoch_line)(facts))


def settings_of(job: TrainJob, info: DatasetInfo) -> dict[str, Any]:
    """What makes two runs the same run."""
    settings: dict[str, Any] = job.model_dump(mode="json", exclude=_NOT_THE_RUN)
    del settings["data"]["path"]
    return settings | {"data_fingerprint": info.fingerprint}


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
    job: TrainJob, info: DatasetInfo, checkpoint: Checkpoint, metrics: dict[str, float],
    target: Folder, provenance: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """A checkpoint as a bundle in `target`/bundle; the figures that stand in it."""
    body = Body.from_config(job.body)
    model = build_model(job.model, mean_parameters(info))
    figures = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
    figures |= {f"baseline_{k}": v for k, v in baseline_means(info, "val", body).items()}
    with tempfile.TemporaryDirectory(prefix="rayhmr-bundle-") as temporary:
        load_model_weights(checkpoint.to_directory(f"{temporary}/checkpoint"), model)
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

    Returns paths, errors on the validation split beside the mean pose's, speed and restarts.
    """
    job = absolute_job(job)
    info = read_info(job.data.path)
    stream.steps_per_epoch(
        info, job.data, batch_size=job.train.batch_size, num_workers=job.scaling.num_workers
    )
    folder = Folder(f"{job.storage}/{job.name}")
    claim_run(folder, settings_of(job, info))
    workers, each = job.scaling.num_workers, job.scaling.cpus_per_worker
    start = time.perf_counter()
    # One more whole CPU, or Ray Data could never read.
    with connect(job.cluster, workers * each + 1, workers if job.scaling.use_gpu else 0):
        speeds: list[float] = []
        groups = 0
        with _run_log(folder) as log:

            def keep(facts: dict[str, Any]) -> None:
                nonlocal groups
                show(facts)
                log.write(facts)
                groups += facts["kind"] == "worker" and facts["rank"] == 0
                if facts["kind"] == "epoch":
                    speeds.append(facts["train/images_per_s"])

            board = Board()
            task = WorkerTask(job=job, info=info, board=board)
            with watching(board, keep):
                result = run_training(task, storage=job.storage, name=job.name)
        checkpoint, metrics = best_checkpoint(result)
        figures = write_bundle(job, info, checkpoint, metrics, folder, {"run": job.name})
    results: dict[str, Any] = {
        "run": folder.location, "bundle": f"{folder.location}/{BUNDLE}",
        "epochs": job.train.epochs, "best_epoch": int(metrics["epoch"]),
        **{name: round(value, 3) for name, value in figures.items()},
        "images_per_s": round(sum(speeds) / len(speeds), 1) if speeds else None,
        "restarts": max(groups - 1, 0), "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    if job.register_as is not None:
        results["version"] = register(folder, job.registry, job.register_as)
    _say_next(job, folder)
    return results


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
