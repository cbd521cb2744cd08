"""The load generator of `benchmark.py serve`: a process of its own, so that it takes no time from
the interpreter of what it measures.

Run as `python -m rayhmr.benchmark_load FOLDER`; it sends the pictures of that folder. Each line of
its input is a Load as JSON, each line of its output the Measured of one. Standard library only.
"""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send for `seconds`: `connections` clients that ask again once they are answered, or
    requests at a fixed rate, which so many connections at most carry."""

    url: str
    connections: int
    seconds: float
    rate_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """latencies_ms: of every answer; at a fixed rate from when the request was due, so that waiting
    for a free connection counts. seconds: from the first request to the last answer."""

    latencies_ms: list[float]
    seconds: float
    statuses: dict[str, int]
    answer_bytes: int


class _Client:
    """One kept connection."""

    def __init__(self, url: str) -> None:
        split = urlsplit(url)
        self._place = (split.hostname or "127.0.0.1", split.port or 80)
        self._socket: socket.socket | None = None
        self.answer_bytes = 0

    def ask(self, request: bytes) -> str:
        """Status of the answer; the error's name where there was none."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._place, TIMEOUT_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            return self._read(self._socket)
        except OSError as error:
            self.close()
            return type(error).__name__

    def _read(self, connection: socket.socket) -> str:
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._some(connection)
        head = bytes(received[:end]).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:])
        missing = end + 4 + int(fields.get("content-length", 0)) - len(received)
        while missing > 0:
            missing -= len(self._some(connection))
        self.answer_bytes = int(fields.get("content-length", 0))
        if fields.get("connection") == "close":
            self.close()
        return head[0].split(" ")[1]

    def _some(self, connection: socket.socket) -> bytes:
        data = connection.recv(262144)
        if not data:
            raise ConnectionResetError("closed before the answer was whole")
        return data

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


class _Run:
    """One Load; its threads share the counters."""

    def __init__(self, load: Load, requests: list[bytes]) -> None:
        self._load, self._requests = load, requests
        self._numbers = itertools.count()  # one step of it cannot be divided between threads
        self._latencies: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._bytes = 0

    def measure(self) -> Measured:
        """Run it to its end."""
        self._start = time.perf_counter()
        threads = [threading.Thread(target=self._client) for _ in range(self._load.connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return Measured(
            latencies_ms=self._latencies, seconds=time.perf_counter() - self._start,
            statuses=dict(self._statuses), answer_bytes=self._bytes,
        )  # fmt: skip

    def _client(self) -> None:
        client = _Client(self._load.url)
        end = self._start + self._load.seconds
        while True:
            number = next(self._numbers)
            due = time.perf_counter()
            if self._load.rate_per_s is not None:
                due = self._start + number / self._load.rate_per_s
            if due >= end:
                break
            time.sleep(max(0.0, due - time.perf_counter()))
            status = client.ask(self._requests[number % len(self._requests)])
            self._latencies.append(1000 * (time.perf_counter() - due))
            self._statuses[status] += 1
            self._bytes = client.answer_bytes
        client.close()


def request_of(picture: bytes, host: str, accept: str = "application/json") -> bytes:
    """A whole HTTP request with one JPEG."""
    head = (
        f"POST /v1/predict HTTP/1.1\r\nhost: {host}\r\ncontent-type: image/jpeg\r\n"
        f"accept: {accept}\r\ncontent-length: {len(picture)}\r\n\r\n"
    )
    return head.encode() + picture


def main() -> None:
    """Loads from standard input, one a line, until it ends."""
    pictures = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.jpg"))]
    for line in sys.stdin:
        load = Load(**json.loads(line))
        requests = [request_of(picture, urlsplit(load.url).netloc) for picture in pictures]
        measured = _Run(load, requests).measure()
        sys.stdout.write(json.dumps(asdict(measured)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
