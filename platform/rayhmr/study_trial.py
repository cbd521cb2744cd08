"""One trial of a search: the driver of a Ray Train run that reports every epoch to Ray Tune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray import tune as ray_tune
from ray.tune.integration.ray_train import TuneReportCallback

from hmr.checkpoint_place import is_checkpoint, state_of
from hmr.errors import BundleError, HmrError
from rayhmr.config import TuneJob
from rayhmr.data.schema import DatasetInfo
from rayhmr.metrics import TRIAL_LABEL
from rayhmr.placement_watch import PlacementWatch
from rayhmr.remote_place import place_of
from rayhmr.run_checkpoints import repair_index
from rayhmr.stopping import StopFlag
from rayhmr.storage import Folder, joined
from rayhmr.study import TRIALS
from rayhmr.study_space import with_settings
from rayhmr.telemetry import Board
from rayhmr.train import data_order, run_training, score_of
from rayhmr.train_worker import WorkerTask
from rayhmr.tune_bridge import GIVEN_UP, SETTINGS, TRIAL
from rayhmr.tune_resources import Plan


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a trial needs to know. folder: the study's. lanes: of the data order. room: what the
    cluster carries."""

    job: TuneJob
    info: DatasetInfo
    board: Board
    stop: StopFlag
    folder: str
    lanes: int
    room: Plan


def run_trial(config: dict[str, Any], study: Study) -> None:
    """Train with the trial's settings, from its own newest checkpoint if it has one.

    Errors that another start would meet again, such as a diverged training, end the trial at once;
    Tune starts it again after all others.
    """
    if study.stop.is_wanted():
        return
    trial, storage = str(config[TRIAL]), joined(study.folder, TRIALS)
    try:
        job = with_settings(study.job.trial, config[SETTINGS])
        data_order(job, study.info, study.lanes)
        task = WorkerTask(
            job=job, info=study.info, board=study.board, stop=study.stop,
            folder=joined(storage, trial), lanes=study.lanes, label=f"{TRIAL_LABEL}{trial}",
        )  # fmt: skip
        repair_index(
            Folder(task.folder),
            lambda text: task.post({"kind": "warning", "text": text}),
            score_of(job),
        )
        watch = PlacementWatch(
            study.room, study.job.cluster.start_timeout_s, stopped=study.stop.is_wanted,
            halted=_is_halted, warn=lambda text: task.post({"kind": "warning", "text": text}),
        )  # fmt: skip
        watch.run(
            lambda: run_training(
                task, storage=storage, name=trial, callbacks=[TuneReportCallback()],
                was_ended=watch.has_ended_it,
            )
        )  # fmt: skip
    except HmrError as error:
        ray_tune.report({GIVEN_UP: str(error)})


def _is_halted() -> bool:
    """Whether Tune has stopped the trial of this process. It only takes the trial's session away:
    the training would go on, and be begun again, until the process ends."""
    return ray_tune.get_context().get_trial_id() is None


def trained_epochs(folder: Folder, trial: str) -> list[dict[str, float]]:
    """What the checkpoints of a trial know of its epochs, in their order; damaged ones know
    nothing."""
    place = place_of(Folder(folder.at(f"{TRIALS}/{trial}")))
    longest: list[dict[str, float]] = []
    for name in filter(is_checkpoint, place.names()):
        try:
            history = state_of(place, name).get("history") or []
        except (BundleError, OSError):
            continue
        longest = max(longest, history, key=len)
    return longest
