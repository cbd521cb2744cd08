"""A service with two processes for its model, a registry that it follows, and a load generator."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
import torch

from hmr.body import Body
from hmr.checkpoint import save_bundle
from hmr.config import ModelConfig
from hmr.errors import HmrError
from hmr.model import build_model
from rayhmr.benchmark_load import Load, Measured
from rayhmr.benchmark_servers import (
    LoadGenerator,
    ask,
    load_generator,
    make_bundle,
    make_pictures,
    serve_processes,
)
from rayhmr.chaos.run import OverdueError
from rayhmr.config import ClusterConfig, ServeJob
from rayhmr.registry import Registry
from rayhmr.serve.host import running_service

NAME, ALIAS = "hmr", "best"
QUEUE, BATCH = 16, 4
PATIENCE_S = 120.0
"""Longest wait for anything."""


@dataclass(frozen=True)
class Versions:
    """Of the model: two good ones, one whose answers are NaN, one whose file was changed."""

    first: int
    second: int
    nan: int
    damaged: int


class ServeLab:
    """What the scenarios work with. load_s: how long each of them sends requests."""

    def __init__(
        self, url: str, application: str, registry: Registry, versions: Versions,
        pictures: list[bytes], load: LoadGenerator, load_s: float,
    ) -> None:  # fmt: skip
        self.url, self.registry, self.versions = url, registry, versions
        self.pictures, self.load_s = pictures, load_s
        self._application, self._load = application, load
        self._pool = ThreadPoolExecutor(1)

    def models(self) -> list[int]:
        """Processes that hold the model."""
        return serve_processes(f"{self._application}-0")

    def front(self) -> int:
        """The process that clients reach; OverdueError when there is none."""
        self.until(lambda: bool(self._fronts()), "a process that listens")
        return self._fronts()[0]

    def _fronts(self) -> list[int]:
        return [p for p in serve_processes(self._application) if p not in self.models()]

    def controller(self) -> int:
        """Ray Serve's controller."""
        actor: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return int(ray.get(actor.get_pid.remote(), timeout=PATIENCE_S))

    def send(
        self, *, rate_per_s: float | None = 10.0, connections: int = 32, seconds: float = 0.0
    ) -> Future[Measured]:
        """Requests from now on, by a process of its own. seconds: 0 means `load_s`."""
        load = Load(
            url=self.url, connections=connections, seconds=seconds or self.load_s,
            rate_per_s=rate_per_s,
        )  # fmt: skip
        return self._pool.submit(self._load.run, load)

    def rollouts(self) -> list[dict[str, Any]]:
        """What `/v1/models` says of versions that do not answer."""
        answer: list[dict[str, Any]] = httpx.get(f"{self.url}/v1/models", timeout=60).json()[
            "rollouts"
        ]
        return answer

    def serving(self) -> int:
        """The version that answers."""
        return int(ask(self.url, self.pictures[0])["model"]["version"])

    def move(self, version: int) -> float:
        """Point the alias there, past every check; seconds until that version answers."""
        begun = time.monotonic()
        self.registry.set_alias(NAME, ALIAS, version)
        self.until(lambda: self.serving() == version, f"version {version}")
        return time.monotonic() - begun

    def is_answered(self) -> bool:
        """Whether one request succeeds now."""
        try:
            return bool(ask(self.url, self.pictures[0])["people"])
        except OSError:
            return False

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait until something is so; how many seconds it took. OverdueError when it takes longer
        than PATIENCE_S."""
        begun = time.monotonic()
        while not condition():
            if time.monotonic() - begun > PATIENCE_S:
                raise OverdueError(f"{what}: not within {PATIENCE_S:g} s")
            time.sleep(0.1)
        return time.monotonic() - begun

    def settle(self) -> None:
        """The first version answers, with both of its processes, and nothing else is under way."""
        if self.serving() != self.versions.first:
            self.move(self.versions.first)
        self.registry.set_alias(NAME, ALIAS, self.versions.first)
        self.until(lambda: not self.rollouts() and len(self.models()) == 2, "two processes")
        self.until(self.is_answered, "an answer")


def _filled(folder: Path) -> tuple[Registry, Versions]:
    bundle = make_bundle(folder / "bundle", "small")
    registry = Registry(str(folder / "registry"))
    first, second = registry.register(NAME, bundle), registry.register(NAME, bundle)
    nan, damaged = registry.register(NAME, nan_bundle(folder)), registry.register(NAME, bundle)
    with (folder / "registry" / NAME / str(damaged) / "model.safetensors").open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f")
    registry.set_alias(NAME, ALIAS, first)
    return registry, Versions(first, second, nan, damaged)


def nan_bundle(folder: Path) -> Path:
    """A whole bundle of a model that is of no use."""
    config = ModelConfig()
    model = build_model(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("regressor.decshape"):
                weight.fill_(float("nan"))
    return save_bundle(
        folder / "nan", model=model, model_config=config, body=Body.embedded(), metrics={},
        provenance={},
    )  # fmt: skip


@contextmanager
def serve_lab(folder: Path, load_s: float) -> Iterator[ServeLab]:
    """The service on a cluster of its own, for the length of the block."""
    registry, versions = _filled(folder)
    pictures = make_pictures(folder / "pictures")
    application = f"chaos{os.getpid()}"
    # Two versions side by side, and the process that listens, fit into any cluster of three CPUs: a
    # connection that exists already is used.
    job = ServeJob(
        model=f"{registry.uri}/{NAME}@{ALIAS}", port=0, num_replicas=2, max_batch_size=BATCH,
        max_queued_requests=QUEUE, follow_every_s=0.5, num_cpus=0.5,
        cluster=ClusterConfig(address="local", num_cpus=3, object_store_mb=200),
    )  # fmt: skip
    with running_service(job, application) as url, load_generator(folder / "pictures") as load:
        yield ServeLab(url, application, registry, versions, pictures, load, load_s)


def expect_answers(measured: Measured, *statuses: str) -> None:
    """HmrError unless every request was answered with one of the statuses."""
    if wrong := set(measured.statuses) - set(statuses):
        raise HmrError(
            f"answers were {measured.statuses}; {', '.join(sorted(wrong))} must not be there"
        )
