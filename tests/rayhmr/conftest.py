"""A Ray cluster for the tests that need one, shared by all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Before Ray is imported: the tests neither need Ray's token nor write one into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"

from hmr.body import Body
from hmr.checkpoint import save_bundle
from hmr.config import ModelConfig
from hmr.model import build_model
from rayhmr.cluster import ClusterInfo, connect
from rayhmr.config import ClusterConfig
from rayhmr.registry import Registry


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[ClusterInfo]:
    """Four logical CPUs, a temporary folder and an address of its own; ends with the tests."""
    config = ClusterConfig(address="local", num_cpus=4, object_store_mb=200)
    with connect(config, cpus_needed=4) as info:
        yield info


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model without training: its answers vary with the picture, which is all a test of
    the ways to it needs."""
    torch.manual_seed(0)
    config = ModelConfig(image_size=32, encoder_width=4, hidden=32)
    model = build_model(config)
    with torch.no_grad():
        for head in (model.regressor.decpose, model.regressor.decshape, model.regressor.deccam):
            head.weight.mul_(20)
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "tiny", model=model, model_config=config,
        body=Body.embedded(), metrics={"pa_mpjpe_mm": 99.0}, provenance={"run": "none"},
    )  # fmt: skip


@pytest.fixture(scope="session")
def model_reference(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model in a registry, as registry/tiny@best."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(str(folder))
    registry.set_alias("tiny", "best", registry.register("tiny", bundle))
    return f"{folder}/tiny@best"
