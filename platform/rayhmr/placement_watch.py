"""Trials that cannot go on do not hang: they wait aside, or end with the reason.

Ray asks for a run's workers for ever and without a word. After the loss of a node it also seats
the workers of a lost trial on the last CPU of another one, whose data then never come. So each
trial looks once a second at the placement groups of all: when there are more than the nodes carry
by the rule of `rayhmr.tune_resources`, the ones behind end their controller, wait until there is
room, and go on from their checkpoints; one that is not behind, and not placed for too long, ends.
The study itself frees what dead trials left behind, since Ray's own cleaner asks the State API,
which needs the dashboard; and it ends, with all trials to go on later, when no node is left that
could carry one.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

import ray

from hmr.errors import HmrError
from rayhmr import ray_tables
from rayhmr.ray_tables import Actor, Group
from rayhmr.tune_resources import (
    Plan,
    free_words,
    held_now,
    live_nodes,
    missing_words,
    trials_that_fit,
)

POLL_S = 1.0
CROWDED_S = 3.0
"""A trial makes room when there are too many for so long: one that ends holds on for a moment."""
LEFT_BEHIND_S = 5.0
"""What dead trials hold is freed after so long: time for Ray's own clean-up."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What a trial sees. room: how many trials the nodes carry. before: groups of other trials that
    go first. mine: whether it has a group or asks for one. placed: whether its workers run."""

    room: int
    before: int
    mine: bool = False
    placed: bool = False


def view_of(
    groups: Sequence[Group], actors: Sequence[Actor], controllers: frozenset[str], room: int
) -> View:
    """What the trial with these controllers sees; who runs goes before who waits, and then who was
    there first."""
    starting = {actor.group for actor in actors if actor.is_starting}
    living = [group for group in groups if not group.creator_dead]

    def order(group: Group) -> tuple[bool, int, str]:
        return group.state != "CREATED", group.since, group.id

    mine = [group for group in living if group.creator in controllers]
    others = [group for group in living if group.creator not in controllers]
    if not mine:
        return View(room=room, before=len(others))
    first = min(mine, key=order)
    return View(
        room=room, before=sum(order(group) < order(first) for group in others), mine=True,
        placed=first.state == "CREATED" and first.id not in starting,
    )  # fmt: skip


class Patience:
    """How long something has been so without a break."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._since = limit_s, math.inf

    def is_over(self, so: bool, now: float) -> bool:
        """Whether it is so, and has been longer than the limit."""
        self._since = min(self._since, now) if so else math.inf
        return now - self._since > self._limit_s


def _own_controllers(actors: Sequence[Actor]) -> list[Actor]:
    me = ray.get_runtime_context().get_worker_id()
    return [a for a in actors if a.kind == ray_tables.CONTROLLER and a.owner == me]


def _look(plan: Plan) -> View:
    actors = ray_tables.actors()
    mine = frozenset(actor.id for actor in _own_controllers(actors))
    return view_of(ray_tables.groups(), actors, mine, plan.room())


