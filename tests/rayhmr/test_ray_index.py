"""Ray Train's index of checkpoints: whatever became of it, a run starts with all that is there.

Ray's own reader of the index is the judge: it must refuse the damaged one and take the repaired.
"""

from __future__ import annotations

import asyncio
import math
import os
from pathlib import Path

import pytest
import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager
from ray.train.v2._internal.execution.storage import StorageContext
from ray.train.v2._internal.execution.training_report import _TrainingReport

from hmr.checkpoint_place import epoch_name, step_name
from hmr.errors import HmrError
from hmr.manifest import read_json, write_json, write_manifest
from rayhmr.ray_index import INDEX, repair_index
from rayhmr.run_checkpoints import RunCheckpoints
from rayhmr.storage import Folder

SCORE = "val/pa_mpjpe_mm"
KEEP = 2
ERRORS = {1: 50.0, 2: 20.0, 3: 40.0}


def metrics_of(epoch, error):
    return {"epoch": float(epoch)} | ({} if error is None else {SCORE: error})


def state(epoch, error, step=None):
    def write(folder):
        (folder / "model.safetensors").write_bytes(bytes([epoch]) * 100)
        history = [metrics_of(n, None) for n in range(1, epoch)] + [metrics_of(epoch, error)]
        write_json(folder / "state.json", {"step": step or 10 * epoch, "history": history})
        write_manifest(folder, {"kind": "training state"})

    return write


def rays_manager(run):
    """What `fit` reads the index with; it raises when `fit` would die."""
    return CheckpointManager(
        CheckpointConfig(
            num_to_keep=KEEP, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
        ),
        StorageContext(storage_path=str(run.parent), experiment_dir_name=run.name),
    )


def report(manager, run, *epochs, validation=False):
    """Save these epochs and tell Ray, as a run does."""
    store = RunCheckpoints(Folder(str(run)), 2)

    async def call():
        for epoch, error in epochs:
            store.save(epoch_name(epoch), state(epoch, error), wait=True)
            checkpoint = store.as_ray(epoch_name(epoch))
            manager.register_checkpoint(
                _TrainingReport(checkpoint, metrics_of(epoch, error), validation)
            )
        await asyncio.gather(*manager._background_tasks)

    asyncio.run(call())


def ranked(manager):
    """Ray's epochs, the worst first, with their scores."""
    return [
        (Path(result.checkpoint.path).name, result.metrics.get(SCORE))
        for result in manager._checkpoint_results
    ]


def latest(manager):
    return Path(manager.latest_checkpoint_result.checkpoint.path).name


def epochs_on_disk(run):
    return sorted(name for name in os.listdir(run) if name.startswith("epoch-"))


@pytest.fixture
def said():
    return []


@pytest.fixture
def run(tmp_path):
    """A run of three epochs, whose second is the best: two and three are kept."""
    run = tmp_path / "runs/one"
    report(rays_manager(run), run, *ERRORS.items())
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0003"]
    return run


def flip_a_bit(path, at=20):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def change(run, **changes):
    index = read_json(run / INDEX)
    write_json(run / INDEX, index | changes)


def list_twice(run):
    index = read_json(run / INDEX)
    index["checkpoint_results"] *= 2
    index["checkpoint_report_indices"] *= 2
    write_json(run / INDEX, index)


def without(run, key):
    index = read_json(run / INDEX)
    del index[key]
    write_json(run / INDEX, index)


