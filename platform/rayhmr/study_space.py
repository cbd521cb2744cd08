"""The space of a search, checked as a whole before anything starts."""

from __future__ import annotations

import math
from typing import Any

from hmr.errors import ConfigError
from rayhmr import command_line
from rayhmr.config import Dimension, TrainJob, TuneJob
from rayhmr.suggestions import Axis, Suggest, grid_size, suggester
from rayhmr.train import score_of

SEARCHABLE = ("body", "data", "encoder_from", "model", "train")
"""What makes a model; all else says where and how it runs."""
_SAME_FOR_ALL = {
    "train.epochs": "trials are compared epoch by epoch; set trial.train.epochs for all",
    "data.path": "trials on other data cannot be compared; make a study for each data set",
    "data.lanes": "it changes the order of the data alone; set trial.data.lanes",
}  # fmt: skip


def with_settings(job: TrainJob, settings: dict[str, Any]) -> TrainJob:
    """`job` with some settings replaced, by dotted path; ConfigError for a wrong one."""
    tree = job.model_dump()
    for path, value in settings.items():
        tree = command_line.set_dotted(tree, path, value)
    return command_line.validate(TrainJob, tree)


def check_space(job: TuneJob) -> list[Axis]:
    """The searched settings.

    ConfigError when one is no setting of a model's training, when a value is out of range, or when
    the trials cannot be compared.
    """
    if job.trial.validate_in != "workers":
        raise ConfigError(
            f"trial.validate_in={job.trial.validate_in}: a search compares trials epoch by epoch, "
            "so they validate by themselves; set it to workers"
        )
    return [_axis(job.trial, path, dimension) for path, dimension in job.space.items()]


def _axis(trial: TrainJob, path: str, dimension: Dimension) -> Axis:
    for value in dimension.choice or (dimension.low, dimension.high):
        with_settings(trial, {path: value})  # tells of misspelt names first
    if path.partition(".")[0] not in SEARCHABLE:
        raise ConfigError(
            f"space.{path}: changes no model; search below {', '.join(SEARCHABLE)}, and set "
            f"trial.{path} for all trials"
        )
    if path in _SAME_FOR_ALL:
        raise ConfigError(f"space.{path}: {_SAME_FOR_ALL[path]}")
    default: Any = trial.model_dump()
    for part in path.split("."):
        default = default[part]
    return Axis(
        path=path, dimension=dimension, default=default, whole=_is_whole(trial, path, dimension)
    )


def _is_whole(trial: TrainJob, path: str, dimension: Dimension) -> bool:
    """Whether the setting takes the whole numbers of its range, and no others."""
    if dimension.low is None or dimension.high is None:
        return False
    between = dimension.low + (dimension.high - dimension.low) / math.pi
    try:
        with_settings(trial, {path: between})
    except ConfigError:
        with_settings(trial, {path: int(between)})
        return True
    return False


def trials_of(job: TuneJob, axes: list[Axis]) -> int:
    """Trials in all; ConfigError when the grid has not as many."""
    if job.searcher != "grid":
        return int(job.trials or 0)
    whole = grid_size(axes) + job.compare_default
    if job.trials is not None and job.trials > whole:
        raise ConfigError(
            f"trials={job.trials}: the grid has {grid_size(axes)} points"
            f"{', and the default settings are one trial more' if job.compare_default else ''}; "
            f"give at most {whole}, or trials=null for all"
        )
    return job.trials or whole


def checked_suggester(job: TuneJob, axes: list[Axis], trials: int) -> Suggest:
    """How the next settings are found. ConfigError when a known combination does not fit together;
    what TPE will suggest is not known before."""
    suggest = suggester(job, axes, score_of(job.trial))
    if job.searcher != "optuna":
        for number in range(trials):
            with_settings(job.trial, suggest(number, []))
    return suggest
