"""Start the service and keep it: `serve` is behind jobs/serve.py."""

from __future__ import annotations

import ipaddress
import math
import os
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray import serve as ray_serve
from ray.util import get_node_ip_address

from hmr.errors import ConfigError, HmrError
from rayhmr.cluster import connect, open_here
from rayhmr.config import ServeJob
from rayhmr.serve.app import APP_NAME, front_application, proxied_application
from rayhmr.serve.front import FrontSettings
from rayhmr.serve.guard import READY_PATHS, Limits
from rayhmr.serve.keys import MIN_KEY_LENGTH, digest_of
from rayhmr.serve.loaded_model import ModelSettings
from rayhmr.serve.rollout import Rollout, Slot, slots_of
from rayhmr.serve.tls import checked_tls, client_context
from rayhmr.telemetry import say

READY_WITHIN_S = 120.0
KEY_VARIABLE = "RAYHMR_API_KEY"
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
def running_service(job: ServeJob, name: str = APP_NAME) -> Iterator[str]:
    """The service for the length of the block; gives its base URL without a slash at the end.

    name: of the application on Ray Serve. ConfigError, BundleError and the like before anything
    starts; HmrError when it does not come up.
    """
    keys = read_keys(job)
    if job.models and job.ingress == "proxy":
        raise ConfigError("ingress=proxy serves one model: leave out models, or use ingress=direct")
    tls = checked_tls(job)
    slots = slots_of(job)
    port = checked_port(job.host, job.port)
    with (
        tempfile.TemporaryDirectory(prefix="rayhmr-serve-") as folder,
        connect(
            job.cluster, cpus_needed=_cpus(job, slots),
            gpus_needed=math.ceil(len(slots) * job.num_replicas * job.num_gpus),
        ),
    ):  # fmt: skip
        _check_unused(job, name)
        front = FrontSettings(
            host=job.host, port=port, address=f"{folder}/models",
            models=tuple(slot.name for slot in slots), limits=limits_of(job, keys),
            threads=max(2, math.ceil(job.front_cpus)), inference_protocol=job.inference_protocol,
            tls=tls,
        )  # fmt: skip
        known = ", ".join(f"{slot.name} (version {slot.settings.version})" for slot in slots)
        say(f"starting the service with {known}")
        url = f"http{'s' if tls else ''}://{_reachable(job.host)}:{port}"
        rollout = Rollout(
            job, slots, prefix=name, folder=Path(folder), address=front.address,
            node=get_node_ip_address(),
        )  # fmt: skip
        try:
            _start(job, name, slots[0].settings, front, rollout)
            _wait_until_ready(url, tls and client_context(tls[0]))
            if job.ingress == "direct" and job.follow_every_s is not None:
                rollout.follow(job.follow_every_s)
            yield url
        finally:
            rollout.stop()
            _end([name, *rollout.applications])


def _cpus(job: ServeJob, slots: Sequence[Slot]) -> int:
    """Of the whole service; on a machine that is only ours also room for a second version, and for
    all processes that there may be."""
    models, replicas = len(slots), job.num_replicas
    ours = job.cluster.num_cpus is None and (
        job.cluster.address == "local"
        or (job.cluster.address == "auto" and "RAY_ADDRESS" not in os.environ)
    )
    follows = job.ingress == "direct" and job.follow_every_s and any(s.follows for s in slots)
    if ours:
        models += bool(follows)
        replicas = job.max_replicas or replicas
    front = job.front_cpus if job.ingress == "direct" else 0
    return math.ceil(models * replicas * job.num_cpus + front)


def _end(applications: Sequence[str]) -> None:
    """The one that listens first, so that clients are told at once."""
    for application in applications:
        if application in ray_serve.status().applications:
            ray_serve.delete(application)
    if not ray_serve.status().applications:
        ray_serve.shutdown()


def _check_unused(job: ServeJob, name: str) -> None:
    status = ray_serve.status()
    if (
        status.proxies
        or name in status.applications
        or (status.applications and job.ingress == "proxy")
    ):
        raise ConfigError(
            "Ray Serve runs on this cluster already, and its address cannot change while it "
            "runs; end it with `serve shutdown`, or use cluster.address=local"
        )


def _start(
    job: ServeJob, name: str, model: ModelSettings, front: FrontSettings, rollout: Rollout
) -> None:
    proxied: dict[str, Any] = {
        "host": front.host, "port": front.port,
        "request_timeout_s": job.request_timeout_s + _PROXY_GRACE_S,
    }  # fmt: skip
    if front.tls is not None:
        proxied["ssl_certfile"], proxied["ssl_keyfile"] = front.tls
    try:
        if job.ingress == "proxy":
            ray_serve.start(proxy_location="HeadOnly", http_options=proxied)
            ray_serve.run(proxied_application(job, model, front), name=name, route_prefix="/")
            return
        ray_serve.start(proxy_location="Disabled")
        # A route is for Ray's proxies; without them, several services may share a cluster.
        listening = front_application(job, front, get_node_ip_address())
        ray_serve.run(listening, name=name, route_prefix=None)
        rollout.start()
    except (HmrError, RuntimeError, TimeoutError) as error:
        raise HmrError(
            f"the service did not come up: {error}; Ray's logs (serve/ in the session's folder) "
            "say more"
        ) from error


def _wait_until_ready(url: str, tls: ssl.SSLContext | None) -> None:
    """Ray says when its processes run; the address answers once the model has dialled."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            with open_here(url + READY_PATHS[0], 5, tls):
                return
        except OSError:
            time.sleep(0.05)
    raise HmrError(
        f"{url} does not answer after {READY_WITHIN_S:g} s; Ray's logs (serve/ in the session's "
        "folder) say more"
    )


def limits_of(job: ServeJob, keys: tuple[str, ...]) -> Limits:
    """What the guard holds clients to."""
    return Limits(
        max_body_bytes=int(job.max_body_mb * 1_000_000), request_timeout_s=job.request_timeout_s,
        max_requests=job.max_batch_size + job.max_queued_requests,
        max_requests_per_key=job.max_requests_per_key, rate_per_s=job.rate_per_s,
        key_digests=tuple(map(digest_of, keys)), local_only=not keys,
    )  # fmt: skip


def read_keys(job: ServeJob) -> tuple[str, ...]:
    """The API keys, one a line of the file or the environment; ConfigError where there is none
    though one is needed, or a weak one."""
    if job.api_key_file is not None:
        source = f"api_key_file={job.api_key_file}"
        try:
            text = Path(job.api_key_file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source}: cannot be read ({error}); {_MAKE_A_KEY}") from error
    elif (given := os.environ.get(KEY_VARIABLE)) is not None:
        source, text = KEY_VARIABLE, given
    elif _is_loopback(job.host):
        return ()
    else:
        raise ConfigError(
            f"host={job.host}: other machines could use the service, so it needs a key; give "
            f"api_key_file or {KEY_VARIABLE} ({_MAKE_A_KEY}), or host=127.0.0.1"
        )
    keys = tuple(line.strip() for line in text.splitlines() if line.strip()) or ("",)
    for key in keys:
        if len(key) < MIN_KEY_LENGTH or not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigError(
                f"{source}: a key has at least {MIN_KEY_LENGTH} letters, digits or signs and no "
                f"spaces (this one has {len(key)} characters); {_MAKE_A_KEY}"
            )
    return keys


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
