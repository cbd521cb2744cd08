"""The load generator of `benchmark.py serve`, against a server that counts."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rayhmr.benchmark_load import Load, _Run, request_of


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            self.server.bodies.append(body)
            time.sleep(0.02)
            self.send_response(503 if body == b"bad" else 200)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"12345")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.bodies = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(server, pictures, **load):
    url = f"http://127.0.0.1:{server.server_address[1]}"
    requests = [request_of(picture, "127.0.0.1") for picture in pictures]
    return _Run(Load(url=url, **load), requests).measure()


def test_every_request_is_answered_counted_and_takes_the_pictures_in_turn(server):
    measured = run(server, [b"good", b"bad"], connections=2, seconds=0.3)
    count = len(server.bodies)
    assert len(measured.latencies_ms) == count == sum(measured.statuses.values())
    assert measured.statuses["503"] == server.bodies.count(b"bad")
    assert abs(server.bodies.count(b"bad") - count / 2) <= 1
    assert min(measured.latencies_ms) >= 20
    assert measured.answer_bytes == 5


def test_at_a_fixed_rate_waiting_for_a_connection_counts(server):
    # 100 a second over one connection that carries at most 50: the last ones are late by the rest.
    measured = run(server, [b"good"], connections=1, seconds=0.4, rate_per_s=100)
    assert len(measured.latencies_ms) == 40
    assert max(measured.latencies_ms) >= 1000 * (40 * 0.02 - 0.4)
