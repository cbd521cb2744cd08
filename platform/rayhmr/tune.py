"""A search over the settings of a training: Ray Tune over Ray Train over Ray Data.

Each trial is a driver that starts a Ray Train run of its own; successive halving stops the weak
ones after some epochs. The score is PA-MPJPE on the validation split, never the loss, whose scale
changes with the searched weights. A study lives in <storage>/<name>/; the same command goes on with
it, and with more `trials` it is extended.
"""

from __future__ import annotations

import logging
import math
import signal
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from ray import tune as ray_tune

from hmr.errors import HmrError
from rayhmr.cluster import connect, environment
from rayhmr.config import TuneJob
from rayhmr.data.cache_cleaning import cleaning_up
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.halving import rungs
from rayhmr.job_metadata import metadata_of
from rayhmr.log import speaking_of
from rayhmr.metrics import SearchMetrics, TrainingMetrics
from rayhmr.placement_watch import watching_over_trials
from rayhmr.report import text_table
from rayhmr.run_bundle import register, write_bundle
from rayhmr.run_checkpoints import best_epoch
from rayhmr.search import Search, SearchPlan
from rayhmr.stopping import StopFlag, terminating
from rayhmr.storage import Folder, absolute, joined, ray_storage
from rayhmr.study import TRIALS, Ledger, TrialRecord, write_tables
from rayhmr.study_measure import held_out, measure_study
from rayhmr.study_report import best_yaml, write_report
from rayhmr.study_space import check_space, checked_suggester, trials_of
from rayhmr.study_space import with_settings as with_settings
from rayhmr.study_trial import Study, run_trial, trained_epochs
from rayhmr.telemetry import Board, say, watching
from rayhmr.train import (
    RUN,
    absolute_job,
    claim_run,
    data_order,
    score_of,
    settings_of,
    show,
    train,
)
from rayhmr.tune_bridge import StudyScheduler, StudySearcher, trial_name
from rayhmr.tune_resources import preflight
from rayhmr.validation import check_validation_split

BEST = "best.yaml"
TUNE = "tune"
"""Folder for what Ray Tune writes; the ledger has all that is needed, so it is removed."""
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials keep a checkpoint first
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


def _lanes(job: TuneJob, folder: Folder) -> int:
    """The lanes of the trials' data order: as given, or as at the study's first start."""
    stored = folder.read_json(RUN).get("trial", {}).get("lanes") if folder.exists(RUN) else None
    return job.trial.data.lanes or stored or job.trial.scaling.num_workers


def _settings(job: TuneJob, info: DatasetInfo, lanes: int) -> dict[str, Any]:
    """What makes two studies the same study; `trials` may grow."""
    settings = job.model_dump(
        mode="json",
        include={
            "searcher", "seed", "scheduler", "grace_epochs", "reduction_factor", "compare_default",
        },
    )  # fmt: skip
    settings["space"] = {k: d.model_dump(mode="json") for k, d in job.space.items()}
    settings["select_by"] = job.trial.select_by
    return settings | {"trial": settings_of(job.trial, info, lanes)}


def search_plan(job: TuneJob, trials: int) -> SearchPlan:
    """What the job asks of a search."""
    epochs = job.trial.train.epochs
    halving = job.scheduler == "asha"
    return SearchPlan(
        trials=trials, epochs=epochs, score=score_of(job.trial), factor=job.reduction_factor,
        rungs=rungs(job.grace_epochs, job.reduction_factor, epochs) if halving else (),
        keep_first=job.compare_default,
    )  # fmt: skip


