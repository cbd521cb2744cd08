"""A Ray cluster for the tests that need one, shared by all of them; shards for the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

# Before Ray is imported: the tests neither need Ray's token nor write one into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
# And no test shows a store the user's keys, or asks the machine for its role.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip

from rayhmr.cluster import ClusterInfo, connect
from rayhmr.config import ClusterConfig, PrepareJob, SyntheticConfig
from rayhmr.data.parts import WritePart, parts_of
from rayhmr.data.prepare import _finish, _settings
from rayhmr.data.sources.synthetic import SyntheticSource
from rayhmr.registry import Registry
from rayhmr.storage import Folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tests that are not marked start no Ray: it takes tens of seconds and both cores."""
    if any(item.iter_markers("ray")) or any(item.iter_markers("chaos")):
        return (yield)
    with patch("ray.init", side_effect=AssertionError("mark this test with `ray`")):
        return (yield)


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[ClusterInfo]:
    """Four logical CPUs, a temporary folder and an address of its own; ends with the tests."""
    config = ClusterConfig(address="local", num_cpus=4, object_store_mb=200)
    with connect(config, cpus_needed=4) as info:
        yield info


@pytest.fixture(scope="session")
def model_reference(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model in a registry, as registry/tiny@best."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(str(folder))
    registry.set_alias("tiny", "best", registry.register("tiny", bundle))
    return f"{folder}/tiny@best"


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., str]:
    """What `prepare` writes of synthetic people, without its cluster; returns the folder."""

    def write(folder: Path, *, rows_per_file: int, **people: Any) -> str:
        job = PrepareJob(
            output=str(folder), rows_per_file=rows_per_file, synthetic=SyntheticConfig(**people)
        )
        source, place = SyntheticSource(job.synthetic, "embedded"), Folder(job.output)
        writer = WritePart(source, job.output, job.jpeg_quality)
        parts = parts_of(source.units(rows_per_file), rows_per_file)
        notes = [writer.write(part, place) for part in parts]
        _finish(job, place, _settings(job), notes)
        return job.output

    return write


@pytest.fixture
def open_offline() -> Iterator[Callable[[Path], Any]]:
    """Opens a file in a browser without a network, on a narrow screen. In the end nothing else has
    been asked for, and nothing was complained of."""
    from playwright.sync_api import sync_playwright

    said, asked, opened = list[str](), list[str](), list[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )

        def open_file(path: Path) -> Any:
            context = browser.new_context(offline=True, viewport={"width": 400, "height": 800})
            window = context.new_page()
            window.on("pageerror", lambda error: said.append(str(error)))
            window.on("console", lambda message: said.append(message.text))
            window.on("request", lambda request: asked.append(request.url))
            opened.append(path.as_uri())
            window.goto(opened[-1])
            return window

        yield open_file
        browser.close()
    assert not said
    assert [address for address in asked if not address.startswith("data:")] == opened
