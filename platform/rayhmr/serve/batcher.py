"""Batches that nobody waits for: what came while the models were busy goes to the first free one.

A lone request runs at once, alone. There is no timer: under load the queue fills while a batch
runs, so batches grow by themselves to what the load needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from rayhmr.serve.inference import Computed, Prepared
from rayhmr.serve.problems import Problem

Lane = Callable[[Sequence[Prepared]], Awaitable[Sequence[Computed | Exception]]]
"""Computes one batch; LaneLostError when the process behind it is gone."""
MAX_LOSSES = 3
"""An item in whose company so many model processes died is refused."""


class LaneLostError(Exception):
    """The process that computed a batch has ended; its items go to another one."""


@dataclass(eq=False)
class _Item:
    prepared: Prepared
    done: asyncio.Future[Computed]
    losses: int = 0


@dataclass
class Batcher:
    """A queue before any number of lanes, for one event loop.

    max_people: most squares in one batch; an item with more of them goes alone.
    """

    max_people: int
    _queue: deque[_Item] = field(default_factory=deque)
    _idle: deque[int] = field(default_factory=deque)
    _lanes: dict[int, Lane] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)
    _running: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def lanes(self) -> int:
        """Processes that compute for this queue."""
        return len(self._lanes)

    @property
    def waiting(self) -> int:
        """Items that no process has begun."""
        return len(self._queue)

    def add(self, lane: Lane) -> int:
        """Let `lane` compute too; the number by which `remove` knows it."""
        number = next(self._numbers)
        self._lanes[number] = lane
        self._idle.append(number)
        self._dispatch()
        return number

    def remove(self, number: int) -> None:
        """Give this lane no more batches; one under way ends as it ends."""
        self._lanes.pop(number, None)

    async def submit(self, prepared: Prepared) -> Computed:
        """The model's answer. Raises what the item failed with. Cancelled while it waits, the item
        is not computed at all."""
        done: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        self._queue.append(_Item(prepared, done))
        self._dispatch()
        return await done

    def _dispatch(self) -> None:
        while self._idle and self._queue:
            number = self._idle[0]
            if number not in self._lanes:
                self._idle.popleft()
                continue
            batch = self._next_batch()
            if not batch:
                return
            self._idle.popleft()
            task = asyncio.get_running_loop().create_task(self._run(number, batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next_batch(self) -> list[_Item]:
        batch: list[_Item] = []
        people = 0
        while self._queue:
            item = self._queue[0]
            if item.done.done():  # its client has gone
                self._queue.popleft()
                continue
            people += len(item.prepared.crops)
            # What was there when a process died goes alone, so that the others are safe from it.
            if batch and (people > self.max_people or item.losses):
                break
            batch.append(self._queue.popleft())
            if item.losses:
                break
        return batch

    async def _run(self, number: int, batch: list[_Item]) -> None:
        try:
            results = await self._lanes[number]([item.prepared for item in batch])
        except LaneLostError:
            self.remove(number)
            self._requeue(batch)
        except Exception as error:
            for item in batch:
                _settle(item, error)
        else:
            self._free(number)  # first, so that the model does not wait for what the answers cause
            for item, result in zip(batch, results, strict=True):
                _settle(item, result)
            return
        self._free(number)

    def _free(self, number: int) -> None:
        if number in self._lanes:
            self._idle.append(number)
        self._dispatch()

    def _requeue(self, batch: list[_Item]) -> None:
        for item in reversed(batch):
            item.losses += 1
            if item.losses < MAX_LOSSES:
                self._queue.appendleft(item)
            else:
                _settle(item, _crashed())


def _crashed() -> Problem:
    return Problem(
        500,
        "model_crashed",
        f"the model's process ended {MAX_LOSSES} times at this picture; try another one",
    )


def _settle(item: _Item, result: Computed | Exception) -> None:
    if item.done.done():
        return
    if isinstance(result, Exception):
        item.done.set_exception(result)
    else:
        item.done.set_result(result)
