"""Which trials of a search fit into a cluster side by side.

Every worker of a trial holds whole CPUs and perhaps a share of a GPU, and on each node that hosts
one of them a whole CPU stays free for the trial's Ray Data tasks: CPUs are counted whole and node
by node, because a task cannot be spread over two nodes. All workers of a study ask for the same, so
Ray may seat them otherwise than is thought of here, and still there is a seat for each of them and
a CPU for each trial's data. Ray's object store does not count: what it cannot hold goes to disk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from hmr.errors import ConfigError, HmrError
from rayhmr.cluster import DRIVER_RESOURCE
from rayhmr.config import ScalingConfig, TuneJob
from rayhmr.ray_tables import state_api_answers
from rayhmr.telemetry import say

MARGIN = 1e-6
"""Shares of a GPU are fractions in binary: three times a third is one."""
MEGABYTE = 1e6
WORKER_MB, DRIVER_MB = 700.0, 900.0
"""Memory of a worker with its data tasks; of a trial's driver, Ray Train's controller and its
cleaner together."""
SETTLE_S = 10.0
"""How long a study waits for more than one trial's room when somebody holds some of it: perhaps
what is left of a study that has just been killed."""
HEAD_RESOURCE = "node:__internal_head__"
"""One of these is on the head of every Ray cluster."""
SHARE = 0.01
"""Of the driver resource, or a tenth of it of the head, held by the driver of a trial."""

Held = Mapping[str, Mapping[str, float]]
"""Resources by node id."""


@dataclass(frozen=True, kw_only=True)
class TrialNeeds:
    """What a trial holds: `workers` times `cpus` whole CPUs and `gpus`, a share of one GPU.

    worker_mb, driver_mb: memory of a worker with its data tasks, and of what directs a trial, on
    the head.
    """

    workers: int
    cpus: int
    gpus: float = 0.0
    worker_mb: float = 0.0
    driver_mb: float = 0.0

    def __str__(self) -> str:
        share = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.workers} worker{'s' * (self.workers > 1)} × {self.cpus} CPU{share}"


@dataclass(frozen=True, kw_only=True)
class NodeRoom:
    """What is free on a node: whole CPUs, the share of each GPU that is left, memory in MB."""

    name: str
    cpus: int
    gpus: tuple[float, ...] = ()
    memory_mb: float = math.inf
    is_head: bool = False

    def seats(self, needs: TrialNeeds) -> int:
        """How many workers of one trial fit, with a CPU for its data."""
        seats = (self.cpus - 1) // needs.cpus
        if needs.gpus:
            seats = min(seats, sum(int(share / needs.gpus + MARGIN) for share in self.gpus))
        if needs.worker_mb and self.memory_mb < math.inf:
            seats = min(seats, int(self.memory_mb / needs.worker_mb))
        return max(seats, 0)


@dataclass(frozen=True, kw_only=True)
class Seat:
    """Of one worker: the number of its node, and of the GPU there that it has a share of."""

    node: int
    gpu: int | None


def place_trials(
    nodes: Sequence[NodeRoom], needs: TrialNeeds, most: int | None = None
) -> list[tuple[Seat, ...]]:
    """The seats of each of the trials that fit side by side, `most` of them at most."""
    free = list(nodes)
    trials: list[tuple[Seat, ...]] = []
    while most is None or len(trials) < most:
        trial = _place_trial(free, needs)
        if trial is None:
            break
        trials.append(trial)
    return trials


def _place_trial(free: list[NodeRoom], needs: TrialNeeds) -> tuple[Seat, ...] | None:
    """Take a trial's resources from the nodes; none, and nothing taken, when they are not there."""
    left = list(free)
    for number, node in enumerate(left):
        if node.is_head and needs.driver_mb:
            if node.memory_mb < needs.driver_mb:
                return None
            left[number] = replace(node, memory_mb=node.memory_mb - needs.driver_mb)
    seats: list[Seat] = []
    while (wanted := needs.workers - len(seats)) > 0:
        hosts = {seat.node for seat in seats}
        sizes = [0 if i in hosts else node.seats(needs) for i, node in enumerate(left)]
        if not any(sizes):
            return None
        # Each further node costs one more CPU: all on one node if that can be, on the one that they
        # fill best; else on the one that takes the most.
        sizes = [min(size, wanted) for size in sizes]
        best = max(range(len(left)), key=lambda i: (sizes[i], -left[i].cpus))
        left[best] = replace(left[best], cpus=left[best].cpus - 1)
        for _ in range(sizes[best]):
            left[best], gpu = _take_worker(left[best], needs)
            seats.append(Seat(node=best, gpu=gpu))
    free[:] = left
    return tuple(seats)


