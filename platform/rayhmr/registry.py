"""The model registry: plain folders that need no service.

<registry>/<name>/1/                 a bundle; versions only ever increase
<registry>/<name>/2/
<registry>/<name>/aliases/best.json  {"version": 2, "before": [1]}: where `best` points, and pointed

The registry is a local path, or anything pyarrow.fs opens, such as s3:// and gs://. A version
exists when its manifest does, and the manifest comes last: what a killed writer leaves behind is
never seen. The alias `latest` is always there and means the highest version.

Each alias has a file of its own, so writers of different aliases cannot lose each other's. Two that
move the same alias at once wait for each other on a local disk; in an object store, which has no
locks, the one that writes last wins, with the history that it had read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from hmr.errors import BundleError, ConfigError
from hmr.manifest import MANIFEST, is_complete, sync, verify
from rayhmr.storage import Folder, explained, split

LATEST = "latest"
PREVIOUS = "previous"
ALIASES = "aliases"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _checked_name(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{kind} {name!r}: use letters, digits, '.', '_' and '-', and begin with a letter or "
            "digit"
        )
    return name


class Registry:
    """Versions of models by name. Any number of processes may read and register at once.

    filesystem: where `uri` is a path of; none: the uri says it.
    """

    def __init__(self, uri: str, filesystem: pafs.FileSystem | None = None) -> None:
        self.uri = uri
        if filesystem is not None:
            self._files, self._root = filesystem, uri.rstrip("/")
        else:
            folder = Folder(uri)
            self._files, self._root = folder.files, folder.root
        self._is_local = isinstance(self._files, pafs.LocalFileSystem)

    def names(self) -> list[str]:
        """The models with at least one version."""
        names = (info.base_name for info in self._list("") if info.type == pafs.FileType.Directory)
        return sorted(name for name in names if _NAME.fullmatch(name) and self.versions(name))

    def versions(self, name: str) -> list[int]:
        """The complete versions of a model, ascending; empty for an unknown one."""
        numbers = self._numbers(_checked_name("model", name))
        manifests = [f"{self._root}/{name}/{number}/{MANIFEST}" for number in numbers]
        with explained(self.uri):
            infos = self._files.get_file_info(manifests)
        return [
            number
            for number, info in zip(numbers, infos, strict=True)
            if info.type == pafs.FileType.File
        ]

    def aliases(self, name: str) -> dict[str, int]:
        """Alias to version, `latest` among them."""
        versions = self.versions(name)
        latest = {LATEST: versions[-1]} if versions else {}
        files = (info.base_name for info in self._list(f"{name}/{ALIASES}"))
        aliases = [file.removesuffix(".json") for file in files if file.endswith(".json")]
        return {alias: self._stored(name, alias)["version"] for alias in aliases} | latest

    def register(self, name: str, bundle: str | os.PathLike[str]) -> int:
        """Copy a complete bundle in as the next version and return its number.

        BundleError when the bundle is incomplete or was changed; ConfigError for a bad name.
        """
        _checked_name("model", name)
        folder = Path(bundle)
        verify(folder)
        with explained(self.uri, "to write here"):
            return (self._put_local if self._is_local else self._put_remote)(name, folder)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version; readers see the old one or the new one, nothing between."""
        if _checked_name("alias", alias) in (LATEST, PREVIOUS) or alias.isdecimal():
            raise ConfigError(
                f"alias {alias!r}: a number is a version and {LATEST!r} is always the highest, "
                f"{PREVIOUS!r} the one before; choose another word, such as 'best'"
            )
        if version not in self.versions(name):
            raise BundleError(f"{self.uri}: {name} has no version {version}; {self._known(name)}")
        with self._alias_lock(name):
            now = self._stored(name, alias).get("version")
            past = [*self._before(name, alias), *([] if now is None else [now]), version]
            # What came after a version to which the alias returns is dropped: it was worse.
            stored = {"version": version, "before": past[: past.index(version)]}
            self._replace_file(self._alias_file(name, alias), json.dumps(stored))

    def previous(self, name: str, alias: str) -> int:
        """The version that the alias pointed at before; BundleError when there was none."""
        if not (before := self._before(name, alias)):
            raise BundleError(
                f"{self.uri}: {name}@{alias} has pointed at no other version yet; "
                f"{self._known(name)}"
            )
        return before[-1]

    def version_of(self, name: str, reference: str) -> int:
        """The version that `3`, `best` or `latest` means; BundleError lists what there is."""
        aliases, versions = self.aliases(name), self.versions(name)
        version = int(reference) if reference.isdecimal() else aliases.get(reference)
        if version in versions:
            return version
        raise BundleError(
            f"{self.uri}: {name} has no version or alias {reference!r}; {self._known(name)}"
        )

    def fetch(self, name: str, reference: str = LATEST) -> Path:
        """The local folder of a version; a remote one is copied to this machine's cache once."""
        version = self.version_of(name, reference)
        source = f"{self._root}/{name}/{version}"
        return Path(source) if self._is_local else self._download(source, f"{name}-{version}")

    def _known(self, name: str) -> str:
        versions = self.versions(name)
        if not versions:
            return f"there is no model {name!r}, only: {', '.join(self.names()) or 'none at all'}"
        aliases = ", ".join(f"{a} -> {v}" for a, v in sorted(self.aliases(name).items()))
        return f"versions: {', '.join(map(str, versions))}; aliases: {aliases}"

    def _list(self, folder: str) -> list[pafs.FileInfo]:
        path = f"{self._root}/{folder}".rstrip("/")
        with explained(self.uri):
            infos: list[pafs.FileInfo] = self._files.get_file_info(
                pafs.FileSelector(path, allow_not_found=True)
            )
        return infos

    def _numbers(self, name: str) -> list[int]:
        """Versions and what may become one, complete or not."""
        return sorted(
            int(info.base_name)
            for info in self._list(name)
            if info.type == pafs.FileType.Directory and info.base_name.isdecimal()
        )

    def _before(self, name: str, alias: str) -> list[int]:
        """Where the alias pointed before it pointed where it does, as far as it is still there."""
        there = self.versions(name)
        return [v for v in self._stored(name, alias).get("before", []) if v in there]

    def _alias_file(self, name: str, alias: str) -> str:
        return f"{self._root}/{_checked_name('model', name)}/{ALIASES}/{alias}.json"

    def _stored(self, name: str, alias: str) -> dict[str, Any]:
        path = self._alias_file(name, alias)
        with explained(self.uri):
            if self._files.get_file_info(path).type != pafs.FileType.File:
                return {}
            with self._files.open_input_stream(path) as stream:
                stored: dict[str, Any] = json.loads(stream.read())
        return stored

    def _put_local(self, name: str, bundle: Path) -> int:
        """Copy under a hidden name, then claim the next number by renaming: rename fails when
        another process was faster, since its folder is not empty."""
        model = Path(self._root, name)
        model.mkdir(parents=True, exist_ok=True)
        partial = model / f".{uuid.uuid4().hex}.partial"
        try:
            shutil.copytree(bundle, partial)
            for file in partial.iterdir():
                sync(file)
            verify(partial)
            while True:
                version = max(self._numbers(name), default=0) + 1
                try:
                    partial.rename(model / str(version))
                except OSError:
                    if not (model / str(version)).exists():
                        raise
                    continue
                sync(model)
                return version
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _put_remote(self, name: str, bundle: Path) -> int:
        """Object stores cannot rename: claim a number, upload, the manifest last."""
        version, claim = self._claim(name)
        target = f"{self._root}/{name}/{version}"
        self._files.create_dir(target, recursive=True)
        for file in sorted(bundle.iterdir(), key=lambda file: file.name == MANIFEST):
            with (
                file.open("rb") as source,
                self._files.open_output_stream(f"{target}/{file.name}") as sink,
            ):
                shutil.copyfileobj(source, sink, 1 << 20)
        self._files.delete_file(claim)
        return version

    def _claim(self, name: str) -> tuple[int, str]:
        """A number that nobody else takes, and the file that says so.

        Each writer first writes its claim and then looks for others: of two that want one number,
        at least the later one sees both claims, and who sees another withdraws. This needs nothing
        but listings that show what has been written, which S3 and GCS promise.
        """
        claims = f"{self._root}/{name}/.claims"
        self._files.create_dir(claims, recursive=True)
        while True:
            claimed = [int(i.base_name.split(".")[0]) for i in self._list(f"{name}/.claims")]
            version = max([*self._numbers(name), *claimed], default=0) + 1
            mine = f"{claims}/{version}.{uuid.uuid4().hex}"
            with self._files.open_output_stream(mine) as stream:
                stream.write(b"claimed")
            rivals = [i for i in self._list(f"{name}/.claims")
                      if i.base_name.startswith(f"{version}.")]  # fmt: skip
            # After the claims: a rival that has finished took its claim back, but left its folder.
            if len(rivals) == 1 and version not in self._numbers(name):
                return version, mine
            self._files.delete_file(mine)
            time.sleep(random.uniform(0, 0.2))

    @contextmanager
    def _alias_lock(self, name: str) -> Iterator[None]:
        """Two local writers wait for each other, so that neither loses the other's history; the
        lock of a killed one is free. Object stores have no locks."""
        if not self._is_local:
            yield
            return
        with Path(self._root, name, ".aliases.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _replace_file(self, path: str, text: str) -> None:
        # An object store shows a new object only when it is complete, and cannot rename.
        name = f"{path}.{uuid.uuid4().hex}.partial" if self._is_local else path
        with explained(self.uri, "to write here"):
            self._files.create_dir(path.rpartition("/")[0], recursive=True)
            with self._files.open_output_stream(name) as stream:
                stream.write(text.encode())
            if self._is_local:
                sync(Path(name))
                Path(name).replace(path)

    def _download(self, source: str, label: str) -> Path:
        base = os.environ.get("RAYHMR_CACHE") or Path(
            os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rayhmr"
        )
        place = hashlib.sha256(f"{self._files.type_name} {self.uri} {source}".encode()).hexdigest()
        target = Path(base, "bundles", f"{label}-{place[:12]}")
        if is_complete(target):
            return target
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
        partial.mkdir(parents=True)
        try:
            with explained(self.uri):
                pafs.copy_files(source, str(partial), source_filesystem=self._files,
                                destination_filesystem=pafs.LocalFileSystem())  # fmt: skip
            verify(partial)
            shutil.rmtree(target, ignore_errors=True)
            try:
                partial.rename(target)
            except OSError:  # another process was faster
                verify(target)
            return target
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def resolve(reference: str) -> Path:
    """The local bundle folder that `path/to/registry/name@best`, `…/name@3`, `s3://…/name@latest`
    or simply the path of a bundle means; BundleError says what there is instead. The query of an
    address comes last: `s3://…/name@best?endpoint_override=…`."""
    folder, last = split(reference)
    if "@" in last and not Path(reference).is_dir():
        name, _, wanted = last.partition("@")
        return Registry(folder or ".").fetch(name, wanted)
    if "://" in reference:
        raise BundleError(
            f"{reference}: a remote model is named like s3://bucket/registry/name@version; "
            "add @ and a version or alias"
        )
    path = Path(reference).expanduser()
    if (path / MANIFEST).is_file():
        return path.absolute()
    if _NAME.fullmatch(path.name) and (versions := Registry(str(path.parent)).versions(path.name)):
        raise BundleError(
            f"{reference}: holds the versions {', '.join(map(str, versions))} of a model; "
            f"add one, such as {reference}@{versions[-1]} or {reference}@{LATEST}"
        )
    raise BundleError(
        f"{reference}: is no bundle (there is no {MANIFEST} in it); give a bundle's folder, or "
        "registry/name@version"
    )
