"""Folders that one process of a node makes and the others share. No Ray, no torch.

    <root>/<key>/              what was made; it gets its name when it is complete
    <root>/<key>.lock          held shared by every user, exclusively by who makes or removes

The kernel frees the locks of a process that dies, so nothing here waits for the dead, and what
nobody holds may be removed: by age whenever something is made, and all of it at the end of a study.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hmr.errors import ConfigError

IDLE_S = 3600.0
"""What nobody has used for so long is removed before something new is made."""
POLL_S = 0.2
MEMORY_SHARE = 0.5
"""All caches of a node together take at most this share of the memory that is available: pages
that do not stay in memory are read from the disk again, more slowly than JPEG is decoded."""
DISK_RESERVE = 0.05
"""Share of the disk that stays free."""


class NoRoomError(Exception):
    """A cache would not leave enough memory or disk; the message says how much there is."""


def cache_root(folder: str | None) -> Path:
    """The folder for caches on this node, made if need be; nobody else may read or write it.

    ConfigError when it is another user's, who could put anything into the batches.
    """
    root = Path(folder or Path(tempfile.gettempdir(), f"rayhmr-cache-{os.getuid()}")).absolute()
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = root.lstat().st_uid
    except OSError as error:
        raise ConfigError(
            f"data.cache_folder={root}: cannot be made ({error.strerror}); give a folder that can "
            "be written on every node"
        ) from error
    if owner != os.getuid() or root.is_symlink():
        raise ConfigError(
            f"data.cache_folder={root}: belongs to another user or is a link; give a folder of "
            "your own"
        )
    return root


def available_memory() -> int:
    """Bytes that this process may still fill: of the machine, or of its control group if less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except FileNotFoundError:  # no Linux: all there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return min(values["MemAvailable"], _left_in_group(Path("/sys/fs/cgroup")))


def _left_in_group(group: Path) -> int:
    """What a container's memory limit leaves, file pages that can be dropped included."""
    files = {"memory.max": "memory.current", "memory/memory.limit_in_bytes":
             "memory/memory.usage_in_bytes"}  # fmt: skip
    for limit, usage in files.items():
        try:
            most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
            stat = (group / limit).parent / "memory.stat"
            counts = dict(line.split() for line in stat.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most != "max":
            return int(most) - used + int(counts.get("inactive_file", 0))
    return 2**62


class Held:
    """A shared folder that stays where it is until `close`."""

    def __init__(self, path: Path, lock: _Lock) -> None:
        self.path, self._lock = path, lock

    def close(self) -> None:
        """Others may remove it now."""
        if self._lock.file is not None:
            os.utime(self.path)
            self._lock.release()


class CacheStore:
    """The caches in a folder. room: bytes that are available in memory, free on the folder's disk,
    and there in all."""

    def __init__(
        self, root: Path, room: Callable[[Path], tuple[int, int, int]] | None = None
    ) -> None:
        self.root, self._room = root, room or _room

    def hold(self, key: str, size: int, make: Callable[[Path], None]) -> Held:
        """The folder of this key, which `make` fills unless it is there; whoever comes first makes
        it and the others wait.

        size: bytes that it will take. NoRoomError when they are not there.
        """
        path = self.root / key
        while True:
            lock = _Lock(self.root / f"{key}.lock")
            if lock.take(fcntl.LOCK_EX):
                try:
                    if not path.is_dir():
                        self._make(path, size, make)
                except BaseException:
                    lock.release()
                    raise
            if lock.take(fcntl.LOCK_SH) and path.is_dir():
                os.utime(path)
                return Held(path, lock)
            lock.release()
            time.sleep(POLL_S)

    def _make(self, path: Path, size: int, make: Callable[[Path], None]) -> None:
        self.remove_unused(IDLE_S)
        self._make_room(size)
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            partial.rename(path)
        except OSError as error:
            raise NoRoomError(f"it could not be made in {self.root}: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _make_room(self, size: int) -> None:
        """Remove what nobody uses, the longest unused first, until `size` bytes fit."""
        while (problem := self._lacking(size)) is not None:
            if not any(self._remove(path) for _, path in self._entries()):
                raise NoRoomError(problem)

    def _lacking(self, size: int) -> str | None:
        memory, free, total = self._room(self.root)
        held = sum(_size(path) for _, path in self._entries())
        if size + held > MEMORY_SHARE * memory:
            return (
                f"it takes {_mb(size)} beside {_mb(held)} of other caches, more than "
                f"{100 * MEMORY_SHARE:g} % of the {_mb(memory)} of memory that are available"
            )
        if free - size < DISK_RESERVE * total:
            return (
                f"it takes {_mb(size)} of the {_mb(free)} that are free in {self.root}, of whose "
                f"disk {100 * DISK_RESERVE:g} % stay free"
            )
        return None

    def _entries(self) -> list[tuple[float, Path]]:
        """Complete and broken-off folders and when they were last used, the oldest first."""
        dated = []
        for path in self.root.iterdir():
            try:
                if path.is_dir():
                    dated.append((path.stat().st_mtime, path))
            except FileNotFoundError:  # removed by another process meanwhile
                continue
        return sorted(dated)

    def remove_unused(self, idle_s: float = 0.0) -> list[str]:
        """Remove what nobody holds and nobody has used for `idle_s` seconds; the names."""
        latest = time.time() - idle_s
        return [
            path.name for used, path in self._entries() if used <= latest and self._remove(path)
        ]

    def _remove(self, path: Path) -> bool:
        """Remove a folder unless it is in use; whether it was removed."""
        lock = _Lock(self.root / f"{path.name.removesuffix('.partial')}.lock")
        if not lock.take(fcntl.LOCK_EX):
            lock.release()
            return False
        shutil.rmtree(path, ignore_errors=True)
        lock.path.unlink(missing_ok=True)
        lock.release()
        return True


class _Lock:
    """A lock on a file that may be removed by who holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: int | None = None

    def take(self, kind: int) -> bool:
        """Take the lock, or change its kind; whether that worked, at once."""
        if self.file is None:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.file, kind | fcntl.LOCK_NB)
            # Who held it before may have removed the file: another process would make a new one.
            return os.fstat(self.file).st_ino == self.path.stat().st_ino
        except (BlockingIOError, FileNotFoundError):
            return False

    def release(self) -> None:
        """Let others have it."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


def _room(root: Path) -> tuple[int, int, int]:
    disk = shutil.disk_usage(root)
    return available_memory(), disk.free, disk.total


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except FileNotFoundError:  # removed by another process meanwhile
        return 0


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
