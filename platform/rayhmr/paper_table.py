"""The result of an evaluation as the table of a paper: Markdown for people, rows for a CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hmr.protocols import HIGHER_IS_BETTER, METRIC_UNITS, PROTOCOLS

_DECIMALS = {"mm": 1, "%": 1, "mm/frame²": 2, "m²": 5}


def markdown(results: Mapping[str, Any]) -> str:
    """A table of the mean pose and every iteration, and under it how it was measured.

    results: as `rayhmr.evaluate.evaluate` returns them.
    """
    names = list(results["metrics"])
    header = ["", *map(_heading, names)]
    lines = [header, ["---"] * len(header)]
    if any(f"baseline_{name}" in results for name in names):
        means = [_cell(name, results.get(f"baseline_{name}")) for name in names]
        lines.append(["mean pose of the training people", *means])
    for row in results["by_iteration"][:-1]:
        cells = [_cell(name, row.get(name)) for name in names]
        lines.append([f"model, T = {row['n_iter']}", *cells])
    final = [_final_cell(name, results["metrics"][name]) for name in names]
    lines.append([f"model, T = {results['n_iter']}", *final])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\n{caption(results)}"


def caption(results: Mapping[str, Any]) -> str:
    """Which people, joints, root and truth the numbers are about, in a few lines."""
    groups = max(measured["groups"] for measured in results["metrics"].values())
    what = "videos" if PROTOCOLS[results["protocol"]].video else "people"
    interval = f"95 % bootstrap interval over {groups} {what}"
    if groups < 2:
        interval = f"no interval: it needs two {what} at least"
    return (
        f"{results['model']} on {results['count']} people of the {results['split']} split by "
        f"protocol {results['protocol']}; [{interval}].\n"
        f"Joints: {results['joints']} ({', '.join(results['joint_names'])}).\n"
        f"Aligned at: {results['root']}. Truth: {results['truth']}."
    )


def metric_rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each metric of the final iteration, with everything that tells it apart."""
    shared = {key: results[key] for key in ("protocol", "split", "model", "n_iter")}
    measured_by = {key: results[key] for key in ("joints", "root", "truth")}
    return [
        shared | {"metric": name, "label": METRIC_UNITS[name][0]} | measured | measured_by
        for name, measured in results["metrics"].items()
    ]


def _heading(name: str) -> str:
    label, unit = METRIC_UNITS[name]
    return f"{label} {'↑' if name in HIGHER_IS_BETTER else '↓'} ({unit})"


def _cell(name: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{_DECIMALS[METRIC_UNITS[name][1]]}f}"


def _final_cell(name: str, measured: Mapping[str, Any]) -> str:
    value = _cell(name, measured["value"])
    if measured["low"] is None:
        return value
    return f"{value} [{_cell(name, measured['low'])}, {_cell(name, measured['high'])}]"
