"""Validation away from the training workers: a Ray task measures each epoch's checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.train import Checkpoint

from hmr.body import Body
from hmr.checkpoint import load_model_weights, read_state
from hmr.errors import DataError
from hmr.metrics import MetricAccumulator
from hmr.model import build_model
from hmr.validation import validation_errors
from rayhmr.data.batches import read_batches, read_tables
from rayhmr.data.schema import DatasetInfo
from rayhmr.storage import Folder

if TYPE_CHECKING:
    from rayhmr.train_worker import WorkerTask

FOLDER = "validation"
"""Of a run; holds <epoch's checkpoint>.json with what was measured."""


def check_validation_split(info: DatasetInfo) -> None:
    """DataError when no epoch could be measured, which would be noticed only at its end."""
    people = info.rows("val")
    tables = read_tables(info, "val", 4096, ["has_smpl"])
    if not any(any(table["has_smpl"].to_pylist()) for table in tables):
        raise DataError(
            f"{info.location}: none of the {people} people of the val split has SMPL labels (pose "
            "and betas), so no epoch can be measured or chosen; prepare it with labelled people in "
            "val"
        )


def validate_checkpoint(task: WorkerTask, checkpoint: Checkpoint) -> dict[str, Any]:
    """The errors of a checkpoint over the whole validation split, also written to the run's folder.

    Called by Ray Train; what it returns is added to what Ray knows about the checkpoint.
    """
    job = task.job
    with checkpoint.as_directory() as folder:
        model = build_model(job.model)
        load_model_weights(folder, model)
        state = read_state(folder)
    batches = read_batches(
        task.info, "val", batch_size=job.train.batch_size, image_size=job.model.image_size
    )
    vector = validation_errors(model.eval(), Body.from_config(job.body), batches)
    means = MetricAccumulator.from_vector(vector).compute()
    metrics: dict[str, Any] = {f"val/{name}": value for name, value in means.items()}
    metrics["epoch"] = float(state["epoch"])
    name = checkpoint.path.rstrip("/").rpartition("/")[2]
    Folder(task.folder).write_json(f"{FOLDER}/{name}.json", metrics)
    task.post({"kind": "validation", "step": float(state["step"]), **metrics})
    return metrics
