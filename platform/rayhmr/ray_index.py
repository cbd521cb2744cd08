"""Ray Train's index of a run's checkpoints, made again when it is lost or does not fit.

Ray Train rewrites `checkpoint_manager_snapshot.json` in place: a kill or a full disk at the wrong
moment leaves it empty or torn, and then every later start of the run fails, though all checkpoints
are there. It fails as well when a listed folder is gone. So the index is compared with the folders
before a run starts, and made anew from them when it is wrong.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from hmr.checkpoint_place import Place, epoch_metrics, is_epoch, number_of
from hmr.errors import BundleError
from rayhmr.remote_place import place_of
from rayhmr.storage import Folder

INDEX: str = CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
WORST = sys.float_info.max
"""Stands for a score that is no number. Ray writes NaN as null, on which its next start fails."""


def repair_index(
    folder: Folder, say: Callable[[str], None], score: str = "val/pa_mpjpe_mm"
) -> None:
    """Let a run's `fit` start, whatever became of Ray's index in the run's folder.

    An index that is missing beside complete epochs, unreadable, of another Ray version, or at odds
    with the folders is made anew from them, with one line to `say`. One that cannot be read is
    kept as <name>.damaged-<n>. score: metric by which Ray Train ranks the epochs; the lowest wins.
    """
    try:
        _repair(folder, say, score)
    except (OSError, pa.ArrowException) as error:
        say(f"{folder.location}: Ray's index of checkpoints could not be looked at ({error})")


def _repair(folder: Folder, say: Callable[[str], None], score: str) -> None:
    epochs, damaged = _epochs(place_of(folder))
    content = folder.read(INDEX) if folder.exists(INDEX) else None
    if content is None and not epochs:
        return
    wrong, readable = _what_is_wrong(content, set(epochs), damaged, score)
    if not wrong:
        return
    done = []
    if content is not None and not (readable and epochs):
        done.append(f"it is now {_move_aside(folder)}")
    if epochs:
        folder.write(INDEX, _index_of(epochs, damaged, score).encode())
        done.append(f"it was made again from the {len(epochs)} complete epochs that are there")
    say(f"{folder.at(INDEX)}: Ray's index of checkpoints {wrong}; {', and '.join(done)}")


def _epochs(place: Place) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """What is known about each complete epoch, and what is wrong with the others."""
    complete, damaged = {}, {}
    for name in place.names():
        if is_epoch(name):
            try:
                place.check(name)
                complete[name] = epoch_metrics(place, name)
            except BundleError as error:
                damaged[name] = str(error)
    return complete, damaged


def _what_is_wrong(
    content: bytes | None, epochs: set[str], damaged: dict[str, str], score: str
) -> tuple[str, bool]:
    """What to say about an index, nothing when it is right; and whether Ray could read it."""
    if content is None:
        return "is missing", False
    try:
        state = json.loads(content)
        version = state["ray_version"]
        if version != ray.__version__:
            return f"was written by Ray {version}, this is Ray {ray.__version__}", False
        index = _CheckpointManagerState.parse_obj(state)
    except Exception as error:
        what = "is empty" if not content.strip() else f"cannot be read ({error!r:.120})"
        return what, False
    listed = [result.checkpoint_dir_name for result in index.checkpoint_results]
    others = [result.checkpoint_dir_name for result in index.pending_training_results]
    if index.latest_checkpoint_result is not None:
        others.append(index.latest_checkpoint_result.checkpoint_dir_name)
    if (
        len(listed) != len(index.checkpoint_report_indices)
        or len(index.pending_training_results) != len(index.pending_validation_specs)
        or len(set(listed)) != len(listed)
        or not set(others) <= set(listed)
    ):
        return "contradicts itself", False
    problems = []
    for result in index.checkpoint_results:
        name = result.checkpoint_dir_name
        if result.metrics.get(score, WORST) is None:
            problems.append(f"has null as the score of {name}")
        if name in damaged:
            problems.append(f"lists {name}, which is damaged ({damaged[name]})")
        elif name not in epochs:
            problems.append(f"lists {name}, which is not there")
    if unknown := sorted(epochs - set(listed), key=number_of):
        problems.append(f"does not list {', '.join(unknown)}")
    return "; it ".join(problems), True


def _move_aside(folder: Folder) -> str:
    number, taken = 1, folder.names()
    while (name := f"{INDEX}.damaged-{number}") in taken:
        number += 1
    folder.files.move(folder.path(INDEX), folder.path(name))
    return name


def _index_of(epochs: dict[str, dict[str, float]], damaged: dict[str, str], score: str) -> str:
    """An index as Ray Train would have written it, for complete epochs and their metrics.

    Damaged ones stand in it as the worst, so that Ray removes them like others. But not those that
    training will write again under the same name: Ray would take the new one for the old.
    """
    latest = max(epochs, key=number_of)
    rubbish = {n: {score: WORST} for n in damaged if number_of(n) < number_of(latest)}
    # Without a score an epoch still waits for its validation, which Ray then starts again.
    pending = [name for name, metrics in epochs.items() if score not in metrics]
    known: dict[str, dict[str, float]] = rubbish | epochs
    for name in known.keys() - set(pending):
        if not math.isfinite(known[name][score]):
            known[name] = known[name] | {score: WORST}
    ranked = sorted(known, key=lambda name: _rank(known[name], score, name))
    results = {n: {"checkpoint_dir_name": n, "metrics": known[n]} for n in ranked}
    state: dict[str, Any] = {
        "checkpoint_results": list(results.values()),
        "checkpoint_report_indices": [number_of(name) - 1 for name in ranked],
        "latest_checkpoint_result": results[latest],
        "pending_training_results": [results[name] for name in pending],
        "pending_validation_specs": [True] * len(pending),
        "current_report_index": number_of(latest),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
    written: str = _CheckpointManagerState.parse_obj(state).json()
    return written


def _rank(metrics: dict[str, float], score: str, name: str) -> tuple[bool, float, int]:
    """Sorts as Ray Train does, the worst first, the later of equal ones later; what has no score
    yet last, where it is safe."""
    if score not in metrics:
        return True, 0.0, number_of(name)
    return False, -float(metrics[score]), number_of(name)
