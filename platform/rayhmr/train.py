"""Training with Ray Train over Ray Data: the loop of `hmr.training` under Ray's launcher.

A run lives in <storage>/<name>/: checkpoints (`step-…` inside an epoch, `epoch-…` at its end),
run.json (its settings), metrics.jsonl, tensorboard/ and, at the end, bundle/. The same command with
the same settings goes on where the run stopped, with any number of workers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, Result, RunConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.validation_config import ValidationConfig

from hmr.errors import ConfigError, DivergedError
from hmr.progress import epoch_line, progress_line, resume_line
from rayhmr.cluster import connect
from rayhmr.config import TrainJob, differences
from rayhmr.data.order import EpochOrder, check_order
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.data.stream import split_files
from rayhmr.mlflow_log import MlflowLog, check_mlflow
from rayhmr.run_bundle import BUNDLE, register, write_bundle
from rayhmr.run_checkpoints import best_epoch, repair_index
from rayhmr.stopping import StopFlag, terminating
from rayhmr.storage import Folder, absolute
from rayhmr.telemetry import Board, RunLog, say, watching
from rayhmr.train_worker import WorkerTask, train_worker
from rayhmr.validation import validate_checkpoint

RUN = "run.json"
_NOT_THE_RUN: dict[str, Any] = {
    "storage": True, "registry": True, "register_as": True, "max_failures": True,
    "keep_checkpoints": True, "cluster": True, "select_by": True, "mlflow": True, "scaling": True,
    "data": {"path", "lanes", "decode_in", "decode_threads", "prefetch_batches", "record_samples"},
    "train": {"log_every", "save_every", "hang_timeout_s", "pictures_every"},
}  # fmt: skip
"""Settings that do not change what a run computes."""


def data_order(job: TrainJob, info: DatasetInfo, lanes: int) -> EpochOrder:
    """The order of the first epoch; ConfigError when the workers cannot share its batches."""
    files = split_files(info, "train", job.data.train_fraction)
    order = EpochOrder(files, job.train.seed, 0, lanes, job.train.batch_size)
    for workers in {job.scaling.min_workers or job.scaling.num_workers, job.scaling.num_workers}:
        check_order(order, workers)
    return order


def run_training(
    task: WorkerTask, *, storage: str, name: str, callbacks: Sequence[Any] = ()
) -> Result:
    """One Ray Train run, from its newest checkpoint if there is one. Raises what the workers raise
    once `max_failures` is used up, and DivergedError at once.

    Ray restarts workers; when the actor that directs them dies, the run is begun again from here.
    """
    for number in range(task.job.max_failures + 1):
        try:
            result = _trainer(task, storage, name, callbacks).fit()
            break
        except ray.exceptions.RayActorError as error:
            if number == task.job.max_failures:
                raise
            task.post({"kind": "warning", "text": f"the controller of the run has died: {error}"})
            repair_index(Folder(task.folder), partial(_warned, task), score_of(task.job))
    if result.return_value is not None:
        raise DivergedError(result.return_value)
    return result


def _warned(task: WorkerTask, text: str) -> None:
    task.post({"kind": "warning", "text": text})


def _trainer(
    task: WorkerTask, storage: str, name: str, callbacks: Sequence[Any]
) -> TorchTrainer:  # fmt: skip
    job, scaling = task.job, task.job.scaling
    gpus = 1 if scaling.use_gpu else 0
    elastic = scaling.min_workers not in (None, scaling.num_workers)
    validation = None
    if job.validate_in == "task":
        validation = ValidationConfig(
            fn=partial(validate_checkpoint, task), ray_remote_kwargs={"num_cpus": 1}
        )
    return TorchTrainer(
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


def score_of(job: TrainJob) -> str:
    """The metric by which the best epoch is chosen; the lowest wins."""
    return f"val/{job.select_by}"


def show(facts: dict[str, Any]) -> None:
    """A line for people about facts from a worker; nothing for what has no line."""
    label = f"{facts['label']}: " if facts.get("label") else ""
    lines: dict[str, Callable[[dict[str, Any]], str]] = {
        "worker": lambda f: f"worker {f['rank']} runs on {f['host']}, process {f['pid']}",
        "warning": lambda f: f"warning: {f['text']}",
        "resume": resume_line, "step": progress_line, "epoch": epoch_line,
        "validation": epoch_line,
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
    body, model = job.body, job.model
    if model.mean_params is not None:
        model = model.model_copy(update={"mean_params": absolute(model.mean_params)})
    if body.path != "embedded":
        body = body.model_copy(update={"path": absolute(body.path)})
    return job.model_copy(
        update={
            "storage": absolute(job.storage), "registry": absolute(job.registry), "data": data,
            "body": body, "model": model,
        }
    )  # fmt: skip


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
    if job.mlflow is not None:
        check_mlflow(job.mlflow)
    if job.data.record_samples and not folder.is_local:
        raise ConfigError(
            f"data.record_samples=true: lines are added to files, which {job.storage} cannot do; "
            "leave it out, or give a storage folder that all nodes see"
        )
    claim_run(folder, settings_of(job, info, lanes))
    repair_index(folder, say, score_of(job))
    workers, each = job.scaling.min_workers or job.scaling.num_workers, job.scaling.cpus_per_worker
    start = time.perf_counter()
    # One more whole CPU, or Ray Data could never read, and one for a validation of its own.
    spare = 1 + (job.validate_in == "task")
    with (
        connect(job.cluster, workers * each + spare, workers if job.scaling.use_gpu else 0),
        _mlflow(job, folder) as mirror,
        _run_log(folder, mirror) as log,
    ):
        progress = _Progress(log)
        task = WorkerTask(
            job=job, info=info, board=Board(), stop=StopFlag(), folder=folder.location,
            lanes=lanes,
        )  # fmt: skip
        with watching(task.board, progress.keep), terminating(task.stop.want) as asked:
            run_training(task, storage=job.storage, name=job.name)
        if asked.is_set() and progress.stopped:
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
        self.starts, self.stopped = 0, False

    def keep(self, facts: dict[str, Any]) -> None:
        """One fact."""
        if facts["kind"] == "step":
            facts = facts | {"restarts": max(self.starts - 1, 0)}
        show(facts)
        self._log.write(facts)
        self.starts += facts["kind"] == "worker" and facts["rank"] == 0
        self.stopped = self.stopped or facts["kind"] == "stopped"
        if facts["kind"] == "epoch":
            self._speeds.append(facts["train/images_per_s"])

    @property
    def images_per_s(self) -> float | None:
        """Mean over the epochs of this start; none when there was none."""
        return round(sum(self._speeds) / len(self._speeds), 1) if self._speeds else None


@contextmanager
def _mlflow(job: TrainJob, folder: Folder) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """What sends facts to MLflow; none when it is not wanted."""
    if job.mlflow is None:
        yield None
        return
    with MlflowLog(job.mlflow, folder, job.name, job.model_dump(mode="json")) as log:
        yield log.write


def _run_log(folder: Folder, mirror: Callable[[dict[str, Any]], None] | None) -> RunLog:
    """In the run's folder, or, when that is not on this machine, in a folder of this one."""
    if folder.is_local:
        return RunLog(Path(folder.root), mirror)
    local = Path(tempfile.mkdtemp(prefix="rayhmr-log-"))
    say(f"metrics.jsonl and tensorboard/ are written to {local} on this machine")
    return RunLog(local, mirror)


def _say_next(job: TrainJob, folder: Folder) -> None:
    say(
        f"bundle    {folder.location}/{BUNDLE}\n"
        f"curves    tensorboard --logdir {folder.location}/tensorboard\n"
        f"evaluate  python jobs/evaluate.py model={folder.location}/{BUNDLE} data={job.data.path}"
    )
