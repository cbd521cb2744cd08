"""Where predictions go: a folder of this machine, or a URI to which a finished one is uploaded."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hmr.errors import ConfigError
from rayhmr.prediction_parts import MANIFEST
from rayhmr.storage import Folder
from rayhmr.telemetry import say


@contextmanager
def written_to(location: str) -> Iterator[Path]:
    """The local folder that becomes `location` when the block ends without an error.

    For a URI it lies in this machine's folder for temporary files, under a name by the URI, so that
    a killed job goes on when it is started again on the same machine. The manifest is deleted first
    and uploaded last: a reader sees a whole prediction or none. ConfigError when the URI holds
    something else, StorageError when it cannot be written.
    """
    if "://" not in location:
        yield Path(location).absolute()
        return
    folder = Folder(location)
    before = folder.names()
    if before and MANIFEST not in before:
        raise ConfigError(
            f"output={location}: holds files and no {MANIFEST}, so no prediction made it; choose "
            "another folder"
        )
    # Now rather than after an hour: whether it can be written.
    folder.write(".writable", b"")
    folder.remove(".writable")
    place = hashlib.sha256(folder.location.encode()).hexdigest()[:12]
    local = Path(tempfile.gettempdir(), f"rayhmr-predictions-{place}")
    yield local
    say(f"uploading to {folder.location}")
    for name in sorted(before, key=lambda name: name != MANIFEST):
        folder.remove(name)
    for path in sorted(local.iterdir(), key=lambda path: path.name == MANIFEST):
        folder.copy_in(path, path.name)
    shutil.rmtree(local)
