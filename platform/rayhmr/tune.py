"""A search over the settings of a training: Ray Tune over Ray Train over Ray Data.

Each trial is a driver that starts a Ray Train run of its own; ASHA stops the weak ones after an
epoch. The score is PA-MPJPE on the validation split, never the loss, whose scale changes with the
searched weights. A study lives in <storage>/<name>/; the same command goes on with it.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import optuna
import ray
import yaml
from ray import tune as ray_tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from hmr.errors import ConfigError, DivergedError, HmrError
from rayhmr import command_line
from rayhmr.cluster import DRIVER_RESOURCE, connect
from rayhmr.config import Dimension, TrainJob, TuneJob
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.report import text_table
from rayhmr.run_bundle import register, write_bundle
from rayhmr.run_checkpoints import best_epoch, repair_index
from rayhmr.stopping import StopFlag
from rayhmr.storage import Folder, absolute
from rayhmr.telemetry import Board, say, watching
from rayhmr.train import (
    absolute_job,
    claim_run,
    data_order,
    run_training,
    score_of,
    settings_of,
    show,
)
from rayhmr.train_worker import WorkerTask

TRIALS = "trials"
TABLE, BEST = "trials.csv", "best.yaml"


def with_settings(job: TrainJob, settings: dict[str, Any]) -> TrainJob:
    """`job` with some settings replaced, by dotted path; ConfigError for a wrong one."""
    tree = job.model_dump()
    for path, value in settings.items():
        tree = command_line.set_dotted(tree, path, value)
    return command_line.validate(TrainJob, tree)


def check_space(job: TuneJob) -> None:
    """ConfigError when a searched path is no setting of a training, or a value is out of range."""
    if job.trial.validate_in != "workers":
        raise ConfigError(
            f"trial.validate_in={job.trial.validate_in}: a search compares trials epoch by epoch, "
            "so they validate by themselves; set it to workers"
        )
    for path, dimension in job.space.items():
        for value in dimension.choice or (dimension.low, dimension.high):
            with_settings(job.trial, {path: value})


def _domain(dimension: Dimension) -> Any:
    if dimension.choice is not None:
        return ray_tune.choice(dimension.choice)
    sample = ray_tune.loguniform if dimension.log else ray_tune.uniform
    return sample(dimension.low, dimension.high)


def concurrent_trials(
    nodes: Sequence[dict[str, float]], *, workers: int, cpus: int, gpus: int
) -> int:
    """How many trials run side by side without waiting for each other for ever.

    nodes: resources of each. A trial holds `workers` bundles of `cpus` CPUs and `gpus` GPUs. On
    every node that hosts one of its workers, one whole CPU must stay free for its Ray Data tasks:
    CPUs are counted whole and node by node, because a task cannot be spread over two nodes.
    """
    free = [{"CPU": int(n.get("CPU", 0)), "GPU": int(n.get("GPU", 0))} for n in nodes]
    trials = 0
    while _place_trial(free, workers, cpus, gpus):
        trials += 1
    return trials


def _place_trial(free: list[dict[str, int]], workers: int, cpus: int, gpus: int) -> bool:
    """Take a trial's resources from the nodes; whether they were there."""
    hosts: set[int] = set()
    for _ in range(workers):
        fitting = [
            i
            for i, node in enumerate(free)
            if node["CPU"] >= cpus + (i not in hosts) and node["GPU"] >= gpus
        ]
        if not fitting:
            return False
        # Where the trial is already, else on the emptiest node.
        best = max(fitting, key=lambda i: (i in hosts, free[i]["CPU"]))
        free[best]["CPU"] -= cpus + (best not in hosts)
        free[best]["GPU"] -= gpus
        hosts.add(best)
    return True


