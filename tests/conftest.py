"""Order and seeds of the whole test run, and what several folders of tests share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from hmr.body import Body
from hmr.checkpoint import save_bundle
from hmr.config import ModelConfig
from hmr.model import build_model

_VERDICT = pytest.StashKey[int]()


def pytest_configure() -> None:
    # Several processes share the test machine; more threads only make them wait for each other.
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without Ray first: they fail fast, and a cluster lives only as long as it is used."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember the verdict for `pytest_unconfigure`."""
    session.config.stash[_VERDICT] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End without taking the interpreter apart where Ray ran: some of its native threads go on
    after `ray.shutdown` and rarely touch what the process has freed, a segmentation fault after
    everything has passed. Summary and fixtures are done here; the verdict stays the exit status."""
    if "ray" in sys.modules and _VERDICT in config.stash:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(config.stash[_VERDICT])


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
