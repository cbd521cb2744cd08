"""Whether a cluster can train: every node is asked, before a job finds out the hard way.

Each question has an end, so a node that hangs is a line of the table like any other.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as OnNode
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as InGroup

from hmr.errors import HmrError
from rayhmr import cluster_probe
from rayhmr.cluster import connect, quiet
from rayhmr.cluster_rules import NodeReport, judge
from rayhmr.config import ClusterCheckJob
from rayhmr.report import text_table
from rayhmr.storage import Folder, absolute
from rayhmr.telemetry import say

_Answer = TypeVar("_Answer")

DATA_ROWS = 64
AT_ONCE = 16
"""Nodes that are asked at the same time."""
CLOCK_READINGS = 5


def cluster_check(job: ClusterCheckJob) -> dict[str, Any]:
    """Ask every node, print a table. HmrError when something is wrong, which the table explains."""
    start = time.perf_counter()
    workers = job.scaling.num_workers
    needed = workers * job.scaling.cpus_per_worker
    # A node without this project can say so only if nothing of it is needed to ask.
    cloudpickle.register_pickle_by_value(cluster_probe)
    try:
        with connect(job.cluster, needed, int(np.ceil(workers * job.scaling.gpus))):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            say(f"asking {len(nodes)} nodes")
            asked = [_Asked(node, job.timeout_s) for node in nodes]
            _ask(asked, absolute(job.storage))
            for one in asked:
                one.end()
            problems = judge(
                [one.report for one in asked], cluster_probe.software(), job.storage, DATA_ROWS
            )
            reduced = _reduce(job, problems)
    finally:
        cloudpickle.unregister_pickle_by_value(cluster_probe)
    say(text_table([one.report.cells for one in asked]))
    say(reduced.pop("line"))
    for problem in problems:
        say(problem)
    if problems:
        raise HmrError(f"{len(problems)} problems with this cluster, as above")
    seconds = round(time.perf_counter() - start, 1)
    return {"nodes": len(nodes), "problems": 0, "seconds": seconds} | reduced


class _Asked:
    """One node and the actor that answers for it."""

    def __init__(self, node: Mapping[str, Any], timeout_s: float) -> None:
        resources = node["Resources"]
        self.node_id: str = node["NodeID"]
        self.report = NodeReport(
            name=f"{node['NodeManagerAddress']} {self.node_id[:6]}",
            cpus=resources.get("CPU", 0.0), gpus=resources.get("GPU", 0.0),
        )  # fmt: skip
        self.timeout_s = timeout_s
        self._probe: Any = self._actor(num_gpus=0)

    def _actor(self, num_gpus: float) -> Any:
        actor: Any = ray.remote(cluster_probe.Probe)
        return actor.options(
            num_cpus=0, num_gpus=num_gpus, scheduling_strategy=OnNode(self.node_id, soft=False)
        ).remote()

    def _get(self, answer: Any) -> Any:
        return ray.get(answer, timeout=self.timeout_s)

    def introduce(self) -> None:
        """Software and clock; a node that is silent here is asked nothing more."""
        try:
            self.report.software = self._get(self._probe.facts.remote())
            readings = []
            for _ in range(CLOCK_READINGS):
                sent = time.time()
                there = self._get(self._probe.now.remote())
                back = time.time()
                readings.append((back - sent, there - (sent + back) / 2))
            way, self.report.skew_s = min(readings)
            self.report.unsure_s = way / 2
        except (ray.exceptions.RayError, TimeoutError) as error:
            words = " ".join(str(error).split())[-300:]
            self.report.silent = f"{type(error).__name__} within {self.timeout_s:g} s: {words}"

    @property
    def can_store(self) -> bool:
        """Whether it is worth asking about the storage."""
        software = self.report.software
        return self.report.silent is None and software is not None and not software["missing"]

    def write(self, location: str) -> None:
        """Leave this node's file."""
        try:
            self.report.write_error = self._get(self._probe.write.remote(location, self.node_id))
        except (ray.exceptions.RayError, TimeoutError) as error:
            self.report.write_error = f"{type(error).__name__} within {self.timeout_s:g} s"

    def look(self, location: str, names: list[str]) -> None:
        """Look for everybody's files."""
        self.report.files = len(names)
        try:
            self.report.unseen = self._get(self._probe.seen.remote(location, names))
        except (ray.exceptions.RayError, TimeoutError) as error:
            why = f"{type(error).__name__} within {self.timeout_s:g} s"
            self.report.unseen = dict.fromkeys(names, why)

    def compute(self) -> None:
        """A block of Ray Data, where there are CPUs for it, and the GPUs."""
        if self.report.silent is None and self.report.cpus >= 1:
            try:
                self.report.data_rows = _within(
                    self.timeout_s, lambda: _block_through(self.node_id)
                )
            except Exception as error:  # whatever Ray Data raises
                self.report.data_error = f"{type(error).__name__}: {error!s:.300}"
        if self.report.silent is None and self.report.gpus:
            try:
                holder = self._actor(num_gpus=self.report.gpus)
                self.report.torch_gpus = self._get(holder.gpus.remote())
                ray.kill(holder)
            except (ray.exceptions.RayError, TimeoutError) as error:
                self.report.torch_gpus = {
                    "seen": 0, "error": f"{type(error).__name__}; others may hold them"
                }  # fmt: skip

    def end(self) -> None:
        """Let the actor go."""
        ray.kill(self._probe)


