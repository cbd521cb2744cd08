"""What the service survives, under load: `jobs/benchmark.py chaos --serve`.

The figures beside ours are of unmodified Ray Serve 2.60, measured elsewhere on 2 cores.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayhmr.chaos.lab import Record
from rayhmr.chaos.serve_lab import serve_lab
from rayhmr.chaos.serve_scenarios import SERVE_SCENARIOS, played_on_service
from rayhmr.telemetry import say


def row_of(record: Record, scorecard: str, stock: str) -> dict[str, Any]:
    """A line of the table."""
    return {
        "scenario": record.scenario, "row": scorecard,
        "survived": "yes" if record.survived else "NO",
        "longest wait s": ", ".join(f"{value:.1f}" for value in record.seconds),
        "stock Ray 2.60": stock, "note": record.note,
    }  # fmt: skip


def figures_of(records: Sequence[Record]) -> dict[str, float]:
    """survived and tried; the median, over what was survived, of the longest wait of a client."""
    held = [record for record in records if record.survived]
    seconds = [value for record in held for value in record.seconds]
    return {
        "survived": len(held),
        "tried": len(records),
        "longest_wait_s": statistics.median(seconds) if seconds else 0.0,
    }


def serve_chaos_rates(load_s: float) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Every scenario in turn, on one service."""
    records, rows = list[Record](), []
    with (
        tempfile.TemporaryDirectory(prefix="rayhmr-chaos-") as folder,
        serve_lab(Path(folder), load_s) as lab,
    ):
        for scenario, (scorecard, stock) in SERVE_SCENARIOS.items():
            say(f"{scorecard}: {(scenario.__doc__ or '').splitlines()[0]}")
            records.append(record := played_on_service(scenario, lab))
            rows.append(row_of(record, scorecard, stock))
            say(f"  {'survived' if record.survived else 'FAILED'}: {record.note}")
    return rows, figures_of(records)
