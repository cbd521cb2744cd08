"""The record of a search: one JSON file a trial, and the tables made of them.

It is all that a study needs to go on: plain data, wherever the study lies, each file whole or not
there. What Ray Tune keeps for itself is thrown away after every start.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from hmr.errors import DataError
from rayhmr.storage import Folder

TRIALS = "trials"
RECORD = "trial.json"
TABLE, CURVES = "trials.csv", "history.csv"

Status = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """What is known of a trial.

    number: 0, 1, …: the order of suggestion. trial: its id, and the name of its folder below
    trials/. settings: by dotted path, as in `TuneJob.space`; empty for the default settings.
    status: `running` from its first suggestion until it ends, also while nobody runs it. history:
    one dict an epoch, in their order: "epoch", every error of the validation ("val/pa_mpjpe_mm", …)
    and "seconds", of the trial so far. seconds: spent on it in all. reason: why it was stopped or
    failed.
    """

    number: int
    trial: str
    settings: dict[str, Any]
    status: Status
    history: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0
    reason: str = ""

    @property
    def epochs(self) -> int:
        """The last epoch that was validated; 0 before the first."""
        return int(self.history[-1]["epoch"]) if self.history else 0


def trial_id(number: int) -> str:
    """The id of the trial that was suggested as the `number`-th."""
    return f"t{number:04d}"


class Ledger:
    """The records of a study in its folder, one file a trial. One process writes."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def records(self) -> list[TrialRecord]:
        """All records by number. DataError for a file that holds none."""
        trials = Folder(self._folder.at(TRIALS)).names()
        names = [f"{TRIALS}/{trial}/{RECORD}" for trial in trials]
        found = [self._read(name) for name in names if self._folder.exists(name)]
        return sorted(found, key=lambda record: record.number)

    def put(self, record: TrialRecord) -> None:
        """Write a record in place of what was known of its trial."""
        self._folder.write_json(f"{TRIALS}/{record.trial}/{RECORD}", asdict(record))

    def _read(self, name: str) -> TrialRecord:
        try:
            tree = self._folder.read_json(name)
            record = TrialRecord(**(tree | {"history": tuple(tree["history"])}))
            if record.status not in get_args(Status):
                raise ValueError(f"status {record.status!r} is none of {get_args(Status)}")
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{self._folder.at(name)}: is no record of a trial ({error}); restore it, "
                "or remove that trial's folder to have it run again"
            ) from error
        return record


def write_tables(folder: Folder, records: Sequence[TrialRecord], space: Iterable[str]) -> None:
    """trials.csv, a row a trial with its last errors, and history.csv, a row an epoch.

    space: the searched paths, which become columns; a trial with the default settings has none.
    """
    paths = list(space)
    metrics = sorted({name for r in records for row in r.history for name in row if "/" in name})
    trials = [
        {"trial": r.trial, "number": r.number, "status": r.status, "epochs": r.epochs}
        | {path: r.settings.get(path) for path in paths}
        | {name: r.history[-1].get(name) if r.history else None for name in metrics}
        | {"seconds": round(r.seconds, 1), "reason": r.reason}
        for r in records
    ]
    head = ["trial", "number", "status", "epochs", *paths, *metrics, "seconds", "reason"]
    folder.write(TABLE, _csv(head, trials))
    curves = [{"trial": r.trial, **row} for r in records for row in r.history]
    folder.write(CURVES, _csv(["trial", "epoch", *metrics, "seconds"], curves))


def _csv(head: list[str], rows: Iterable[dict[str, Any]]) -> bytes:
    table = io.StringIO()
    writer = csv.DictWriter(table, head)
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue().encode()
