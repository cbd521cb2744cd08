"""Folders that hold a model: bundles to use, training states to go on from. No pickle in either.

bundle/                         training state/
├── config.json                 ├── model.safetensors
├── model.safetensors           ├── optimizer.safetensors
├── body.json                   ├── state.safetensors
├── metrics.json                ├── state.json
├── README.md   (model card)    └── manifest.json
└── manifest.json

A bundle names its body by hash and never contains the arrays: the embedded body is computed again,
a licensed one must be at hand. `hmr.manifest` says how a damaged folder is found out.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from hmr.body import Body
from hmr.camera import FOCAL_LENGTH
from hmr.config import ModelConfig
from hmr.crops import DEFAULT_PADDING
from hmr.errors import BundleError
from hmr.manifest import is_complete as is_complete
from hmr.manifest import read_json, replaced_folder, verify, write_json, write_manifest
from hmr.model import HMR, build_model
from hmr.model_card import model_card
from hmr.predictor import Predictor

WEIGHTS = "model.safetensors"
BUNDLE_FILES = ("config.json", WEIGHTS, "body.json", "metrics.json", "README.md")
CONVENTIONS = {
    "rotations": "6d interleaved",
    "crop_focal_px": FOCAL_LENGTH,
    "joint_set": "smpl24",
}
"""What the weights assume and this code does; a bundle that assumes otherwise is refused."""


def _save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)


def _load_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"{path}: not a safetensors file ({error}); make the folder anew"
        ) from error


def load_weights(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the model; BundleError lists the names that do not fit."""
    own = model.state_dict()
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
    model.load_state_dict(tensors)


