"""The best checkpoint of a run as a bundle, and into the registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from hmr.body import Body
from hmr.checkpoint import load_model_weights, save_bundle
from hmr.model import build_model
from hmr.predictor import Predictor
from hmr.regressor import MeanParameters
from hmr.rotations import nearest_rotation
from rayhmr.config import TrainJob
from rayhmr.data.schema import DatasetInfo
from rayhmr.evaluate import baseline_means
from rayhmr.registry import Registry
from rayhmr.serve.golden import RECORD, golden_answer
from rayhmr.storage import Folder, joined
from rayhmr.telemetry import say

BUNDLE = "bundle"


def mean_parameters(info: DatasetInfo) -> MeanParameters | None:
    """The mean pose and shape of the training people; none without SMPL labels."""
    if not info.statistics["labelled"]:
        return None
    rotmats = torch.tensor(info.statistics["mean_rotmats"], dtype=torch.float64)
    betas = torch.tensor(info.statistics["mean_betas"], dtype=torch.float32)
    return MeanParameters.from_rotations(nearest_rotation(rotmats).float(), betas)


def write_bundle(
    job: TrainJob, info: DatasetInfo, checkpoint: Path, metrics: dict[str, float],
    target: Folder, provenance: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The checkpoint in a local folder as a bundle in `target`/bundle; the figures in it."""
    body = Body.from_config(job.body)
    model = build_model(job.model, mean_parameters(info))
    figures = {k.removeprefix("val/"): v for k, v in metrics.items() if k.startswith("val/")}
    figures |= {f"baseline_{k}": v for k, v in baseline_means(info, "val", body).items()}
    with tempfile.TemporaryDirectory(prefix="rayhmr-bundle-") as temporary:
        load_model_weights(checkpoint, model)
        recorded = golden_answer(Predictor(model, body))
        bundle = save_bundle(
            f"{temporary}/{BUNDLE}", model=model, model_config=job.model, body=body,
            metrics=figures,
            provenance=provenance | {
                "data_fingerprint": info.fingerprint, "measured_on": "validation split",
                RECORD: recorded,
                "settings": job.model_dump(
                    mode="json", include={"data", "model", "train", "encoder_from"}
                ),
            },
        )  # fmt: skip
        target.remove(BUNDLE)
        target.copy_in(bundle, BUNDLE)
    return figures


def register(folder: Folder, registry: str, name: str, alias: str = "best") -> int:
    """Put <folder>/bundle into the registry, point the alias at it, return its version."""
    with tempfile.TemporaryDirectory(prefix="rayhmr-register-") as temporary:
        folder.copy_out(BUNDLE, Path(temporary))
        version = Registry(registry).register(name, temporary)
    Registry(registry).set_alias(name, alias, version)
    say(f"registered {joined(registry, f'{name}@{version}')} as {alias}")
    return version