UNREADABLE = {
    "empty": lambda run: os.truncate(run / INDEX, 0),
    "half": lambda run: os.truncate(run / INDEX, (run / INDEX).stat().st_size // 2),
    "garbage": lambda run: (run / INDEX).write_bytes(os.urandom(999)),
    "zeros": lambda run: (run / INDEX).write_bytes(bytes(999)),
    "no object": lambda run: (run / INDEX).write_text("[]"),
    "another version": lambda run: change(run, ray_version="2.61.0"),
    "no version": lambda run: without(run, "ray_version"),
    "a field lost": lambda run: without(run, "pending_training_results"),
    "a checkpoint listed twice": list_twice,
    "a latest one that is not listed": lambda run: change(
        run, latest_checkpoint_result={"checkpoint_dir_name": "epoch-0009", "metrics": {}}
    ),
}


def test_an_index_that_fits_is_left_alone(run, said):
    before = (run / INDEX).read_bytes()
    repair_index(Folder(str(run)), said.append)
    assert said == []
    assert (run / INDEX).read_bytes() == before


def test_a_run_that_has_not_begun_has_no_index(tmp_path, said):
    repair_index(Folder(str(tmp_path / "nowhere")), said.append)
    (tmp_path / "run").mkdir()
    repair_index(Folder(str(tmp_path / "run")), said.append)
    assert said == []
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("damage", UNREADABLE)
def test_an_index_that_cannot_be_read_is_made_again(run, said, damage):
    before = ranked(rays_manager(run))
    UNREADABLE[damage](run)
    broken = (run / INDEX).read_bytes()
    # Ray looks at the version only when it cannot read the rest; of an epoch that is listed twice
    # it would remove the folder while it still counts on it.
    if not damage.endswith(("version", "twice")):
        with pytest.raises((CheckpointManagerInitializationError, LookupError, ValueError)):
            rays_manager(run)
    repair_index(Folder(str(run)), said.append)
    assert len(said) == 1
    assert said[0].startswith(f"{run}/{INDEX}: Ray's index of checkpoints ")
    assert f"it is now {INDEX}.damaged-1, and it was made again from the 2 compl" in said[0]
    assert (run / f"{INDEX}.damaged-1").read_bytes() == broken
    manager = rays_manager(run)
    assert ranked(manager) == before == [("epoch-0003", 40.0), ("epoch-0002", 20.0)]
    assert latest(manager) == "epoch-0003"
    assert manager._current_report_index == 3


def test_a_lost_index_is_made_again(run, said):
    (run / INDEX).unlink()
    repair_index(Folder(str(run)), said.append)
    assert said == [
        f"{run}/{INDEX}: Ray's index of checkpoints is missing; it was made again from the 2 "
        "complete epochs that are there"
    ]
    assert ranked(rays_manager(run)) == [("epoch-0003", 40.0), ("epoch-0002", 20.0)]


def test_after_a_repair_ray_goes_on_removing_epochs_by_its_rule(run, said):
    os.truncate(run / INDEX, 0)
    repair_index(Folder(str(run)), said.append)
    manager = rays_manager(run)
    report(manager, run, (4, 45.0))
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0003", "epoch-0004"]
    report(manager, run, (5, 10.0))
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0005"], "no orphans"
    assert ranked(manager) == [("epoch-0002", 20.0), ("epoch-0005", 10.0)]


def test_a_listed_epoch_that_is_gone_is_forgotten(run, said):
    RunCheckpoints(Folder(str(run)), 2).place.remove("epoch-0003")
    with pytest.raises(CheckpointManagerInitializationError):
        rays_manager(run)
    repair_index(Folder(str(run)), said.append)
    assert len(said) == 1
    assert "lists epoch-0003, which is not there; it was made again from the 1 complete" in said[0]
    manager = rays_manager(run)
    assert latest(manager) == "epoch-0002"
    report(manager, run, (3, 40.0), (4, 30.0))
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0004"]


def test_a_damaged_newest_epoch_may_be_trained_again_under_its_name(run, said):
    flip_a_bit(run / "epoch-0003/model.safetensors")
    repair_index(Folder(str(run)), said.append)
    assert len(said) == 1
    assert "lists epoch-0003, which is damaged (" in said[0]
    assert "sha256 is" in said[0]
    manager = rays_manager(run)
    assert ranked(manager) == [("epoch-0002", 20.0)]
    report(manager, run, (3, 40.0))
    assert ranked(manager) == [("epoch-0003", 40.0), ("epoch-0002", 20.0)]
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0003"]
    assert RunCheckpoints(Folder(str(run)), 2).newest_name() == "epoch-0003"


def test_a_damaged_older_epoch_is_the_first_to_go(run, said):
    flip_a_bit(run / "epoch-0002/model.safetensors")
    repair_index(Folder(str(run)), said.append)
    assert "lists epoch-0002, which is damaged" in said[0]
    manager = rays_manager(run)
    assert [name for name, _ in ranked(manager)] == ["epoch-0002", "epoch-0003"]
    assert latest(manager) == "epoch-0003"
    report(manager, run, (4, 90.0))
    assert epochs_on_disk(run) == ["epoch-0003", "epoch-0004"]


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_a_score_that_is_no_number_does_not_stop_the_next_start(tmp_path, said, error):
    run = tmp_path / "runs/one"
    report(rays_manager(run), run, (1, error), (2, 50.0))
    manager = rays_manager(run)
    with pytest.raises(TypeError):  # Ray's own: it has written null
        report(manager, run, (3, 40.0))
    RunCheckpoints(Folder(str(run)), 2).place.remove("epoch-0003")
    repair_index(Folder(str(run)), said.append)
    assert len(said) == 1
    assert "checkpoints has null as the score of epoch-0001; it was made again" in said[0]
    manager = rays_manager(run)
    report(manager, run, (3, 40.0))
    assert ranked(manager) == [("epoch-0002", 50.0), ("epoch-0003", 40.0)]
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0003"]


def test_an_epoch_that_ray_never_heard_of_is_listed(run, said):
    """Its writer was killed between the end of the save and the report."""
    RunCheckpoints(Folder(str(run)), 2).save("epoch-0004", state(4, 15.0), wait=True)
    repair_index(Folder(str(run)), said.append)
    assert len(said) == 1
    assert "does not list epoch-0004; it was made again from the 3" in said[0]
    manager = rays_manager(run)
    assert latest(manager) == "epoch-0004"
    report(manager, run, (5, 30.0))
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0004", "epoch-0005"]
    report(manager, run, (6, 30.0))
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0004", "epoch-0006"], "best two and last"


def test_with_no_epoch_left_a_damaged_index_only_steps_aside(run, said):
    store = RunCheckpoints(Folder(str(run)), 2)
    store.save(step_name(5), state(1, 50.0, step=5), wait=True)
    for name in epochs_on_disk(run):
        store.place.remove(name)
    repair_index(Folder(str(run)), said.append)
    assert len(said) == 1
    assert said[0].endswith(f"it is now {INDEX}.damaged-1")
    assert not (run / INDEX).exists()
    manager = rays_manager(run)
    assert manager.latest_checkpoint_result is None
    assert store.newest_name() == step_name(5)


def test_every_damaged_index_is_kept(run, said):
    for number in (1, 2, 3):
        (run / INDEX).write_text(str(number))
        repair_index(Folder(str(run)), said.append)
    assert [(run / f"{INDEX}.damaged-{n}").read_text() for n in (1, 2, 3)] == ["1", "2", "3"]
    assert len(said) == 3


def test_validated_elsewhere_counts_and_what_was_not_is_validated_again(tmp_path, said):
    run = tmp_path / "runs/one"
    report(rays_manager(run), run, (1, None), (2, None), (3, None), validation=True)
    (run / "validation").mkdir()
    write_json(run / "validation/epoch-0001.json", {SCORE: 30.0})
    write_json(run / "validation/epoch-0002.json", {SCORE: 20.0})
    os.truncate(run / INDEX, 0)
    repair_index(Folder(str(run)), said.append)
    manager = rays_manager(run)
    expected = [("epoch-0001", 30.0), ("epoch-0002", 20.0), ("epoch-0003", None)]
    assert ranked(manager) == expected
    waiting = manager.get_pending_training_results()
    assert [Path(checkpoint.path).name for checkpoint in waiting] == ["epoch-0003"]
    assert next(iter(waiting.values()))[1] is True


def test_another_score_ranks_otherwise(run, said):
    for name, error in (("epoch-0002", 9.0), ("epoch-0003", 8.0)):
        Folder(str(run)).write_json(f"validation/{name}.json", {"val/mpjpe_mm": error})
    os.truncate(run / INDEX, 0)
    repair_index(Folder(str(run)), said.append, "val/mpjpe_mm")
    assert [name for name, _ in ranked(rays_manager(run))] == ["epoch-0002", "epoch-0003"]


def test_an_outage_is_told_and_left_to_fit(run, said, monkeypatch):
    def no_answer(self, name):
        raise ConnectionError("no answer")

    monkeypatch.setattr(Folder, "read", no_answer)
    repair_index(Folder(str(run)), said.append)
    assert said == [f"{run}: Ray's index of checkpoints could not be looked at (no answer)"]


# The whole way


def train_epochs(config):
    """Two more epochs from the newest checkpoint, each reported to Ray."""
    run = Folder(config["run"])
    store = RunCheckpoints(run, 2)
    store.tidy()
    newest = store.newest()
    done = 0 if newest is None else len(read_json(newest / "state.json")["history"])
    for epoch in range(done + 1, done + 3):
        if not store.save(epoch_name(epoch), state(epoch, 100.0 - epoch), wait=True):
            raise HmrError("not saved")
        ray.train.report(
            metrics_of(epoch, 100.0 - epoch), checkpoint=store.as_ray(epoch_name(epoch)),
            checkpoint_dir_name=epoch_name(epoch),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )  # fmt: skip
    store.close()


def fit(run):
    return ray.train.torch.TorchTrainer(
        train_epochs,
        train_loop_config={"run": str(run)},
        scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=run.name, storage_path=str(run.parent),
            checkpoint_config=CheckpointConfig(
                num_to_keep=KEEP, checkpoint_score_attribute=SCORE, checkpoint_score_order="min"
            ),
        ),
    ).fit()  # fmt: skip


@pytest.mark.ray
def test_stock_fit_dies_of_a_torn_index_and_ours_goes_on(local_cluster, tmp_path, said):
    run = tmp_path / "runs/one"
    fit(run)
    assert epochs_on_disk(run) == ["epoch-0001", "epoch-0002"]
    os.truncate(run / INDEX, 0)
    with pytest.raises(ray.exceptions.RayError, match="CheckpointManagerInitializationError"):
        fit(run)
    RunCheckpoints(Folder(str(run)), 2).place.remove("epoch-0002")
    repair_index(Folder(str(run)), said.append)
    result = fit(run)
    assert len(said) == 1
    assert epochs_on_disk(run) == ["epoch-0002", "epoch-0003"]
    assert result.metrics == metrics_of(3, 97.0)
    assert [metrics[SCORE] for _, metrics in result.best_checkpoints] == [98.0, 97.0]
    listed = [r["checkpoint_dir_name"] for r in read_json(run / INDEX)["checkpoint_results"]]
    assert listed == ["epoch-0002", "epoch-0003"]
