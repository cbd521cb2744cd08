"""Training with Ray Train over Ray Data: the loop of `hmr.training` under Ray's launcher.

A run lives in <storage>/<name>/: checkpoints (`step-…` inside an epoch, `epoch-…` at its end),
run.json (its settings), metrics.jsonl, tensorboard/ and, at the end, bundle/. The same command with
the same settings goes on where the run stopped, with any number of workers.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from rayhmr.cluster import connect, environment
from rayhmr.config import TrainJob, differences, with_defaults
from rayhmr.data.cache_cleaning import cleaning_up
from rayhmr.data.order import EpochOrder, check_order
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.data.stream import split_files
from rayhmr.job_metadata import metadata_of
from rayhmr.log import speaking_of
from rayhmr.metrics import TrainingMetrics, trial_of
from rayhmr.mlflow_log import MlflowLog, check_mlflow
from rayhmr.placement_watch import freeing_what_is_left_behind
from rayhmr.run_bundle import BUNDLE, register, write_bundle
from rayhmr.run_checkpoints import best_epoch, repair_index
from rayhmr.starting_model import pinned_encoder
from rayhmr.stopping import StopFlag, terminating
from rayhmr.storage import Folder, absolute, joined, ray_storage
from rayhmr.telemetry import Board, RunLog, say, watching
from rayhmr.train_worker import WorkerTask, train_worker
from rayhmr.validation import check_validation_split, validate_checkpoint

RUN = "run.json"
PLACING_S = {"fixed": 60, "elastic": 15}
"""How long Ray waits for a group of workers to be placed before it decides again. After the death
of a node an elastic group is asked for in its old size first, until Ray's books are up to date."""
GROWTH_CHECK_S = 20.0
"""How often an elastic run looks for nodes to grow to."""
_NOT_THE_RUN: dict[str, Any] = {
    "storage": True, "registry": True, "register_as": True, "max_failures": True,
    "keep_checkpoints": True, "cluster": True, "select_by": True, "mlflow": True, "scaling": True,
    "data": {
        "path", "lanes", "decode_in", "decode_threads", "prefetch_batches", "record_samples",
        "cache", "cache_folder",
    },
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
    task: WorkerTask, *, storage: str, name: str, callbacks: Sequence[Any] = (),
    was_ended: Callable[[], bool] = lambda: False,
) -> Result:  # fmt: skip
    """One Ray Train run, from its newest checkpoint if there is one. Raises what the workers raise
    once `max_failures` is used up, and DivergedError at once.

    Ray restarts workers; when the actor that directs them dies, the run is begun again from here,
    unless it `was_ended` on purpose.
    """
    placing = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(_placing_s(task.job))}
    for number in range(task.job.max_failures + 1):
        try:
            with environment(placing):
                result = _trainer(task, storage, name, callbacks).fit()
            break
        except ray.exceptions.RayActorError as error:
            if number == task.job.max_failures or was_ended():
                raise
            task.post({"kind": "warning", "text": f"the controller of the run has died: {error}"})
            repair_index(Folder(task.folder), partial(_warned, task), score_of(task.job))
    if result.return_value is not None:
        raise DivergedError(result.return_value)
    return result


def _is_elastic(job: TrainJob) -> bool:
    return job.scaling.min_workers not in (None, job.scaling.num_workers)


def _placing_s(job: TrainJob) -> int:
    return PLACING_S["elastic" if _is_elastic(job) else "fixed"]


def _warned(task: WorkerTask, text: str) -> None:
    task.post({"kind": "warning", "text": text})


