"""What a node of a cluster says of itself. Sent to nodes as it stands, so that one without this
project can answer too: nothing but Python's own library is imported at the top.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

PACKAGES = ("hmr", "rayhmr")
LIBRARIES = ("ray", "torch", "numpy", "pyarrow")


def _said(error: BaseException) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def software() -> dict[str, Any]:
    """Versions of Python and the libraries, a hash of this project's code, and what cannot be
    imported, with the reason."""
    versions, missing, digest = {"python": ".".join(map(str, sys.version_info[:3]))}, {}, ""
    for name in LIBRARIES:
        try:
            versions[name] = str(importlib.import_module(name).__version__)
        except Exception as error:  # also a library that breaks while it is imported
            missing[name] = _said(error)
    found = hashlib.sha256()
    for name in PACKAGES:
        try:
            file = importlib.import_module(name).__file__
            found.update(_code(Path(str(file)).parent))
        except Exception as error:  # as above
            missing[name] = _said(error)
        else:
            digest = found.hexdigest()[:12]
    return {"versions": versions, "missing": missing, "code": "" if missing else digest}


def _code(folder: Path) -> bytes:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.digest()


class Probe:
    """An actor on one node."""

    def now(self) -> float:
        """Its clock, in seconds since 1970."""
        return time.time()

    def facts(self) -> dict[str, Any]:
        """Of the machine and its software."""
        return {"host": socket.gethostname(), "pid": os.getpid(), **software()}

    def gpus(self) -> dict[str, Any]:
        """GPUs that torch sees and can compute with; held by this actor."""
        try:
            import torch

            count = torch.cuda.device_count()
            for number in range(count):
                ones = torch.ones(64, 64, device=f"cuda:{number}")
                if float((ones @ ones).sum()) != 64.0**3:
                    return {"seen": count, "error": f"cuda:{number} computes wrongly"}
        except Exception as error:  # a driver that does not fit
            return {"seen": 0, "error": _said(error)}
        return {"seen": count, "error": None}

    def write(self, location: str, name: str) -> str | None:
        """Leave a file with its own name in it; what went wrong, if anything."""
        try:
            from rayhmr.storage import Folder

            Folder(location).write(name, name.encode())
        except Exception as error:
            return _said(error)
        return None

    def seen(self, location: str, names: list[str]) -> dict[str, str]:
        """Which of these files are not there, or not as they were written, and why."""
        wrong = {}
        for name in names:
            try:
                from rayhmr.storage import Folder

                if Folder(location).read(name) != name.encode():
                    wrong[name] = "another content"
            except Exception as error:
                wrong[name] = _said(error)
        return wrong


class Rank:
    """An actor that stands where a training worker would be."""

    def address(self) -> tuple[str, int]:
        """Where the others find the first one."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), int(probe.getsockname()[1])

    def reduce(
        self, address: tuple[str, int], rank: int, size: int, megabytes: float, backend: str
    ) -> dict[str, Any]:
        """One all-reduce of float32, three times; the seconds of the fastest, and whether the sum
        was right."""
        import datetime

        import torch
        import torch.distributed as dist

        dist.init_process_group(
            backend, init_method=f"tcp://{address[0]}:{address[1]}", rank=rank, world_size=size,
            timeout=datetime.timedelta(seconds=30),
        )  # fmt: skip
        device = "cuda" if backend == "nccl" else "cpu"
        try:
            seconds = []
            for _ in range(3):
                numbers = torch.full((int(megabytes * 250_000),), float(rank + 1), device=device)
                dist.barrier()
                start = time.perf_counter()
                dist.all_reduce(numbers)
                total = float(numbers[-1])  # waits for a GPU
                seconds.append(time.perf_counter() - start)
        finally:
            dist.destroy_process_group()
        return {"seconds": min(seconds), "right": total == size * (size + 1) / 2}
