"""Checkpoints of a run in one process: the newest and the best of them, and no more."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hmr.checkpoint_place import epoch_name, step_name
from hmr.errors import HmrError
from hmr.exchange import Wish
from hmr.local_context import LocalContext
from hmr.manifest import write_json, write_manifest

SCORE = "val/pa_mpjpe_mm"
STEPS = 10


def state(epoch: int, step: int, error: float) -> Callable[[Path], None]:
    """Writes a small training state."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step]) * 50)
        history = [{"epoch": float(n), SCORE: error} for n in range(1, epoch + 1)]
        write_json(folder / "state.json", {"step": step, "epoch": epoch, "history": history})
        write_manifest(folder, {"kind": "training state"})

    return write


def end(context: LocalContext, *epochs: int, error: float | None = None) -> None:
    """Ends of epochs, each better than the one before."""
    for epoch in epochs:
        value = 100.0 - epoch if error is None else error
        context.save(epoch_name(epoch), state(epoch, epoch * STEPS, value))
        context.report({"epoch": float(epoch), SCORE: value}, epoch_name(epoch))


def names(context: LocalContext) -> list[str]:
    return sorted(path.name for path in context.folder.iterdir())


def damage(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")


@pytest.fixture
def context(tmp_path: Path) -> LocalContext:
    return LocalContext(tmp_path / "run", "cpu")


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_stay(tmp_path: Path, keep: int) -> None:
    context = LocalContext(tmp_path / "run", "cpu", keep=keep)
    assert context.latest_checkpoint() is None
    end(context, 1, 2, 9, 10)
    assert names(context) == ["epoch-0001", "epoch-0002", "epoch-0009", "epoch-0010"][-keep:]
    assert context.latest_checkpoint() == str(tmp_path / "run/epoch-0010")
    assert [metrics["epoch"] for metrics in context.reports] == [1, 2, 9, 10]


def test_the_best_checkpoint_stays_by_the_chosen_error(tmp_path: Path) -> None:
    context = LocalContext(tmp_path / "run", "cpu", keep=1)
    end(context, 1)
    end(context, 2, error=20.0)
    end(context, 3, 4)
    assert names(context) == ["epoch-0002", "epoch-0004"]
    other = LocalContext(tmp_path / "other", "cpu", keep=1, score="epoch")
    end(other, 1, 2, 3)
    assert names(other) == ["epoch-0001", "epoch-0003"]


def test_inside_an_epoch_the_newest_stay_and_the_latest_is_the_one_with_most_steps(
    context: LocalContext,
) -> None:
    end(context, 1)
    for step in (12, 14, 16):
        context.save(step_name(step), state(1, step, 50.0))
        context.store.wait()
    assert names(context) == ["epoch-0001", step_name(14), step_name(16)]
    assert context.latest_checkpoint() == str(context.folder / step_name(16))
    end(context, 2)
    assert context.latest_checkpoint() == str(context.folder / "epoch-0002")


def test_a_report_returns_when_its_checkpoint_is_there(context: LocalContext) -> None:
    end(context, 1)
    assert names(context) == ["epoch-0001"]
    assert context.reports == [{"epoch": 1.0, SCORE: 99.0}]


def test_nothing_is_written_before_the_first_checkpoint(context: LocalContext) -> None:
    assert context.latest_checkpoint() is None
    assert not context.folder.exists()


def test_damaged_and_unfinished_checkpoints_are_passed_over(
    context: LocalContext, capsys: pytest.CaptureFixture[str]
) -> None:
    end(context, 1, 2, 3)
    damage(context.folder / "epoch-0003")
    (context.folder / "epoch-0005").mkdir()
    again = LocalContext(context.folder, "cpu")
    assert again.latest_checkpoint() == str(context.folder / "epoch-0002")
    passed_over = capsys.readouterr().err
    assert "epoch-0003: passed over" in passed_over
    assert "epoch-0005: passed over" in passed_over
    end(again, 3)
    assert again.latest_checkpoint() == str(context.folder / "epoch-0003")


def test_a_new_context_cleans_up_after_a_dead_one(context: LocalContext) -> None:
    end(context, 1)
    (context.folder / ".step-00000015-0123456789ab.partial").mkdir()
    LocalContext(context.folder, "cpu")
    assert names(context) == ["epoch-0001"]


def test_training_goes_on_without_a_checkpoint_but_not_without_three(
    context: LocalContext, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for epoch in (1, 2):
        context.save(epoch_name(epoch), full)
        context.report({"epoch": float(epoch)}, epoch_name(epoch))
    context.save(epoch_name(3), full)
    with pytest.raises(HmrError, match="3 checkpoints in a row could not be saved"):
        context.report({"epoch": 3.0}, epoch_name(3))
    assert capsys.readouterr().err.count("could not be saved") == 3


def test_it_is_one_process_on_the_chosen_device(tmp_path: Path) -> None:
    context = LocalContext(tmp_path, "cpu")
    assert (context.rank, context.world_size) == (0, 1)
    assert context.device == torch.device("cpu")
    assert context.wish() is Wish.NOTHING
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert LocalContext(tmp_path).device == torch.device(expected)
    model = nn.Linear(1, 1)
    assert context.prepare_model(model) is model
