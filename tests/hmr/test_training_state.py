"""Training states: runs go on bit for bit, states do not change while they are written, and damage
is found and named."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim import AdamW

from hmr.config import ModelConfig
from hmr.ema import UPDATES, Ema
from hmr.errors import BundleError
from hmr.model import HMR, build_model
from hmr.training_state import (
    capture_training_state,
    load_model_weights,
    load_training_state,
    read_state,
    save_training_state,
    write_training_state,
)

CONFIG = ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=2)


def new_run(*, fused: bool = True, seed: int = 0) -> tuple[HMR, AdamW]:
    torch.manual_seed(seed)
    model = build_model(CONFIG).eval()
    return model, AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)


def train_step(model: HMR, optimizer: AdamW, seed: int, ema: Ema | None = None) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    final = model(images).final
    target = torch.randn(final.rotmats.shape, generator=generator)
    loss = (final.rotmats * target).mean() + final.betas.square().mean() + final.pred_cam.mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if ema is not None:
        ema.update()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# Going on


@pytest.mark.parametrize("decay", [None, 0.9])
@pytest.mark.parametrize("fused", [True, False])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, fused: bool, decay: float | None
) -> None:
    model, optimizer = new_run(fused=fused)
    ema = Ema(model, decay) if decay else None
    for seed in range(3):
        train_step(model, optimizer, seed, ema)
    save_training_state(tmp_path, model, optimizer, {"epoch": 1}, ema)
    # Another seed: nothing may come from anywhere but the folder.
    resumed, resumed_optimizer = new_run(fused=fused, seed=7)
    resumed_ema = Ema(resumed, decay) if decay else None
    found = load_training_state(tmp_path, resumed, resumed_optimizer, resumed_ema)
    assert found == {"epoch": 1}
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        for name, value in optimizer.state[theirs].items():
            moment = resumed_optimizer.state[ours][name]
            assert torch.equal(moment, value)
            # A fused optimizer reads both in memory order.
            assert moment.stride() == value.stride()
    for seed in range(3, 6):
        train_step(model, optimizer, seed, ema)
        train_step(resumed, resumed_optimizer, seed, resumed_ema)
    assert_same_bits(resumed.state_dict(), model.state_dict())
    if ema is not None and resumed_ema is not None:
        assert_same_bits(resumed_ema.state_dict(), ema.state_dict())


def test_state_takes_json_and_tensors(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    state = {
        "step": 12, "history": [{"val/mpjpe_mm": 1 / 3}], "rng": generator.get_state(),
        "guard.skipped": torch.tensor(2.0),
    }  # fmt: skip
    save_training_state(tmp_path, *new_run(), state)
    expected = torch.rand(5, generator=generator)
    found = load_training_state(tmp_path, *new_run())
    assert found["step"] == 12
    assert found["history"] == state["history"]
    assert found["guard.skipped"].shape == ()
    assert found["guard.skipped"] == 2
    assert found["rng"].dtype == torch.uint8
    generator.set_state(found["rng"])
    assert torch.equal(torch.rand(5, generator=generator), expected)
    again = read_state(tmp_path)
    assert again.keys() == found.keys()
    assert again["history"] == state["history"]


# Taking and writing


def test_what_was_captured_does_not_change_with_the_run(tmp_path: Path) -> None:
    model, optimizer = new_run()
    ema = Ema(model, 0.9)
    train_step(model, optimizer, 0, ema)
    state: dict[str, Any] = {"history": [{"loss": 1.0}], "sums": torch.ones(3)}
    save_training_state(new_folder(tmp_path / "now"), model, optimizer, state, ema)
    captured = capture_training_state(model, optimizer, state, ema)
    for seed in range(1, 3):
        train_step(model.train(), optimizer, seed, ema)
    state["history"][0]["loss"] = 2.0
    state["sums"] += 1
    write_training_state(new_folder(tmp_path / "later"), captured)
    assert contents(tmp_path / "later") == contents(tmp_path / "now")


def test_another_thread_writes_while_training_goes_on(tmp_path: Path) -> None:
    alone, alone_optimizer = new_run()
    model, optimizer = new_run()
    folders = [new_folder(tmp_path / str(seed)) for seed in range(4)]
    threads = []
    for seed, folder in enumerate(folders):
        captured = capture_training_state(model, optimizer, {"step": seed})
        threads.append(threading.Thread(target=write_training_state, args=(folder, captured)))
        threads[-1].start()
        train_step(model, optimizer, seed)
    for thread in threads:
        thread.join()
    for seed, folder in enumerate(folders):
        expected = new_folder(tmp_path / f"{seed}-alone")
        save_training_state(expected, alone, alone_optimizer, {"step": seed})
        assert contents(folder) == contents(expected)
        train_step(alone, alone_optimizer, seed)
    assert_same_bits(model.state_dict(), alone.state_dict())


def test_the_bytes_depend_on_the_values_alone(tmp_path: Path) -> None:
    """Neither on the layout in memory nor on the order of the state."""
    model, optimizer = new_run()
    train_step(model, optimizer, 0)
    rows = build_model(CONFIG).to(memory_format=torch.contiguous_format)
    rows.load_state_dict(model.state_dict())
    other = AdamW(rows.parameters())
    for theirs, ours in zip(model.parameters(), rows.parameters(), strict=True):
        state = optimizer.state[theirs]
        other.state[ours] = {name: state[name].contiguous() for name in reversed(state)}
    stem = model.encoder.stem[0].weight
    assert stem.stride() != rows.encoder.stem[0].weight.stride()
    save_training_state(new_folder(tmp_path / "a"), model, optimizer, {"x": 1, "y": 2})
    save_training_state(new_folder(tmp_path / "b"), rows, other, {"y": 2, "x": 1})
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# The average


def test_weights_to_use_are_the_averaged_ones(tmp_path: Path) -> None:
    model, optimizer = new_run()
    ema = Ema(model, 0.9)
    for seed in range(3):
        train_step(model, optimizer, seed, ema)
    save_training_state(new_folder(tmp_path / "ema"), model, optimizer, {}, ema)
    save_training_state(new_folder(tmp_path / "raw"), model, optimizer, {})
    assert_same_bits(load_file(tmp_path / "ema/model.safetensors"), model.state_dict())
    assert "ema.safetensors" not in contents(tmp_path / "raw")
    loaded, _ = new_run(seed=5)
    load_model_weights(tmp_path / "raw", loaded)
    assert_same_bits(loaded.state_dict(), model.state_dict())
    load_model_weights(tmp_path / "ema", loaded)
    average = ema.state_dict()
    del average[UPDATES]
    assert_same_bits(loaded.state_dict(), average)
    assert not torch.equal(loaded.regressor.fc1.weight, model.regressor.fc1.weight)


def test_runs_with_and_without_average_do_not_mix(tmp_path: Path) -> None:
    model, optimizer = new_run()
    ema = Ema(model, 0.9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_training_state(new_folder(tmp_path / "ema"), model, optimizer, {}, ema)
    save_training_state(new_folder(tmp_path / "raw"), model, optimizer, {})
    train_step(model, optimizer, 0)
    now = {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.equal(now["regressor.fc1.weight"], before["regressor.fc1.weight"])
    with pytest.raises(BundleError, match=r"raw: holds no average.* keeps one.*train\.ema_decay"):
        load_training_state(tmp_path / "raw", model, optimizer, ema)
    with pytest.raises(BundleError, match=r"ema: holds an average.* keeps none.*train\.ema_decay"):
        load_training_state(tmp_path / "ema", model, optimizer)
    assert_same_bits(model.state_dict(), now)


# Damage and mistakes


@pytest.mark.parametrize(
    "name", ["model", "ema", "optimizer", "state"], ids=lambda name: f"{name}.safetensors"
)
def test_damaged_training_states_are_refused(tmp_path: Path, name: str) -> None:
    model, optimizer = new_run()
    ema = Ema(model, 0.9)
    train_step(model, optimizer, 0, ema)
    save_training_state(tmp_path, model, optimizer, {"sums": torch.ones(2)}, ema)
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(BundleError, match=rf"{name}\.safetensors: sha256"):
        load_training_state(tmp_path, model, optimizer, ema)
    with pytest.raises(BundleError, match=rf"{name}\.safetensors: sha256"):
        load_model_weights(tmp_path, model)


@pytest.mark.parametrize(
    "end", [lambda f: f.unlink(), lambda f: f.write_text(json.dumps({"files": {}}))]
)
def test_an_unfinished_state_is_refused(tmp_path: Path, end: Callable[[Path], Any]) -> None:
    save_training_state(tmp_path, *new_run(), {})
    end(tmp_path / "manifest.json")
    with pytest.raises(BundleError):
        load_training_state(tmp_path, *new_run())


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    model, optimizer = new_run(fused=False)
    ema = Ema(model, 0.9)
    train_step(model, optimizer, 0)
    save_training_state(new_folder(tmp_path / "raw"), model, optimizer, {})
    save_training_state(new_folder(tmp_path / "ema"), model, optimizer, {}, ema)
    with pytest.raises(BundleError, match="belongs to none of 1 parameters"):
        load_training_state(tmp_path / "raw", model, AdamW([next(model.parameters())]))
    reordered = AdamW(list(model.parameters())[::-1])
    with pytest.raises(BundleError, match="its parameter is"):
        load_training_state(tmp_path / "raw", model, reordered)
    wider = build_model(CONFIG.model_copy(update={"hidden": 24}))
    with pytest.raises(BundleError, match=r"fc1\.weight is \(16, .*the model has \(24, "):
        load_training_state(tmp_path / "raw", wider, AdamW(wider.parameters()))
    with pytest.raises(BundleError, match=r"ema\.safetensors: .*fc1\.weight is \(16, "):
        load_training_state(tmp_path / "ema", model, optimizer, Ema(wider, 0.9))