def _run_trials(job: TuneJob, search: Search, study: Study, folder: Folder) -> None:
    """Run what is left of the search. SystemExit after SIGTERM or Ctrl-C, once the running trials
    have kept a checkpoint."""

    def stop() -> None:
        search.close()
        study.stop.want()

    signals = (signal.SIGTERM, signal.SIGINT)
    metrics = TrainingMetrics(job.name)

    def tell(facts: dict[str, Any]) -> None:
        show(facts)
        metrics.keep(facts)

    with (
        watching(study.board, tell), terminating(stop, signals) as asked,
        watching_over_trials(study.room, job.cluster.start_timeout_s, stop) as reasons,
    ):  # fmt: skip
        try:
            with environment(_TUNE_ENVIRONMENT):
                # It misses the files of Tune's own loggers; the ledger has what was in them.
                logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
                tuner_of(
                    search, partial(run_trial, study=study), study.room.driver,
                    study.room.concurrent, folder, max_failures=job.trial.max_failures,
                ).fit()  # fmt: skip
        finally:
            with suppress(OSError):
                folder.remove(TUNE)
    if reasons:
        raise HmrError(f"{reasons[0]}. The same command goes on with this study")
    if asked.is_set() and search.left:
        say(f"{folder.location}: stopped early; the same command goes on with this study")
        raise SystemExit(asked.exit_code)


def tuner_of(
    search: Search, trial: Callable[[dict[str, Any]], None], driver: Mapping[str, float],
    concurrent: int, folder: Folder, *, max_failures: int,
) -> ray_tune.Tuner:  # fmt: skip
    """A new Tune experiment for this start, which the ledger feeds. driver: what a trial itself
    holds."""
    folder.remove(TUNE)  # of a start that was killed
    return ray_tune.Tuner(
        ray_tune.with_resources(trial, dict(driver)),
        tune_config=ray_tune.TuneConfig(
            num_samples=search.left, max_concurrent_trials=concurrent,
            search_alg=StudySearcher(search), scheduler=StudyScheduler(search),
            trial_name_creator=trial_name, trial_dirname_creator=trial_name,
        ),
        run_config=ray_tune.RunConfig(
            name=uuid.uuid4().hex[:8], verbose=0, **ray_storage(folder.at(TUNE)),
            failure_config=ray_tune.FailureConfig(max_failures=max_failures),
        ),
    )  # fmt: skip


def trial_rows(
    records: Sequence[TrialRecord], score: str, space: Sequence[str]
) -> list[dict[str, Any]]:
    """One row a trial, best first: finished ones, then stopped, failed and unfinished."""
    order = ["finished", "stopped", "failed", "running"]

    def rank(record: TrialRecord) -> tuple[int, float, int]:
        known = record.history[-1].get(score) if record.history else None
        return (
            order.index(record.status), float("inf") if known is None else known, record.number
        )  # fmt: skip

    return [
        {"trial": r.trial, "status": r.status, "epochs": r.epochs}
        | {name: r.history[-1].get(f"val/{name}") if r.history else None
           for name in ("pa_mpjpe_mm", "mpjpe_mm")}
        | {path: r.settings.get(path) for path in space}
        | {"seconds": round(r.seconds, 1)}
        for r in sorted(records, key=rank)
    ]  # fmt: skip


def tune(job: TuneJob) -> dict[str, Any]:
    """Search, write the tables of trials and the best settings, register the best trial's model.

    The best trial is one that was trained to its end: an early score says little. HmrError when
    there is none. After SIGTERM or Ctrl-C the trials keep a checkpoint and the study ends:
    SystemExit with status 143 or 130.
    """
    job = job.model_copy(
        update={"trial": absolute_job(job.trial), "storage": absolute(job.storage),
                "registry": absolute(job.registry)}
    )  # fmt: skip
    with speaking_of(run=job.name):
        return _tune(job)