def save_training_state(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer, state: dict[str, Any]
) -> None:
    """Write weights, optimizer and `state` into an existing, empty folder.

    state: plain JSON values and tensors, such as the bytes of a random generator's state.
    """
    folder = Path(folder)
    _save_tensors(model.state_dict(), folder / WEIGHTS)
    moments = {
        f"{number}.{name}": torch.as_tensor(value)
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    _save_tensors(moments, folder / "optimizer.safetensors")
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    _save_tensors(tensors, folder / "state.safetensors")
    write_json(folder / "state.json", {k: v for k, v in state.items() if k not in tensors})
    write_manifest(folder, {"kind": "training state"})


def load_training_state(
    folder: str | os.PathLike[str], model: nn.Module, optimizer: Optimizer
) -> dict[str, Any]:
    """Put weights and optimizer back bit for bit and return `state`; BundleError when the folder
    is damaged or belongs to another model."""
    folder = Path(folder)
    load_model_weights(folder, model)
    source = folder / "optimizer.safetensors"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in _load_tensors(source).items():
        number, _, name = key.partition(".")
        if not number.isdecimal() or int(number) >= len(parameters):
            raise BundleError(f"{source}: {key} belongs to none of {len(parameters)} parameters")
        entry = entries.setdefault(int(number), {})
        entry[name] = _laid_out_like(parameters[int(number)], value, f"{source}: {key}")
    optimizer.load_state_dict(optimizer.state_dict() | {"state": entries})
    return read_json(folder / "state.json") | _load_tensors(folder / "state.safetensors")


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


def load_model_weights(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Only the weights of a training state or a bundle."""
    folder = Path(folder)
    verify(folder)
    load_weights(model, _load_tensors(folder / WEIGHTS), folder / WEIGHTS)


def _without_nan(value: Any) -> Any:
    """NaN and infinities as null: they are no JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_bundle(
    path: str | os.PathLike[str],
    *,
    model: HMR,
    model_config: ModelConfig,
    body: Body,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
) -> Path:
    """Write a bundle beside `path`, then give it that name; an older bundle there is replaced.

    metrics: numbers for the model card; `baseline_<name>` stands beside `<name>`.
    provenance: plain values for the manifest, such as code version, run, settings, data
    fingerprint.
    """
    # The weights bring the start parameters and the encoder with them.
    settings = model_config.model_copy(update={"pretrained": False, "mean_params": None})
    arrays = body.arrays
    described = {
        "name": arrays.name,
        "hash": arrays.content_hash(),
        "licence": arrays.licence,
        "vertices": arrays.num_vertices,
    }
    config = {"model": settings.model_dump(), "box_padding": DEFAULT_PADDING} | CONVENTIONS
    metrics, provenance = _without_nan(metrics), _without_nan(provenance)
    target = Path(path)
    with replaced_folder(target) as partial:
        write_json(partial / "config.json", config)
        _save_tensors(model.state_dict(), partial / WEIGHTS)
        write_json(partial / "body.json", described)
        write_json(partial / "metrics.json", metrics)
        card = model_card(settings, described, metrics, provenance)
        (partial / "README.md").write_text(card, encoding="utf-8")
        write_manifest(partial, {"kind": "bundle", "provenance": provenance})
    return target


def verify_bundle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a complete, unchanged bundle; BundleError names the file that is not."""
    manifest = verify(path)
    missing = set(BUNDLE_FILES) - set(manifest["files"])
    if missing:
        raise BundleError(
            f"{path}: is no bundle, it lacks {', '.join(sorted(missing))}; "
            "a training state becomes a bundle by save_bundle"
        )
    return manifest


def load_bundle(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", body: Body | None = None
) -> Predictor:
    """A verified bundle, ready to predict.

    body: needed when the bundle was trained with a body from a file; it must be that one.
    """
    folder = Path(path)
    manifest = verify_bundle(folder)
    model, config = _network(folder)
    return Predictor(
        model.to(device),
        bundle_body(folder, body).to(device),
        box_padding=float(config["box_padding"]),
        info={
            "path": str(folder),
            "config": config,
            "metrics": read_json(folder / "metrics.json"),
            "provenance": manifest.get("provenance", {}),
        },
    )


def load_network(path: str | os.PathLike[str]) -> HMR:
    """Only the network of a verified bundle, in eval mode on the CPU: it needs no body."""
    verify_bundle(path)
    return _network(Path(path))[0].eval()


def _network(folder: Path) -> tuple[HMR, dict[str, Any]]:
    """The model of a verified bundle, and its config.json."""
    config = read_json(folder / "config.json", required=("model", "box_padding", *CONVENTIONS))
    model = _build(config, folder)
    load_weights(model, _load_tensors(folder / WEIGHTS), folder / WEIGHTS)
    return model, config


def _build(config: dict[str, Any], folder: Path) -> HMR:
    for key, ours in CONVENTIONS.items():
        if config[key] != ours:
            raise BundleError(
                f"{folder / 'config.json'}: {key} is {config[key]!r}, this code works with "
                f"{ours!r}; convert the weights first"
            )
    try:
        return build_model(ModelConfig.model_validate(config["model"]))
    except ValidationError as error:
        problem = error.errors()[0]
        raise BundleError(
            f"{folder / 'config.json'}: model.{'.'.join(map(str, problem['loc']))}: "
            f"{problem['msg']}; use the version of the code that wrote the bundle"
        ) from error


def bundle_body(folder: str | os.PathLike[str], body: Body | None) -> Body:
    """The body a bundle belongs to: computed when it is the embedded one, else the given one."""
    folder = Path(folder)
    described = read_json(folder / "body.json", required=("name", "hash", "licence"))
    name, expected = described["name"], described["hash"]
    if body is None:
        if described["licence"] != "project":
            raise BundleError(
                f"{folder}: was trained with the body {name!r} ({expected[:12]}…), a licensed file "
                "that a bundle never contains; give it as body=Body.from_file('your/body.npz')"
            )
        body = Body.embedded()
    found = body.arrays.content_hash()
    if found != expected:
        raise BundleError(
            f"{folder}: was trained with the body {name!r} ({expected[:12]}…), but "
            f"{body.arrays.name!r} is {found[:12]}…; weights fit one body only: give that body, or "
            "for an embedded one use the code version that wrote the bundle"
        )
    return body
