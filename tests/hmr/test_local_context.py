"""Checkpoints of a run in one process: complete copies, the newest of them, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from hmr.checkpoint import load_training_state, save_training_state
from hmr.local_context import LocalContext


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint as the training loop hands it over."""
    folder = tmp_path / "source"
    folder.mkdir()
    model = nn.Linear(2, 1)
    save_training_state(folder, model, AdamW(model.parameters()), {"epoch": 0})
    return folder


def report(context: LocalContext, source: Path | None, *epochs: int) -> None:
    for epoch in epochs:
        context.report({"epoch": float(epoch)}, None if source is None else str(source))


def names(context: LocalContext) -> list[str]:
    return sorted(path.name for path in context.folder.iterdir())


def damage(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_stay(tmp_path: Path, source: Path, keep: int) -> None:
    context = LocalContext(tmp_path / "run", "cpu", keep=keep)
    assert context.latest_checkpoint() is None
    report(context, source, 1, 2, 9, 10)
    assert names(context) == ["epoch-0001", "epoch-0002", "epoch-0009", "epoch-0010"][-keep:]
    assert context.latest_checkpoint() == str(tmp_path / "run/epoch-0010")
    assert [metrics["epoch"] for metrics in context.reports] == [1, 2, 9, 10]


def test_a_checkpoint_is_a_copy(tmp_path: Path, source: Path) -> None:
    context = LocalContext(tmp_path / "run", "cpu")
    report(context, source, 1)
    expected = (source / "model.safetensors").read_bytes()
    damage(source)
    latest = context.latest_checkpoint()
    assert latest is not None
    assert (Path(latest) / "model.safetensors").read_bytes() == expected
    model = nn.Linear(2, 1)
    assert load_training_state(latest, model, AdamW(model.parameters())) == {"epoch": 0}


def test_metrics_without_a_checkpoint_are_kept_and_nothing_is_written(tmp_path: Path) -> None:
    context = LocalContext(tmp_path / "run", "cpu")
    report(context, None, 1)
    assert context.reports == [{"epoch": 1.0}]
    assert not (tmp_path / "run").exists()


def test_damaged_and_unfinished_checkpoints_are_passed_over(tmp_path: Path, source: Path) -> None:
    context = LocalContext(tmp_path / "run", "cpu", keep=3)
    report(context, source, 1, 2, 3)
    damage(tmp_path / "run/epoch-0003")
    (tmp_path / "run/epoch-0004.partial").mkdir()
    (tmp_path / "run/epoch-0005").mkdir()
    assert context.latest_checkpoint() == str(tmp_path / "run/epoch-0002")
    report(context, source, 3)
    assert context.latest_checkpoint() == str(tmp_path / "run/epoch-0003")


def test_a_damaged_newer_checkpoint_does_not_push_out_a_good_one(
    tmp_path: Path, source: Path
) -> None:
    context = LocalContext(tmp_path / "run", "cpu", keep=1)
    report(context, source, 7)
    damage(tmp_path / "run/epoch-0007")
    report(context, source, 1)
    assert context.latest_checkpoint() == str(tmp_path / "run/epoch-0001")
    report(context, source, 2)
    assert names(context) == ["epoch-0002", "epoch-0007"]


def test_a_copy_that_broke_off_is_made_again(tmp_path: Path, source: Path) -> None:
    context = LocalContext(tmp_path / "run", "cpu")
    partial = tmp_path / "run/epoch-0001.partial"
    partial.mkdir(parents=True)
    (partial / "left over").write_text("x")
    report(context, source, 1)
    assert names(context) == ["epoch-0001"]
    assert context.latest_checkpoint() == str(tmp_path / "run/epoch-0001")


def test_an_epoch_reported_again_replaces_its_checkpoint(tmp_path: Path, source: Path) -> None:
    context = LocalContext(tmp_path / "run", "cpu")
    report(context, source, 1)
    first = (tmp_path / "run/epoch-0001/model.safetensors").read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    model = nn.Linear(2, 1)
    save_training_state(other, model, AdamW(model.parameters()), {"epoch": 1})
    report(context, other, 1)
    second = (tmp_path / "run/epoch-0001/model.safetensors").read_bytes()
    assert second == (other / "model.safetensors").read_bytes() != first


def test_it_is_one_process_on_the_chosen_device(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, "cpu")
    assert (context.rank, context.world_size) == (0, 1)
    assert context.device == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert LocalContext(tmp_path).device == torch.device(expected)
    model = nn.Linear(1, 1)
    assert context.prepare_model(model) is model