def _tune(job: TuneJob) -> dict[str, Any]:
    axes = check_space(job)
    trials = trials_of(job, axes)
    suggest = checked_suggester(job, axes, trials)
    info = read_info(job.trial.data.path)
    folder = Folder(joined(job.storage, job.name))
    lanes = _lanes(job, folder)
    data_order(job.trial, info, lanes)
    check_validation_split(info)
    claim_run(folder, _settings(job, info, lanes), _settings(TuneJob(), info, lanes))
    search = Search(
        search_plan(job, trials), Ledger(folder), suggest, partial(trained_epochs, folder),
        changed=SearchMetrics(job.name).keep,
    )  # fmt: skip
    start = time.perf_counter()
    try:
        if search.left:
            _run(job, search, info, folder, lanes)
    finally:  # also of a study that goes on later
        write_tables(folder, search.records, list(job.space))
        write_report(folder, search.records, job, info)
    records = search.records
    rows = trial_rows(records, score_of(job.trial), list(job.space))
    say(text_table(rows))
    best = search.best
    if best is None:
        reasons = {f"{r.trial} {r.status}: {r.reason}" for r in records}
        raise HmrError(
            f"{folder.location}: no trial was trained to its end; {'; '.join(sorted(reasons)[:5])}"
        )
    measured = measure_study(job, folder, records, best, info)
    write_report(folder, records, job, info, measured)
    figures = _keep_best(job, info, folder, best)
    outcome: dict[str, Any] = {
        "study": folder.location,
        "trials": len(records),
        "finished": sum(record.status == "finished" for record in records),
        "stopped": sum(record.status == "stopped" for record in records),
        "failed": sum(record.status == "failed" for record in records),
        "best_trial": best.trial,
        "best_settings": best.settings,
        **{name: round(value, 3) for name, value in figures.items()},
        "trial_epochs": search.spent,
        "grid_epochs": trials * job.trial.train.epochs,
        "held_out": held_out(job, records, best, measured),
        "seconds": round(time.perf_counter() - start, 1),
    }
    winner = folder
    if job.final.retrain:
        winner = _retrain(job, best, info)
        outcome["final"] = winner.location
    if job.register_as is not None:
        outcome["version"] = register(winner, job.registry, job.register_as)
    say(f"best settings: {folder.at(BEST)}; report: {folder.at('report.html')}")
    return outcome | {"rows": rows}


def _run(job: TuneJob, search: Search, info: DatasetInfo, folder: Folder, lanes: int) -> None:
    """Connect, and run what is left."""
    scaling = job.trial.scaling
    cpus = scaling.num_workers * scaling.cpus_per_worker + 1
    gpus = math.ceil(scaling.num_workers * scaling.gpus)
    metadata = metadata_of(job, info.fingerprint)
    with connect(job.cluster, cpus, gpus, metadata), cleaning_up(job.trial.data):
        study = Study(
            job=job, info=info, board=Board(), stop=StopFlag(), folder=folder.location,
            lanes=lanes, room=preflight(job, search.left),
        )  # fmt: skip
        say(search.progress())
        _run_trials(job, search, study, folder)


def _lineage(job: TuneJob, best: TrialRecord) -> dict[str, Any]:
    """Where a model of the best settings comes from, for its bundle."""
    return {"study": job.name, "trial": best.trial, "searched": best.settings}


def _keep_best(
    job: TuneJob, info: DatasetInfo, folder: Folder, best: TrialRecord
) -> dict[str, Any]:
    """best.yaml and the bundle of the best trial; what it measured."""
    folder.write(BEST, best_yaml(job, best.settings).encode())
    trial = with_settings(job.trial, best.settings)
    run = Folder(folder.at(f"{TRIALS}/{best.trial}"))
    checkpoint, metrics = best_epoch(run, score_of(job.trial))
    return write_bundle(trial, info, checkpoint, metrics, folder, _lineage(job, best))


def _retrain(job: TuneJob, best: TrialRecord, info: DatasetInfo) -> Folder:
    """Train the best settings with the full budget, as a run beside the study; the run's folder."""
    trial = with_settings(job.trial, best.settings)
    budget = {
        "train.epochs": job.final.epochs or trial.train.epochs,
        "data.train_fraction": job.final.train_fraction,
    }
    final = with_settings(trial, budget).model_copy(
        update={"name": f"{job.name}-final", "storage": job.storage, "register_as": None,
                "cluster": job.cluster}
    )  # fmt: skip
    say(f"training the best settings ({best.trial}) with the full budget: {final.train.epochs} "
        f"epochs of {info.rows('train', final.data.train_fraction)} people")  # fmt: skip
    return Folder(str(train(final, lineage=_lineage(job, best))["run"]))