def _trainer(
    task: WorkerTask, storage: str, name: str, callbacks: Sequence[Any]
) -> TorchTrainer:  # fmt: skip
    job, scaling = task.job, task.job.scaling
    # Each try to place the workers counts as a failure of the controller.
    tries = math.ceil(job.cluster.start_timeout_s / _placing_s(job))
    validation = None
    if job.validate_in == "task":
        validation = ValidationConfig(
            fn=partial(validate_checkpoint, task), ray_remote_kwargs={"num_cpus": 1}
        )
    return TorchTrainer(
        train_worker,
        train_loop_config=task,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scaling.min_workers, scaling.num_workers) if _is_elastic(job)
            else scaling.num_workers,
            elastic_resize_monitor_interval_s=GROWTH_CHECK_S,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker, "GPU": scaling.gpus},
        ),
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        validation_config=validation,
        run_config=RunConfig(
            name=name, **ray_storage(storage), callbacks=list(callbacks),
            failure_config=FailureConfig(
                max_failures=job.max_failures,
                controller_failure_limit=job.max_failures + 1 + tries,
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
        trial = {"trial": trial_of(facts)} if facts.get("label") else {}
        say(
            label + line(facts), level="warning" if facts["kind"] == "warning" else "info",
            facts=facts | trial,
        )  # fmt: skip


def settings_of(job: TrainJob, info: DatasetInfo, lanes: int) -> dict[str, Any]:
    """What makes two runs the same run."""
    settings: dict[str, Any] = job.model_dump(mode="json", exclude=_NOT_THE_RUN)
    return settings | {"data_fingerprint": info.fingerprint, "lanes": lanes}


def lanes_of(job: TrainJob, folder: Folder) -> int:
    """The lanes of the run's data order: as given, or as at its first start."""
    stored = folder.read_json(RUN).get("lanes") if folder.exists(RUN) else None
    return job.data.lanes or stored or job.scaling.num_workers


def claim_run(folder: Folder, settings: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Make the folder this run's; ConfigError when it belongs to a run with other settings.

    defaults: those of a job; a setting that is newer than the run had its default there.
    """
    if folder.exists(RUN):
        stored = with_defaults(folder.read_json(RUN), defaults)
        if changed := list(differences(stored, settings)):
            raise ConfigError(
                f"{folder.location}: holds a run with other settings: {'; '.join(changed[:5])}; "
                "give this one another name, or remove that folder"
            )
        say(f"{folder.location}: going on with this run")
    else:
        folder.write_json(RUN, settings)


def absolute_job(job: TrainJob) -> TrainJob:
    """The same job for processes that work in other folders, or start when aliases have moved."""
    data = job.data.model_copy(update={"path": absolute(job.data.path)})
    body, model = job.body, job.model
    if model.mean_params is not None:
        model = model.model_copy(update={"mean_params": absolute(model.mean_params)})
    encoder_from = job.encoder_from
    if encoder_from is not None:
        encoder_from = pinned_encoder(encoder_from, model)
    if body.path != "embedded":
        body = body.model_copy(update={"path": absolute(body.path)})
    return job.model_copy(
        update={
            "storage": absolute(job.storage), "registry": absolute(job.registry), "data": data,
            "body": body, "model": model, "encoder_from": encoder_from,
        }
    )  # fmt: skip


def train(job: TrainJob, lineage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Train, write the bundle of the best epoch, and register it if `register_as` is set.

    lineage: where the settings come from; kept in the bundle.

    Returns paths, errors on the validation split beside the mean pose's, speed and restarts. After
    SIGTERM the run keeps a checkpoint and ends: SystemExit with status 143.
    """
    with speaking_of(run=job.name):
        return _train(absolute_job(job), lineage)


def _train(job: TrainJob, lineage: Mapping[str, Any] | None) -> dict[str, Any]:
    info = read_info(job.data.path)
    folder = Folder(joined(job.storage, job.name))
    lanes = lanes_of(job, folder)
    data_order(job, info, lanes)
    check_validation_split(info)
    if job.mlflow is not None:
        check_mlflow(job.mlflow)
    if job.data.record_samples and not folder.is_local:
        raise ConfigError(
            f"data.record_samples=true: lines are added to files, which {job.storage} cannot do; "
            "leave it out, or give a storage folder that all nodes see"
        )
    claim_run(folder, settings_of(job, info, lanes), settings_of(TrainJob(), info, lanes))
    repair_index(folder, say, score_of(job))
    workers, each = job.scaling.min_workers or job.scaling.num_workers, job.scaling.cpus_per_worker
    start = time.perf_counter()
    # One more whole CPU, or Ray Data could never read, and one for a validation of its own.
    spare = 1 + (job.validate_in == "task")
    with (
        connect(
            job.cluster,
            workers * each + spare,
            math.ceil(workers * job.scaling.gpus),
            metadata_of(job, info.fingerprint),
        ),
        cleaning_up(job.data),
        _mlflow(job, folder) as mirror,
        _run_log(folder, mirror) as log,
    ):
        progress = _Progress(log, TrainingMetrics(job.name))
        task = WorkerTask(
            job=job, info=info, board=Board(), stop=StopFlag(), folder=folder.location,
            lanes=lanes,
        )  # fmt: skip
        with (
            watching(task.board, progress.keep), terminating(task.stop.want) as asked,
            freeing_what_is_left_behind(),
        ):  # fmt: skip
            run_training(task, storage=job.storage, name=job.name)
        if asked.is_set() and progress.stopped:
            raise SystemExit(143)
        checkpoint, metrics = best_epoch(folder, score_of(job))
        provenance = {"run": job.name} | dict(lineage or {})
        figures = write_bundle(job, info, checkpoint, metrics, folder, provenance)
    results: dict[str, Any] = {
        "run": folder.location, "bundle": folder.at(BUNDLE),
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

    def __init__(self, log: RunLog, metrics: TrainingMetrics) -> None:
        self._log, self._metrics, self._speeds = log, metrics, list[float]()
        self.starts, self.stopped = 0, False

    def keep(self, facts: dict[str, Any]) -> None:
        """One fact."""
        if facts["kind"] == "step":
            facts = facts | {"restarts": max(self.starts - 1, 0)}
        show(facts)
        self._log.write(facts)
        self._metrics.keep(facts)
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
        f"bundle    {folder.at(BUNDLE)}\n"
        f"curves    tensorboard --logdir {folder.at('tensorboard')}\n"
        f"evaluate  python jobs/evaluate.py model={folder.at(BUNDLE)} data={job.data.path}"
    )
