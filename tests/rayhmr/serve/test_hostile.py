"""A real server among hostile clients: it refuses them in time, and the others notice nothing."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

KEY = "a-key-of-more-than-22-letters"
BEARER = {"authorization": f"Bearer {KEY}"}
AUTHORIZED = f"Authorization: Bearer {KEY}\r\n"


class Server:
    def __init__(self, bundle, log):
        self.log = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("hostile_server.py"), bundle, KEY],
                stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip
        self.port = int(self.process.stdout.readline())
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", headers=BEARER, timeout=60, trust_env=False
        )

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def predict(self, content, kind="image/jpeg", **headers):
        return self.client.post(
            "/v1/predict", content=content, headers={"content-type": kind} | headers
        )

    def status_mb(self, name):
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{name}:"))
        return int(line.split()[1]) / 1000

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self.status_mb("VmRSS")


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory, photo):
    server = Server(bundle, tmp_path_factory.mktemp("server") / "log")
    for _ in range(3):
        assert server.predict(photo).status_code == 200
    yield server
    server.client.close()
    server.process.terminate()
    server.process.wait(30)
    server.process.stdout.close()


def read_all(connection):
    """What the server says until it closes the connection."""
    said = b""
    try:
        while part := connection.recv(65536):
            said += part
    except ConnectionResetError:
        pass
    return said


def head(length, kind="image/jpeg"):
    return (
        f"POST /v1/predict HTTP/1.1\r\nHost: x\r\n{AUTHORIZED}Content-Type: {kind}\r\n"
        f"{length}\r\n\r\n"
    ).encode()


def test_half_a_head_is_not_waited_for(server, photo):
    connections = [server.connect() for _ in range(50)]
    for number, connection in enumerate(connections):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-"[: number % 38])
    assert server.predict(photo).status_code == 200, "the others are served meanwhile"
    for connection in connections:
        said = read_all(connection)
        assert said.startswith(b"HTTP/1.1 408 ")
        connection.close()


def test_a_head_that_trickles_or_never_ends_is_refused(server):
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        stopped = threading.Event()

        def trickle():
            try:
                while not stopped.wait(0.05):
                    connection.sendall(b"a")
            except OSError:
                pass

        thread = threading.Thread(target=trickle)
        thread.start()
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        stopped.set()
        thread.join()
    with server.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n" + b"X-A: b\r\n" * 10_000)
        assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_a_body_of_a_byte_now_and_then_is_refused(server, photo):
    connections = [server.connect() for _ in range(10)]
    for connection in connections:
        connection.sendall(head(f"Content-Length: {len(photo)}") + photo[:10])
    assert server.predict(photo).status_code == 200
    for connection in connections:
        for byte in photo[10:13]:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
    for connection in connections:
        said = read_all(connection)
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"urn:rayhmr:slow_body" in said
        assert b"connection: close" in said.lower()
        connection.close()


def test_a_client_that_does_not_read_its_answer_is_cut_off(server, photo):
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", server.port))
        request = head(f"Content-Length: {len(photo)}").replace(
            b"/v1/predict", b"/v1/predict?include=vertices,iterations"
        )
        for _ in range(20):
            connection.sendall(request + photo)
        time.sleep(2.5)  # longer than the server's patience
        said = read_all(connection)
    assert 0 < said.count(b"HTTP/1.1 200 ") < 20


def big_body(server, length):
    """What the server says to 50 MB, sent in spite of everything; nothing when it hung up."""
    with server.connect() as connection:
        try:
            connection.sendall(head(length))
            for _ in range(50):
                data = bytes(1_000_000)
                if "chunked" in length:
                    data = b"f4240\r\n" + data + b"\r\n"
                connection.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return read_all(connection)


@pytest.mark.parametrize("length", ["Content-Length: 50000000", "Transfer-Encoding: chunked"])
def test_a_body_of_50_mb_is_not_kept(server, length):
    before = server.forget_peak()
    said = big_body(server, length)
    assert said.startswith(b"HTTP/1.1 413 ") or said == b""
    assert server.status_mb("VmHWM") - before < 100


def test_an_announced_body_too_large_is_refused_before_it_is_sent(server):
    with server.connect() as connection:
        connection.sendall(head("Content-Length: 50000000\r\nExpect: 100-continue"))
        said = read_all(connection)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in said


@pytest.mark.parametrize("lengths", [
    "Content-Length: -1", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 5, 6",
    "Content-Length: 99999999999999999999999", "Content-Length: 0x10",
    "Content-Length: 5\r\nTransfer-Encoding: chunked", "Transfer-Encoding: gzip, x",
])  # fmt: skip
def test_lengths_that_could_be_read_in_two_ways_are_refused(server, lengths):
    with server.connect() as connection:
        connection.sendall(head(lengths) + b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        said = read_all(connection)
    assert said.count(b"HTTP/1.1 ") == 1, said
    assert said.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")), said


def deep(marks, depth):
    return b'{"image": ' + marks * depth


HOSTILE_BODIES = {
    "deep lists": (deep(b"[", 10_000), "application/json", 400),
    "deep objects": (deep(b'{"a":', 10_000), "application/json", 400),
    "many lists": (b'{"boxes": [' + b"[]," * 6_000_000 + b"[]]}", "application/json", 400),
    "many names": (b"{" + b'"a":1,' * 3_000_000 + b'"b":1}', "application/json", 400),
    "a long number": (b'{"n_iter": ' + b"9" * 1_000_000 + b"}", "application/json", 400),
    "no number": (b'{"n_iter": NaN, "image": {"b64": ""}}', "application/json", 422),
    "infinite": (b'{"boxes": [[0,0,1e999,9]], "image": {"b64": ""}}', "application/json", 422),
    "an address": (b'{"image": {"url": "http://127.0.0.1/"}}', "application/json", 422),
    "half a surrogate": (b'{"model": "\\ud800", "image": {"b64": ""}}', "application/json", 404),
    "not text": (b"\xff\xfe\x00{", "application/json", 400),
    "no boundary": (b"--x\r\n\r\n", "multipart/form-data", 400),
    "broken form": (b"--x\r\nContent-Disposition: form-data\r\n", "multipart/form-data; boundary=x",
                    400),
    "many parts": (b"--x\r\nContent-Disposition: form-data; name=boxes\r\n\r\n[]\r\n" * 20_000,
                   "multipart/form-data; boundary=x", 400),
    "many headers of a part": (b"--x\r\n" + b"A: b\r\n" * 500_000,
                               "multipart/form-data; boundary=x", 400),
    "a large field": (b"--x\r\nContent-Disposition: form-data; name=boxes\r\n\r\n"
                      + b"[" * 5_000_000 + b"\r\n--x--\r\n", "multipart/form-data; boundary=x",
                      400),
    "pickle": (b"\x80\x04\x95", "application/x-pickle", 415),
    "yaml": (b"!!python/object/apply:os.system [id]", "application/yaml", 415),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_BODIES)
def test_hostile_bodies_are_refused_in_bounded_memory(server, name):
    content, kind, status = HOSTILE_BODIES[name]
    before = server.forget_peak()
    answer = server.predict(content, kind)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert server.status_mb("VmHWM") - before < 100
    for secret in ("Traceback", "site-packages", "/rayhmr/", ".py", KEY):
        assert secret not in answer.text


def picture(size, kind, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def with_size(png, width, height):
    start = struct.pack(">II", width, height)
    header = png[12:16] + start + png[24:29]
    return png[:16] + start + png[24:29] + struct.pack(">I", zlib.crc32(header)) + png[33:]


PICTURES = {
    "a bomb": (lambda: with_size(picture((64, 64), "PNG"), 14_000, 14_000), 413),
    "a smaller bomb": (lambda: with_size(picture((64, 64), "PNG"), 5_001, 5_000), 413),
    "65500 x 1": (lambda: picture((65_500, 1), "JPEG"), 422),
    "truncated": (lambda: picture((640, 480), "JPEG")[:900], 422),
    "GIF": (lambda: picture((64, 64), "GIF"), 415),
    "sixteen bits": (lambda: picture((64, 64), "PNG", "I;16"), 200),
    "25 megapixels": (lambda: picture((5_000, 5_000), "JPEG", "CMYK"), 200),
}


@pytest.mark.parametrize("name", PICTURES)
def test_hostile_pictures_are_answered_in_bounded_memory(server, name):
    make, status = PICTURES[name]
    content = make()
    before = server.forget_peak()
    answer = server.predict(content, "image/png")
    assert answer.status_code == status, answer.text
    limit_mb = 300 if name == "25 megapixels" else 100
    assert server.status_mb("VmHWM") - before < limit_mb


def test_disconnected_clients_leave_no_work_behind(server, photo):
    for _ in range(100):
        with server.connect() as connection:
            connection.sendall(head(f"Content-Length: {len(photo)}") + photo)
    answers = [server.predict(photo).status_code for _ in range(5)]
    assert answers == [200] * 5
    deadline = time.monotonic() + 60
    while open_files(server) > 40 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert open_files(server) <= 40, "connections are closed"


def open_files(server):
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_a_compressed_body_is_not_unpacked(server):
    packed = zlib.compress(bytes(20_000_000))
    for coding in ("gzip", "deflate", "br", "gzip, identity"):
        answer = server.predict(packed, **{"content-encoding": coding})
        assert (answer.status_code, answer.json()["type"]) == (415, "urn:rayhmr:content_encoding")


def test_addresses_of_pictures_are_not_visited(server):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.jpg"
        for image in (address, {"url": address}, {"b64": address}, {"href": address}, [address]):
            body = json.dumps({"image": image}).encode()
            assert server.predict(body, "application/json").status_code == 422
        form = server.client.post("/v1/predict", files={"image": (None, address)})
        assert form.status_code == 422
        assert server.predict(address.encode()).status_code == 415
        svg = f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{address}'/></svg>"
        assert server.predict(svg.encode()).status_code == 415
        with pytest.raises(TimeoutError):
            listener.accept()


def test_control_headers_have_no_effect_and_do_not_come_back(server, photo):
    plain = server.predict(photo)
    for name, value in (
        ("x-request-timeout-seconds", "0"), ("x-request-timeout-seconds", "nan"),
        ("x-request-disconnect-disabled", "?1"), ("serve_multiplexed_model_id", "../../x"),
        ("x-request-id", "../" * 3000), ("x-forwarded-for", "127.0.0.1"),
        ("x-http-method-override", "DELETE"),
    ):  # fmt: skip
        answer = server.predict(photo, **{name: value})
        assert answer.status_code == 200
        assert answer.json()["people"] == plain.json()["people"]
        said = f"{answer.headers} {answer.json()['request_id']}"
        assert len(value) < 6 or value not in said


def test_no_answer_names_the_server(server, photo):
    for answer in (server.predict(photo), server.predict(b"x"), server.client.get("/healthz"),
                   server.client.get("/nowhere")):  # fmt: skip
        assert "server" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_the_server_is_as_it_was(server, photo):
    """Whatever the order of the tests: it answers, and its log has neither keys nor pictures."""
    answer = server.predict(photo)
    assert answer.status_code == 200
    assert np.isfinite(answer.json()["people"][0]["joints_3d"]).all()
    log = server.log.read_text()
    assert KEY not in log
    assert base64.b64encode(photo)[:40].decode() not in log
    assert "Traceback" not in log
