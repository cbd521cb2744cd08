"""The pictures of a batch prediction: files of a folder, or of a URI, and what all sources share.

A source lists its pictures once, as an Arrow table; pieces of that table travel to the processes
that read, together with the source's `reader`, which knows no list.
"""

from __future__ import annotations

import copy
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import pyarrow as pa
import pyarrow.fs as pafs

from hmr.errors import ConfigError, ImageError

MAX_BYTES = 100_000_000
"""Larger files are refused unread."""

LISTING = pa.schema(
    {
        "number": pa.int64(),
        "path": pa.string(),
        "boxes": pa.list_(pa.list_(pa.float64())),
        "focal": pa.float64(),
        "place": pa.list_(pa.int64()),
        "reason": pa.string(),
        "detail": pa.string(),
        "sequence": pa.string(),
        "frame": pa.int64(),
        "stamp": pa.string(),
    }
)
"""One row is one picture. path: its name, each once. boxes: people as x1, y1, x2, y2; none: the
whole picture is one person. place: where its source finds it. reason, detail: of what is refused
already. sequence, frame: the video or folder it is of, and its number there. stamp: changes when
the picture does."""

_GLOB = re.compile(r"[*?\[]")


class Pictures(ABC):
    """A source of encoded pictures. fps: frames a second, where the source knows. block_rows: rows
    that are best read together; none: any number. root: the folder that was listed, if any."""

    fps: float | None = None
    block_rows: int | None = None
    root: str | None = None

    @abstractmethod
    def listing(self) -> pa.Table:
        """All pictures as LISTING, in the order of the output."""

    def reader(self) -> Self:
        """What `contents` needs, small enough to travel."""
        return copy.copy(self)

    @abstractmethod
    def contents(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | ImageError]:
        """The encoded picture of each row of the listing, or why it cannot be had."""

    def known(self, path: str) -> list[float] | None:
        """Centre x, y and side of the person's square and the focal length, in pixels; none when
        nobody knows them: then the boxes count, or the whole picture is one person."""
        return None


def natural_key(path: str) -> list[Any]:
    """An order in which frame-9 comes before frame-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows of LISTING, numbered; what a row lacks is none."""
    return pa.Table.from_pylist([{"number": n} | row for n, row in enumerate(rows)], LISTING)


def open_filesystem(location: str, setting: str = "input") -> tuple[pafs.FileSystem, str]:
    """The file system and the path in it; ConfigError names what cannot be opened."""
    try:
        if "://" in location:
            filesystem, root = pafs.FileSystem.from_uri(location)
        else:
            filesystem, root = pafs.LocalFileSystem(), str(Path(location).absolute())
        return filesystem, root.rstrip("/") or "/"
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{setting}={location}: cannot be opened ({error})") from error


class Images(Pictures):
    """The files of a folder, those that a pattern names (`photos/**/*.jpg`), or one file, of this
    machine or of a URI such as s3://bucket/images.

    paths: relative to the folder, sorted. Hidden files and folders are left out.
    """

    def __init__(self, location: str) -> None:
        self.stamps: dict[str, str] = {}
        self.paths: list[str] = []
        self.filesystem, self.base = open_filesystem(location)
        try:
            info = self.filesystem.get_file_info(self.base)
        except OSError as error:
            raise ConfigError(f"input={location}: cannot be opened ({error})") from error
        pattern = None
        if info.type == pafs.FileType.NotFound and _GLOB.search(self.base):
            fixed = _GLOB.split(self.base)[0].rpartition("/")[0]
            pattern = re.compile(pattern_of(self.base[len(fixed) + 1 :]))
            self.base = fixed or "/"
            info = self.filesystem.get_file_info(self.base)
        if info.type == pafs.FileType.NotFound:
            raise ConfigError(f"input={location}: no such folder or file; give a folder of images")
        if info.type == pafs.FileType.File:
            self.base, _, name = self.base.rpartition("/")
            self.paths = [name]
            self.stamps = {name: _stamp(info)}
            return
        if pattern is None:
            self.root = self.base
        self.paths = sorted(p for p in self._below() if pattern is None or pattern.fullmatch(p))
        if not self.paths:
            what = "the folder holds no files" if pattern is None else "the pattern fits no file"
            raise ConfigError(f"input={location}: {what}; give one with images")

    @classmethod
    def below(cls, folder: str) -> Self:
        """The files of a folder, not listed."""
        images = cls.__new__(cls)
        images.filesystem, images.base = open_filesystem(folder)
        images.paths, images.stamps = [], {}
        return images

    def _below(self) -> Iterator[str]:
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.base, recursive=True)):
            path = info.path[len(self.base.rstrip("/")) + 1 :]
            hidden = any(part.startswith(".") for part in path.split("/"))
            if info.type != pafs.FileType.Directory and not hidden:
                self.stamps[path] = _stamp(info)
                yield path

    def listing(self) -> pa.Table:
        """In the order of `paths`; frames are numbered within their folder, 9 before 10."""
        folders = defaultdict(list)
        for path in self.paths:
            folders[str(PurePosixPath(path).parent)].append(path)
        frames = {
            path: frame
            for paths in folders.values()
            for frame, path in enumerate(sorted(paths, key=natural_key))
        }
        return table_of(
            [
                {"path": path, "sequence": str(PurePosixPath(path).parent), "frame": frames[path],
                 "stamp": self.stamps.get(path)}
                for path in self.paths
            ]
        )  # fmt: skip

    def reader(self) -> Self:
        """Without the list."""
        reader = copy.copy(self)
        reader.paths, reader.stamps = [], {}
        return reader

    def contents(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | ImageError]:
        """File by file."""
        for row in rows:
            try:
                yield self.read(row["path"])
            except ImageError as error:
                yield error

    def read(self, path: str) -> bytes:
        """The file's content; ImageError when it cannot be had."""
        try:
            with self.filesystem.open_input_file(f"{self.base.rstrip('/')}/{path}") as file:
                if (size := file.size()) > MAX_BYTES:
                    raise ImageError(
                        "too_many_bytes", f"{size:,} bytes; at most {MAX_BYTES:,} are read"
                    )
                content: bytes = file.read()
                return content
        except OSError as error:
            raise ImageError("unreadable", f"cannot be read: {error}") from error


def _stamp(info: pafs.FileInfo) -> str:
    return f"{info.size}-{info.mtime_ns}"


def pattern_of(glob: str) -> str:
    """The regular expression of a glob: `*` and `?` stay within a folder, `**/` is any depth."""
    parts = re.split(r"(\*\*/|\*|\?|\[[^\]]+\])", glob)
    meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        meaning.get(part)
        or (part.replace("[!", "[^", 1) if re.fullmatch(r"\[[^\]]+\]", part) else re.escape(part))
        for part in parts
    )
