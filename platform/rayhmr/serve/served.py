"""What the routes work with: models by name, threads, counters. Knows neither Ray nor HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rayhmr.serve.answers import ModelInfo
from rayhmr.serve.inference import Recovery, Work
from rayhmr.serve.metrics import Metrics
from rayhmr.serve.problems import Problem

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model that answers.

    recover: answers one Work, waiting for a batch where there is one. is_ready: whether the model
    answers as it should. queue_length: pictures that wait for a forward pass.
    """

    info: ModelInfo
    recover: Callable[[Work], Awaitable[Recovery]]
    is_ready: Callable[[], bool]
    queue_length: Callable[[], int] = lambda: 0


@dataclass(frozen=True, kw_only=True)
class Service:
    """What a replica serves.

    models: by the name that requests choose them with, the default first; several versions of one
    name get names of their own, such as hmr@3. The mapping is read at every request, so a model may
    be exchanged while the service runs. threads: where pictures are decoded and answers written.
    metrics: what `/metrics` shows; whoever forms batches reports them to it. rollouts: what becomes
    of versions that do not answer (yet), as `RolloutAnswer`.
    """

    models: Mapping[str, ServedModel]
    threads: Executor
    metrics: Metrics = field(default_factory=Metrics)
    rollouts: Callable[[], list[dict[str, Any]]] = list

    def find(self, reference: str | None) -> ServedModel:
        """The model called name, name@version or name@alias; none: the default. Problem 404."""
        known = dict(self.models)
        if reference is None:
            return next(iter(known.values()))
        if reference in known:
            return known[reference]
        for served in known.values():
            if reference in served.info.references:
                return served
        raise Problem(
            404,
            "unknown_model",
            f"model {reference:.80}: this service has "
            f"{', '.join(name for served in known.values() for name in served.info.references)}",
        )

    def is_ready(self) -> bool:
        """Whether every model answers as it should."""
        return all(served.is_ready() for served in self.models.values())

    async def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """The result of `function`, computed off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)
