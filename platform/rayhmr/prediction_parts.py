"""A prediction while it goes on, in a folder from which a killed one goes on.

    .<output>.unfinished/lock              held by the process that writes here
                        /job.json          what it is a prediction of
                        /parts/000012.parquet    results of the pictures 12 * 64 to 13 * 64
                        /result/           becomes the output, with one rename
                        /result/overlays/  drawn pictures

A part is written once, when it is complete, by a rename. A start reads which parts are there and
does the rest; so every picture has one result, however often the job was killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hmr.errors import ConfigError, HmrError
from hmr.manifest import sync, write_json
from rayhmr.people_table import file_names

PART_ROWS = 64
MANIFEST = "predictions.json"


def identity(listing: pa.Table, facts: dict[str, Any]) -> str:
    """Hex sha256 of the pictures and of what is done with them."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for column in listing.columns:
        digest.update(json.dumps(column.to_pylist()).encode())
    return digest.hexdigest()


def pictured(listing: pa.Table) -> list[str]:
    """Names of the pictures that were not refused before they were read."""
    paths: list[str] = listing.filter(pc.is_null(listing["reason"]))["path"].to_pylist()
    return paths


class PredictionParts:
    """The parts of one prediction.

    listing: all pictures. schema: of a result. predicted, people, reasons, boxes_rejected: over all
    parts that are written, and over results that wait for the rest of their part.
    """

    def __init__(self, folder: Path, listing: pa.Table, schema: pa.Schema) -> None:
        self.folder, self.total = folder, len(listing)
        self.schema = schema.remove(schema.get_field_index("overlay"))
        self.paths = listing["path"]
        self.overlays = file_names(pictured(listing))
        self.predicted = self.people = self.boxes_rejected = 0
        self.reasons: Counter[str] = Counter()
        self._seen = np.zeros(self.total, bool)
        self._waiting: dict[int, list[pa.Table]] = defaultdict(list)
        (folder / "parts").mkdir(exist_ok=True)
        for part in range(self._count):
            if self._path(part).exists():
                self._note(
                    pq.read_table(
                        self._path(part), columns=["number", "reason", "people", "refused"]
                    )
                )
        self.found = self.done
        """Pictures that an earlier start did."""

    @property
    def _count(self) -> int:
        return -(-self.total // PART_ROWS)

    @property
    def done(self) -> int:
        """Pictures with a result so far."""
        return self.predicted + self.reasons.total()

    def _path(self, part: int) -> Path:
        return self.folder / "parts" / f"{part:06d}.parquet"

    def _rows(self, part: int) -> int:
        return min(PART_ROWS, self.total - part * PART_ROWS)

    def _note(self, table: pa.Table) -> None:
        """Count results. HmrError for a picture that was not listed or came twice."""
        numbers = table["number"].to_numpy()
        wrong = (numbers < 0) | (numbers >= self.total)
        if not wrong.any():
            wrong = self._seen[numbers]
            again = np.ones(len(numbers), bool)
            again[np.unique(numbers, return_index=True)[1]] = False
            wrong = wrong | again
        if wrong.any():
            raise HmrError(
                f"picture {numbers[wrong][0]}: a second result for one picture, or one that was "
                "not listed"
            )
        self._seen[numbers] = True
        refused = [reason for reason in table["reason"].to_pylist() if reason is not None]
        self.reasons.update(refused)
        self.predicted += len(table) - len(refused)
        self.people += _entries(table["people"])
        self.boxes_rejected += _entries(table["refused"])

    def missing(self, listing: pa.Table) -> pa.Table:
        """The rows of the listing that have no result yet."""
        return listing.filter(pa.array(~self._seen))

    def add(self, table: pa.Table) -> None:
        """Results, in any order; overlays are written at once, a part when it is complete.

        HmrError for a picture that was not listed or came twice.
        """
        self._note(table)
        self._draw(table)
        table = table.drop_columns(["overlay"])
        parts = table["number"].to_numpy() // PART_ROWS
        for part in np.unique(parts).tolist():
            # Compacted: a slice would keep the whole block in memory while its part is waiting.
            some = table.filter(pa.array(parts == part))
            self._waiting[part].append(some)
            if sum(map(len, self._waiting[part])) == self._rows(part):
                self._write(part, pa.concat_tables(self._waiting.pop(part)))

    def _draw(self, table: pa.Table) -> None:
        for path, overlay in zip(table["path"], table["overlay"], strict=True):
            if overlay.is_valid:
                target = self.folder / "result" / "overlays" / self.overlays[path.as_py()]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(overlay.as_buffer())

    def _write(self, part: int, table: pa.Table) -> None:
        partial = self.folder / "parts" / ".partial"
        pq.write_table(table.sort_by("number").cast(self.schema), partial, compression="zstd")
        sync(partial)
        partial.replace(self._path(part))

    def check_complete(self) -> None:
        """HmrError when a picture has no result."""
        if not self._seen.all():
            first = self.paths[int(np.argmin(self._seen))].as_py()
            raise HmrError(
                f"{self.total - self.done} listed pictures had no result, among them {first}; "
                "run the job again"
            )

    def tables(self) -> Iterator[pa.Table]:
        """Every part, in order."""
        for part in range(self._count):
            yield pq.read_table(self._path(part))


def _entries(lists: pa.ChunkedArray) -> int:
    return sum(len(chunk.flatten()) for chunk in lists.chunks)


@contextmanager
def unfinished(target: Path, fingerprint: str, run: str) -> Iterator[tuple[Path, str]]:
    """The folder in which the prediction of `target` is going on, and the name of its first start.

    fingerprint: what is predicted; a folder of another prediction is emptied. run: a name for a new
    one. ConfigError when the target is something else, or when another process writes here.
    """
    ours = not target.exists() or (target / MANIFEST).is_file()
    if not ours and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(
            f"output={target}: is there and holds no {MANIFEST}, so no prediction made it; "
            "choose another folder"
        )
    folder = target.with_name(f".{target.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"output={target}: another process is writing this prediction; wait for it"
            ) from error
        yield folder, _begin(folder, target, fingerprint, run)


def _begin(folder: Path, target: Path, fingerprint: str, run: str) -> str:
    job = folder / "job.json"
    if job.is_file():
        stored = json.loads(job.read_text())
        finished = (target / MANIFEST).is_file() and json.loads(
            (target / MANIFEST).read_text()
        ).get("run") == stored["run"]
        if stored["fingerprint"] == fingerprint and not finished:
            return str(stored["run"])
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()
    partial = folder / "job.json.partial"
    write_json(partial, {"fingerprint": fingerprint, "run": run})
    sync(partial)
    partial.replace(job)
    return run


def publish(folder: Path, target: Path) -> None:
    """Let `result/` take the place of the target, with one rename; then clear up."""
    for path in (folder / "result").iterdir():
        sync(path)  # the tables; to wait for a hundred thousand pictures would take minutes
    sync(folder / "result")
    old = folder / "replaced"
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        (folder / "result").rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    sync(target.parent)
    shutil.rmtree(folder)
