"""The guard alone, before an application that does nothing: keys, load, bodies, deadlines."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from itertools import product

import pytest

from hmr.errors import BundleError
from rayhmr.serve import bodies, guard, keys
from rayhmr.serve.guard import Guard, Limits
from rayhmr.serve.keys import digest_of

KEY, SECOND_KEY = "first-key-of-22-letters", "second-key-of-22-letters"
BEARER = (b"authorization", f"Bearer {KEY}".encode())


class Client:
    """One request at the ASGI level. chunks: bytes of the body, or seconds to wait between them.
    stays: it waits for the answer; otherwise it leaves after the last byte."""

    def __init__(self, path="/v1/predict", *, method="POST", headers=(), chunks=(), query="",
                 stays=True, kind="http"):  # fmt: skip
        self.scope = {
            "type": kind, "method": method, "path": path, "query_string": query.encode(),
            "headers": list(headers),
        }  # fmt: skip
        if chunks and not any(name == b"content-length" for name, _ in headers):
            self.scope["headers"].append((b"transfer-encoding", b"chunked"))
        self._left = list(chunks)
        self._answered = asyncio.Event()
        self._stays = stays
        self.sent_bytes = 0
        self.messages = []

    async def receive(self):
        while self._left and not isinstance(self._left[0], bytes):
            await asyncio.sleep(self._left.pop(0))
        if self._left or not self.sent_bytes:
            body = self._left.pop(0) if self._left else b""
            self.sent_bytes += len(body) or 1
            return {"type": "http.request", "body": body, "more_body": bool(self._left)}
        if self._stays:
            await self._answered.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.messages.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._answered.set()

    async def ask(self, app):
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self):
        return self.messages[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def code(self):
        body = b"".join(message.get("body", b"") for message in self.messages[1:])
        return json.loads(body)["type"].removeprefix("urn:rayhmr:")


class Quiet:
    """An application that reads the body, works for a while and says ok."""

    def __init__(self, works_s=0.0):
        self.works_s = works_s
        self.bodies, self.finished, self.cancelled = [], 0, 0

    async def __call__(self, scope, receive, send):
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        try:
            await asyncio.sleep(self.works_s if scope["method"] == "POST" else 0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
        self.finished += 1


def guarded(app, **limits):
    defaults = {"max_body_bytes": 1000, "request_timeout_s": 20.0, "max_requests": 8}
    return Guard(app, Limits(**(defaults | limits)))


def ask(app, *clients):
    async def all_of_them():
        return await asyncio.gather(*(client.ask(app) for client in clients))

    return asyncio.run(all_of_them())


def asked(app, path="/v1/predict", **client):
    async def one():
        return await Client(path, **client).ask(app)

    return asyncio.run(one())


WITHOUT_KEY = {
    "none": [],
    "wrong": [(b"authorization", b"Bearer wrong-key-of-22-letters-")],
    "beginning": [(b"authorization", b"Bearer first-key-of-22")],
    "longer": [(b"authorization", BEARER[1] + b"x")],
    "empty": [(b"authorization", b"Bearer ")],
    "basic": [(b"authorization", f"Basic {KEY}".encode())],
    "bare": [(b"authorization", KEY.encode())],
    "twice": [BEARER, BEARER],
    "right and wrong": [BEARER, (b"authorization", b"Bearer wrong")],
    "other header": [(b"x-api-key", KEY.encode()), (b"cookie", f"key={KEY}".encode())],
    "not ascii": [(b"authorization", b"Bearer \xff\xfe")],
}


PATHS = (
    "/v1/predict", "/v1/models", "/docs", "/openapi.json", "/metrics", "/-/routes", "/v2",
    "/nowhere", "//", "/static", "//static/page.js", "/healthz/", "/healthz/../v1/models",
    "/V1/health/live", "/readyz%2f..", "",
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE")


def test_nothing_but_health_and_the_page_opens_without_a_key():
    app = Quiet()

    def refused(path, method, headers):
        client = Client(path, method=method, headers=headers)
        return client.ask(guarded(app, key_digests=(digest_of(KEY),)))

    async def all_of_them():
        return await asyncio.gather(
            *(refused(*case) for case in product(PATHS, METHODS, WITHOUT_KEY.values()))
        )

    for answer in asyncio.run(all_of_them()):
        assert (answer.status, answer.code) == (401, "unauthorized"), answer.scope
        assert answer.headers["www-authenticate"] == "Bearer"
    assert app.bodies == []


@pytest.mark.parametrize(
    "query", [f"key={KEY}", f"API_KEY={KEY}", "x=1&token=", "access%5Ftoken=a"]
)
def test_a_key_in_the_address_is_refused_even_beside_a_right_one(query):
    app = guarded(Quiet(), key_digests=(digest_of(KEY),))
    assert asked(app, headers=[BEARER], query=query).code == "unauthorized"
    assert asked(app, headers=[BEARER], query="boxes=[]&n_iter=3").status == 200


def test_health_and_the_page_need_no_key_and_each_key_opens_the_rest():
    app = guarded(Quiet(), key_digests=(digest_of(KEY), digest_of(SECOND_KEY)))
    for path in ("/", "/healthz", "/readyz", "/v1/health/live", "/v1/health/ready",
                 "/static/page.js"):  # fmt: skip
        assert asked(app, path, method="GET").status == 200
    for key in (KEY, SECOND_KEY):
        header = (b"authorization", f"bearer {key}".encode())
        assert asked(app, "/v1/models", method="GET", headers=[header]).status == 200


def test_the_time_of_a_comparison_depends_on_no_key(monkeypatch):
    compared = []
    original = keys.hmac.compare_digest
    monkeypatch.setattr(
        keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or original(a, b)
    )
    known = tuple(map(digest_of, (KEY, SECOND_KEY, "third-key-of-22-letters")))
    app = guarded(Quiet(), key_digests=known)
    for given in (KEY, "third-key-of-22-letters", "a"):
        compared.clear()
        asked(app, headers=[(b"authorization", f"Bearer {given}".encode())])
        assert compared == [(digest_of(given), digest) for digest in known]


def test_load_beyond_the_limit_is_told_to_come_again():
    app = Quiet(works_s=0.2)
    answers = ask(guarded(app, max_requests=3), *(make() for make in [Client] * 10))
    assert sorted(a.status for a in answers) == [200] * 3 + [429] * 7
    for refused in (a for a in answers if a.status == 429):
        assert refused.code == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1
    assert app.finished == 3


def test_one_key_leaves_room_for_another():
    app = guarded(
        Quiet(works_s=0.2), max_requests=6, max_requests_per_key=4,
        key_digests=(digest_of(KEY), digest_of(SECOND_KEY)),
    )  # fmt: skip

    async def crowd():
        greedy = [Client(headers=[BEARER]) for _ in range(6)]
        other = Client(headers=[(b"authorization", f"Bearer {SECOND_KEY}".encode())])
        await asyncio.gather(*(client.ask(app) for client in [*greedy, other]))
        return [client.status for client in greedy], other.status

    greedy, other = asyncio.run(crowd())
    assert (greedy, other) == ([200] * 4 + [429] * 2, 200)


def test_places_are_given_back_however_a_request_ends(monkeypatch):
    async def fails(scope, receive, send):
        raise RuntimeError("for the log only")

    app = guarded(fails, max_requests=1)
    assert [asked(app).status for _ in range(3)] == [500] * 3
    app = guarded(Quiet(works_s=30), max_requests=1, request_timeout_s=0.02)
    assert [asked(app).code for _ in range(3)] == ["deadline"] * 3
    app = guarded(Quiet(), max_requests=1)
    assert [asked(app, chunks=[bytes(600), bytes(600)]).status for _ in range(3)] == [413] * 3
    app = guarded(Quiet(works_s=30), max_requests=1)
    assert [asked(app, stays=False).messages for _ in range(3)] == [[]] * 3


@pytest.mark.parametrize("length", ["-1", "+5", "1e3", "0x10", "", "5, 5", "٣", "9" * 5000, "1 "])
def test_a_strange_length_is_refused(length):
    app = Quiet()
    header = (b"content-length", length.encode())
    refused = asked(guarded(app), headers=[header], chunks=[b"12345"])
    assert refused.code in ("content_length", "body_too_large")
    assert refused.status in (400, 413)
    assert app.bodies == []


def test_two_lengths_are_refused():
    headers = [(b"content-length", b"5"), (b"content-length", b"5")]
    assert asked(guarded(Quiet()), headers=headers, chunks=[b"12345"]).code == "content_length"


def test_an_announced_body_is_refused_before_a_byte_of_it_is_read():
    class Shy(Client):
        async def receive(self):
            assert self.messages, "nothing is read before the answer"
            return await super().receive()

    app = Quiet()

    async def one():
        return await Shy(headers=[(b"content-length", b"1001")], chunks=[bytes(1001)]).ask(
            guarded(app)
        )

    refused = asyncio.run(one())
    assert (refused.status, refused.code) == (413, "body_too_large")
    assert refused.headers["connection"] == "close"
    assert app.bodies == []


def test_a_body_that_is_not_announced_is_stopped_at_its_limit():
    app = Quiet()

    class Endless(Client):
        async def receive(self):
            self.sent_bytes += 100
            await asyncio.sleep(0)
            return {"type": "http.request", "body": bytes(100), "more_body": True}

        async def send(self, message):
            self.messages.append(message)
            self.read_before = getattr(self, "read_before", self.sent_bytes)

    async def one():
        return await Endless(headers=[(b"transfer-encoding", b"chunked")]).ask(guarded(app))

    refused = asyncio.run(one())
    assert (refused.status, refused.code) == (413, "body_too_large")
    assert refused.read_before == 1100
    assert app.bodies == []
    assert refused.headers["connection"] == "close"


def test_what_a_refused_client_still_sends_is_read_for_a_short_time_only(monkeypatch):
    monkeypatch.setattr(bodies, "_DRAIN_S", 0.05)
    app = guarded(Quiet(), key_digests=(digest_of(KEY),))
    refused = asked(app, chunks=[b"1"] * 5)
    assert (refused.status, refused.sent_bytes) == (401, 5)
    refused = asked(app, chunks=[b"1", 60.0, b"1"])
    assert (refused.status, refused.sent_bytes) == (401, 1)


def test_a_body_that_trickles_ends_after_its_grace(monkeypatch):
    monkeypatch.setattr(bodies, "GRACE_S", 0.1)
    monkeypatch.setattr(bodies, "_DRAIN_S", 0.01)
    app = Quiet()
    slow = asked(guarded(app), chunks=[b"1", 0.03] * 20 + [b"1"])
    assert (slow.status, slow.code) == (408, "slow_body")
    assert slow.headers["connection"] == "close"
    assert app.bodies == []
    monkeypatch.setattr(bodies, "MIN_BYTES_PER_S", 1000)
    steady = asked(guarded(app), chunks=[bytes(100), 0.03] * 6 + [bytes(100)])
    assert steady.status == 200, "0.2 s is longer than the grace, but the rate is kept"
    assert app.bodies == [bytes(700)]


def test_no_header_of_a_client_lifts_the_deadline():
    app = Quiet(works_s=30)
    guard_ = guarded(app, request_timeout_s=0.1)
    for value in (b"0", b"1e9", b"nan", b"inf", b"-1", b"x"):
        late = asked(guard_, headers=[
            (b"x-request-timeout-seconds", value), (b"x-request-disconnect-disabled", b"?1"),
            (b"serve_multiplexed_model_id", b"../../x"), (b"grpc-timeout", b"99H"),
        ])  # fmt: skip
        assert (late.status, late.code) == (408, "deadline")
    assert (app.finished, app.cancelled) == (0, 6)


def test_a_slow_body_does_not_move_the_deadline(monkeypatch):
    monkeypatch.setattr(bodies, "GRACE_S", 60.0)
    monkeypatch.setattr(bodies, "_DRAIN_S", 0.01)
    late = asked(guarded(Quiet(), request_timeout_s=0.1), chunks=[b"1", 0.02] * 50)
    assert (late.status, late.code) == (408, "deadline")


def test_nobody_works_for_a_client_that_has_gone():
    app = Quiet(works_s=30)
    gone = ask(guarded(app, max_requests=100), *(Client(stays=False) for _ in range(100)))
    assert all(client.messages == [] for client in gone)
    assert (app.finished, app.cancelled) == (0, 100)


def test_nothing_is_left_behind_by_requests():
    async def tasks_after():
        app = guarded(Quiet())
        for chunks in ([], [b"1"], [bytes(600), bytes(600)]):
            await Client(chunks=chunks).ask(app)
        for _ in range(5):
            await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(tasks_after()) == set()


@pytest.mark.parametrize(
    "given", ["x" * 10_000, "a b", "a\r\nset-cookie: b", "../../etc", "ü", "", "x" * 65]
)
def test_only_a_harmless_request_id_comes_back(given):
    async def fails(scope, receive, send):
        raise RuntimeError

    def id_of(value):
        answer = asked(guarded(fails), headers=[(b"x-request-id", value.encode())])
        return json.loads(answer.messages[1]["body"])["request_id"]

    assert id_of("abc-1.2_3") == "abc-1.2_3"
    made = id_of(given)
    assert len(made) == 32
    assert made.isalnum()


def test_every_answer_has_safe_headers_and_its_own_win():
    async def cached(scope, receive, send):
        headers = [(b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})

    own = asked(guarded(cached), method="GET")
    assert own.headers["cache-control"] == "max-age=60"
    refused = asked(guarded(cached, key_digests=(digest_of(KEY),)))
    assert refused.headers["cache-control"] == "no-store"
    for answer in (own, refused):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not {"access-control-allow-origin", "server"} & set(answer.headers)


def test_errors_tell_the_log_and_not_the_client(caplog):
    image = b"the bytes of a private picture"

    async def fails(scope, receive, send):
        await receive()
        raise BundleError("/srv/models/hmr: sha256 is wrong")

    app = guarded(fails, key_digests=(digest_of(KEY),))
    with caplog.at_level(logging.DEBUG):
        answer = asked(app, headers=[BEARER], chunks=[image])
    assert (answer.status, answer.code) == (500, "internal")
    said = b"".join(message.get("body", b"") for message in answer.messages).decode()
    for secret in ("/srv", "Traceback", "guard.py", "sha256", KEY):
        assert secret not in said
    assert "sha256 is wrong" in caplog.text
    assert json.loads(said)["request_id"] in caplog.text
    assert KEY not in caplog.text
    assert image.decode() not in caplog.text


def test_websockets_are_refused():
    app = Quiet()
    assert asked(guarded(app), kind="websocket").messages == [
        {"type": "websocket.close", "code": 1008}
    ]
    assert app.bodies == []


@pytest.mark.parametrize(("host", "origin", "expected"), [
    ("127.0.0.1:8000", None, 200), ("localhost", None, 200), ("[::1]:8000", None, 200),
    ("localhost:8000", "http://localhost:8000", 200),
    ("evil.example:8000", None, 403), ("127.0.0.1.evil.example", None, 403), ("", None, 403),
    ("localhost.evil.example", None, 403), ("[::1", None, 403), ("10.0.0.1", None, 403),
    ("localhost:8000", "https://evil.example", 403), ("localhost:8000", "null", 403),
    ("localhost:8000", "http://localhost:3000", 403), ("localhost:8000", "http://[", 403),
])  # fmt: skip
def test_without_a_key_pages_of_other_sites_reach_nothing(host, origin, expected):
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    app = guarded(Quiet(), local_only=True)
    assert asked(app, headers=headers).status == expected
    assert asked(guarded(Quiet()), headers=headers).status == 200


def test_an_answer_that_fails_half_way_is_not_followed_by_another():
    async def fails(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    async def one():
        client = Client(method="GET")
        with suppress(RuntimeError):
            await client.ask(guarded(fails))
        return client.messages

    assert [message["type"] for message in asyncio.run(one())] == ["http.response.start"]


def test_health_and_refusals_are_not_queued_behind_load():
    app = Quiet(works_s=0.3)

    async def crowd():
        guard_ = guarded(app, max_requests=1)
        busy = asyncio.create_task(Client().ask(guard_))
        await asyncio.sleep(0)
        health = await Client(guard.LIVE_PATHS[0], method="GET").ask(guard_)
        refused = await Client().ask(guard_)
        return health.status, refused.status, (await busy).status

    assert asyncio.run(crowd()) == (200, 429, 200)
