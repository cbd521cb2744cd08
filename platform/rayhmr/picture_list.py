"""A file list with boxes: which pictures, and who is where in them.

    people.csv      image,x1,y1,x2,y2[,focal]     a header, then a person a line; the same image on
                                                  several lines has several people; without corners
                                                  the whole picture is one person
    people.jsonl    {"image": "a.jpg", "boxes": [[x1, y1, x2, y2], …], "focal": 1200.0}
                                                  a picture a line; without `boxes` as above

Pixels are those of the upright picture. A line that is wrong is refused by itself, by the id
`<image>/line-<number>`, and takes no other line with it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hmr.errors import ConfigError, ImageError
from rayhmr.pictures import Images, Pictures, open_filesystem, table_of
from rayhmr.storage import split

CORNERS = ("x1", "y1", "x2", "y2")
LIST_ENDINGS = (".csv", ".jsonl", ".ndjson")


@dataclass
class _Entry:
    """What the list says of one picture."""

    boxes: list[list[float]] | None
    focal: float | None
    lines: set[tuple[float, ...]] = field(default_factory=set)


class _LineError(Exception):
    """reason, detail of a wrong line."""


def _number(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise _LineError("label_not_a_number", f"{name}={value!r:.40}: give a number") from error
    if not math.isfinite(number):
        raise _LineError("label_nonfinite", f"{name}={value!r:.40}: must be finite")
    return number


def _box(values: Any) -> list[float]:
    if not isinstance(values, Sequence) or len(values) != 4:
        raise _LineError("label_shape", f"box {values!r:.60}: give x1, y1, x2, y2")
    x1, y1, x2, y2 = (_number(v, name) for v, name in zip(values, CORNERS, strict=True))
    if x2 <= x1 or y2 <= y1:
        raise _LineError(
            "bad_box", f"box {values}: x2 must be above x1 and y2 above y1; give corners"
        )
    return [x1, y1, x2, y2]


def _focal(value: Any) -> float | None:
    if value in (None, ""):
        return None
    focal = _number(value, "focal")
    if focal <= 0:
        raise _LineError("label_out_of_range", f"focal={focal}: must be above 0 pixels")
    return focal


def _name(line: dict[str, Any]) -> str:
    image = line.get("image")
    if not isinstance(image, str) or not image:
        raise _LineError("missing_field", "has no `image`")
    if image.startswith("/") or "://" in image or ".." in image.split("/"):
        raise _LineError(
            "path_escape", f"image={image!r:.80}: must lie below the folder; set input to a folder "
            "that holds all pictures, and boxes to the list",
        )  # fmt: skip
    return image


class PictureList:
    """A parsed list. entries: by picture, in the order of the list. refused: id, reason, detail.

    ConfigError for a file that cannot be read at all.
    """

    def __init__(self, location: str, setting: str = "input") -> None:
        self.entries: dict[str, _Entry] = {}
        self.refused: list[tuple[str, str, str]] = []
        filesystem, path = open_filesystem(location, setting)
        try:
            with filesystem.open_input_file(path) as file:
                text = file.read().decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{setting}={location}: no readable list ({error})") from error
        self.where = f"{setting}={location}"
        lines = self._csv(text) if path.endswith(".csv") else self._json(text)
        for number, line in lines:
            try:
                if isinstance(line, _LineError):
                    raise line
                self._add(line, csv_form=path.endswith(".csv"))
            except _LineError as error:
                image = line.get("image") if isinstance(line, dict) else None
                name = image if isinstance(image, str) else ""
                reason, detail = error.args
                self.refused.append((f"{name}/line-{number}", reason, f"line {number} {detail}"))
        if not self.entries and not self.refused:
            raise ConfigError(f"{self.where}: the list is empty; give one picture a line")

    def _csv(self, text: str) -> Iterator[tuple[int, dict[str, Any] | _LineError]]:
        lines = csv.DictReader(io.StringIO(text, newline=""))
        if "image" not in (lines.fieldnames or ()):
            raise ConfigError(
                f"{self.where}: lacks the column image; its first line must be image,x1,y1,x2,y2"
            )
        try:
            for line in lines:
                yield lines.line_num, dict(line)
        except csv.Error as error:
            raise ConfigError(f"{self.where}: no readable CSV ({error})") from error

    def _json(self, text: str) -> Iterator[tuple[int, dict[str, Any] | _LineError]]:
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _LineError("missing_field", f"is no JSON ({error})")
                continue
            whole = isinstance(value, dict)
            yield number, value if whole else _LineError("missing_field", "is no JSON object")

    def _add(self, line: dict[str, Any], *, csv_form: bool) -> None:
        image, focal = _name(line), _focal(line.get("focal"))
        if not csv_form:
            if image in self.entries:
                raise _LineError("duplicate_id", f"image={image}: stands in an earlier line")
            boxes = line.get("boxes")
            if boxes is not None and not isinstance(boxes, list):
                raise _LineError("label_shape", f"boxes={boxes!r:.40}: give a list of boxes")
            found = None if boxes is None else [_box(box) for box in boxes]
            self.entries[image] = _Entry(found, focal)
            return
        corners = [line.get(name) for name in CORNERS]
        given = [c for c in corners if c not in (None, "")]
        if given and len(given) < 4:
            absent = [n for n, c in zip(CORNERS, corners, strict=True) if c in (None, "")]
            raise _LineError("missing_field", f"lacks {', '.join(absent)}")
        box = _box(corners) if given else None
        key = tuple(box or ())
        entry = self.entries.get(image)
        if entry is not None:
            # The whole picture and boxes beside it would be the same people twice.
            if key in entry.lines or (entry.boxes is None) != (box is None):
                raise _LineError("duplicate_id", f"image={image}: this person is listed already")
            if focal != entry.focal:
                raise _LineError("label_out_of_range", f"focal={focal}: another than before")
        else:
            entry = self.entries[image] = _Entry(None if box is None else [], focal)
        entry.lines.add(key)
        if box is not None and entry.boxes is not None:
            entry.boxes.append(box)


class ListedPictures(Pictures):
    """Those pictures of another source that a list names, with the list's boxes."""

    def __init__(self, inner: Pictures, chosen: PictureList) -> None:
        self.inner, self.chosen = inner, chosen
        self.fps, self.block_rows, self.root = inner.fps, inner.block_rows, inner.root

    @classmethod
    def beside(cls, location: str) -> ListedPictures:
        """The pictures that a list names, below the list's folder."""
        folder = split(location)[0] or ("/" if location.startswith("/") else ".")
        return cls(Images.below(folder), PictureList(location))

    def listing(self) -> pa.Table:
        """In the order of the list, refused lines last."""
        names = list(self.chosen.entries)
        rows = []
        if isinstance(self.inner, Images) and type(self.inner) is Images:
            self.inner.paths = names
        found = self.inner.listing()
        places = pc.index_in(pa.array(names, pa.string()), found["path"].combine_chunks())
        for name, place in zip(names, places.to_pylist(), strict=True):
            entry = self.chosen.entries[name]
            row = {
                "path": name,
                "reason": "unreadable",
                "detail": "the input has no such one",
            }
            if place is not None:
                row = found.slice(place, 1).to_pylist()[0]
            rows.append(row | {"boxes": entry.boxes, "focal": entry.focal})
        rows += [
            {"path": name, "reason": reason, "detail": detail}
            for name, reason, detail in self.chosen.refused
        ]
        return table_of([{k: v for k, v in row.items() if k != "number"} for row in rows])

    def reader(self) -> Pictures:  # type: ignore[override]
        """The other source's."""
        return self.inner.reader()

    def contents(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | ImageError]:
        """The other source's."""
        return self.inner.contents(rows)
