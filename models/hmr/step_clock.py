"""How fast an epoch goes, and its latest losses, without making the steps wait.

A line's numbers are asked for at one step and shown when they have reached the host, on a GPU
perhaps a step later. The first step, with its start-up costs, is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from hmr.exchange import Exchange, Fetched
from hmr.structures import Batch


@dataclass(frozen=True)
class _Mark:
    """A moment of the epoch: seconds, people of all ranks until then, steps, seconds waited."""

    at: float
    people: float
    steps: int
    waited_s: float


class StepClock:
    """The times of one epoch on one rank."""

    def __init__(self) -> None:
        self.first_batch_s = 0.0
        self._waited_s, self._steps = 0.0, 0
        self._begun = time.perf_counter()
        self._first: _Mark | None = None
        self._last: _Mark | None = None
        self._asked: tuple[Fetched, int, int, tuple[str, ...]] | None = None

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time spent waiting for each is noted."""
        asked = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - asked
            if self._steps == 0:
                self.first_batch_s = waited
            else:
                self._waited_s += waited
            yield batch
            asked = time.perf_counter()

    def step(self, exchange: Exchange) -> None:
        """A step was made; the first one is waited for."""
        self._steps += 1
        if self._first is None:
            people = float(exchange.sums[-1]) if len(exchange.sums) else 0.0
            self._first_people = float(exchange.people)
            people += self._first_people
            self._first = self._last = _Mark(time.perf_counter(), people, 1, 0.0)

    def request(self, exchange: Exchange, step: int) -> None:
        """Ask for the numbers of this step. `exchange.flush` was called."""
        if self._asked is None:
            numbers = torch.cat([exchange.latest.double(), exchange.sums[-1:]])
            self._asked = Fetched(numbers), step, self._steps, exchange.names

    def ready(self) -> dict[str, float] | None:
        """What was asked for, once it is there: loss terms by name, `step`, and the rates since the
        line before: `images_per_s` of all ranks, seconds a step, share of time waiting for data;
        `images_per_s_epoch` since the epoch's first step."""
        if self._asked is None or not self._asked[0].ready():
            return None
        fetched, step, steps, names = self._asked
        self._asked = None
        *terms, people = fetched.values()
        now = _Mark(time.perf_counter(), people, steps, self._waited_s)
        before, self._last = self._last, now
        losses = dict(zip(names, terms, strict=True))
        whole = {"images_per_s_epoch": self._rates(self._first, now)["images_per_s"]}
        return losses | {"step": step} | self._rates(before, now) | whole

    def _rates(self, before: _Mark | None, now: _Mark) -> dict[str, float]:
        assert before is not None
        people, steps = now.people - before.people, now.steps - before.steps
        seconds = max(now.at - before.at, 1e-9)
        if steps == 0:  # one step so far: its start-up is all there is to tell of
            people, steps, seconds = self._first_people, 1, max(now.at - self._begun, 1e-9)
        return {
            "images_per_s": people / seconds, "step_s": seconds / steps,
            "data_wait": (now.waited_s - before.waited_s) / seconds,
            "first_batch_s": self.first_batch_s,
        }  # fmt: skip

    def epoch_rates(self, exchange: Exchange) -> dict[str, float]:
        """The rates of the whole epoch after its first step; waits for the device."""
        people = float(exchange.sums[-1])
        return self._rates(
            self._first, _Mark(time.perf_counter(), people, self._steps, self._waited_s)
        )
