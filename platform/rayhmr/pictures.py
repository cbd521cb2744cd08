"""The pictures of a batch prediction: a folder of this machine, or of a URI."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from hmr.errors import ConfigError, ImageError

MAX_BYTES = 100_000_000
"""Larger files are refused unread."""


class Images:
    """The files of a folder (or one file) of this machine or of a URI such as s3://bucket/images.

    paths: relative to the folder, sorted. Hidden files and folders are left out.
    """

    def __init__(self, location: str) -> None:
        try:
            if "://" in location:
                self.filesystem, root = pafs.FileSystem.from_uri(location)
            else:
                self.filesystem, root = pafs.LocalFileSystem(), str(Path(location).absolute())
            self.root = root.rstrip("/")
            info = self.filesystem.get_file_info(self.root)
        except (OSError, pa.ArrowInvalid) as error:
            raise ConfigError(f"input={location}: cannot be opened ({error})") from error
        if info.type == pafs.FileType.NotFound:
            raise ConfigError(f"input={location}: no such folder or file; give a folder of images")
        if info.type == pafs.FileType.File:
            self.root, _, name = self.root.rpartition("/")
            self.paths = [name]
            return
        self.paths = sorted(self._below())
        if not self.paths:
            raise ConfigError(f"input={location}: the folder holds no files; give one with images")

    def _below(self) -> Iterator[str]:
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.root, recursive=True)):
            path = info.path[len(self.root) + 1 :]
            hidden = any(part.startswith(".") for part in path.split("/"))
            if info.type != pafs.FileType.Directory and not hidden:
                yield path

    def read(self, path: str) -> bytes:
        """The file's content; ImageError when it cannot be had."""
        try:
            with self.filesystem.open_input_file(f"{self.root}/{path}") as file:
                if (size := file.size()) > MAX_BYTES:
                    raise ImageError(
                        "too_many_bytes", f"{size:,} bytes; at most {MAX_BYTES:,} are read"
                    )
                content: bytes = file.read()
                return content
        except OSError as error:
            raise ImageError("unreadable", f"cannot be read: {error}") from error

    def known(self, path: str) -> list[float] | None:
        """Centre x, y and side of the person's square and the focal length, in pixels; none when
        nobody knows them: then the whole picture is one person."""
        return None
