"""What Ray's control store knows of a job's placement groups and actors.

It is asked over this process's own connection: Ray's State API needs the dashboard, and where no
address is in the environment it asks whatever cluster it finds on the machine. Private parts of Ray
2.60 are used here and nowhere else.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ray
from ray._raylet import ActorID, JobID, PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

CONTROLLER, CLEANER = "TrainController", "PlacementGroupCleaner"
"""Classes of Ray Train's actors: it directs a run; it frees a dead controller's placement group."""
_STARTING = ("DEPENDENCIES_UNREADY", "PENDING_CREATION")


@dataclass(frozen=True, kw_only=True)
class Group:
    """A placement group. creator: the actor that made it. since: when, in ms since the epoch."""

    id: str
    creator: str
    creator_dead: bool
    state: str
    since: int


@dataclass(frozen=True, kw_only=True)
class Actor:
    """An actor. worker, owner: the process it is, and the one that made it. group: its placement
    group."""

    id: str
    kind: str
    state: str
    worker: str
    owner: str
    group: str
    node: str
    pid: int

    @property
    def is_starting(self) -> bool:
        """Whether it waits for its process."""
        return self.state in _STARTING


def groups() -> list[Group]:
    """Placement groups that actors of this job made and that hold or want resources."""
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    tables = map(gcs_pb2.PlacementGroupTableData.FromString, _store().get_placement_group_table())
    return [
        Group(
            id=table.placement_group_id.hex(), creator=table.creator_actor_id.hex(),
            creator_dead=table.creator_actor_dead,
            state=gcs_pb2.PlacementGroupTableData.PlacementGroupState.Name(table.state),
            since=table.placement_group_creation_timestamp_ms,
        )
        for table in tables
        if table.creator_job_id == job and not ActorID(table.creator_actor_id).is_nil()
        and table.state != gcs_pb2.PlacementGroupTableData.REMOVED
    ]  # fmt: skip


def actors() -> list[Actor]:
    """Actors of this job that are not dead."""
    job = JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
    tables = map(gcs_pb2.ActorTableData.FromString, _store().get_actor_table(job, None))
    return [
        Actor(
            id=table.actor_id.hex(), kind=table.class_name,
            state=gcs_pb2.ActorTableData.ActorState.Name(table.state),
            worker=table.address.worker_id.hex(), owner=table.owner_address.worker_id.hex(),
            group=table.placement_group_id.hex(), node=table.address.node_id.hex(), pid=table.pid,
        )
        for table in tables if table.state != gcs_pb2.ActorTableData.DEAD
    ]  # fmt: skip


def _store() -> Any:
    return ray._private.state.state._connect_and_get_accessor()


def remove_group(group: Group) -> None:
    """Free what it holds, or wants."""
    remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group.id))))


def kill_own(actor: Actor) -> None:
    """End an actor that this process made."""
    core = ray._private.worker.global_worker.core_worker
    core.kill_actor(ActorID(bytes.fromhex(actor.id)), True)


def _kill_process(pid: int, kind: str) -> bool:
    """Where the process of a Ray actor of this kind has this number."""
    title = Path(f"/proc/{pid}/cmdline")
    if not title.exists() or kind not in title.read_text(errors="replace"):
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def kill_anywhere(actor: Actor) -> None:
    """End an actor of which nobody has a handle any more."""
    on_its_node = NodeAffinitySchedulingStrategy(actor.node, soft=False)
    task = ray.remote(num_cpus=0, scheduling_strategy=on_its_node)(_kill_process)
    ray.get(task.remote(actor.pid, actor.kind), timeout=60)


def _who_answers() -> Literal["us", "nobody", "others"]:
    """Whose state Ray's State API tells a process that gives no address, as Ray's cleaner does."""
    if os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"):
        return "us"
    try:
        nodes = ray.util.state.list_nodes(timeout=20)
    except Exception:  # no dashboard, or no cluster found: it says so in many ways
        return "nobody"
    here = ray.get_runtime_context().get_node_id()
    return "us" if here in [node.node_id for node in nodes] else "others"


def state_api_answers() -> Literal["us", "nobody", "others"]:
    """`_who_answers` in a worker of this job."""
    answer: Literal["us", "nobody", "others"] = ray.get(
        ray.remote(num_cpus=0)(_who_answers).remote(), timeout=120
    )
    return answer
