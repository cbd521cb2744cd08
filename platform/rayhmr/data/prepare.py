"""A source of labelled people to a folder of shards, by Ray Data.

    parts (split, rows from, rows to) ──write_part (tasks)──▶ shard files + what is in them

A task writes one file and a note about it, both whole or not at all. Running the job again makes
only the files that are missing; dataset.json, without which nobody reads the folder, comes last.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hmr.body_arrays import body_from_path
from hmr.errors import ConfigError
from rayhmr.cluster import connect, quiet
from rayhmr.config import PrepareJob, differences
from rayhmr.data import schema
from rayhmr.data.sources.synthetic import SyntheticSource
from rayhmr.data.statistics import means, merged, sums_of
from rayhmr.storage import Folder, absolute
from rayhmr.telemetry import say

NOTES = ".parts"
SETTINGS = f"{NOTES}/settings.json"
SHOWN_EVERY_S = 3.0


@dataclass(frozen=True)
class Part:
    """Rows start..stop-1 of a split; they become one file."""

    split: str
    number: int
    of: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Name of the shard."""
        return schema.shard_name(self.split, self.number, self.of)

    @property
    def note(self) -> str:
        """Name of the note about it."""
        return f"{NOTES}/{self.split}-{self.number:05d}.json"


def parts_of(counts: dict[str, int], rows_per_file: int) -> list[Part]:
    """Files of nearly equal size that cover every row once."""
    parts = []
    for split, count in counts.items():
        files = math.ceil(count / rows_per_file)
        edges = [count * i // files for i in range(files + 1)]
        parts += [Part(split, i, files, edges[i], edges[i + 1]) for i in range(files)]
    return parts


class WritePart:
    """What a task does with a part: people in, one file and a note about it out."""

    def __init__(self, source: SyntheticSource, output: str, jpeg_quality: int) -> None:
        self.source, self.output, self.jpeg_quality = source, output, jpeg_quality

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Rows of Part's fields; gives back the notes as JSON, after writing them."""
        folder = Folder(self.output)
        notes = []
        for values in zip(*batch.values(), strict=True):
            part = Part(*(v.item() if hasattr(v, "item") else v for v in values))
            note = self._write(part, folder)
            folder.write_json(part.note, note)
            notes.append(json.dumps(note))
        return {"note": notes}

    def _write(self, part: Part, folder: Folder) -> dict[str, Any]:
        kept, rejected = [], []
        for person in self.source.people(part.split, part.start, part.stop):
            reason = person.rejection()
            if reason is None:
                kept.append(person)
            else:
                rejected.append([person.sample_id, *reason])
        content = schema.encode_shard([person.row(self.jpeg_quality) for person in kept])
        folder.write(part.file, content)
        return {
            "split": part.split,
            "file": {
                "name": part.file, "rows": len(kept), "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            },
            "rejected": rejected,
            "sums": sums_of(kept, self.source.body_arrays()) if part.split == "train" else None,
        }  # fmt: skip


def _settings(job: PrepareJob) -> dict[str, Any]:
    """Everything that decides what the files hold."""
    settings: dict[str, Any] = job.model_dump(mode="json", exclude={"output", "cluster"})
    return settings | {"body_hash": body_from_path(job.body.path).content_hash()}


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


def _finished_note(folder: Folder, part: Part) -> dict[str, Any] | None:
    if not folder.exists(part.note):
        return None
    note: dict[str, Any] = folder.read_json(part.note)
    return note if folder.size(part.file) == note["file"]["bytes"] else None


def _write_all(job: PrepareJob, source: SyntheticSource, parts: list[Part],
               folder: Folder) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Notes of the parts as they are finished, from a connected cluster."""
    import ray.data

    quiet()
    rows = ray.data.from_items([vars(part) for part in parts], override_num_blocks=len(parts))
    rows.context.enable_progress_bars = False
    writer = WritePart(source, folder.location, job.jpeg_quality)
    notes = rows.map_batches(writer.__call__, batch_size=1)
    for batch in notes.iter_batches(batch_size=1, prefetch_batches=0):
        yield from (json.loads(note) for note in batch["note"])


def _finish(job: PrepareJob, folder: Folder, settings: dict[str, Any],
            notes: list[dict[str, Any]]) -> dict[str, Any]:  # fmt: skip
    """Write rejected.csv and dataset.json; what dataset.json says."""
    notes = sorted(notes, key=lambda note: note["file"]["name"])
    rejected = [row for note in notes for row in note["rejected"]]
    table = io.StringIO()
    csv.writer(table).writerows([["id", "reason", "detail"], *rejected])
    folder.write(schema.REJECTED, table.getvalue().encode())
    files = {
        split: [note["file"] for note in notes if note["split"] == split] for split in schema.SPLITS
    }
    body = body_from_path(job.body.path)
    facts = {
        "schema_version": schema.SCHEMA_VERSION,
        "source": job.source,
        "image_size": job.synthetic.image_size,
        "files": files,
        "rows": {split: sum(file["rows"] for file in inside) for split, inside in files.items()},
        "rejected": dict(Counter(reason for _, reason, _ in rejected)),
        "statistics": means(merged(note["sums"] for note in notes if note["sums"])),
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

    ConfigError when the folder holds anything else. Returns rows by split, rejected people,
    images/s of what was made in this run, and the fingerprint of the content.
    """
    folder = Folder(job.output)
    settings = _settings(job)
    if _claim(folder, settings):
        info = schema.read_info(job.output)
        say(f"{folder.location} holds this data set already")
        return _results(info, made=0, seconds=0.0)
    source = SyntheticSource(job.synthetic, absolute_body(job.body.path))
    parts = parts_of(source.counts(), job.rows_per_file)
    done = {part: note for part in parts if (note := _finished_note(folder, part))}
    missing = [part for part in parts if part not in done]
    total = sum(part.stop - part.start for part in missing)
    say(f"{len(done)} of {len(parts)} files are there; {total} people to make")
    notes, made = list(done.values()), 0
    start = shown = time.perf_counter()
    if missing:
        with connect(job.cluster, cpus_needed=1):
            start = shown = time.perf_counter()
            for note in _write_all(job, source, missing, folder):
                notes.append(note)
                made += note["file"]["rows"] + len(note["rejected"])
                if time.perf_counter() - shown > SHOWN_EVERY_S or made == total:
                    shown = time.perf_counter()
                    say(_progress(made, total, shown - start))
    seconds = time.perf_counter() - start
    _finish(job, folder, settings, notes)
    info = schema.read_info(job.output)
    say(f"wrote {folder.location} ({info.rows('train')} people to train on)")
    return _results(info, made=made, seconds=seconds)


def absolute_body(path: str) -> str:
    """A body's path as every process understands it."""
    return path if path == "embedded" else absolute(path)


def _progress(made: int, total: int, seconds: float) -> str:
    rate = made / max(seconds, 1e-9)
    return f"made {made} of {total} people, {rate:.0f} images/s, eta {(total - made) / rate:.0f} s"


def _results(info: schema.DatasetInfo, *, made: int, seconds: float) -> dict[str, Any]:
    return {
        "output": info.location,
        "rows": {split: info.rows(split) for split in schema.SPLITS},
        "rejected": sum(info.rejected.values()),
        "made": made,
        "seconds": round(seconds, 3),
        "images_per_s": round(made / seconds, 1) if seconds else None,
        "fingerprint": info.fingerprint,
    }
