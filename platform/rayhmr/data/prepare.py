"""A source of labelled people to a folder of shards, by Ray Data.

    parts (a split's pieces of label files) ──write_part (tasks)──▶ shard files + what is in them

A task writes one file and a note about it, both whole or not at all. Running the job again makes
only the files that are missing; dataset.json, without which nobody reads the folder, comes last.
What a task does is in `rayhmr.data.parts`, what it reads in `rayhmr.data.sources`.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from hmr.body_arrays import body_from_path
from hmr.errors import ConfigError, DataError
from rayhmr.cluster import connect, quiet
from rayhmr.config import PrepareJob, differences
from rayhmr.data import schema
from rayhmr.data.parts import (
    NOTES,
    Part,
    PeopleSource,
    WritePart,
    finished_note,
    opened,
    parts_of,
    repeated_ids,
)
from rayhmr.data.sources.kinds import source_of
from rayhmr.data.sources.record import Unit
from rayhmr.data.statistics import means, merged, sums_of
from rayhmr.job_metadata import metadata_of
from rayhmr.metrics import DataMetrics
from rayhmr.report import text_table
from rayhmr.storage import Folder
from rayhmr.telemetry import say

SETTINGS = f"{NOTES}/settings.json"
SHOWN_EVERY_S = 3.0
UNITS_PER_FILE = 16
"""Places of the label files from which a file of the training split has its rows."""


def _settings(job: PrepareJob) -> dict[str, Any]:
    """Everything that decides what the files hold, from the job."""
    other = "files" if job.source == "synthetic" else "synthetic"
    left_out = {"output", "cluster", "max_rejected_fraction", other}
    settings: dict[str, Any] = job.model_dump(mode="json", exclude=left_out)
    return settings | {"body_hash": body_from_path(job.body.path).content_hash()}


def _labels_hash(units: Sequence[Unit]) -> str:
    """Changes when label files come, go, grow or shrink between two runs into one folder."""
    return hashlib.sha256(repr(units).encode()).hexdigest()[:16]


def _claim(folder: Folder, settings: dict[str, Any]) -> bool:
    """Whether the folder holds the finished data set; ConfigError when it holds something else."""
    names = folder.names()
    finished = schema.MANIFEST in names
    if finished:
        stored = folder.read_json(schema.MANIFEST).get("settings")
    elif folder.exists(SETTINGS):
        stored = folder.read_json(SETTINGS)
    elif names:
        raise ConfigError(
            f"output={folder.location}: holds files and no data set ({', '.join(names[:3])}); "
            "choose another folder"
        )
    else:
        folder.write_json(SETTINGS, settings)
        return False
    if changed := list(differences(stored, settings)):
        raise ConfigError(
            f"output={folder.location}: holds a data set made with other settings: "
            f"{'; '.join(changed[:5])}; choose another folder or remove this one"
        )
    return finished


def _write_all(
    source: PeopleSource, parts: list[Part], folder: Folder, jpeg_quality: int,
    repeated: dict[str, list[str]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Notes of the parts as they are finished, from a connected cluster."""
    import ray.data

    quiet()
    items = [{"part": part.to_json()} for part in parts]
    rows = ray.data.from_items(items, override_num_blocks=len(parts))
    rows.context.enable_progress_bars = False
    writer = WritePart(source, folder.location, jpeg_quality, repeated)
    notes = rows.map_batches(writer.__call__, batch_size=1)
    for batch in notes.iter_batches(batch_size=1, prefetch_batches=0):
        yield from (opened(note) for note in batch["note"])


def _rejected(notes: list[dict[str, Any]]) -> list[list[str]]:
    return [row for note in notes for row in note["rejected"]]


def _write_rejected(folder: Folder, rejected: list[list[str]]) -> None:
    table = io.StringIO()
    csv.writer(table).writerows([["id", "reason", "detail"], *rejected])
    folder.write(schema.REJECTED, table.getvalue().encode("utf-8", "replace"))


def _check_rejected(job: PrepareJob, folder: Folder, notes: list[dict[str, Any]]) -> None:
    """DataError with a table when too much was rejected, or everything."""
    rejected = _rejected(notes)
    total = sum(note["file"]["rows"] for note in notes) + len(rejected)
    share = len(rejected) / max(total, 1)
    if share <= job.max_rejected_fraction and len(rejected) < total:
        return
    _write_rejected(folder, rejected)
    reasons = Counter(reason for _, reason, _ in rejected)
    examples = {reason: detail for _, reason, detail in reversed(rejected)}
    table = [
        {"reason": reason, "rows": rows, "share": f"{rows / total:.1%}", "first": examples[reason]}
        for reason, rows in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    ]
    raise DataError(
        f"{len(rejected)} of {total} rows ({share:.1%}) were rejected, at most "
        f"{job.max_rejected_fraction:.1%} may be:\n{text_table(table)}\n"
        f"All of them are in {folder.path(schema.REJECTED)}. Raise max_rejected_fraction to go on "
        "without these rows; or correct the labels or the pictures, remove "
        f"{folder.location} and prepare again"
    )


