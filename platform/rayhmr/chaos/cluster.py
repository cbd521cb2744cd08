"""Ray clusters whose nodes can be killed one by one, all on this machine.

Every node is a process of its own (`rayhmr.chaos.node`), and may live in a network namespace. The
clusters have ports, folders and a token of their own.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hmr.errors import HmrError
from rayhmr.cluster import free_port

START_TIMEOUT_S = 120.0
DETECTION = {
    # A node counts as dead after three missed answers a second apart; Ray's own setting needs 15 s.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


class ChaosNode:
    """One Ray node. prefix: a command that runs it elsewhere, as `ip netns exec one`."""

    def __init__(
        self, options: Mapping[str, Any], environment: Mapping[str, str],
        prefix: Sequence[str] = (),
    ) -> None:  # fmt: skip
        command = [*prefix, sys.executable, "-m", "rayhmr.chaos.node", json.dumps(options)]
        self._log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115, closed with the node
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            facts = self._answer()
        except HmrError:
            self.close()
            raise
        self.address: str = facts["address"]
        self.node_id: str = facts["node_id"]
        self.raylet: int = facts["raylet"]
        """The process of its raylet, the parent of its workers."""

    def tell(self, word: str) -> None:
        """See `rayhmr.chaos.node`."""
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            self._log.seek(0)
            raise HmrError(
                f"a Ray node did not answer within {START_TIMEOUT_S:g} s; its last words: "
                f"{self._log.read()[-1000:]}"
            )
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End the node's processes, at the latest after a while by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


class ChaosCluster:
    """A head with `head_cpus`, and nodes that are added to it.

    durable: the GCS keeps its state on the disk, and so survives being killed. ip: of the head;
    none: the machine's. environment: more of it, for the nodes and the jobs. dashboard: whether it
    has one. resources: of the head, beside CPUs.
    """

    def __init__(
        self, head_cpus: int, *, durable: bool = False, ip: str | None = None,
        prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None,
        dashboard: bool = False, resources: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        # Ray's sockets live in here and their paths may have 107 letters.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=os.environ.get("RAY_TMPDIR")))
        # Whatever else runs here, perhaps with a Ray of its own, has no say.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment = inherited | {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(self.folder), **DETECTION, **(environment or {}),
        }  # fmt: skip
        if durable:
            self.environment["RAY_gcs_storage"] = "rocksdb"
            self.environment["RAY_gcs_storage_path"] = str(self.folder / "gcs")
        self.nodes: list[ChaosNode] = []
        try:
            self.head = self._node(
                {
                    "head": True, "num_cpus": head_cpus, "node_ip_address": ip,
                    "gcs_server_port": free_port(), "include_dashboard": dashboard,
                    "dashboard_port": free_port(), "temp_dir": str(self.folder),
                    "resources": resources,
                },
                prefix,
            )  # fmt: skip
        except HmrError:
            self.close()
            raise
        self.address = self.head.address

    def _node(self, options: dict[str, Any], prefix: Sequence[str] = ()) -> ChaosNode:
        given = {key: value for key, value in options.items() if value is not None}
        given |= {"num_gpus": 0, "object_store_memory": 100_000_000}
        node = ChaosNode(given, self.environment, prefix)
        self.nodes.append(node)
        return node

    def add(self, cpus: int, *, ip: str | None = None, prefix: Sequence[str] = ()) -> ChaosNode:
        """One more node."""
        return self._node(
            {
                "head": False, "num_cpus": cpus, "node_ip_address": ip,
                "gcs_address": self.address, "redis_address": self.address,
            },
            prefix,
        )  # fmt: skip

    def node_of(self, pid: int) -> ChaosNode:
        """The node whose raylet is the parent of a worker; HmrError for another process."""
        parent = parent_of(pid)
        for node in self.nodes:
            if node.raylet == parent:
                return node
        raise HmrError(f"process {pid}: is no worker of this cluster")

    def workers(self, title: str) -> list[int]:
        """Processes of this cluster's workers whose title begins so."""
        raylets = {node.raylet for node in self.nodes}
        return [pid for pid in running(title) if parent_of(pid) in raylets]

    def drain(self, node: ChaosNode, deadline_s: float) -> None:
        """The notice that a node will be taken away."""
        self.head.tell(f"drain {node.node_id} {deadline_s}")

    def close(self) -> None:
        """End everything."""
        for node in reversed(self.nodes):
            node.close()
        self.nodes = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> ChaosCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def parent_of(pid: int) -> int | None:
    """The parent of a process; none when it is gone."""
    # The name, in brackets, may hold spaces and brackets itself.
    fields = _proc(pid, "stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else None


def is_running(pid: int) -> bool:
    """Whether there is such a process, and not only its remains."""
    fields = _proc(pid, "stat").rpartition(")")[2].split()
    return bool(fields) and fields[0] not in "ZX"


def running(title: str) -> list[int]:
    """Processes whose title begins so."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return sorted(pid for pid in pids if _proc(pid, "cmdline").startswith(title))
