"""What a service on a real cluster shows of itself to others, and that it grows and shrinks."""

from __future__ import annotations

import ipaddress
import secrets
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil  # Ray brings it
import pytest
import ray
from ray import serve as ray_serve

from rayhmr.client import Client
from rayhmr.config import ServeJob
from rayhmr.serve.host import running_service
from rayhmr.serve.tls import client_context

SOON_S = 60.0
OF_RAY = ("raylet", "gcs_server", "ray::", "ray-dashboard", "ray/dashboard/agent.py",
          "runtime_env/agent",
          "ray/autoscaler/_private/monitor.py", "ray/dashboard/dashboard.py", "pytest")  # fmt: skip
"""What may be reached from other machines, as docs/security.md has it: Ray's own ports, among them
those of the tests' process as a driver."""


def until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def processes():
    """Of the tests' cluster, and this one."""
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def listeners():
    """(address, port, command line) of every listening socket of these processes."""
    found = []
    for process in processes():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            found += [
                (one.laddr.ip, one.laddr.port, command)
                for one in process.net_connections("inet")
                if one.status == psutil.CONN_LISTEN
            ]
    return found


def replicas():
    application = ray_serve.status().applications["exposed-0-0"]
    return application.deployments["model"].replica_states.get("RUNNING", 0)


@pytest.mark.ray
def test_a_service_grows_shrinks_and_shows_no_more_than_it_must(
    local_cluster, model_reference, photo, monkeypatch, make_certificate
):
    certificate, private = make_certificate()
    key = secrets.token_urlsafe(32)
    monkeypatch.setenv("RAYHMR_API_KEY", key)
    job = ServeJob(
        model=model_reference, port=0, max_batch_size=2, max_replicas=2, scale_up_after_s=0.5,
        scale_down_after_s=1, tls_cert_file=certificate, tls_key_file=private,
        follow_every_s=None, num_cpus=0.5,
    )  # fmt: skip
    statuses: list[int] = []
    with running_service(job, "exposed") as url:
        assert url.startswith("https://127.0.0.1:")
        trusted = client_context(certificate)
        assert httpx.get(f"{url}/v1/models", verify=trusted).status_code == 401
        check_listeners(int(url.rpartition(":")[2]))

        done = threading.Event()

        def asks():
            with Client(url, key, ca_file=certificate, retries=0) as client:
                while not done.is_set():
                    statuses.append(len(client.predict(photo).people))

        threads = [threading.Thread(target=asks) for _ in range(8)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: replicas() == 2)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        until(lambda: replicas() == 1)
        with Client(url, key, ca_file=certificate, retries=0) as client:
            assert len(client.predict(photo).people) == 1
        check_secrets(key)
    assert len(statuses) > 8
    assert set(statuses) == {1}  # nobody was refused while processes came and went


def check_listeners(port):
    found = listeners()
    assert ("127.0.0.1", port) in {(address, number) for address, number, _ in found}
    for address, number, command in found:
        inner = ipaddress.ip_address(address).is_loopback
        assert inner or any(name in command for name in OF_RAY), (address, number, command)
        assert inner or number not in (port, 8265, 8404, 9101), (address, number, command)


def check_secrets(key):
    """In no process's arguments, and in none of the files that Ray and the service wrote."""
    for process in processes():
        with suppress(psutil.Error):
            assert key not in " ".join(process.cmdline())
    # Whoever dials there could answer for a model.
    folders = list(Path(tempfile.gettempdir()).glob("rayhmr-serve-*"))
    assert folders
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [
        path
        for path in session.rglob("*")
        if path.is_file() and path.suffix in (".log", ".out", ".err")
    ]
    assert len(logs) > 10
    for path in logs:
        assert key.encode() not in path.read_bytes(), path
