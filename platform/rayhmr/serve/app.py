"""The Ray Serve application, in one of two forms.

`direct`: one process listens, decodes, batches and writes answers (`rayhmr.serve.front`); the
replicas of another deployment hold the model and dial it. Ray starts both, watches over them and
rolls out new versions, but no request passes through Ray. `proxy`: Ray's proxies pass requests to
replicas that do all of it, on any number of nodes.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
from fastapi import FastAPI
from ray import serve
from ray.serve.config import BackpressureConfig

from rayhmr.config import ServeJob
from rayhmr.serve.api import build_app
from rayhmr.serve.autoscale import BY_LOAD, LOAD, replica_options
from rayhmr.serve.batcher import Batcher
from rayhmr.serve.front import Front, FrontSettings
from rayhmr.serve.guard import RETRY_AFTER_S
from rayhmr.serve.inference import Computed, Recovery, Work, finish
from rayhmr.serve.loaded_model import LoadedModel, ModelSettings
from rayhmr.serve.metrics import Metrics
from rayhmr.serve.served import ServedModel, Service
from rayhmr.serve.worker import Worker

APP_NAME = "rayhmr"
HEALTH_EVERY_S = 2
"""A process that died is replaced after at most this long."""
_HEADROOM = 32
"""Requests that Serve lets through beyond those the guard admits, so that the guard's own refusals
and the health checks are not queued behind them."""


@serve.deployment(name="model", health_check_period_s=HEALTH_EVERY_S)
class ModelReplica:
    """One process with the model. It dials the front once the model is verified and warm."""

    def __init__(self, settings: ModelSettings, address: str) -> None:
        self._model = LoadedModel(settings)
        self._worker = Worker(self._model.compute, self._model.introduction, address)
        self._worker.start()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks for it where the number of replicas may change."""
        return {LOAD: self._worker.load}

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        try:
            await asyncio.to_thread(self._model.check)
        except Exception:
            self._worker.stop()  # no more answers from it
            raise
        if not self._worker.is_alive:
            raise RuntimeError("the thread that computes batches has ended")

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        if hasattr(self, "_worker"):  # not when the constructor failed
            self._worker.stop()


@serve.deployment(name="front", health_check_period_s=HEALTH_EVERY_S)
class FrontReplica:
    """The process that clients reach."""

    def __init__(self, settings: FrontSettings) -> None:
        cv2.setNumThreads(1)  # pictures have threads of their own
        self._front = Front(settings)
        self._thread = threading.Thread(target=self._front.run, name="front", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that answers HTTP has ended")

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        if hasattr(self, "_thread"):
            self._front.stop()
            self._thread.join()


@serve.deployment(name="hmr")
@serve.ingress()
class Replica:
    """One process that does everything, behind Ray's proxies."""

    def __init__(self, settings: ModelSettings, front: FrontSettings) -> None:
        self._model = LoadedModel(settings)
        self._front = front
        # One more than the CPUs: a large picture must not hold up the small ones.
        self._threads = ThreadPoolExecutor(settings.threads + 1, thread_name_prefix="pictures")
        self._batcher = Batcher(settings.max_batch_size)
        self._is_ready = True

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve asks for them after the constructor, in the replica."""
        served = ServedModel(
            info=self._model.info, recover=self._recover, is_ready=lambda: self._is_ready,
            queue_length=lambda: self._batcher.waiting,
        )  # fmt: skip
        self._metrics = Metrics(replica=serve.get_replica_context().replica_id.unique_id)
        service = Service(
            models={self._model.info.name: served}, threads=self._threads, metrics=self._metrics
        )
        return build_app(
            service, self._front.limits, inference_protocol=self._front.inference_protocol
        )

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        try:
            await asyncio.to_thread(self._model.check)
        except Exception:
            self._is_ready = False
            raise

    async def _recover(self, work: Work) -> Recovery:
        if not self._batcher.lanes:
            self._batcher.add(self._compute)
        prepared = await asyncio.to_thread(self._model.prepare, work)
        result = finish(work, prepared, await self._batcher.submit(prepared))
        if isinstance(result, Exception):
            raise result
        return result

    async def _compute(self, items: Any) -> list[Computed | Exception]:
        results = await asyncio.to_thread(self._model.compute, items)
        good = [result.model_ms for result in results if isinstance(result, Computed)]
        if good:
            self._metrics.batch(self._model.info.name, len(results), max(good) / 1000)
        return results


def front_application(job: ServeJob, front: FrontSettings, node: str) -> serve.Application:
    """The process that listens; models are applications of their own, so that it stays where it is
    while they change. node: address of the machine; models that dial it share it, since a Unix
    socket does not leave a machine."""
    listening: Any = FrontReplica
    application: serve.Application = listening.options(
        ray_actor_options={"num_cpus": job.front_cpus, "resources": _on(node)}
    ).bind(front)
    return application


def model_application(
    job: ServeJob, model: ModelSettings, address: str, node: str
) -> serve.Application:
    """One version of one model. A constructor that fails will fail again: the reason is wanted, not
    another try; processes that die later are replaced however often."""
    replicas: Any = ModelReplica
    application: serve.Application = replicas.options(
        **replica_options(job, policy=BY_LOAD),
        max_constructor_retry_count=1,
        ray_actor_options={
            "num_cpus": job.num_cpus, "num_gpus": job.num_gpus, "resources": _on(node),
        },
    ).bind(model, address)  # fmt: skip
    return application


def _on(node: str) -> dict[str, float]:
    return {f"node:{node}": 0.001}


def proxied_application(
    job: ServeJob, model: ModelSettings, front: FrontSettings
) -> serve.Application:
    """Replicas that do everything, for Ray's proxies. A new version with the same name takes over
    one replica after the other, each of which is first warm and proved."""
    deployment: Any = Replica
    application: serve.Application = deployment.options(
        **replica_options(job),
        max_surge_percent=100,
        max_constructor_retry_count=1,
        ray_actor_options={"num_cpus": job.num_cpus, "num_gpus": job.num_gpus},
        max_ongoing_requests=max(front.limits.max_requests, 2 * job.max_batch_size) + _HEADROOM,
        max_queued_requests=job.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
    ).bind(model, front)
    return application
