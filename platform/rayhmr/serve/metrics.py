"""Counters for Prometheus: `/metrics`, and the middleware that counts every request.

Labels have few values whatever clients send: routes as they are declared (with `{name}`, and
"other" for addresses that are none), status codes, our own reasons, the served models. Each
process counts for itself; with several replicas behind one address a scrape reaches one of them,
and the label `replica` keeps their series apart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from rayhmr.serve.served import ServedModel

PREFIX = "rayhmr_serve"
CONTENT_TYPE = CONTENT_TYPE_LATEST
GONE = 499
"""Status of a request whose client left before the answer, as nginx writes it."""
_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_PROBLEM = "application/problem+json"
_NO_ROUTE = "other"


class Metrics:
    """The counters of one process; every method may be called from any thread.

    replica: the process's name among those behind the same address; empty: it is alone.
    """

    def __init__(self, replica: str = "") -> None:
        self._replica, self.in_flight = replica, 0
        self._registry = CollectorRegistry()
        ProcessCollector(namespace=PREFIX, registry=self._registry)
        shared: Any = {"namespace": PREFIX, "registry": self._registry}
        self._requests = Counter(
            "requests", "Answers, by route and status", ("route", "status"), **shared
        )  # fmt: skip
        self._request_seconds = Histogram(
            "request_seconds", "From the first byte to the last", ("route",), buckets=_SECONDS,
            **shared,
        )  # fmt: skip
        self._rejected = Counter(
            "rejected", "Requests, and pictures of a batch, refused or failed", ("reason",),
            **shared,
        )  # fmt: skip
        self._in_flight = Gauge("requests_in_flight", "Requests under way", **shared)
        self._batch_size = Histogram(
            "batch_size", "Pictures of one forward pass", ("model",), buckets=_SIZES, **shared
        )
        self._model_seconds = Histogram(
            "model_seconds", "One forward pass", ("model",), buckets=_SECONDS, **shared
        )
        self._people = Counter("people", "People recovered", ("model",), **shared)

    def begin(self) -> None:
        """A request came in."""
        self.in_flight += 1
        self._in_flight.inc()

    def end(self, route: str, status: int, seconds: float) -> None:
        """A request is answered."""
        self.in_flight -= 1
        self._in_flight.dec()
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def reject(self, reason: str) -> None:
        """reason: the code of the Problem, such as overloaded."""
        self._rejected.labels(reason).inc()

    def batch(self, model: str, size: int, seconds: float) -> None:
        """A forward pass over `size` pictures took `seconds`."""
        self._batch_size.labels(model).observe(size)
        self._model_seconds.labels(model).observe(seconds)

    def people(self, model: str, count: int) -> None:
        """So many people of a picture were recovered."""
        self._people.labels(model).inc(count)

    def text(self, models: Mapping[str, ServedModel]) -> bytes:
        """The answer of `/metrics`; of the models: their version, readiness and queue."""
        return generate_latest(_Shown(self._registry, models, self._replica))


class _Shown(CollectorRegistry):
    """What one scrape shows: the counters, the state of the models, the label `replica`."""

    def __init__(
        self, counters: Collector, models: Mapping[str, ServedModel], replica: str
    ) -> None:
        super().__init__()
        self._counters, self._models, self._replica = counters, dict(models), replica

    def collect(self) -> Iterator[Metric]:
        own = {"replica": self._replica} if self._replica else {}
        for metric in (*self._counters.collect(), *self._states()):
            metric.samples = [
                sample._replace(labels=sample.labels | own)
                for sample in metric.samples
                # When a series began is of no use and would be a third of all lines.
                if not sample.name.endswith("_created")
            ]
            yield metric

    def _states(self) -> Iterable[Metric]:
        version = GaugeMetricFamily(
            f"{PREFIX}_model_info", "The served models", labels=("model", "version")
        )
        ready = GaugeMetricFamily(
            f"{PREFIX}_model_ready", "Whether the model answers as it should", labels=("model",)
        )
        queue = GaugeMetricFamily(
            f"{PREFIX}_queue_length", "Pictures that wait for a forward pass", labels=("model",)
        )
        for name, served in self._models.items():
            version.add_metric((name, served.info.version), 1)
            ready.add_metric((name,), float(served.is_ready()))
            queue.add_metric((name,), float(served.queue_length()))
        return version, ready, queue


class Metered:
    """ASGI middleware that counts; outermost, so that refusals of the guard are counted too."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Iterable[BaseRoute]) -> None:
        self._app, self._metrics = app, metrics
        self._routes = [route for route in routes if isinstance(route, Route)]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        answer = _Watched(send)
        self._metrics.begin()
        try:
            await self._app(scope, receive, answer)
        finally:
            if answer.reason is not None:
                self._metrics.reject(answer.reason)
            self._metrics.end(self._route(scope), answer.status, time.perf_counter() - start)

    def _route(self, scope: Scope) -> str:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        for route in self._routes:
            if route.path_regex.match(path):
                return route.path
        return _NO_ROUTE


class _Watched:
    """`send` that remembers the status and, of a Problem, its code."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._is_problem = False
        self.status = GONE
        self.reason: str | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._is_problem = Headers(raw=message["headers"]).get("content-type") == _PROBLEM
        elif self._is_problem and self.reason is None:
            content = json.loads(message.get("body") or b"{}")
            self.reason = content.get("type", _NO_ROUTE).removeprefix("urn:rayhmr:")
        await self._send(message)
