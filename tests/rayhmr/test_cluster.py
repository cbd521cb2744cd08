"""What of the connection to Ray needs no Ray."""

from __future__ import annotations

import logging
import os
import socket

import pytest

from hmr.errors import ConfigError
from rayhmr.cluster import _environment, connect, free_port, quiet
from rayhmr.config import ClusterConfig


def test_a_free_port_can_be_listened_on():
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


def test_the_environment_is_as_before_after_the_block(monkeypatch):
    monkeypatch.setenv("RAYHMR_TEST_SET", "old")
    monkeypatch.delenv("RAYHMR_TEST_UNSET", raising=False)
    values = {"RAYHMR_TEST_SET": "new", "RAYHMR_TEST_UNSET": "new"}

    def fails():
        with _environment(values):
            assert {name: os.environ[name] for name in values} == values
            # What the block itself does to them is undone as well.
            del os.environ["RAYHMR_TEST_UNSET"]
            raise OSError("Ray does not start")

    with pytest.raises(OSError, match="Ray does not start"):
        fails()
    assert os.environ["RAYHMR_TEST_SET"] == "old"
    assert "RAYHMR_TEST_UNSET" not in os.environ


def test_quiet_leaves_only_warnings():
    loggers = [logging.getLogger(name) for name in ("ray", "ray.data", "ray.serve")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.DEBUG)
        quiet()
        for logger in loggers:
            assert not logger.isEnabledFor(logging.INFO)
            assert logger.isEnabledFor(logging.WARNING)
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@pytest.mark.parametrize(
    "name",
    [
        "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
        "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
        "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
    ],
)
def test_a_switch_that_lets_data_run_code_is_refused_before_ray_starts(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with (
        pytest.raises(ConfigError, match=f"{name}=1: lets data files run code; unset it"),
        connect(ClusterConfig(address="local"), cpus_needed=1),
    ):
        pass
