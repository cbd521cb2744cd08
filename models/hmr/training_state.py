"""Training states: folders from which a run goes on bit for bit. No pickle in them.

training state/
├── model.safetensors       the weights the optimizer works on
├── ema.safetensors         their average, when the run keeps one
├── optimizer.safetensors
├── state.safetensors
├── state.json
└── manifest.json

Taking a copy of the state is quick and done between two steps; writing it is slow and may be done
in another thread while training goes on.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hmr.ema import UPDATES, Ema
from hmr.errors import BundleError
from hmr.manifest import read_json, verify, write_json, write_manifest
from hmr.weights import (
    WEIGHTS,
    check_names_and_shapes,
    load_tensors,
    load_weights,
    save_tensors,
)

AVERAGE = "ema.safetensors"
OPTIMIZER = "optimizer.safetensors"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A copy on the CPU that training no longer changes.

    tensors: by file and name. values: plain JSON values. copied: the GPU's sign that the tensors
    have arrived; none when they are there.
    """

    tensors: dict[str, dict[str, Tensor]]
    values: dict[str, Any]
    copied: torch.cuda.Event | None = None


def capture_training_state(
    model: nn.Module, optimizer: Optimizer, state: Mapping[str, Any], ema: Ema | None = None
) -> TrainingState:
    """Copy weights, optimizer, average and `state`.

    From a GPU the copies go to pinned memory behind the work that is queued there, and before any
    that is queued later; nobody waits for them here.

    state: plain JSON values and tensors, such as the bytes of a random generator's state.
    """
    files = {
        WEIGHTS: model.state_dict(),
        OPTIMIZER: {
            f"{number}.{name}": torch.as_tensor(value)
            for number, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        },
        "state.safetensors": {k: v for k, v in state.items() if isinstance(v, Tensor)},
    }
    if ema is not None:
        files[AVERAGE] = ema.state_dict()
    tensors = {
        file: {name: _copied(value) for name, value in content.items()}
        for file, content in files.items()
    }
    values = {k: copy.deepcopy(v) for k, v in state.items() if not isinstance(v, Tensor)}
    copied = None
    device = next(model.parameters()).device
    if device.type == "cuda":
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(device))
    return TrainingState(tensors, values, copied)


def _copied(value: Tensor) -> Tensor:
    """A copy on the CPU. It keeps the strides, so it is made in one piece; rows are for later."""
    if value.is_cuda:
        pinned = torch.empty_like(value, device="cpu", pin_memory=True, requires_grad=False)
        return pinned.copy_(value.detach(), non_blocking=True)
    return value.detach().clone()


def write_training_state(folder: str | os.PathLike[str], captured: TrainingState) -> None:
    """Write into an existing, empty folder; the bytes depend on the captured values alone."""
    folder = Path(folder)
    if captured.copied is not None:
        captured.copied.synchronize()
    for file, content in captured.tensors.items():
        save_tensors(content, folder / file)
    write_json(folder / "state.json", captured.values)
    write_manifest(folder, {"kind": "training state"})


def save_training_state(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer,
    state: Mapping[str, Any], ema: Ema | None = None,
) -> None:  # fmt: skip
    """`capture_training_state` and `write_training_state` in one."""
    write_training_state(folder, capture_training_state(model, optimizer, state, ema))


def load_training_state(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer, ema: Ema | None = None
) -> dict[str, Any]:
    """Put weights, optimizer and average back bit for bit and return `state`; BundleError when the
    folder is damaged or belongs to another model, or only one of folder and run has an average."""
    folder = Path(folder)
    verify(folder)
    if (folder / AVERAGE).exists() != (ema is not None):
        raise BundleError(
            f"{folder}: holds {'no' if ema is not None else 'an'} average of the weights, this run "
            f"keeps {'one' if ema is not None else 'none'}; set train.ema_decay as it was when the "
            "state was saved, or start under another name"
        )
    load_weights(model, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    if ema is not None:
        average = load_tensors(folder / AVERAGE)
        check_names_and_shapes(ema.state_dict(), average, folder / AVERAGE)
        ema.load_state_dict(average)
    _load_optimizer(optimizer, folder / OPTIMIZER)
    return read_state(folder)


def read_state(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Only the `state` of a training state whose files are known to be whole."""
    folder = Path(folder)
    return read_json(folder / "state.json") | load_tensors(folder / "state.safetensors")


def load_model_weights(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Only the weights of a training state or a bundle: those that were validated, which is the
    average where the folder holds one."""
    folder = Path(folder)
    verify(folder)
    source = folder / AVERAGE
    if not source.exists():
        source = folder / WEIGHTS
    tensors = load_tensors(source)
    tensors.pop(UPDATES, None)
    load_weights(model, tensors, source)


def _load_optimizer(optimizer: Optimizer, source: Path) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in load_tensors(source).items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise BundleError(f"{source}: {key} belongs to none of {len(parameters)} parameters")
        entry = entries.setdefault(int(number), {})
        entry[name] = _laid_out_like(parameters[int(number)], value, f"{source}: {key}")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})


def _laid_out_like(parameter: Tensor, value: Tensor, what: str) -> Tensor:
    """`value` with the strides of its parameter: fused optimizers walk both in memory order, so a
    channels-last parameter with contiguous moments would silently get those of other weights."""
    if value.ndim == 0:
        return value
    if value.shape != parameter.shape:
        raise BundleError(
            f"{what} is {tuple(value.shape)}, its parameter is {tuple(parameter.shape)}; "
            "use the configuration that this state was trained with"
        )
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
