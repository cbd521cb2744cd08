"""The Ray Serve application: replicas that hold the model and answer requests in batches.

Decoding, batching and the forward pass share one process, since a call between two deployments
costs more than a small model's forward pass.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from hmr.predictor import Predictor
from rayhmr.config import ServeJob
from rayhmr.pinned_model import PinnedModel
from rayhmr.serve import answers
from rayhmr.serve.answers import Answered, ModelInfo
from rayhmr.serve.api import Service, build_app
from rayhmr.serve.guard import RETRY_AFTER_S, Limits
from rayhmr.serve.inference import Recovery, Work, recover_batch
from rayhmr.serve.schema import Options

APP_NAME = "rayhmr"
_HEADROOM = 32
"""Requests that Serve lets through beyond those the guard admits, so that the guard's own refusals
and the health checks are not queued behind them."""
_SAME_ANSWER = 1e-3
"""Metres by which the answer to one picture may differ between two health checks."""


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """What a replica needs to know. version, aliases: of the model, as answers show them."""

    model: PinnedModel
    version: str
    aliases: tuple[str, ...]
    limits: Limits
    threads: int
    device: str
    max_batch_size: int
    batch_wait_s: float


@serve.deployment(name="hmr")
@serve.ingress()
class Replica:
    """One process with the model. It takes requests only once the model is verified and warm."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        torch.set_num_threads(settings.threads)
        cv2.setNumThreads(settings.threads)
        self._predictor = settings.model.load(settings.device)
        self._info = ModelInfo.of(
            self._predictor, name=settings.model.name, version=settings.version,
            aliases=settings.aliases,
        )  # fmt: skip
        # One more than the CPUs: a large picture must not hold up the small ones.
        self._threads = ThreadPoolExecutor(settings.threads + 1, thread_name_prefix="pictures")
        self._batched.set_max_batch_size(settings.max_batch_size)
        self._batched.set_batch_wait_timeout_s(settings.batch_wait_s)
        self._expected = warm_up(self._predictor, self._info, settings.max_batch_size)
        self._is_ready = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve asks for them after the constructor, in the replica."""
        service = Service(
            info=self._info, recover=self._recover, is_ready=lambda: self._is_ready,
            threads=self._threads,
        )  # fmt: skip
        return build_app(service, self._settings.limits)

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        vertices = await asyncio.to_thread(_probe, self._predictor)
        self._is_ready = bool(np.abs(vertices - self._expected).max() < _SAME_ANSWER)
        if not self._is_ready:
            raise RuntimeError("the model's answer to the probe picture changed")

    async def _recover(self, work: Work) -> Recovery:
        result: Recovery | Exception = await self._batched(work)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _batched(self, works: list[Work]) -> list[Recovery | Exception]:
        return await asyncio.to_thread(recover_batch, self._predictor, works)


def _probe_work() -> Work:
    return Work(image=np.full((64, 64, 3), 128, np.uint8))


def _probe(predictor: Predictor) -> np.ndarray:
    """(V, 3) metres: the mesh that the model sees in a gray picture."""
    (recovery,) = recover_batch(predictor, [_probe_work()])
    if isinstance(recovery, Exception):
        raise recovery
    return recovery.people[0].vertices


def warm_up(predictor: Predictor, info: ModelInfo, max_batch_size: int) -> np.ndarray:
    """Run everything that a first request would otherwise wait for: kernels chosen for the sizes of
    batches, and functions compiled for the forms of answers. Gives the probe's mesh."""
    (*_, recovery) = recover_batch(predictor, [_probe_work()] * max_batch_size)
    if isinstance(recovery, Exception):
        raise recovery
    answered = Answered(
        request_id="warm-up", info=info, options=Options(), work=_probe_work(), exif_rotated=False,
        recovery=recovery, timing_ms={},
    )  # fmt: skip
    for media in answers.MEDIA_TYPES:
        answers.write(answered, media)
    return _probe(predictor)


def build_application(job: ServeJob, settings: ReplicaSettings) -> serve.Application:
    """What `serve.run` takes."""
    admitted = settings.limits.max_requests
    deployment: Any = Replica
    application: serve.Application = deployment.options(
        num_replicas=job.num_replicas,
        ray_actor_options={"num_cpus": job.num_cpus, "num_gpus": job.num_gpus},
        max_ongoing_requests=max(admitted, 2 * job.max_batch_size) + _HEADROOM,
        max_queued_requests=job.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
    ).bind(settings)
    return application
