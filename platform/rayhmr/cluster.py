"""The connection of a job to Ray: a cluster of its own on this machine, or one that runs already.

A local cluster has its own temporary folder and ends with the job. Its dashboard listens on the
loopback address; Ray's other ports are guarded by Ray's token unless RAY_AUTH_MODE=disabled. Its
address is in every worker's environment (RAY_ADDRESS), because Ray's clean-up actors guess
otherwise and take the wrong cluster when a machine carries two.
"""

from __future__ import annotations

import http.client
import logging
import math
import os
import shutil
import socket
import ssl
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hmr.errors import ConfigError, HmrError
from rayhmr.config import ClusterConfig
from rayhmr.telemetry import say

DRIVER_RESOURCE = "drv"
"""Held in tiny shares by the drivers of search trials: a share of a CPU would leave a broken CPU on
a node, on which Ray Data's tasks can never start."""

WORKER_ENVIRONMENT = {
    # What a worker reported counts once the controller has asked: ask often, lose less at a crash.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Its newer Parquet reader starts eight processes anew at every pass over the data to read
    # footers; a pass of the demo lasts seconds, and so does the start of those processes.
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_DEDUP_LOGS": "0",
    # Serve hears of load every 10 s otherwise, too late for the delays that jobs/serve.py has.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}
_UNSAFE_SWITCHES = (
    "RAY_DATA_WEBDATASET_ALLOW_UNSAFE_DESERIALIZATION",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR",
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA",
)
"""Each would let a data file run code."""


@dataclass(frozen=True, kw_only=True)
class ClusterInfo:
    """address: host:port of the cluster. dashboard_url: none when it has no dashboard."""

    address: str
    dashboard_url: str | None


@contextmanager
def connect(
    config: ClusterConfig, cpus_needed: int, gpus_needed: int = 0,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[ClusterInfo]:  # fmt: skip
    """Ray for the length of the block; a connection that exists already is used and left alone.
    metadata: of the job, for those who list Ray's jobs.

    ConfigError when the cluster cannot be reached, HmrError when it has not what the job needs.
    """
    import ray.job_config

    for name in _UNSAFE_SWITCHES:
        if os.environ.get(name, "0") not in ("", "0"):
            raise ConfigError(f"{name}={os.environ[name]}: lets data files run code; unset it")
    if ray.is_initialized():
        yield _info(ray.get_runtime_context().gcs_address)
        return
    address = config.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "local"
    about = ray.job_config.JobConfig(metadata=dict(metadata or {}))
    opened = _local(config, cpus_needed, about) if address == "local" else _remote(address, about)
    with opened as info:
        wait_for_resources(
            {"CPU": float(cpus_needed), "GPU": float(gpus_needed)}, config.start_timeout_s
        )
        yield info


def _info(address: str) -> ClusterInfo:
    import ray

    url = getattr(ray._private.worker._global_node, "webui_url", None)
    return ClusterInfo(address=address, dashboard_url=f"http://{url}" if url else None)


def quiet() -> None:
    """Only warnings from Ray. Its libraries set their loggers up when they are imported, so call
    this again after the import of one."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns that progress bars are off, as they are meant to be.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def open_here(
    request: str | urllib.request.Request, timeout: float, tls: ssl.SSLContext | None = None
) -> http.client.HTTPResponse:
    """`urlopen` for addresses of this machine: http_proxy and its like are for the way out of it.

    OSError where nobody answers, or another status than 2xx.
    """
    handlers = (urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
    answer: http.client.HTTPResponse = urllib.request.build_opener(*handlers).open(
        request, None, timeout
    )
    return answer


def _no_proxy(host: str) -> dict[str, str]:
    """The variables that keep every other client in this job and its workers from asking a proxy
    for addresses of this machine."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = dict.fromkeys([*filter(None, given.split(",")), "localhost", "127.0.0.1", host])
    return dict.fromkeys(("no_proxy", "NO_PROXY"), ",".join(names))


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """These variables for the length of the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _agent_at_a_free_port() -> Iterator[None]:
    """A cluster that starts in the block takes submitted jobs even where another one runs on this
    machine: Ray's agent would listen at 52365 in both, `ray.init` has no setting for it, and the
    second one's would end. Nodes started by command have `--dashboard-agent-listen-port`."""
    from ray._private import parameter

    given = parameter.RayParams
    parameter.RayParams = partial(given, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = given


@contextmanager
def _local(config: ClusterConfig, cpus_needed: int, about: Any) -> Iterator[ClusterInfo]:
    import ray

    cpus = config.num_cpus or max(os.cpu_count() or 1, cpus_needed)
    port = free_port()
    host = ray.util.get_node_ip_address()
    address = f"{host}:{port}"
    # Ray's sockets live in here and their paths may have 107 letters.
    temporary = Path(tempfile.mkdtemp(prefix="rayhmr-", dir=os.environ.get("RAY_TMPDIR")))
    say(f"starting Ray on this machine with {cpus} logical CPUs")
    variables = {"RAY_ADDRESS": address, "RAY_GCS_SERVER_PORT": str(port)} | _no_proxy(host)
    with environment(WORKER_ENVIRONMENT | variables):
        try:
            with _agent_at_a_free_port():
                ray.init(
                    address="local", num_cpus=cpus, resources={DRIVER_RESOURCE: 1000},
                    object_store_memory=config.object_store_mb * 1_000_000, include_dashboard=True,
                    dashboard_host="127.0.0.1", _temp_dir=str(temporary), log_to_driver=False,
                    logging_level=logging.WARNING, job_config=about,
                )  # fmt: skip
            quiet()
            yield _info(address)
        except SystemExit:  # an end that was asked for
            ray.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except BaseException:
            say(f"Ray's own logs of this run are in {temporary / 'session_latest' / 'logs'}")
            ray.shutdown()
            raise
        ray.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _remote(address: str, about: Any) -> Iterator[ClusterInfo]:
    import ray

    say(f"connecting to the Ray cluster at {address}")
    try:
        context = ray.init(
            address=address, log_to_driver=False, logging_level=logging.WARNING,
            job_config=about,
            runtime_env={"env_vars": WORKER_ENVIRONMENT | {"RAY_ADDRESS": address}},
        )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"cluster.address={address}: cannot connect ({error}); check that the cluster runs, "
            "and that RAY_AUTH_MODE and its token are set where it asks for one, or use "
            "cluster.address=local"
        ) from error
    quiet()
    try:
        url = context.address_info.get("webui_url")
        yield ClusterInfo(address=address, dashboard_url=f"http://{url}" if url else None)
    finally:
        ray.shutdown()


def wait_for_resources(needed: Mapping[str, float], timeout_s: float) -> None:
    """Return once the cluster has these resources in all; HmrError says what is missing.

    Ray itself would wait for ever, and without a word. A cluster that can grow is asked to: it adds
    nodes for what somebody wants, and the job wants nothing before it is sure of room.
    """
    from ray.autoscaler.sdk import request_resources

    wants = _missing(needed)
    if not wants:
        return
    deadline = time.monotonic() + timeout_s
    say(f"waiting up to {timeout_s:g} s for {wants}")
    request_resources(
        bundles=[{name: 1.0} for name, value in needed.items() for _ in range(math.ceil(value))]
    )
    try:
        while wants := _missing(needed):
            if time.monotonic() > deadline:
                raise HmrError(
                    f"the cluster lacks {wants} after {timeout_s:g} s; add nodes, ask for fewer "
                    "workers (scaling.num_workers), or raise cluster.start_timeout_s"
                )
            time.sleep(1.0)
    finally:
        request_resources(bundles=[])


def _missing(needed: Mapping[str, float]) -> str:
    """What the cluster has too little of, in words; empty when it has all."""
    import ray

    total: dict[str, Any] = ray.cluster_resources()
    return ", ".join(
        f"{value:g} {name} (it has {total.get(name, 0.0):g})"
        for name, value in needed.items()
        if value > total.get(name, 0.0)
    )