def _finish(job: PrepareJob, folder: Folder, settings: dict[str, Any],
            notes: list[dict[str, Any]]) -> dict[str, Any]:  # fmt: skip
    """Write rejected.csv and dataset.json; what dataset.json says."""
    notes = sorted(notes, key=lambda note: note["file"]["name"])
    rejected = _rejected(notes)
    _write_rejected(folder, rejected)
    files = {
        split: [note["file"] for note in notes if note["split"] == split] for split in schema.SPLITS
    }
    body = body_from_path(job.body.path)
    sums = [sums_of([], body), *(note["sums"] for note in notes if note["sums"])]
    facts = {
        "schema_version": schema.SCHEMA_VERSION,
        "source": job.source,
        "image_size": job.image_size,
        "files": files,
        "rows": {split: sum(file["rows"] for file in inside) for split, inside in files.items()},
        "rejected": dict(Counter(reason for _, reason, _ in rejected)),
        "statistics": means(merged(sums)),
        "fingerprint": schema.fingerprint(files),
        "body": {"name": body.name, "hash": body.content_hash()},
        "settings": settings,
        "command": shlex.join(["python", *sys.argv]),
    }
    folder.write_json(schema.MANIFEST, facts)
    folder.remove(NOTES)
    return facts


def prepare(job: PrepareJob) -> dict[str, Any]:
    """Write the shards of `job.source` to `job.output`, or finish what an earlier run began.

    ConfigError when the folder holds anything else; DataError when a label file cannot be read, or
    more than `job.max_rejected_fraction` of the rows were rejected. Returns rows by split, rejected
    people, images/s of what was made in this run, and the fingerprint of the content.
    """
    folder = Folder(job.output)
    source = source_of(job)
    settings = _settings(job)
    if job.source == "synthetic":
        parts = parts_of(source.units(job.rows_per_file), job.rows_per_file)
    else:
        units = source.units(max(1, job.rows_per_file // UNITS_PER_FILE))
        parts = parts_of(units, job.rows_per_file, mixed=True)
        settings["labels_hash"] = _labels_hash(units)
    if _claim(folder, settings):
        info = schema.read_info(job.output)
        say(f"{folder.location} holds this data set already")
        return _results(info, made=0, seconds=0.0)
    done = {part.file: note for part in parts if (note := finished_note(folder, part))}
    todo, repeated = _to_write(parts, done)
    say(f"{len(done)} of {len(parts)} files are there; {_rows(todo)} people to make")
    made = 0
    with (
        connect(job.cluster, cpus_needed=1, metadata=metadata_of(job)) if todo
        else contextlib.nullcontext()
    ):  # fmt: skip
        start, metrics = time.perf_counter(), DataMetrics(folder.location)
        while todo:
            notes = _write_all(source, todo, folder, job.jpeg_quality, repeated)
            for note in _shown(notes, _rows(todo)):
                metrics.keep(note)
                done[note["file"]["name"]] = note
                made += _read(note)
            todo, repeated = _to_write(parts, done)
    seconds = time.perf_counter() - start
    in_order = [done[part.file] for part in parts]
    _check_rejected(job, folder, in_order)
    _finish(job, folder, settings, in_order)
    info = schema.read_info(job.output)
    results = _results(info, made=made, seconds=seconds)
    say(f"wrote {folder.location} ({results['rows']['train']} people to train on)")
    return results


def _to_write(
    parts: list[Part], done: dict[str, dict[str, Any]]
) -> tuple[list[Part], dict[str, list[str]]]:
    """Parts without a note. When there are none: parts with people of an earlier part, and whom
    they must leave out; of two people with one id the first in the order of the parts stays."""
    if missing := [part for part in parts if part.file not in done]:
        return missing, {}
    repeated = repeated_ids(done[part.file] for part in parts)
    return [part for part in parts if part.file in repeated], repeated


def _rows(parts: list[Part]) -> int:
    return sum(part.rows for part in parts)


def _read(note: dict[str, Any]) -> int:
    """Rows of the source that a note tells of."""
    return int(note["file"]["rows"]) + len(note["rejected"])


def _shown(notes: Iterator[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """The same notes, with a line about the progress now and then."""
    made, start = 0, time.perf_counter()
    shown = start
    for note in notes:
        made += _read(note)
        if time.perf_counter() - shown > SHOWN_EVERY_S or made == total:
            shown = time.perf_counter()
            say(_progress(made, total, shown - start))
        yield note


def _progress(made: int, total: int, seconds: float) -> str:
    rate = made / max(seconds, 1e-9)
    return f"made {made} of {total} people, {rate:.0f} images/s, eta {(total - made) / rate:.0f} s"


def _results(info: schema.DatasetInfo, *, made: int, seconds: float) -> dict[str, Any]:
    return {
        "output": info.location,
        "rows": {
            split: sum(file["rows"] for file in info.files.get(split, ()))
            for split in schema.SPLITS
        },
        "rejected": sum(info.rejected.values()),
        "made": made,
        "seconds": round(seconds, 3),
        "images_per_s": round(made / seconds, 1) if made else None,
        "fingerprint": info.fingerprint,
    }
