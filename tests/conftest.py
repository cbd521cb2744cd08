"""Order and seeds of the whole test run."""

from __future__ import annotations

import pytest
import torch


def pytest_configure() -> None:
    # Several processes share the test machine; more threads only make them wait for each other.
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests without Ray first: they fail fast, and a cluster lives only as long as it is used."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)
