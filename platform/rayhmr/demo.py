"""The whole platform in a row, for real, on this machine: people, shards, search, training,
evaluation, registry, batch prediction, service, and one training through `ray job submit`.

Every step is the function behind the job script of the same name; the demo only hands the results
on, times the steps, and writes `report.html`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from rayhmr.cluster import ClusterInfo
from rayhmr.telemetry import say

from hmr.errors import ConfigError, HmrError
from rayhmr import command_line
from rayhmr.config import (
    ClusterConfig,
    PrepareJob,
    TrainJob,
    TuneJob,
)

Job = TypeVar("Job", PrepareJob, TuneJob, TrainJob)
MARKER = ".rayhmr-demo"
MODEL = "hmr"


class Steps:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Say that a step begins, and note how long it took."""
        say(f"\n=== {name} ===")
        start = time.perf_counter()
        yield
        self.rows.append({"step": name, "seconds": round(time.perf_counter() - start, 1)})


def fresh_folder(path: str) -> Path:
    """An empty folder for the demo; only a folder that an earlier demo made is replaced."""
    folder = Path(path).resolve()
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise ConfigError(
                f"output={folder}: the folder holds files that no demo made (there is no "
                f"{MARKER} in it); choose another folder, such as output=demo2"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def place(job: Job, folder: Path, cluster: ClusterConfig) -> Job:
    """`job` with every path inside the demo's folder, on the demo's cluster."""
    if isinstance(job, PrepareJob):
        return job.model_copy(update={"output": str(folder / "shards"), "cluster": cluster})
    update: dict[str, Any] = {
        "storage": str(folder / "runs"),
        "registry": str(folder / "registry"),
        "cluster": cluster,
    }
    if isinstance(job, TuneJob):
        return job.model_copy(update=update | {"trial": place(job.trial, folder, cluster)})
    data = job.data.model_copy(update={"path": str(folder / "shards")})
    return job.model_copy(update=update | {"data": data})


def with_settings(job: TrainJob, settings: dict[str, Any]) -> TrainJob:
    """`job` with the winning settings of a search, by dotted path."""
    tree = job.model_dump()
    for path, value in settings.items():
        tree = command_line.set_dotted(tree, path, value)
    return command_line.validate(TrainJob, tree)


def submit_training(job: TrainJob, cluster: ClusterInfo, folder: Path) -> dict[str, Any]:
    """The same training through `ray job submit`; the last line of its log is its result."""
    root = Path.cwd()
    if not (root / "jobs" / "train.py").is_file():
        raise ConfigError(
            f"{root} holds no jobs/train.py: `ray job submit` uploads the project's folder, so "
            "start the demo from there"
        )
    config = folder / "submitted.yaml"
    config.write_text(json.dumps(job.model_dump(mode="json")))
    command = [
        str(Path(sys.executable).with_name("ray")),
        "job",
        "submit",
        "--address",
        cluster.dashboard_url,
        "--working-dir",
        str(root),
        "--runtime-env",
        "jobs/runtime_env.yaml",
        "--",
        sys.executable,
        "jobs/train.py",
        "--config",
        str(config),
        "cluster.address=auto",
    ]
    log = folder / "submitted.log"
    with log.open("w") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    text = log.read_text()
    if done.returncode != 0:
        raise HmrError(f"ray job submit ended with code {done.returncode}; its log is {log}")
    results = [line for line in text.splitlines() if line.startswith("{") and line.endswith("}")]
    if not results:
        raise HmrError(f"the submitted job printed no result; its log is {log}")
    return json.loads(results[-1])


def time_service(url: str, image: bytes, requests: int) -> dict[str, float]:
    """Latency of `POST /v1/predict`, one request at a time, in milliseconds."""
    connection = HTTPConnection(urlsplit(url).netloc, timeout=60)
    headers = {"Content-Type": "image/jpeg"}
    milliseconds = []
    for number in range(requests + 5):
        start = time.perf_counter()
        connection.request("POST", "/v1/predict", body=image, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise HmrError(f"POST {url}/v1/predict answered {answer.status}: {body[:300]!r}")
        if number >= 5:  # the first ones fill caches
            milliseconds.append(1000 * (time.perf_counter() - start))
    connection.close()
    return {
        "p50_ms": statistics.median(milliseconds),
        "p95_ms": float(np.percentile(milliseconds, 95)),
    }
