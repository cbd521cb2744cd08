"""Folders that are complete or refused: `manifest.json` holds the sha256 of every other file.

The manifest is written last. A folder without one was never finished, a folder that disagrees with
its manifest was changed afterwards; neither is read. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmr.errors import BundleError, HmrError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Readable, with sorted keys."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path, *, required: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object with the required keys; BundleError names the file when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not readable JSON ({error}); make the folder anew") from error
    if not isinstance(value, dict):
        raise BundleError(f"{path}: holds no JSON object; make the folder anew")
    if missing := [key for key in required if key not in value]:
        raise BundleError(f"{path}: lacks {', '.join(missing)}; make the folder anew")
    return value


def write_manifest(folder: Path, facts: dict[str, Any]) -> None:
    """Flush every file of `folder` to the disk, then write their hashes and `facts`, flushed."""
    files = {}
    for path in sorted(folder.iterdir()):
        sync(path)
        files[path.name] = sha256(path)
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, "files": files} | facts)
    sync(folder / MANIFEST)
    sync(folder)


def verify(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a complete, unchanged folder; BundleError names the file that is not."""
    folder = Path(folder)
    manifest = _read_manifest(folder)
    expected: dict[str, str] = manifest["files"]
    present = {path.name for path in folder.iterdir()} - {MANIFEST}
    for name in sorted(expected.keys() - present):
        raise BundleError(f"{folder / name}: is missing; copy the whole folder again")
    for name in sorted(present - expected.keys()):
        raise BundleError(f"{folder / name}: is not in the manifest; remove it")
    for name in sorted(present):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name}: is no file; copy the whole folder again")
        found = sha256(folder / name)
        if found != expected[name]:
            raise BundleError(
                f"{folder / name}: sha256 is {found[:12]}…, the manifest says "
                f"{expected[name][:12]}…; the file was changed or damaged, copy the folder again"
            )
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder; give the folder of a bundle")
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder}: has no {MANIFEST}, so it was never finished or is no bundle; "
            "export the model again"
        )
    manifest = read_json(path)
    if manifest.get("format_version") != FORMAT_VERSION:
        raise BundleError(
            f"{folder}: format version {manifest.get('format_version')!r}, this code reads "
            f"{FORMAT_VERSION}; export the model again or use the version that wrote it"
        )
    files = manifest.get("files")
    if not (isinstance(files, dict) and all(isinstance(v, str) for v in files.values())):
        raise BundleError(f"{path}: `files` must map names to sha256; copy the folder again")
    return manifest


def is_complete(folder: str | os.PathLike[str]) -> bool:
    """Whether `verify` would pass."""
    try:
        verify(folder)
    except BundleError:
        return False
    return True


@contextmanager
def replaced_folder(
    target: Path, marker: str = MANIFEST, foreign: HmrError | None = None
) -> Iterator[Path]:
    """A new folder beside `target` that takes its place, with one rename, when the block ends.

    After an error nothing has changed. Only a folder with the file `marker`, or an empty one, is
    replaced; for any other `foreign` is raised, by default a BundleError.
    """
    if target.exists() and not (target / marker).is_file():
        if not target.is_dir() or any(target.iterdir()):
            raise foreign or BundleError(
                f"{target}: is there and is no bundle; choose another name"
            )
        target.rmdir()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}.partial")
    partial.mkdir()
    try:
        yield partial
        _swap(partial, target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _swap(new: Path, target: Path) -> None:
    """Rename `new` to `target`; what was there is removed only once that has worked."""
    if not target.exists():
        new.rename(target)
        return
    old = new.with_suffix(".old")
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
