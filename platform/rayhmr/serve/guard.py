"""What stands before every route: request id, API key, load, body size, deadline, safe headers.

The guard is plain ASGI and lives in the replica, so it holds whatever proxy stands in front. Every
refusal, and every error that a route lets through, leaves as application/problem+json.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayhmr.serve.bodies import Body, announced_length, drain, has_body
from rayhmr.serve.keys import Keyring, digest_of, too_often
from rayhmr.serve.problems import Problem, problem_of

__all__ = ["LIVE_PATHS", "READY_PATHS", "RETRY_AFTER_S", "Guard", "Limits", "digest_of"]

LIVE_PATHS = ("/v1/health/live", "/healthz")
READY_PATHS = ("/v1/health/ready", "/readyz")
RETRY_AFTER_S = 1
_OPEN = ("/", *LIVE_PATHS, *READY_PATHS, "/v2/health/live", "/v2/health/ready")
_OPEN_FOLDER = "/static/"
"""Open without a key: health, and the page itself, whose visitors type their key into it."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of every answer that does not say otherwise."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """max_requests: how many may be under way at once, max_requests_per_key: and of one key; the
    others get 429. rate_per_s: requests a second of one key; none: any. key_digests: `digest_of`
    each API key; none: everybody is let in. local_only: only under this machine's own names, and
    not by pages of other sites, which a browser on this machine may have open.
    """

    max_body_bytes: int
    request_timeout_s: float
    max_requests: int
    max_requests_per_key: int | None = None
    rate_per_s: float | None = None
    key_digests: tuple[bytes, ...] = ()
    local_only: bool = False


class Guard:
    """ASGI middleware that applies Limits."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._keyring = Keyring(limits.key_digests, limits.rate_per_s)
        self._under_way: Counter[int] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(receive, send, headers, request_id)
        try:
            await self._guarded(scope, headers, receive, answer)
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                _log.exception("request %s failed", request_id)
            if answer.started:
                raise
            await problem.response(request_id)(scope, receive, answer)

    async def _guarded(
        self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer
    ) -> None:
        if self._limits.local_only:
            _check_local(headers)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path in _OPEN or path.startswith(_OPEN_FOLDER):
            await self._timed(scope, headers, receive, answer)
            return
        key = self._keyring.admit(scope, headers)
        if scope["method"] in ("GET", "HEAD"):
            # Cheap ones: an overloaded service still says what it is.
            await self._timed(scope, headers, receive, answer)
            return
        with self._admitted(key):
            await self._timed(scope, headers, receive, answer)

    async def _timed(
        self, scope: Scope, headers: Headers, receive: Receive, answer: _Answer
    ) -> None:
        announced_length(headers)
        clock = _Clock(self._limits.request_timeout_s, answer)
        try:
            async with clock.timer:
                body = Body(receive, headers, self._limits.max_body_bytes, clock.expect_by,
                            clock.stop)  # fmt: skip
                answer.body = body
                try:
                    body.check_announced()
                    await self._app(scope, body, answer)
                finally:
                    body.close()
        except Exception as error:
            if clock.reason is None:
                return  # nobody is there any more to be answered
            if not (isinstance(error, TimeoutError) and clock.timer.expired()):
                raise
            raise clock.reason from error

    @contextmanager
    def _admitted(self, key: int) -> Iterator[None]:
        under_way, limit = self._under_way.total(), self._limits.max_requests
        if under_way >= limit:
            raise too_often(
                "overloaded", f"{under_way} requests are under way, the limit", RETRY_AFTER_S
            )
        own, limit_of_key = self._under_way[key], self._limits.max_requests_per_key
        if limit_of_key is not None and own >= limit_of_key:
            raise too_often(
                "rate_limited", f"{own} requests of this key are under way, its limit",
                RETRY_AFTER_S,
            )  # fmt: skip
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1


def _request_id(headers: Headers) -> str:
    """The client's, when it is short and harmless."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def _check_local(headers: Headers) -> None:
    """Refuse what a page of another site could make a browser on this machine send here."""
    host = headers.get("host", "")
    if not _is_local(host):
        raise Problem(
            403,
            "host",
            f"host {host:.60}: without a key this service answers under localhost and 127.0.0.1 "
            "only; give it a key to be reached by other names",
        )
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Problem(
            403, "origin", f"origin {origin:.60}: pages of other sites may not use this service"
        )


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname
        return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
    except ValueError:
        return False


class _Clock:
    """Ends a request at its deadline, when its body comes too slowly, or when its client has gone.

    No client can lift it: nothing in a request reaches it but how fast its bytes come.
    """

    def __init__(self, timeout_s: float, answer: _Answer) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + timeout_s
        self._answer = answer
        self._deadline = Problem(
            408, "deadline", f"no answer within {timeout_s:g} s; try again, with a smaller picture "
            "or fewer boxes",
        )  # fmt: skip
        self.timer = asyncio.timeout_at(self._end)
        self.reason: Problem | None = self._deadline
        """What the client is told when the timer has run out; none: it has gone."""

    def expect_by(self, when: float | None) -> None:
        """The body: more of it must come by `when`; none: it is complete."""
        if when is None or when >= self._end:
            self.reason = self._deadline
            self._set(self._end)
        else:
            self.reason = Problem(
                408, "slow_body", "the body comes too slowly; send a smaller picture, or try again "
                "over a better connection",
            )  # fmt: skip
            self._set(when)

    def stop(self) -> None:
        """The client has gone."""
        if not self._answer.ended:
            self.reason = None
            self._set(self._loop.time())

    def _set(self, when: float) -> None:
        with suppress(RuntimeError):  # it is running out already
            self.timer.reschedule(when)


class _Answer:
    """`send` that knows whether an answer has begun, and completes its headers.

    A body that was not read to its end is thrown away and its connection closed, so that nobody
    keeps one by sending without end.
    """

    def __init__(self, receive: Receive, send: Send, headers: Headers, request_id: str) -> None:
        self._receive, self._send, self._request_id = receive, send, request_id
        self._has_body = has_body(headers)
        self.body: Body | None = None
        self.started = self.ended = False

    async def __call__(self, message: Message) -> None:
        unread = self._has_body and not (self.body is not None and self.body.complete)
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self._request_id  # files cannot say it inside
            if unread:
                headers["connection"] = "close"
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.ended = True
            if unread:
                await self._send({**message, "more_body": True})
                await drain(self._receive)
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)
