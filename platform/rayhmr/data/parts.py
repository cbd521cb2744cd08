"""A data set cut into parts: each becomes one file and a note about it, written by one task."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from hmr.body_arrays import BodyArrays
from hmr.errors import DataError, HmrError
from rayhmr.data import schema
from rayhmr.data.person import LabelledPerson
from rayhmr.data.sources.record import RejectedRow, Unit
from rayhmr.data.statistics import Sums, merged, sums_of
from rayhmr.storage import Folder

NOTES = ".parts"
TOGETHER = 100
"""People whose pictures are in memory at once, for the sums over them."""
_ID_DIGITS = 16


class PeopleSource(Protocol):
    """Where `WritePart` gets finished people from. Small and picklable."""

    def units(self, rows_per_file: int) -> list[Unit]:
        """All pieces, in a fixed order."""
        ...

    def read(self, unit: Unit) -> Iterator[LabelledPerson | RejectedRow]:
        """The people of one piece and what was rejected there."""
        ...

    def body_arrays(self) -> BodyArrays:
        """The body that SMPL labels belong to."""
        ...


@dataclass(frozen=True)
class Part:
    """Units of one split that become one file. shuffled: its rows are written in another order."""

    split: str
    number: int
    of: int
    units: tuple[Unit, ...]
    shuffled: bool = False

    @property
    def file(self) -> str:
        """Name of the shard."""
        return schema.shard_name(self.split, self.number, self.of)

    @property
    def note(self) -> str:
        """Name of the note about it."""
        return f"{NOTES}/{self.split}-{self.number:05d}.json"

    @property
    def rows(self) -> int:
        """Rows that its source reads for it."""
        return sum(unit.stop - unit.start for unit in self.units)

    def to_json(self) -> str:
        """The part as text, which travels to a task."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        """What `to_json` gave."""
        values = json.loads(text)
        return cls(**values | {"units": tuple(Unit(**unit) for unit in values["units"])})


def parts_of(units: Sequence[Unit], rows_per_file: int, *, mixed: bool = False) -> list[Part]:
    """Parts of at most rows_per_file rows that cover the units once, in their order.

    mixed: the training split goes into its files in a random order, always the same one, and so do
    the rows of each file. Training draws its batches from a window of neighbours, and neighbours in
    a label file are frames of one video.
    """
    parts = []
    for split in schema.SPLITS:
        of_split = [unit for unit in units if unit.split == split]
        shuffled = mixed and split == "train"
        if shuffled:
            of_split = [of_split[i] for i in np.random.default_rng(0).permutation(len(of_split))]
        groups: list[list[Unit]] = []
        room = 0
        for unit in of_split:
            rows = unit.stop - unit.start
            if rows > room or not groups:
                groups.append([])
                room = rows_per_file
            groups[-1].append(unit)
            room -= rows
        parts += [
            Part(split, number, len(groups), tuple(group), shuffled)
            for number, group in enumerate(groups)
        ]
    return parts


def short_id(sample_id: str) -> str:
    """64 bits of a sample id: what a note remembers of it."""
    return hashlib.blake2b(sample_id.encode("utf-8", "replace"), digest_size=8).hexdigest()


def repeated_ids(notes: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """File to the short ids of it that an earlier file has, too; only files with such ids."""
    seen: set[int] = set()
    repeated: dict[str, list[str]] = {}
    for note in notes:
        ids = note["ids"]
        for start in range(0, len(ids), _ID_DIGITS):
            digits = ids[start : start + _ID_DIGITS]
            if (number := int(digits, 16)) in seen:
                repeated.setdefault(note["file"]["name"], []).append(digits)
            seen.add(number)
    return repeated


class _Sums:
    """The statistics of one part, without holding its pictures."""

    def __init__(self, body: BodyArrays) -> None:
        self._body, self._people, self._sums = body, list[LabelledPerson](), list[Sums]()

    def add(self, person: LabelledPerson) -> None:
        self._people.append(person)
        if len(self._people) == TOGETHER:
            self._sums.append(sums_of(self._people, self._body))
            self._people = []

    def total(self) -> Sums:
        return merged([*self._sums, sums_of(self._people, self._body)])


class WritePart:
    """What a task does with a part: people in, one file and a note about it out.

    repeated: file to short ids of people that an earlier file of the data set holds.
    """

    def __init__(
        self, source: PeopleSource, output: str, jpeg_quality: int,
        repeated: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        self.source, self.output, self.jpeg_quality = source, output, jpeg_quality
        self.repeated = repeated or {}

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """`part`: the JSON of parts; gives back the notes as JSON, after writing them.

        An error that concerns the whole part comes back as a note with `error`, because Ray would
        wrap it and print its own log before the message.
        """
        folder = Folder(self.output)
        notes = []
        for text in batch["part"]:
            part = Part.from_json(text)
            try:
                note = self.write(part, folder)
                folder.write_json(part.note, note)
            except HmrError as error:
                note = {"error": str(error)}
            notes.append(json.dumps(note))
        return {"note": notes}

    def write(self, part: Part, folder: Folder) -> dict[str, Any]:
        """Write the file of a part; the note about it.

        `file`: name, rows, bytes, sha256. `rejected`: id, reason, detail of each. `ids`: short ids
        of the rows, joined. `sums`: of `rayhmr.data.statistics`, for the training split.
        """
        rows: list[dict[str, Any]] = []
        rejected: list[list[str]] = []
        seen = set(self.repeated.get(part.file, ()))
        ids = []
        sums = _Sums(self.source.body_arrays()) if part.split == "train" else None
        for outcome in itertools.chain.from_iterable(map(self.source.read, part.units)):
            if isinstance(outcome, RejectedRow):
                rejected.append([outcome.sample_id, outcome.reason, outcome.detail])
                continue
            if (digits := short_id(outcome.sample_id)) in seen:
                detail = "a person with this id is in the data set already"
                rejected.append([outcome.sample_id, "duplicate_id", detail])
                continue
            seen.add(digits)
            ids.append(digits)
            rows.append(outcome.row(self.jpeg_quality))
            if sums is not None:
                sums.add(outcome)
        if part.shuffled:
            order = np.random.default_rng(part.number).permutation(len(rows))
            rows = [rows[place] for place in order]
        content = schema.encode_shard(rows)
        folder.write(part.file, content)
        return {
            "split": part.split,
            "file": {
                "name": part.file, "rows": len(rows), "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            },
            "rejected": rejected,
            "ids": "".join(ids),
            "sums": None if sums is None else sums.total(),
        }  # fmt: skip


def finished_note(folder: Folder, part: Part) -> dict[str, Any] | None:
    """The note about a part whose file is there and whole."""
    if not folder.exists(part.note):
        return None
    note: dict[str, Any] = folder.read_json(part.note)
    return note if folder.size(part.file) == note["file"]["bytes"] else None


def opened(note: str) -> dict[str, Any]:
    """A note from its JSON; DataError with the message of a part that could not be read."""
    content: dict[str, Any] = json.loads(note)
    if "error" in content:
        raise DataError(content["error"])
    return content
