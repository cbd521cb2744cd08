"""Checkpoints behind a URI (s3://, gs://): written here, uploaded, whole or not at all."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow.fs as pafs

from hmr.checkpoint_place import LocalPlace, Place, finish, is_checkpoint, state_of
from hmr.errors import BundleError
from hmr.manifest import MANIFEST, verify
from rayhmr.storage import Folder


def place_of(folder: Folder) -> Place:
    """The checkpoints of the run in `folder`."""
    return LocalPlace(folder.root) if folder.is_local else RemotePlace(folder)


class RemotePlace:
    """See `hmr.checkpoint_place.Place`. The manifest is uploaded last and deleted first."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.location = folder.location
        # By run, so that its next writer on this machine finds what a dead one left.
        run = hashlib.sha256(folder.location.encode()).hexdigest()[:12]
        self._staging = f"rayhmr-staging-{run}-"
        self._downloads: Path | None = None

    def names(self) -> list[str]:
        """See Place."""
        return [name for name in self.folder.names() if is_checkpoint(name)]

    def read(self, path: str) -> bytes:
        """See Place."""
        return self.folder.read(path)

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """See Place."""
        with tempfile.TemporaryDirectory(prefix=self._staging) as temporary:
            written = Path(temporary) / name
            written.mkdir()
            write(written)
            finish(written)
            self.remove(name)
            self._upload(written, name)
        self._forget(name)

    def _upload(self, written: Path, name: str) -> None:
        for path in written.iterdir():
            if path.name != MANIFEST:
                self.folder.copy_in(path, f"{name}/{path.name}")
        self.folder.write(f"{name}/{MANIFEST}", (written / MANIFEST).read_bytes())

    def check(self, name: str) -> None:
        """Whether the files are there and the state is the right one; the hashes of the large files
        are compared when they have been downloaded, by `fetch`."""
        state_of(self, name)
        files = json.loads(self.read(f"{name}/{MANIFEST}"))["files"]
        for file in files:
            if not self.folder.exists(f"{name}/{file}"):
                raise BundleError(f"{self.folder.at(f'{name}/{file}')}: is missing")

    def fetch(self, name: str) -> Path:
        """See Place. Downloaded once; the copy goes with `close`, or when the process ends."""
        if self._downloads is None:
            self._downloads = Path(tempfile.mkdtemp(prefix="rayhmr-checkpoints-"))
            atexit.register(shutil.rmtree, self._downloads, ignore_errors=True)
        target = self._downloads / name
        if target.exists():
            return target
        state_of(self, name)
        partial = target.with_suffix(".partial")
        partial.mkdir()
        try:
            self.folder.copy_out(name, partial)
            verify(partial)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

    def remove(self, name: str) -> None:
        """See Place."""
        self.folder.remove(f"{name}/{MANIFEST}")
        self.folder.remove(name)

    def tidy(self) -> None:
        """See Place."""
        for name in self.names():
            if not self.folder.exists(f"{name}/{MANIFEST}"):
                self.folder.remove(name)
        for left_over in Path(tempfile.gettempdir()).glob(f"{self._staging}*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def size(self, name: str) -> int:
        """See Place."""
        selector = pafs.FileSelector(self.folder.path(name), allow_not_found=True)
        return sum(info.size or 0 for info in self.folder.files.get_file_info(selector))

    def free(self) -> int:
        """Bytes left on this machine: a checkpoint is written here first."""
        return shutil.disk_usage(tempfile.gettempdir()).free

    def close(self) -> None:
        """See Place."""
        if self._downloads is not None:
            shutil.rmtree(self._downloads, ignore_errors=True)
            self._downloads = None

    def _forget(self, name: str) -> None:
        if self._downloads is not None:
            shutil.rmtree(self._downloads / name, ignore_errors=True)
