"""One Ray node, its raylet and, at the head, its GCS, as children of this process.

    python -m rayhmr.chaos.node '{"head": true, "num_cpus": 1, …}'

Says in one line of JSON where it is. Then it does what it is told, a word a line on stdin:
`kill-raylet`, `kill-gcs`, `start-gcs` and, at the head, `drain <node id> <seconds>`, and answers
each with a line. It ends, and the node with
it, when stdin closes: also when whoever started it dies.

The parameters and the methods of `ray._private.node` move between releases; they are used here and
nowhere else.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

POLL_S = 0.2


def started(options: dict[str, Any]) -> Node:
    """The node with these parameters of Ray's; `head` says which kind it is."""
    head = options.pop("head")
    # No process of the node waits for a fixed port, so that several fit on one machine.
    fixed: dict[str, Any] = {
        "min_worker_port": 0,
        "max_worker_port": 0,
        "include_log_monitor": False,
    }
    if not head:
        fixed |= {"node_manager_port": 0, "dashboard_agent_listen_port": None}
    return Node(RayParams(**fixed, **options), head=head, shutdown_at_exit=True, spawn_reaper=True)


def answer(facts: dict[str, Any]) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def drain(node: Node, node_id: str, deadline_s: str) -> None:
    """Give notice that a node will be taken away after so many seconds."""
    deadline_ms = int(1000 * (time.time() + float(deadline_s)))
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = node.get_gcs_client().drain_node(node_id, reason, "", deadline_ms)
    if not accepted:
        raise RuntimeError(f"node {node_id}: the notice was refused: {why}")


def obey(node: Node, word: str) -> None:
    """One command."""
    if word == "kill-raylet":
        node.kill_raylet(check_alive=False)
    elif word == "kill-gcs":
        node.kill_gcs_server(check_alive=False)
    elif word == "start-gcs":
        node.start_gcs_server()
    elif word.startswith("drain "):
        drain(node, *word.split()[1:])
    else:
        raise ValueError(f"{word!r}: is no command")


def main() -> None:
    """Run one node until stdin closes."""
    node = started(json.loads(sys.argv[1]))
    try:
        raylet = node.all_processes["raylet"][0].process.pid
        answer({"address": node.gcs_address, "node_id": node.node_id, "raylet": raylet})
        while True:
            readable, _, _ = select.select([sys.stdin], [], [], POLL_S)
            # A dead child that nobody waits for would look alive to its own children.
            for infos in node.all_processes.values():
                for info in infos:
                    info.process.poll()
            if not readable:
                continue
            word = sys.stdin.readline().strip()
            if not word:
                return
            obey(node, word)
            answer({"did": word})
    finally:
        node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main()