def _take_worker(node: NodeRoom, needs: TrialNeeds) -> tuple[NodeRoom, int | None]:
    """The node without one worker's resources, and the GPU that it is on."""
    node = replace(node, cpus=node.cpus - needs.cpus, memory_mb=node.memory_mb - needs.worker_mb)
    if not needs.gpus:
        return node, None
    fitting = [i for i, share in enumerate(node.gpus) if share + MARGIN >= needs.gpus]
    gpu = min(fitting, key=lambda i: node.gpus[i])
    shares = list(node.gpus)
    shares[gpu] = max(shares[gpu] - needs.gpus, 0.0)
    return replace(node, gpus=tuple(shares)), gpu


def concurrent_trials(nodes: Sequence[NodeRoom], needs: TrialNeeds) -> int:
    """How many trials run side by side without waiting for each other for ever."""
    return len(place_trials(nodes, needs))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """concurrent: trials side by side. driver: what the driver of a trial holds instead of a share
    of a CPU, which would leave a broken CPU on a node. held: what others held when it was made."""

    concurrent: int
    needs: TrialNeeds
    driver: Mapping[str, float]
    held: Held = field(default_factory=dict)

    def room(self) -> int:
        """How many trials the nodes carry that are there now."""
        return trials_that_fit(live_nodes(self.held), self.needs)


def needs_of(scaling: ScalingConfig) -> TrialNeeds:
    """What a trial holds; ConfigError for one that would change its size while others run."""
    if scaling.min_workers not in (None, scaling.num_workers):
        raise ConfigError(
            f"trial.scaling.min_workers={scaling.min_workers}: trials that grow would take the "
            "room of others; leave it out"
        )
    return TrialNeeds(
        workers=scaling.num_workers, cpus=scaling.cpus_per_worker, gpus=scaling.gpus,
        worker_mb=WORKER_MB, driver_mb=DRIVER_MB,
    )  # fmt: skip


def trials_that_fit(nodes: Sequence[NodeRoom], needs: TrialNeeds) -> int:
    """As `concurrent_trials`, but memory, which is an estimate, never keeps the first one out."""
    with_memory = concurrent_trials(nodes, needs)
    bare = replace(needs, worker_mb=0.0, driver_mb=0.0)
    return with_memory or min(concurrent_trials(nodes, bare), 1)


def held_now() -> dict[str, dict[str, float]]:
    """What is held on the nodes, by anybody."""
    available = ray._private.state.available_resources_per_node()
    held = {}
    for node in _alive():
        free = available.get(node["NodeID"], {})
        held[node["NodeID"]] = {
            name: total - free.get(name, 0.0)
            for name, total in node["Resources"].items()
            if total - free.get(name, 0.0) > MARGIN
        }
    return held


def live_nodes(held: Held) -> list[NodeRoom]:
    """The nodes that are there now, without what others hold."""
    return [_room(node, held.get(node["NodeID"], {})) for node in _alive()]


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _room(node: dict[str, Any], held: Mapping[str, float]) -> NodeRoom:
    free = {name: total - held.get(name, 0.0) for name, total in node["Resources"].items()}
    gpus = free.get("GPU", 0.0) + MARGIN
    # Ray fills one GPU before it begins another.
    rest = (gpus - int(gpus),) if gpus - int(gpus) > 2 * MARGIN else ()
    return NodeRoom(
        name=node["NodeManagerAddress"], cpus=int(free.get("CPU", 0.0) + MARGIN),
        gpus=(1.0,) * int(gpus) + rest, memory_mb=free.get("memory", math.inf) / MEGABYTE,
        is_head=HEAD_RESOURCE in node["Resources"],
    )  # fmt: skip


