"""Where a run's checkpoints lie, and what they are called. No torch here.

run/
├── epoch-0003/              state at the end of epoch 3
├── step-00000120/           state inside an epoch, after 120 optimizer steps
├── validation/epoch-0003.json   errors of that epoch, when somebody else validated it
└── .step-00000130-….partial     being written; rubbish after a crash

Each checkpoint is a folder with a manifest (`hmr.manifest`) and a `state.json`, which holds `step`
and, at the end of an epoch, what was reported as the last entry of `history`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hmr.errors import BundleError
from hmr.manifest import MANIFEST, replaced_folder, sync, verify

STATE = "state.json"
VALIDATION = "validation"
_NAME = re.compile(r"(step-\d{8,}|epoch-\d{4,})")
_LEFT_OVER = re.compile(rf"\.(?P<name>{_NAME.pattern})-[0-9a-f]{{12}}\.(?P<kind>partial|old)")


def step_name(step: int) -> str:
    """Name of the checkpoint after `step` optimizer steps, inside an epoch."""
    return f"step-{step:08d}"


def epoch_name(epoch: int) -> str:
    """Name of the checkpoint after `epoch` epochs."""
    return f"epoch-{epoch:04d}"


def is_checkpoint(name: str) -> bool:
    """Whether a folder of this name would be a checkpoint."""
    return _NAME.fullmatch(name) is not None


def is_epoch(name: str) -> bool:
    """Whether a checkpoint of this name stands at the end of an epoch."""
    return name.startswith("epoch-")


def number_of(name: str) -> int:
    """The step or epoch in a checkpoint's name."""
    return int(name.partition("-")[2])


class Place(Protocol):
    """Storage for the checkpoints of one run, which has one writer at a time."""

    location: str

    def names(self) -> list[str]:
        """All checkpoints, damaged ones included; none when there is no folder yet."""
        ...

    def read(self, path: str) -> bytes:
        """A small file, such as `epoch-0001/state.json`; OSError when it cannot be read."""
        ...

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Make a checkpoint from what `write` puts into an empty folder. After an error, or a crash
        at any time, readers find it complete or not at all."""
        ...

    def check(self, name: str) -> None:
        """BundleError when the checkpoint is not complete."""
        ...

    def fetch(self, name: str) -> Path:
        """A complete checkpoint as a folder of this machine; BundleError when it is damaged."""
        ...

    def remove(self, name: str) -> None:
        """Delete a checkpoint so that no half of it can be seen."""
        ...

    def tidy(self) -> None:
        """Undo what dead writers left behind. Only before the first `put`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a checkpoint."""
        ...

    def free(self) -> int:
        """Bytes that are left where checkpoints are written."""
        ...

    def close(self) -> None:
        """Forget local copies."""
        ...


class LocalPlace:
    """A folder of this machine, or a network file system that renames in one go (NFS)."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.location = str(folder)

    def names(self) -> list[str]:
        """See Place."""
        if not self.folder.is_dir():
            return []
        return sorted(p.name for p in self.folder.iterdir() if is_checkpoint(p.name) and p.is_dir())

    def read(self, path: str) -> bytes:
        """See Place."""
        return (self.folder / path).read_bytes()

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """See Place."""
        target = self.folder / name
        if target.is_dir() and not (target / MANIFEST).is_file():
            self.remove(name)  # an unfinished copy by somebody else
        with replaced_folder(target) as partial:
            write(partial)
            finish(partial)

    def check(self, name: str) -> None:
        """See Place."""
        verify(self.folder / name)

    def fetch(self, name: str) -> Path:
        """See Place."""
        self.check(name)
        return self.folder / name

    def remove(self, name: str) -> None:
        """See Place."""
        # Deleting takes time, and a half-deleted checkpoint would look like a damaged one.
        rubbish = self.folder / f".{name}-{uuid.uuid4().hex[:12]}.partial"
        (self.folder / name).rename(rubbish)
        shutil.rmtree(rubbish)

    def tidy(self) -> None:
        """See Place."""
        if not self.folder.is_dir():
            return
        for path in list(self.folder.iterdir()):
            found = _LEFT_OVER.fullmatch(path.name)
            if found is None:
                continue
            target = self.folder / found["name"]
            if found["kind"] == "old" and not target.exists():
                # The writer died after it had moved this away and before the new one came.
                path.rename(target)
            else:
                # Best effort: a network file system keeps what a writer elsewhere still has open.
                shutil.rmtree(path, ignore_errors=True)
        sync(self.folder)

    def size(self, name: str) -> int:
        """See Place."""
        return folder_size(self.folder / name)

    def free(self) -> int:
        """See Place."""
        return shutil.disk_usage(self.folder).free

    def close(self) -> None:
        """See Place."""


def folder_size(folder: Path) -> int:
    """Bytes of the files directly in a folder, which may be deleted meanwhile."""
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            total += path.stat().st_size
    return total


def finish(folder: Path) -> None:
    """Flush a written checkpoint to the disk; BundleError when it was not finished."""
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: was written without {MANIFEST}; end with write_manifest")
    for path in folder.iterdir():
        sync(path)
    sync(folder)


def state_of(place: Place, name: str) -> dict[str, Any]:
    """The state.json that a checkpoint's manifest names, without reading its large files.

    BundleError when one of the two is missing or damaged, OSError when they cannot be read now.
    """
    where = f"{place.location}/{name}"
    try:
        manifest = json.loads(place.read(f"{name}/{MANIFEST}"))
        content = place.read(f"{name}/{STATE}")
        if hashlib.sha256(content).hexdigest() != manifest["files"][STATE]:
            raise BundleError(f"{where}/{STATE}: is not the file that the manifest names")
        state = json.loads(content)
        int(state["step"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(f"{where}: was never finished, or lost a file ({error})") from error
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{where}: {MANIFEST} or {STATE} is damaged ({error!r})") from error
    return dict(state)


def epoch_metrics(place: Place, name: str) -> dict[str, float]:
    """What is known about an epoch: its last report, and over that what validation/ says.

    BundleError when the checkpoint's state is damaged; a damaged validation file says nothing.
    """
    history = state_of(place, name).get("history")
    reported = dict(history[-1]) if history else {}
    try:
        validated = json.loads(place.read(f"{VALIDATION}/{name}.json"))
    except (OSError, ValueError):
        return reported
    return reported | validated if isinstance(validated, dict) else reported