def _block_through(node_id: str) -> int:
    import ray.data

    quiet()
    data = ray.data.from_items([{"row": row} for row in range(DATA_ROWS)], override_num_blocks=1)
    data.context.enable_progress_bars = False
    doubled = data.map_batches(
        _doubled, batch_size=None, label_selector={"ray.io/node-id": node_id}
    )
    rows = doubled.take_all()
    return sum(row["row"] == 2 * number for number, row in enumerate(rows))


def _doubled(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"row": 2 * batch["row"]}


def _ask(asked: Sequence[_Asked], storage: str) -> None:
    """All questions to all nodes, many at a time."""

    def all_at_once(question: Callable[[_Asked], None], some: Sequence[_Asked]) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(question, some))

    all_at_once(_Asked.introduce, asked)
    able = [one for one in asked if one.can_store]
    folder = f".cluster-check-{uuid.uuid4().hex[:8]}"
    location = f"{storage.rstrip('/')}/{folder}"
    try:
        all_at_once(lambda one: one.write(location), able)
        names = [one.node_id for one in able if one.report.write_error is None]
        all_at_once(lambda one: one.look(location, names), able)
    finally:
        with suppress(TimeoutError, OSError):  # each node's own lines say what is wrong with it
            _within(asked[0].timeout_s, lambda: Folder(storage).remove(folder))
    all_at_once(_Asked.compute, asked)


def _within(seconds: float, question: Callable[[], _Answer]) -> _Answer:
    """What it gives or raises; TimeoutError when it takes longer, and is then left to itself."""
    answer: Future[_Answer] = Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} s") from error


def _reduce(job: ClusterCheckJob, problems: list[str]) -> dict[str, Any]:
    """One all-reduce between the workers that training would use; adds to the problems."""
    workers, scaling = job.scaling.num_workers, job.scaling
    if workers < 2:
        return {"line": "all-reduce: one worker needs none"}
    bundle = {"CPU": float(scaling.cpus_per_worker), "GPU": float(scaling.gpus)}
    group = ray.util.placement_group([bundle] * workers)
    actor: Any = ray.remote(cluster_probe.Rank)
    backend = "nccl" if scaling.use_gpu else "gloo"
    try:
        if not group.wait(job.timeout_s):
            raise TimeoutError(f"{workers} workers found no room within {job.timeout_s:g} s")
        ranks = [
            actor.options(
                num_cpus=bundle["CPU"], num_gpus=bundle["GPU"],
                scheduling_strategy=InGroup(group, placement_group_bundle_index=rank),
            ).remote()
            for rank in range(workers)
        ]  # fmt: skip
        place = ray.get(ranks[0].address.remote(), timeout=job.timeout_s)
        answers = [
            one.reduce.remote(place, rank, workers, job.allreduce_mb, backend)
            for rank, one in enumerate(ranks)
        ]
        found = ray.get(answers, timeout=job.timeout_s)
    except Exception as error:  # whatever the network or torch raises
        text = f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}"
        problems.append(
            f"all-reduce between {workers} workers: {text}: open all ports between the nodes, or "
            "name the right network in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME"
        )
        return {"line": "all-reduce: FAILED"}
    finally:
        ray.util.remove_placement_group(group)
    if not all(one["right"] for one in found):
        problems.append(f"all-reduce between {workers} workers: the sum is wrong")
    seconds = max(one["seconds"] for one in found)
    rate = 2 * (workers - 1) / workers * job.allreduce_mb / 1000 / seconds
    return {
        "line": f"all-reduce of {job.allreduce_mb:g} MB between {workers} workers ({backend}): "
        f"{1000 * seconds:.1f} ms, {rate:.2f} GB/s in and out of each",
        "allreduce_gb_per_s": round(rate, 3),
    }  # fmt: skip
