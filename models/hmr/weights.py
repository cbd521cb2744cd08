"""Named tensors in safetensors files, and into a model; the bytes depend on the values alone."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hmr.errors import BundleError

WEIGHTS = "model.safetensors"
"""The file of a model's weights in every folder that holds a model."""


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors of any device and memory layout."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU; BundleError when it is none."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"{path}: not a safetensors file ({error}); make the folder anew"
        ) from error


def load_weights(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the model; BundleError lists the names that do not fit."""
    check_names_and_shapes(model.state_dict(), tensors, source)
    model.load_state_dict(tensors)


def check_names_and_shapes(
    own: dict[str, Tensor], tensors: dict[str, Tensor], source: Path
) -> None:
    """BundleError unless `tensors`, read from `source`, are those of a model's state `own`."""
    problems = [f"missing {name}" for name in sorted(own.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - own.keys())]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in sorted(own.keys() & tensors.keys())
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise BundleError(
            f"{source}: does not fit the configured model: {'; '.join(problems[:8])}{more}; "
            "use the configuration that these weights were trained with"
        )