def _concurrency(job: TuneJob) -> int:
    scaling = job.trial.scaling
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    possible = concurrent_trials(
        nodes, workers=scaling.num_workers, cpus=scaling.cpus_per_worker, gpus=int(scaling.use_gpu)
    )
    if possible == 0:
        sizes = ", ".join(f"{n.get('CPU', 0):g} CPU {n.get('GPU', 0):g} GPU" for n in nodes)
        raise HmrError(
            f"no trial fits: each needs {scaling.num_workers} workers of "
            f"{scaling.cpus_per_worker} CPU, and one more whole CPU on every node it is on, for "
            f"Ray Data; the nodes have {sizes}. Lower trial.scaling.num_workers or add nodes"
        )
    return min(possible, job.max_concurrent or possible, job.trials)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a trial needs to know."""

    job: TuneJob
    info: DatasetInfo
    board: Board
    stop: StopFlag
    folder: str


def run_trial(settings: dict[str, Any], study: Study) -> None:
    """The driver of one trial: a Ray Train run that reports every epoch to the search."""
    trial_id = ray_tune.get_context().get_trial_id()
    job, folder = with_settings(study.job.trial, settings), f"{study.folder}/{TRIALS}/{trial_id}"
    task = WorkerTask(
        job=job, info=study.info, board=study.board, stop=study.stop, folder=folder,
        lanes=_lanes(job), label=f"trial {trial_id}",
    )  # fmt: skip
    repair_index(
        Folder(folder),
        lambda text: task.post({"kind": "warning", "text": text}),
        score_of(job),
    )
    # The same name after a crash of the driver: the trial goes on from its own checkpoint.
    try:
        run_training(
            task, storage=f"{study.folder}/{TRIALS}", name=trial_id,
            callbacks=[TuneReportCallback()],
        )  # fmt: skip
    except DivergedError as error:  # it would do so again: the trial ends here, unfinished
        task.post({"kind": "warning", "text": str(error)})


class _Say(ray_tune.Callback):
    """Lines about trials as they end."""

    def __init__(self, total: int, score: str) -> None:
        self.total, self.score, self.ended = total, score, 0

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(trial, "ended")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._end(trial, "failed")

    def _end(self, trial: Any, how: str) -> None:
        self.ended += 1
        last = trial.last_result or {}
        score = f", {last[self.score]:.1f}mm" if self.score in last else ""
        epochs = last.get("training_iteration", 0)
        say(f"trial {trial.trial_id} {how} after {epochs} epochs{score} ({self.ended} of "
            f"{self.total} trials)")  # fmt: skip


def _lanes(trial: TrainJob) -> int:
    return trial.data.lanes or trial.scaling.num_workers


def _searcher(job: TuneJob) -> Searcher | None:
    if job.searcher == "random":
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=job.seed)
    return OptunaSearch(metric=score_of(job.trial), mode="min", sampler=sampler)


def _tuner(study: Study, folder: Folder) -> ray_tune.Tuner:
    """A new study, or the one that was begun in this folder."""
    job = study.job
    trainable = ray_tune.with_resources(partial(run_trial, study=study), {DRIVER_RESOURCE: 0.01})
    space = {path: _domain(dimension) for path, dimension in job.space.items()}
    if ray_tune.Tuner.can_restore(folder.location):
        return ray_tune.Tuner.restore(
            folder.location, trainable=trainable, resume_errored=True, param_space=space
        )
    storage, _, name = folder.location.rpartition("/")
    return ray_tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric=score_of(job.trial), mode="min", num_samples=job.trials,
            max_concurrent_trials=_concurrency(job), search_alg=_searcher(job),
            scheduler=ASHAScheduler(
                time_attr="training_iteration", grace_period=job.grace_epochs,
                # One more than a trial has: the last epoch ends it, not the scheduler.
                max_t=job.trial.train.epochs + 1, reduction_factor=job.reduction_factor,
            ),
        ),
        run_config=ray_tune.RunConfig(
            name=name, storage_path=storage, verbose=0,
            callbacks=[_Say(job.trials, score_of(job.trial))],
            failure_config=ray_tune.FailureConfig(max_failures=job.trial.max_failures),
        ),
    )  # fmt: skip


def trial_rows(results: ray_tune.ResultGrid, job: TuneJob) -> list[dict[str, Any]]:
    """One row a trial, best first: finished ones, then stopped, then failed."""
    rows = []
    for result in results:
        metrics = result.metrics or {}
        epochs = int(metrics.get("epoch", 0))
        ended = "finished" if epochs == job.trial.train.epochs else "stopped"
        rows.append(
            {
                "trial": metrics.get("trial_id", "?"),
                "status": "failed" if result.error else ended,
                "epochs": epochs,
                "pa_mpjpe_mm": metrics.get("val/pa_mpjpe_mm"),
                "mpjpe_mm": metrics.get("val/mpjpe_mm"),
                **{path: (result.config or {}).get(path) for path in job.space},
                "seconds": metrics.get("time_total_s"),
            }
        )
    order = {"finished": 0, "stopped": 1, "failed": 2}
    return sorted(rows, key=lambda r: (order[r["status"]], r["pa_mpjpe_mm"] or float("inf")))


def _write_tables(folder: Folder, rows: list[dict[str, Any]], best: TrainJob) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    folder.write(TABLE, table.getvalue().encode())
    settings = best.model_dump(mode="json", include={"data", "body", "model", "train", "scaling"})
    folder.write(BEST, yaml.safe_dump(settings, sort_keys=False).encode())


def _claim_study(folder: Folder, job: TuneJob, info: DatasetInfo) -> None:
    settings = job.model_dump(
        mode="json", include={"trials", "searcher", "seed", "grace_epochs", "reduction_factor"}
    )
    settings["space"] = {k: d.model_dump(mode="json") for k, d in job.space.items()}
    claim_run(folder, settings | {"trial": settings_of(job.trial, info, _lanes(job.trial))})


def tune(job: TuneJob) -> dict[str, Any]:
    """Search, write the table of trials and the best settings, register the best trial's model.

    The best trial is one that was trained to its end: an early score says little. HmrError when
    there is none.
    """
    job = job.model_copy(
        update={"trial": absolute_job(job.trial), "storage": absolute(job.storage),
                "registry": absolute(job.registry)}
    )  # fmt: skip
    check_space(job)
    info = read_info(job.trial.data.path)
    scaling = job.trial.scaling
    data_order(job.trial, info, _lanes(job.trial))
    folder = Folder(f"{job.storage}/{job.name}")
    _claim_study(folder, job, info)
    start = time.perf_counter()
    cpus = scaling.num_workers * scaling.cpus_per_worker + 1
    with connect(job.cluster, cpus, scaling.num_workers if scaling.use_gpu else 0):
        board = Board()
        study = Study(job=job, info=info, board=board, stop=StopFlag(), folder=folder.location)
        with watching(board, show):
            results = _tuner(study, folder).fit()
        rows = trial_rows(results, job)
        say(text_table(rows))
        if rows[0]["status"] != "finished":
            errors = {str(result.error) for result in results if result.error}
            raise HmrError(
                f"{folder.location}: no trial was trained to its end; "
                f"{'; '.join(sorted(errors)) or 'raise grace_epochs'}"
            )
        winner = next(r for r in results if (r.metrics or {}).get("trial_id") == rows[0]["trial"])
        settings = {path: (winner.config or {})[path] for path in job.space}
        best = with_settings(job.trial, settings)
        _write_tables(folder, rows, best)
        run = Folder(f"{folder.location}/{TRIALS}/{rows[0]['trial']}")
        checkpoint, metrics = best_epoch(run, score_of(job.trial))
        figures = write_bundle(
            best, info, checkpoint, metrics, folder,
            {"study": job.name, "trial": rows[0]["trial"]},
        )  # fmt: skip
    outcome: dict[str, Any] = {
        "study": folder.location,
        "trials": len(rows),
        "finished": sum(row["status"] == "finished" for row in rows),
        "stopped": sum(row["status"] == "stopped" for row in rows),
        "best_trial": rows[0]["trial"],
        "best_settings": settings,
        **{name: round(value, 3) for name, value in figures.items()},
        "trial_epochs": sum(row["epochs"] for row in rows),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if job.register_as is not None:
        outcome["version"] = register(folder, job.registry, job.register_as)
    say(f"best settings: {folder.location}/{BEST}; table: {folder.location}/{TABLE}")
    return outcome | {"rows": rows}
