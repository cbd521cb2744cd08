"""What a training survives, in steps and seconds: `jobs/benchmark.py chaos`.

The figures beside ours are of unmodified Ray 2.60 with a checkpoint every 10 steps, measured
elsewhere on 2 cores; the same faults, not the same training.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayhmr.chaos.damage import (
    damaged_files,
    full_disk,
    kills_without_end,
    nan_skipped,
    nan_stopped,
)
from rayhmr.chaos.lab import Lab, Record
from rayhmr.chaos.scenarios import (
    Scenario,
    controller_kill,
    driver_kills,
    elastic,
    gcs_kill,
    hang,
    node_kill,
    played,
    preemption,
    sigterm,
    worker_kills,
)
from rayhmr.telemetry import say

SCENARIOS: dict[Scenario, tuple[str, str]] = {
    worker_kills: ("R1-R3", "survives, 11-20 steps a kill, 9.4-11.6 s"),
    node_kill: ("R4", "7 steps, 9.9 s after 15.4 s until it is noticed"),
    elastic: ("R5", "not measured"),
    preemption: ("R6", "not measured"),
    gcs_kill: ("R7", "actors go on, named ones found again after 1.0 s"),
    driver_kills: ("R8, R10", "resumes while its index is intact"),
    controller_kill: ("R8", "ends; resumes like after the driver's death"),
    sigterm: ("R6, R8", "not measured"),
    damaged_files: ("R11, R12", "index: fatal; a changed byte: not noticed"),
    full_disk: ("R13", "index destroyed"),
    hang: ("R14", "noticed after 600 s"),
    nan_skipped: ("R15", "no such check"),
    nan_stopped: ("R15", "no such check"),
    kills_without_end: ("R17", "not measured"),
}
"""Scenario -> its rows of the scorecard, and what unmodified Ray does. R9 and R10 in full are tests
(`tests/hmr/test_checkpoint_kills.py`, `tests/hmr/test_training.py`)."""


def row_of(record: Record, scorecard: str, stock: str) -> dict[str, Any]:
    """A line of the table."""
    return {
        "scenario": record.scenario, "row": scorecard,
        "survived": "yes" if record.survived else "NO",
        "faults": record.kills, "steps lost": record.steps_lost,
        "seconds": ", ".join(f"{value:.0f}" for value in record.seconds),
        "stock Ray 2.60": stock, "note": record.note,
    }  # fmt: skip


def figures_of(records: Sequence[Record]) -> dict[str, float]:
    """survived and tried; steps lost per fault, and median seconds from a fault to the next step,
    both over the scenarios that were survived (0 without any)."""
    held = [record for record in records if record.survived]
    kills = sum(record.kills for record in held)
    seconds = [value for record in held for value in record.seconds]
    lost = sum(record.steps_lost for record in held)
    return {
        "survived": len(held),
        "tried": len(records),
        "steps_lost_per_kill": lost / kills if kills else 0.0,
        "seconds_to_recover": statistics.median(seconds) if seconds else 0.0,
    }


def chaos_rates(kill_for_s: float) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every scenario in turn; what failed leaves its files."""
    folder = Path(tempfile.mkdtemp(prefix="rayhmr-chaos-"))
    records, rows = list[Record](), []
    with Lab(folder, kill_for_s=kill_for_s) as lab:
        for scenario, (scorecard, stock) in SCENARIOS.items():
            say(f"{scorecard}: {(scenario.__doc__ or '').splitlines()[0]}")
            records.append(record := played(scenario, lab))
            rows.append(row_of(record, scorecard, stock))
            say(
                f"  {'survived' if record.survived else 'FAILED'}, {record.steps_lost} steps lost, "
                f"{rows[-1]['seconds'] or '-'} s: {record.note}"
            )
    figures = figures_of(records)
    if figures["survived"] == figures["tried"]:
        shutil.rmtree(folder)
    else:
        say(f"the runs that failed are in {folder}")
    return rows, figures
