"""Files on this machine or behind a URI (s3://, gs://) through pyarrow, whole or not at all.

An object store shows an object only once it is complete; a local file gets its name by a rename.
A URI may end in a query that says where the store is, as in
`s3://bucket/folder?endpoint_override=store.example:9000&scheme=http`: what lies in the folder has
its name before the question mark, so paths are put together by `joined` and taken apart by `split`.
"""

from __future__ import annotations

import errno
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from hmr.errors import ConfigError, HmrError


class StorageError(HmrError, OSError):
    """A place that cannot be read or written, and why: no such bucket, credentials, read-only."""


_CAUSES = (
    # Arrow tries to create a bucket of gs:// that is not there, and knows no project to do so in.
    ("NO_SUCH_BUCKET|NoSuchBucket|Bucket '|missing project id", "there is no such bucket; create "
     "it, or correct the address"),
    ("INVALID_ACCESS_KEY|InvalidAccessKey|INVALID_CLIENT_TOKEN|InvalidClientToken|UNAUTHENTICATED"
     "|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|response code: 401",
     "the store does not know these credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
     "GOOGLE_APPLICATION_CREDENTIALS, or the machine's role, on every node"),
    ("ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|Forbidden|response code: 403",
     "the credentials are wrong, or do not allow {doing}; use some that do, or another folder"),
    ("NETWORK_CONNECTION|curlCode|Couldn't (connect|resolve)|UNAVAILABLE",
     "the store does not answer; check the address, endpoint_override and scheme, and the network"),
)  # fmt: skip
"""What stands in a store's answer, and what that means to whoever gave the address."""


@contextmanager
def explained(location: str, doing: str = "to read here") -> Iterator[None]:
    """Errors of a store in the block become a StorageError that names the place and the cure. A
    missing file stays a FileNotFoundError, and a full disk of this machine an OSError."""
    try:
        yield
    except (FileNotFoundError, HmrError):
        raise
    except (OSError, pa.ArrowInvalid) as error:
        text, number = str(error), getattr(error, "errno", None)
        if isinstance(error, PermissionError) or number == errno.EROFS:
            cure = "the file system does not allow {doing}; change that, or give another folder"
        elif found := [cure for marks, cure in _CAUSES if re.search(marks, text)]:
            cure = found[0]
        elif "://" in location and isinstance(error, OSError):
            cure = "the store refused {doing}; check the address and the store"
        else:
            raise
        clear = StorageError(f"{location}: {cure.format(doing=doing)} ({text[:300]})")
        clear.errno = number
        raise clear from error


def joined(location: str, name: str) -> str:
    """The address of what is called `name` in the folder at `location`."""
    path, query, rest = _cut(location)
    return f"{path.rstrip('/')}/{name}{query}{rest}"


def split(location: str) -> tuple[str, str]:
    """The folder that something is in and its name there; the folder is empty for a bare name."""
    path, query, rest = _cut(location)
    folder, _, name = path.rstrip("/").rpartition("/")
    return (f"{folder}{query}{rest}" if folder else ""), name


def _cut(location: str) -> tuple[str, str, str]:
    # A local path may well have a question mark in it.
    return location.partition("?") if "://" in location else (location, "", "")


def absolute(location: str) -> str:
    """The same place for processes that work in another folder; a URI stays as it is."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def ray_storage(location: str) -> dict[str, Any]:
    """The arguments with which Ray's RunConfig keeps its files in a folder."""
    if "://" not in location:
        return {"storage_path": location}
    folder = Folder(location)
    return {"storage_path": folder.root, "storage_filesystem": folder.files}


class Folder:
    """A folder by path or URI. Names below it use `/`."""

    def __init__(self, location: str) -> None:
        path, query, rest = _cut(absolute(location))
        self.location = f"{path.rstrip('/')}{query}{rest}"
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

    def at(self, name: str) -> str:
        """The address of a file or folder in this one."""
        return joined(self.location, name)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        with explained(self.location):
            return bool(self.files.get_file_info(self.path(name)).type == pafs.FileType.File)

    def names(self) -> list[str]:
        """Files and folders directly below, sorted; none when the folder is not there, StorageError
        when not even the bucket is."""
        try:
            with explained(self.location):
                infos = self.files.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
                if not infos:
                    self._check_bucket()
        except NotADirectoryError as error:
            raise ConfigError(f"{self.location}: is a file; give the folder it is in") from error
        return sorted(info.base_name for info in infos)

    def _check_bucket(self) -> None:
        """The first part of an object store's path is a bucket, which nobody makes in passing."""
        bucket = self.root.partition("/")[0]
        if self.files.type_name not in ("s3", "gcs"):
            return
        try:
            found = self.files.get_file_info(bucket).type
        except OSError:  # one may list a folder and not ask for the bucket
            return
        if found == pafs.FileType.NotFound:
            raise OSError(f"Bucket '{bucket}' not found")

    def size(self, name: str) -> int | None:
        """Bytes of a file; none when there is no such file."""
        with explained(self.location):
            info = self.files.get_file_info(self.path(name))
        return int(info.size) if info.type == pafs.FileType.File else None

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with explained(self.at(name)), self.files.open_input_stream(self.path(name)) as stream:
            content: bytes = stream.read()
            return content

    def read_json(self, name: str) -> Any:
        """A parsed JSON file."""
        return json.loads(self.read(name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file that is never seen half done."""
        path = self.path(name)
        parent = path.rpartition("/")[0]
        # Hidden, so that no reader of the folder takes it for data.
        partial = f"{parent}/.{uuid.uuid4().hex}.partial" if self.is_local else path
        with explained(self.at(name), "to write here"):
            self.files.create_dir(parent, recursive=True)
            with self.files.open_output_stream(partial) as stream:
                stream.write(content)
            if self.is_local:
                Path(partial).replace(path)

    def copy_in(self, source: Path, name: str) -> None:
        """Copy a local file, or the files of a local folder, in under this name."""
        with explained(self.at(name), "to write here"):
            target = self.path(name)
            self.files.create_dir(
                target if source.is_dir() else target.rpartition("/")[0], recursive=True
            )
            pafs.copy_files(str(source), target, source_filesystem=pafs.LocalFileSystem(),
                            destination_filesystem=self.files)  # fmt: skip

    def copy_out(self, name: str, target: Path) -> None:
        """Copy a file, or the files of a folder, to a local place."""
        with explained(self.at(name)):
            pafs.copy_files(self.path(name), str(target), source_filesystem=self.files,
                            destination_filesystem=pafs.LocalFileSystem())  # fmt: skip

    def open(self, name: str) -> pa.NativeFile:
        """A file to read anywhere in."""
        with explained(self.at(name)):
            return self.files.open_input_file(self.path(name))

    def write_json(self, name: str, value: Any) -> None:
        """Readable JSON with sorted keys."""
        self.write(name, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())

    def remove(self, name: str) -> None:
        """Delete a file or a folder with what is in it."""
        with explained(self.at(name), "to delete here"):
            info = self.files.get_file_info(self.path(name))
            if info.type == pafs.FileType.Directory:
                self.files.delete_dir(self.path(name))
            elif info.type == pafs.FileType.File:
                self.files.delete_file(self.path(name))
