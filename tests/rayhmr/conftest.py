"""A Ray cluster for the tests that need one, shared by all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before Ray is imported: the tests neither need Ray's token nor write one into the home folder.
os.environ["RAY_AUTH_MODE"] = "disabled"

from rayhmr.cluster import ClusterInfo, connect
from rayhmr.config import ClusterConfig


@pytest.fixture(scope="session")
def local_cluster() -> Iterator[ClusterInfo]:
    """Four logical CPUs, a temporary folder and an address of its own; ends with the tests."""
    config = ClusterConfig(address="local", num_cpus=4, object_store_mb=200)
    with connect(config, cpus_needed=4) as info:
        yield info
