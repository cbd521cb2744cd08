"""The connection of a job to Ray: a cluster of its own on this machine, or one that runs already.

A local cluster has its own temporary folder and ends with the job. Its dashboard listens on the
loopback address; Ray's other ports are guarded by Ray's token unless RAY_AUTH_MODE=disabled. Its
address is in every worker's environment (RAY_ADDRESS), because Ray's clean-up actors guess
otherwise and take the wrong cluster when a machine carries two.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
def connect(config: ClusterConfig, cpus_needed: int, gpus_needed: int = 0) -> Iterator[ClusterInfo]:
    """Ray for the length of the block; a connection that exists already is used and left alone.

    ConfigError when the cluster cannot be reached, HmrError when it has not what the job needs.
    """
    import ray

    for name in _UNSAFE_SWITCHES:
        if os.environ.get(name, "0") not in ("", "0"):
            raise ConfigError(f"{name}={os.environ[name]}: lets data files run code; unset it")
    if ray.is_initialized():
        yield _info(ray.get_runtime_context().gcs_address)
        return
    address = config.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "local"
    opened = _local(config, cpus_needed) if address == "local" else _remote(address)
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


def free_port() -> int:
    """A TCP port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
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
def _local(config: ClusterConfig, cpus_needed: int) -> Iterator[ClusterInfo]:
    import ray

    cpus = config.num_cpus or max(os.cpu_count() or 1, cpus_needed)
    port = free_port()
    address = f"{ray.util.get_node_ip_address()}:{port}"
    # Ray's sockets live in here and their paths may have 107 letters.
    temporary = Path(tempfile.mkdtemp(prefix="rayhmr-", dir=os.environ.get("RAY_TMPDIR")))
    say(f"starting Ray on this machine with {cpus} logical CPUs")
    environment = WORKER_ENVIRONMENT | {
        "RAY_ADDRESS": address, "RAY_GCS_SERVER_PORT": str(port),
    }  # fmt: skip
    with _environment(environment):
        try:
            ray.init(
                address="local", num_cpus=cpus, resources={DRIVER_RESOURCE: 1000},
                object_store_memory=config.object_store_mb * 1_000_000, include_dashboard=True,
                dashboard_host="127.0.0.1", _temp_dir=str(temporary), log_to_driver=False,
                logging_level=logging.WARNING,
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
def _remote(address: str) -> Iterator[ClusterInfo]:
    import ray

    say(f"connecting to the Ray cluster at {address}")
    try:
        context = ray.init(
            address=address, log_to_driver=False, logging_level=logging.WARNING,
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

    Ray itself would wait for ever, and without a word.
    """
    import ray

    deadline = time.monotonic() + timeout_s
    said = False
    while True:
        total: dict[str, Any] = ray.cluster_resources()
        missing = {k: v for k, v in needed.items() if v > total.get(k, 0.0)}
        if not missing:
            return
        wants = ", ".join(
            f"{value:g} {name} (it has {total.get(name, 0.0):g})" for name, value in missing.items()
        )
        if time.monotonic() > deadline:
            raise HmrError(
                f"the cluster lacks {wants} after {timeout_s:g} s; add nodes, ask for fewer "
                "workers (scaling.num_workers), or raise cluster.start_timeout_s"
            )
        if not said:
            say(f"waiting up to {timeout_s:g} s for {wants}")
            said = True
        time.sleep(1.0)
