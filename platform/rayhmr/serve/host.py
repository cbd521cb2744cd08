"""Start the service and keep it: `serve` is behind jobs/serve.py."""

from __future__ import annotations

import ipaddress
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from hmr.errors import ConfigError, HmrError
from rayhmr.cluster import connect
from rayhmr.config import ServeJob
from rayhmr.pinned_model import PinnedModel
from rayhmr.registry import Registry
from rayhmr.serve.app import APP_NAME, ReplicaSettings, build_application
from rayhmr.serve.guard import Limits, digest_of
from rayhmr.telemetry import say

KEY_VARIABLE = "RAYHMR_API_KEY"
MIN_KEY_LENGTH = 22
"""128 bits in base64."""
_MAKE_A_KEY = "python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one"
_PROXY_GRACE_S = 10
"""The proxy's deadline ends after the guard's, whose refusal says more."""


def serve(job: ServeJob) -> dict[str, Any]:
    """Host the model until SIGINT or SIGTERM, then end in order."""
    start = time.perf_counter()
    with running_service(job) as url:
        ready_s = time.perf_counter() - start
        say(f"page {url}/   API {url}/v1/predict   reference {url}/docs   (Ctrl-C stops)")
        wait_for_signal()
        say("stopping")
    return {"url": url, "model": job.model, "ready_s": round(ready_s, 1)}


@contextmanager
def running_service(job: ServeJob) -> Iterator[str]:
    """The service for the length of the block; gives its base URL without a slash at the end.

    ConfigError, BundleError and the like before anything starts; HmrError when it does not come up.
    """
    key = read_key(job)
    model = PinnedModel.of(job.model, job.body)
    port = checked_port(job.host, job.port)
    settings = _settings(job, model, key)
    with connect(
        job.cluster, cpus_needed=math.ceil(job.num_replicas * job.num_cpus),
        gpus_needed=math.ceil(job.num_replicas * job.num_gpus),
    ):  # fmt: skip
        if ray_serve.status().proxies:
            raise ConfigError(
                "Ray Serve runs on this cluster already, and its address cannot change while it "
                "runs; end it with `serve shutdown`, or use cluster.address=local"
            )
        say(f"starting the service with {model.name}@{settings.version}")
        try:
            _start(job, port, settings)
            yield f"http://{_reachable(job.host)}:{port}"
        finally:
            ray_serve.shutdown()


def _start(job: ServeJob, port: int, settings: ReplicaSettings) -> None:
    try:
        ray_serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": job.host, "port": port,
                "request_timeout_s": job.request_timeout_s + _PROXY_GRACE_S,
            },
        )  # fmt: skip
        ray_serve.run(build_application(job, settings), name=APP_NAME, route_prefix="/")
    except (RuntimeError, TimeoutError) as error:
        raise HmrError(
            f"the service did not come up: {error}; Ray's logs (serve/ in the session's folder) "
            "say more"
        ) from error


def _settings(job: ServeJob, model: PinnedModel, key: str | None) -> ReplicaSettings:
    limits = Limits(
        max_body_bytes=int(job.max_body_mb * 1_000_000), request_timeout_s=job.request_timeout_s,
        max_requests=job.max_batch_size + job.max_queued_requests,
        key_digest=None if key is None else digest_of(key),
    )  # fmt: skip
    return ReplicaSettings(
        model=model, version=model.sha256[:12] if model.version is None else str(model.version),
        aliases=_aliases(model), limits=limits, threads=max(1, int(job.num_cpus)),
        device="cuda" if job.num_gpus else "cpu", max_batch_size=job.max_batch_size,
        batch_wait_s=job.batch_wait_s,
    )  # fmt: skip


def _aliases(model: PinnedModel) -> tuple[str, ...]:
    if model.version is None:
        return ()
    registry = model.reference.rpartition("/")[0]
    aliases = Registry(registry).aliases(model.name)
    return tuple(sorted(name for name, version in aliases.items() if version == model.version))


def read_key(job: ServeJob) -> str | None:
    """The API key, from the file or the environment; ConfigError where it is missing or weak."""
    if job.api_key_file is not None:
        source = f"api_key_file={job.api_key_file}"
        try:
            key = Path(job.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source}: cannot be read ({error}); {_MAKE_A_KEY}") from error
    elif (given := os.environ.get(KEY_VARIABLE)) is not None:
        source, key = KEY_VARIABLE, given.strip()
    elif _is_loopback(job.host):
        return None
    else:
        raise ConfigError(
            f"host={job.host}: other machines could use the service, so it needs a key; give "
            f"api_key_file or {KEY_VARIABLE} ({_MAKE_A_KEY}), or host=127.0.0.1"
        )
    if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"{source}: a key has at least {MIN_KEY_LENGTH} letters, digits or signs and no spaces "
            f"(this one has {len(key)} characters); {_MAKE_A_KEY}"
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    """What stands for a host in the addresses that people open on this machine."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "[::1]"
    return f"[{host}]" if address.version == 6 else host


def checked_port(host: str, port: int) -> int:
    """`port`, or a free one for 0; ConfigError when it is taken.

    Ray's proxies would share a taken port with whoever has it, and each get half of the requests.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"host={host} port={port}: cannot listen there ({error.strerror}); end what uses the "
            f"port, or choose another, such as port={port + 1 if 0 < port < 65535 else 8000} or "
            "port=0 for a free one"
        ) from error


def wait_for_signal() -> None:
    stopped = threading.Event()
    wanted = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in wanted}
    try:
        for number in wanted:
            signal.signal(number, lambda *_: stopped.set())
        while not stopped.wait(1.0):  # in turns, since a wait without end hears no signal
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
