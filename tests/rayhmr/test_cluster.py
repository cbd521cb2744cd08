"""The connection to Ray; all but one test need no Ray."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
from ray.experimental.internal_kv import _internal_kv_get

from hmr.errors import ConfigError, HmrError
from rayhmr.cluster import connect, environment, free_port, open_here, quiet, wait_for_resources
from rayhmr.config import ClusterConfig


def test_a_free_port_can_be_listened_on():
    port = free_port()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        listener.listen()
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


@pytest.fixture
def dead_proxy(monkeypatch):
    """A machine whose way out is a proxy that answers nothing."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib keeps the proxies of its first call for all later ones.
    monkeypatch.setattr(urllib.request, "_opener", None)


def test_addresses_of_this_machine_are_opened_without_the_proxy(dead_proxy, tmp_path):
    (tmp_path / "ready").write_text("yes")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/ready"
            with pytest.raises(OSError, match="refused"):
                urllib.request.urlopen(url, timeout=5)
            with open_here(url, timeout=5) as answer:
                assert answer.read() == b"yes"
        finally:
            server.shutdown()


def test_the_environment_is_as_before_after_the_block(monkeypatch):
    monkeypatch.setenv("RAYHMR_TEST_SET", "old")
    monkeypatch.delenv("RAYHMR_TEST_UNSET", raising=False)
    values = {"RAYHMR_TEST_SET": "new", "RAYHMR_TEST_UNSET": "new"}

    def fails():
        with environment(values):
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


SUBMITS = """
import time
from ray.job_submission import JobSubmissionClient
from rayhmr.cluster import connect
from rayhmr.config import ClusterConfig

with connect(ClusterConfig(address="local", num_cpus=1, object_store_mb=80), cpus_needed=1) as info:
    client = JobSubmissionClient(info.dashboard_url)
    job = client.submit_job(entrypoint="echo the job ran")
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.2)
    print(status.name, client.get_job_logs(job))
"""


@pytest.mark.ray
def test_a_cluster_takes_jobs_where_another_has_the_usual_port_and_a_proxy_is_set(dead_proxy):
    with socket.socket() as other:
        with suppress(OSError):  # a cluster has it already
            other.bind(("127.0.0.1", 52365))
            other.listen()
        done = subprocess.run(
            [sys.executable, "-c", SUBMITS],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    assert "SUCCEEDED" in done.stdout, done.stderr
    assert "the job ran" in done.stdout


@pytest.mark.ray
def test_while_a_job_waits_for_room_the_cluster_is_asked_to_grow(local_cluster):
    def asked():
        return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or b"[]")

    def waits():
        with pytest.raises(HmrError, match=r"the cluster lacks 9 CPU \(it has 4\), 1 GPU"):
            wait_for_resources({"CPU": 9.0, "GPU": 1.0}, 2.0)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waits)
        deadline = time.monotonic() + 10
        while not asked():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert asked() == [{"CPU": 1.0}] * 9 + [{"GPU": 1.0}]
        waiting.result()
    assert asked() == [], "what nobody waits for keeps no node"