def missing_words(nodes: Sequence[NodeRoom], needs: TrialNeeds) -> str:
    """Why not even one trial fits, and the cure."""
    if needs.gpus and concurrent_trials(nodes, replace(needs, gpus=0.0)):
        cure = "wait for GPUs, add some, or lower trial.scaling.gpus_per_worker"
    else:
        cure = (
            "lower trial.scaling.num_workers or cpus_per_worker, add nodes of at least "
            f"{needs.cpus + 1} CPU, or wait until others end"
        )
    return (
        f"no trial fits: each needs {needs}, and one more whole CPU on every node it is on, for "
        f"Ray Data; {free_words(nodes, needs)}: {cure}"
    )


def free_words(nodes: Sequence[NodeRoom], needs: TrialNeeds) -> str:
    """What is free, node by node."""
    words = [
        f"{node.name} has {node.cpus} whole CPU"
        + (f", GPU shares {', '.join(f'{share:g}' for share in node.gpus)}" * bool(needs.gpus))
        + " free"
        for node in nodes
    ]
    return "; ".join(words) or "no node is alive"


def preflight(job: TuneJob, trials: int) -> Plan:
    """How many trials run side by side, said in a line; HmrError says what not even one has,
    ConfigError what would make Ray free what trials hold.

    What others hold is waited for, `cluster.start_timeout_s` at most.
    """
    needs, want = needs_of(job.trial.scaling), min(trials, job.max_concurrent or trials)
    if state_api_answers() == "others":
        address = ray.get_runtime_context().gcs_address
        raise ConfigError(
            "RAY_ADDRESS: is not set for the workers, and this machine has several Ray clusters: "
            "the clean-up of Ray Train would ask another one and free what trials hold; set "
            f"RAY_ADDRESS={address} in the runtime_env of ray.init, or leave connecting to this job"
        )
    begun = time.monotonic()
    said = False
    while True:
        held = held_now()
        nodes = live_nodes(held)
        fit = trials_that_fit(nodes, needs)
        waited = time.monotonic() - begun
        later = trials_that_fit(live_nodes({}), needs)
        if (fit >= min(want, later) and fit > 0) or (fit > 0 and waited > SETTLE_S):
            break
        if later == 0 or waited > job.cluster.start_timeout_s:
            raise HmrError(missing_words(nodes, needs))
        if fit == 0 and not said:
            say(f"waiting up to {job.cluster.start_timeout_s:g} s: {missing_words(nodes, needs)}")
            said = True
        time.sleep(1.0)
    concurrent = min(fit, want)
    say(plan_line(nodes, needs, concurrent, want))
    return Plan(concurrent=concurrent, needs=needs, driver=driver_share(), held=held)


def plan_line(nodes: Sequence[NodeRoom], needs: TrialNeeds, concurrent: int, want: int) -> str:
    """What runs side by side, and what keeps more from it."""
    line = (
        f"{concurrent} trial{'s' * (concurrent > 1)} side by side: each {needs} + 1 CPU for Ray "
        "Data on each of its nodes"
    )
    if concurrent == want:
        return line
    bare = replace(needs, worker_mb=0.0, driver_mb=0.0)
    if concurrent_trials(nodes, bare) > concurrent:
        return f"{line}; no more for want of memory"
    without = concurrent_trials(nodes, replace(bare, gpus=0.0))
    return f"{line}; no more for want of {'GPUs' if without > concurrent else 'CPUs'}"


def driver_share() -> dict[str, float]:
    """A tiny share of what is no CPU: `drv` where nodes have it, else of the head itself."""
    if ray.cluster_resources().get(DRIVER_RESOURCE, 0.0) >= SHARE:
        return {DRIVER_RESOURCE: SHARE}
    return {HEAD_RESOURCE: SHARE / 10}
