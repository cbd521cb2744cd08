"""What takes part in `benchmark.py serve`: a model, pictures, servers, and who sends the load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmr.body import Body
from hmr.checkpoint import save_bundle
from hmr.config import ModelConfig
from hmr.crops import encode_jpeg
from hmr.embedded_body import embedded_body
from hmr.errors import HmrError
from hmr.model import build_model
from hmr.synthetic import Generator
from rayhmr.benchmark_load import Load, Measured
from rayhmr.cluster import free_port, open_here

PICTURES = 32
PICTURE_SIDE = 256


def make_bundle(folder: Path, encoder: str) -> Path:
    """A bundle of a model without training, whose speed is the same. encoder: as in ModelConfig."""
    torch.manual_seed(0)
    size = ModelConfig().image_size if encoder == "small" else 224
    config = ModelConfig(encoder=encoder, image_size=size)
    model = build_model(config)
    with torch.no_grad():  # weights far enough from zero that pictures differ in their answers
        for name, weight in model.named_parameters():
            if name.startswith("regressor.dec"):
                weight.mul_(5)
    return save_bundle(
        folder, model=model, model_config=config, body=Body.embedded(), metrics={}, provenance={}
    )


def make_pictures(folder: Path) -> list[bytes]:
    """JPEGs of made-up people, also as the files of `folder`."""
    folder.mkdir()
    people = Generator(embedded_body(), "easy", PICTURE_SIDE, 0, "test").samples(range(PICTURES))
    pictures = [encode_jpeg(person.image) for person in people]
    for number, picture in enumerate(pictures):
        (folder / f"{number:03d}.jpg").write_bytes(picture)
    return pictures


class Server:
    """Where a server answers, and the processes that it consists of."""

    def __init__(self, url: str, processes: Callable[[], list[int]]) -> None:
        self.url, self._processes = url, processes

    def cpu_seconds(self) -> float:
        """What its processes have used up to now."""
        return sum(_cpu_seconds(process) for process in self._processes())


@contextmanager
def plain_server(bundle: Path, threads: int) -> Iterator[Server]:
    """`rayhmr.benchmark_plain` for the length of the block."""
    port = free_port()
    command = [sys.executable, "-m", "rayhmr.benchmark_plain", str(bundle), str(port), str(threads)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url + "/readyz", process)
        yield Server(url, lambda: [process.pid])
    finally:
        process.terminate()
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with open_here(url, 5):
                return
        except OSError:
            time.sleep(0.1)
    raise HmrError(f"{url} does not answer; the plain server's own messages say why")


class LoadGenerator:
    """The process of `rayhmr.benchmark_load`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, load: Load) -> Measured:
        """Send it and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(load)) + "\n")
        self._process.stdin.flush()
        return Measured(**json.loads(self._process.stdout.readline()))


@contextmanager
def load_generator(pictures: Path) -> Iterator[LoadGenerator]:
    """The process of `rayhmr.benchmark_load` for the length of the block."""
    command = [sys.executable, "-m", "rayhmr.benchmark_load", str(pictures)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield LoadGenerator(process)
        finally:
            process.terminate()


def ask(url: str, picture: bytes) -> dict[str, Any]:
    """The JSON answer to one picture."""
    request = urllib.request.Request(
        url + "/v1/predict", picture, {"content-type": "image/jpeg"}
    )  # fmt: skip
    with open_here(request, 60) as answer:
        content: dict[str, Any] = json.load(answer)
        return content


def largest_difference(one: Server, other: Server, pictures: list[bytes]) -> float:
    """Metres between the joints of two servers' answers to the same pictures."""
    joints = [
        np.array([ask(server.url, p)["people"][0]["joints_3d"] for p in pictures])
        for server in (one, other)
    ]
    return float(np.abs(joints[0] - joints[1]).max())


def serve_processes(application: str) -> list[int]:
    """Process ids of a service's replicas on this machine: the one that listens, and its models."""
    wanted = tuple(f"ray::ServeReplica:{application}{end}".encode() for end in ":-")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has just ended
                if (entry / "cmdline").read_bytes().startswith(wanted):
                    found.append(int(entry.name))
    return found


def _cpu_seconds(process: int) -> float:
    """User and system time of all threads of a process up to now."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
