"""A training or a search whose steps do nothing, on a cluster of many logical nodes.

    python -m rayhmr.scale_run train 64
    python -m rayhmr.scale_run search 200

What is left is what directs it: Ray's controllers, our order of the data, notes to the driver, the
ledger, halving and suggestions. Connects to RAY_ADDRESS; the last line of stdout is JSON. Workers
import no torch, so that 64 of them fit on one machine.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray

from rayhmr.data.order import EpochOrder, reading_order
from rayhmr.telemetry import Board

EPOCHS = 6
FILES = tuple((f"part-{number:04}.parquet", 5000) for number in range(400))
"""Two million people, as files of a data set."""
BATCH = 64
"""Rows of a step for each worker."""
SEARCH_EPOCHS = 9
SPACE = {
    "model.n_iter": {"choice": [1, 2, 3, 4, 5]},
    "train.losses.keypoints_3d": {"low": 1.0, "high": 20.0, "log": True},
    "train.losses.pose": {"low": 0.1, "high": 10.0, "log": True},
}


def idle_worker(config: dict[str, Any]) -> None:
    """An epoch is the order of the rows and a report to Ray."""
    context = ray.train.get_context()
    rank, size, board = context.get_world_rank(), context.get_world_size(), config["board"]
    board.post({"kind": "start", "at": time.time(), "mb": _own_mb()})
    for epoch in range(EPOCHS):
        begun = time.perf_counter()
        order = EpochOrder(FILES, 0, epoch, size, BATCH * size)
        rows = sum(window.rows for window in reading_order(order, 0, rank, size))
        ordered = time.perf_counter()
        ray.train.report({"epoch": epoch})
        board.post(
            {"kind": "epoch", "rows": rows, "order_s": ordered - begun,
             "report_s": time.perf_counter() - ordered}
        )  # fmt: skip
    board.post({"kind": "end", "at": time.time()})


def _own_mb() -> float:
    """Memory of this process; what it shares with others counts in parts."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def train_cost(workers: int, folder: Path) -> dict[str, float]:
    """What a run of so many workers takes beside its steps."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    board = Board()
    trainer = DataParallelTrainer(
        idle_worker, train_loop_config={"board": board},
        scaling_config=ScalingConfig(num_workers=workers),
        run_config=RunConfig(name="scale", storage_path=str(folder)),
    )  # fmt: skip
    begun = time.time()
    trainer.fit()
    ended = time.time()
    facts = board.take()
    starts = [fact for fact in facts if fact["kind"] == "start"]
    epochs = [fact for fact in facts if fact["kind"] == "epoch"]
    assert len(starts) == workers
    assert len(epochs) == workers * EPOCHS
    assert sum(fact["rows"] for fact in epochs) == EPOCHS * sum(rows for _, rows in FILES)
    return {
        "workers": workers,
        "start_s": max(fact["at"] for fact in starts) - begun,
        "report_ms": 1000 * statistics.median(fact["report_s"] for fact in epochs),
        "order_ms": 1000 * statistics.median(fact["order_s"] for fact in epochs),
        "end_s": ended - max(fact["at"] for fact in facts if fact["kind"] == "end"),
        "worker_mb": statistics.median(fact["mb"] for fact in starts),
    }


def idle_trial(config: dict[str, Any]) -> None:
    """A trial whose epochs take no time; how good it is depends on its settings and the epoch."""
    from ray import tune as ray_tune

    settings = config["settings"]
    level = 100.0 + sum(float(value) for value in settings.values())
    for epoch in range(1, SEARCH_EPOCHS + 1):
        ray_tune.report(
            {"epoch": epoch, "val/pa_mpjpe_mm": level * (1 + 1 / epoch), "seconds": 0.0}
        )


def search_cost(trials: int, folder: Path) -> dict[str, float]:
    """What a search of so many trials takes beside them: the study's own searcher, halving and
    ledger under Ray Tune."""
    from rayhmr.config import TuneJob
    from rayhmr.search import Search
    from rayhmr.storage import Folder
    from rayhmr.study import Ledger
    from rayhmr.study_space import check_space, checked_suggester, trials_of
    from rayhmr.tune import search_plan, tuner_of

    job = TuneJob.model_validate(
        {"trials": trials, "space": SPACE, "trial": {"train": {"epochs": SEARCH_EPOCHS}}}
    )
    axes = check_space(job)
    suggest = checked_suggester(job, axes, trials_of(job, axes))
    study = Folder(str(folder))
    search = Search(search_plan(job, trials), Ledger(study), suggest, lambda _: ())
    side_by_side = int(ray.cluster_resources()["CPU"])
    begun, spent = time.time(), time.process_time()
    tuner_of(search, idle_trial, {"CPU": 1}, side_by_side, study, max_failures=0).fit()
    seconds = time.time() - begun
    ended = [record for record in search.records if record.status in ("finished", "stopped")]
    assert len(ended) == trials, [record.status for record in search.records]
    return {
        "trials": trials, "side_by_side": side_by_side, "seconds": seconds,
        "seconds_per_trial": seconds / trials,
        "driver_cpu_s_per_trial": (time.process_time() - spent) / trials,
        "trial_epochs": search.spent,
    }  # fmt: skip


def main() -> None:
    """See the module."""
    what, count = sys.argv[1], int(sys.argv[2])
    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    with tempfile.TemporaryDirectory(prefix="rayhmr-scale-") as folder:
        cost = {"train": train_cost, "search": search_cost}[what]
        sys.stdout.write(json.dumps(cost(count, Path(folder))) + "\n")


if __name__ == "__main__":
    main()
