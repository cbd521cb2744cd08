"""`benchmark.py scale`: what the platform itself costs for each worker and each trial.

Logical nodes on this machine, each with a raylet of its own, run a training and a search whose
steps do nothing (`rayhmr.scale_run`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hmr.errors import HmrError
from rayhmr.chaos.cluster import ChaosCluster
from rayhmr.cluster import WORKER_ENVIRONMENT
from rayhmr.telemetry import say

NODES = 8
PATIENCE_S = 1200.0
TRIALS_AT_ONCE = 8


def measured(cluster: ChaosCluster, what: str, count: int) -> dict[str, float]:
    """One run of `rayhmr.scale_run`, in a process of its own; HmrError when it fails."""
    command = [sys.executable, "-m", "rayhmr.scale_run", what, str(count)]
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    if done.returncode != 0:
        raise HmrError(f"{' '.join(command[1:])} failed: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def scale_rates(
    workers: Sequence[int], trials: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows: one a run. Figures: of the largest, and what one more worker or trial adds."""
    runs = []
    for count in workers:
        each = -(-count // NODES)
        say(f"{count} workers on {NODES} logical nodes")
        with _nodes(each) as cluster:
            runs.append(measured(cluster, "train", count))
    say(f"{trials} trials on {NODES} logical nodes")
    with _nodes(-(-TRIALS_AT_ONCE // NODES)) as cluster:
        search = measured(cluster, "search", trials)
    largest = runs[-1]
    figures = {
        "workers": largest["workers"],
        **{name: largest[name] for name in ("start_s", "report_ms", "order_ms", "worker_mb")},
        "start_s_per_worker": _slope(runs, "start_s"),
        "report_ms_per_worker": _slope(runs, "report_ms"),
        **{name: search[name] for name in ("trials", "seconds_per_trial",
                                           "driver_cpu_s_per_trial")},
    }  # fmt: skip
    return [_row(run) for run in (*runs, search)], figures


def _row(run: Mapping[str, float]) -> dict[str, Any]:
    if "trials" in run:
        what = f"search, {run['trials']:g} trials"
    else:
        what = f"training, {run['workers']:g} workers"
    columns = {
        "start s": "start_s", "report ms": "report_ms", "order ms": "order_ms", "end s": "end_s",
        "MB a worker": "worker_mb", "s a trial": "seconds_per_trial",
        "driver CPU s a trial": "driver_cpu_s_per_trial",
    }  # fmt: skip
    return {"run": what} | {title: run.get(name) for title, name in columns.items()}


def _slope(runs: Sequence[dict[str, float]], name: str) -> float:
    """What one more worker adds, by a straight line through the runs; 0 for a single one."""
    if len(runs) < 2:
        return 0.0
    counts = [run["workers"] for run in runs]
    return float(np.polyfit(counts, [run[name] for run in runs], 1)[0])


def _nodes(cpus: int) -> ChaosCluster:
    """The head without CPUs, as on a real cluster, and the nodes."""
    cluster = ChaosCluster(0, environment=WORKER_ENVIRONMENT)
    try:
        for _ in range(NODES):
            cluster.add(cpus)
    except HmrError:
        cluster.close()
        raise
    return cluster
