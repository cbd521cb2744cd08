"""A Ray cluster for the tests that need one, shared by all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before Ray is imported: the tests neither need Ray's token nor write one into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"
# And no test shows a store the user's keys, or asks the machine for its role.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip

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
def model_reference(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same model in a registry, as registry/tiny@best."""
    folder = tmp_path_factory.mktemp("registry")
    registry = Registry(str(folder))
    registry.set_alias("tiny", "best", registry.register("tiny", bundle))
    return f"{folder}/tiny@best"