class PlacementWatch:
    """Watches over one trial, in its driver; see the module. timeout_s: how long its workers may
    not be placed. warn: told when it waits aside. stopped: whether the study ends. halted: whether
    the search has stopped this trial; then its controller is ended, which Ray does late."""

    def __init__(
        self, plan: Plan, timeout_s: float, *, warn: Callable[[str], None],
        stopped: Callable[[], bool], halted: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._plan, self._timeout_s, self._warn = plan, timeout_s, warn
        self._stopped, self._halted = stopped, halted
        self._lacking, self._crowded = Patience(timeout_s), Patience(CROWDED_S)
        self._wants = False
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.reason: str | None = None
        """Why the trial must end."""
        self.aside = False
        """Whether it makes room for others."""

    def has_ended_it(self) -> bool:
        """Whether the trial's controller was ended on purpose, and not by a failure."""
        return self.aside or self.reason is not None or self._halted()

    def run(self, train: Callable[[], None]) -> None:
        """Call `train`, which blocks while a controller directs the run, whenever there is room,
        until it is done or halted. HmrError with the reason when its workers were not placed for
        too long."""
        while self._wait_for_room():
            self.aside = False
            try:
                with self:
                    train()
                return
            except ray.exceptions.RayActorError:
                if self._halted():
                    return
                if self.reason is not None:
                    raise HmrError(self.reason) from None
                if not self.aside:
                    raise

    def _wait_for_room(self) -> bool:
        said = False
        while not (self._stopped() or self._halted()):
            with suppress(ray.exceptions.RayError):
                view = _look(self._plan)
                if view.before < view.room:
                    return True
                if not said:
                    self._warn(f"waits: the nodes carry {view.room} trials now")
                    said = True
            # Not all of those who wait at once.
            time.sleep(POLL_S * (1 + random.random()))
        return False

    def _why(self) -> str:
        needs = self._plan.needs
        free = free_words(live_nodes(held_now()), needs)
        return (
            f"waited {self._timeout_s:g} s (cluster.start_timeout_s) for {needs} to be placed; now "
            f"{free}. Others may hold what was free when the study began: wait for them, lower "
            "max_concurrent, or raise the time"
        )

    def __enter__(self) -> PlacementWatch:
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, name="placement-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            with suppress(ray.exceptions.RayError):  # the control store may be away for a while
                self._judge(_look(self._plan), time.monotonic())

    def _judge(self, view: View, now: float) -> None:
        # Between two tries of Ray to place the workers there is no group.
        self._wants = not view.placed if view.mine else self._wants
        if self.has_ended_it():
            self._end_controllers()  # of a start in between
        elif self._crowded.is_over(view.mine and view.before >= view.room, now):
            self.aside = True
            self._warn(
                f"makes room: the nodes carry {view.room} trials now; it goes on from its newest "
                "checkpoint when there is room again"
            )
            self._end_controllers()
        elif self._lacking.is_over(self._wants, now):
            self.reason = self._why()
            self._end_controllers()

    def _end_controllers(self) -> None:
        for actor in _own_controllers(ray_tables.actors()):
            ray_tables.kill_own(actor)


@contextmanager
def _each_second(look: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `look` is called from a thread."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL_S):
            with suppress(ray.exceptions.RayError):  # the control store may be away for a while
                look()

    thread = threading.Thread(target=watch, name="trials-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def freeing_what_is_left_behind() -> Iterator[None]:
    """While the block runs, placement groups of dead controllers are removed, and cleaners that
    would wait for ever are ended."""
    broom = _Broom()
    with _each_second(
        lambda: broom.sweep(ray_tables.groups(), ray_tables.actors(), time.monotonic())
    ):
        yield


@contextmanager
def watching_over_trials(
    plan: Plan, timeout_s: float, end: Callable[[], None]
) -> Iterator[list[str]]:
    """As `freeing_what_is_left_behind`; and `end` is called, and the reason added to the list, when
    the nodes have carried no trial for so many seconds."""
    lacking, reasons = Patience(timeout_s), list[str]()

    def look() -> None:
        nodes = live_nodes(plan.held)
        if (
            lacking.is_over(not trials_that_fit(nodes, plan.needs), time.monotonic())
            and not reasons
        ):
            why = missing_words(nodes, plan.needs)
            reasons.append(f"waited {timeout_s:g} s (cluster.start_timeout_s) for nodes; {why}")
            end()

    with freeing_what_is_left_behind(), _each_second(look):
        yield reasons


class _Broom:
    """Remembers since when something is left behind."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def _old(self, found: Iterable[str], now: float) -> set[str]:
        self._since = {name: self._since.get(name, now) for name in found}
        return {name for name, since in self._since.items() if now - since > LEFT_BEHIND_S}

    def sweep(self, groups: Sequence[Group], actors: Sequence[Actor], now: float) -> None:
        """Free what has been left behind for a while."""
        workers = {actor.worker for actor in actors}
        dead = {g.id: g for g in groups if g.creator_dead}
        cleaners = {
            a.id: a for a in actors
            if a.kind == ray_tables.CLEANER and not a.is_starting and a.owner not in workers
        }  # fmt: skip
        for name in self._old([*dead, *cleaners], now):
            if name in dead:
                ray_tables.remove_group(dead[name])
            else:
                ray_tables.kill_anywhere(cleaners[name])
