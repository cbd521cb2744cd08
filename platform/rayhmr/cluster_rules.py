"""What is wrong with a node, from what it said. No Ray in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_SKEW_S = 1.0
"""Clocks further apart make times in logs, and tokens with an end, wrong."""
CHECKS = ("answers", "imports", "versions", "code", "storage", "clock", "gpu", "data")


@dataclass(kw_only=True)
class NodeReport:
    """Of one node; what was not asked stays none.

    cpus, gpus: as Ray counts them. software: of `cluster_probe.software`. skew_s: its clock minus
    the driver's; unsure_s: by which that may be wrong. unseen: file -> what was wrong with it, of
    the `files` that nodes wrote, its own among them.
    """

    name: str
    cpus: float = 0.0
    gpus: float = 0.0
    silent: str | None = None
    software: Mapping[str, Any] | None = None
    skew_s: float | None = None
    unsure_s: float = 0.0
    write_error: str | None = None
    unseen: Mapping[str, str] | None = None
    files: int = 0
    torch_gpus: Mapping[str, Any] | None = None
    data_error: str | None = None
    data_rows: int | None = None
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> dict[str, str]:
        """A line of the table."""
        return {"node": self.name} | {
            check: "FAILED" if check in self.problems else "ok" if self._asked(check) else "–"
            for check in CHECKS
        }

    def _asked(self, check: str) -> bool:
        given = {
            "answers": True, "imports": self.software, "versions": self.software,
            "code": self.software, "storage": self.unseen is not None,
            "clock": self.skew_s is not None, "gpu": self.torch_gpus, "data": self.data_rows,
        }  # fmt: skip
        return bool(given[check])


def judge(
    reports: Sequence[NodeReport], here: Mapping[str, Any], storage: str, rows: int
) -> list[str]:
    """Fill in `problems`; all of them as lines: node, check, what is wrong, the cure.

    here: the driver's own software. storage: as the job was given it. rows: that went through each
    node's data block.
    """
    for report in reports:
        found = {
            "answers": report.silent and (
                f"did not answer ({report.silent}); look at its raylet's log, and restart it"
            ),
            "clock": _clock(report), "storage": _storage(report, storage), "gpu": _gpu(report),
            "data": _data(report, rows),
        } | _software(report, here)  # fmt: skip
        report.problems = {check: text for check, text in found.items() if text}
    lines = [
        f"{report.name}: {check}: {text}"
        for report in reports
        for check, text in report.problems.items()
    ]
    missed = [report for report in reports if report.unseen]
    if missed and not any("storage" in report.problems for report in reports):
        one, (name, why) = missed[0], next(iter((missed[0].unseen or {}).items()))
        lines.append(
            f"storage={storage}: {len(missed)} nodes missed files that others wrote, {one.name} "
            f"among them {name} ({why}): it shows files late or not to all; use another storage"
        )
    return lines


def _software(report: NodeReport, here: Mapping[str, Any]) -> dict[str, str | None]:
    if report.software is None:
        return {}
    missing = report.software["missing"]
    other = [
        f"{name} {version} (the driver has {here['versions'].get(name)})"
        for name, version in report.software["versions"].items()
        if version != here["versions"].get(name)
    ]
    code = report.software["code"]
    return {
        "imports": "; ".join(f"{name} cannot be imported ({why})" for name, why in missing.items())
        + ": install the project there (pip install '.[ray]' -c constraints.txt), or send it with "
        "--runtime-env jobs/runtime_env.yaml"
        if missing
        else None,
        "versions": ", ".join(other) + ": install constraints.txt on every node" if other else None,
        "code": f"its hmr and rayhmr are {code}, the driver's are {here['code']}: install the same "
        "commit on every node, or send it with --runtime-env jobs/runtime_env.yaml"
        if code and code != here["code"]
        else None,
    }


def _clock(report: NodeReport) -> str | None:
    if report.skew_s is None or abs(report.skew_s) - report.unsure_s <= MAX_SKEW_S:
        return None
    return (
        f"its clock is {report.skew_s:+.1f} s from the driver's, more than {MAX_SKEW_S:g} s: "
        "let chrony or another NTP client set it"
    )


def _storage(report: NodeReport, storage: str) -> str | None:
    if report.write_error is not None:
        return (
            f"storage={storage} cannot be written ({report.write_error}): mount it there with "
            "write access, or use s3:// or gs:// with credentials on every node"
        )
    # Who misses few misses those of a node apart, and is not to blame.
    if report.unseen and 2 * len(report.unseen) > report.files - 1:
        name, why = next(iter(report.unseen.items()))
        return (
            f"storage={storage} there lacks {len(report.unseen)} of the files that other nodes "
            f"wrote, among them {name} ({why}): it is local to a node; use a shared folder, s3:// "
            "or gs://"
        )
    return None


def _gpu(report: NodeReport) -> str | None:
    if report.torch_gpus is None:
        return None
    seen, error = report.torch_gpus["seen"], report.torch_gpus["error"]
    if error is None and seen >= report.gpus:
        return None
    return (
        f"Ray counts {report.gpus:g} GPUs, torch can use {seen} ({error or 'no error'}): install a "
        "driver for this torch's CUDA, or start the node with --num-gpus as many as there are"
    )


def _data(report: NodeReport, rows: int) -> str | None:
    if report.data_error is not None:
        return f"a Ray Data block could not be computed there ({report.data_error})"
    if report.data_rows is not None and report.data_rows != rows:
        return f"{report.data_rows} of {rows} rows came back from its Ray Data block"
    return None
