"""Bundles: folders that hold a model to use. No pickle in them.

bundle/
├── config.json
├── model.safetensors
├── body.json
├── metrics.json
├── README.md   (model card)
└── manifest.json

A bundle names its body by hash and never contains the arrays: the embedded body is computed again,
a licensed one must be at hand. `hmr.manifest` says how a damaged folder is found out, and
`hmr.training_state` what a run goes on from.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

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
from hmr.training_state import TrainingState as TrainingState
from hmr.training_state import capture_training_state as capture_training_state
from hmr.training_state import load_model_weights as load_model_weights
from hmr.training_state import load_training_state as load_training_state
from hmr.training_state import read_state as read_state
from hmr.training_state import save_training_state as save_training_state
from hmr.training_state import write_training_state as write_training_state
from hmr.weights import WEIGHTS as WEIGHTS
from hmr.weights import load_tensors, load_weights, save_tensors

BUNDLE_FILES = ("config.json", WEIGHTS, "body.json", "metrics.json", "README.md")
CONVENTIONS = {
    "rotations": "6d interleaved",
    "crop_focal_px": FOCAL_LENGTH,
    "joint_set": "smpl24",
}
"""What the weights assume and this code does; a bundle that assumes otherwise is refused."""


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
        save_tensors(model.state_dict(), partial / WEIGHTS)
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
    load_weights(model, load_tensors(folder / WEIGHTS), folder / WEIGHTS)
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
