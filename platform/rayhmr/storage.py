"""Files on this machine or behind a URI (s3://, gs://) through pyarrow, whole or not at all.

An object store shows an object only once it is complete; a local file gets its name by a rename.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from hmr.errors import ConfigError


def absolute(location: str) -> str:
    """The same place for processes that work in another folder; a URI stays as it is."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


class Folder:
    """A folder by path or URI. Names below it use `/`."""

    def __init__(self, location: str) -> None:
        self.location = absolute(location).rstrip("/")
        try:
            if "://" in location:
                self.files, self.root = pafs.FileSystem.from_uri(self.location)
            else:
                self.files, self.root = pafs.LocalFileSystem(), self.location
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(
                f"{location}: cannot be opened ({error}); give a local path or an s3:// or gs:// "
                "address, and credentials in the environment"
            ) from error
        self.is_local = isinstance(self.files, pafs.LocalFileSystem)

    def path(self, name: str) -> str:
        """The name as the file system wants it."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return bool(self.files.get_file_info(self.path(name)).type == pafs.FileType.File)

    def names(self) -> list[str]:
        """Files and folders directly below, sorted; none when the folder is not there."""
        try:
            infos = self.files.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
        except NotADirectoryError as error:
            raise ConfigError(f"{self.location}: is a file; give the folder it is in") from error
        return sorted(info.base_name for info in infos)

    def size(self, name: str) -> int | None:
        """Bytes of a file; none when there is no such file."""
        info = self.files.get_file_info(self.path(name))
        return int(info.size) if info.type == pafs.FileType.File else None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self.files.open_input_stream(self.path(name)) as stream:
            content: bytes = stream.read()
            return content

    def read_json(self, name: str) -> Any:
        """A parsed JSON file."""
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is never seen half done."""
        path = self.path(name)
        parent = path.rpartition("/")[0]
        self.files.create_dir(parent, recursive=True)
        # Hidden, so that no reader of the folder takes it for data.
        partial = f"{parent}/.{uuid.uuid4().hex}.partial" if self.is_local else path
        with self.files.open_output_stream(partial) as stream:
            stream.write(content)
        if self.is_local:
            Path(partial).replace(path)

    def write_json(self, name: str, value: Any) -> None:
        """Readable JSON with sorted keys."""
        self.write(name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def remove(self, name: str) -> None:
        """Delete a file or a folder with what is in it."""
        info = self.files.get_file_info(self.path(name))
        if info.type == pafs.FileType.Directory:
            self.files.delete_dir(self.path(name))
        elif info.type == pafs.FileType.File:
            self.files.delete_file(self.path(name))
