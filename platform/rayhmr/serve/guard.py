"""What stands before every route: request id, API key, load, body size, deadline, safe headers.

The guard is plain ASGI and lives in the replica, so it holds whatever proxy stands in front. Every
refusal, and every error that a route lets through, leaves as application/problem+json.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayhmr.serve.problems import Problem, problem_of

LIVE_PATHS = ("/v1/health/live", "/healthz")
READY_PATHS = ("/v1/health/ready", "/readyz")
RETRY_AFTER_S = 1
_OPEN = ("/", *LIVE_PATHS, *READY_PATHS)
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


def digest_of(key: str) -> bytes:
    """What is kept of an API key, so that the key itself is in no process list, state or log."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """max_requests: how many may be under way at once, the others get 429. key_digest: `digest_of`
    the API key; none: everybody is let in."""

    max_body_bytes: int
    request_timeout_s: float
    max_requests: int
    key_digest: bytes | None = None


class Guard:
    """ASGI middleware that applies Limits."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send)
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
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not (path in _OPEN or path.startswith(_OPEN_FOLDER)):
            self._check_key(headers)
        if scope["method"] in ("GET", "HEAD"):
            # Cheap ones: an overloaded service still says that it lives.
            await self._app(scope, receive, answer)
            return
        body = _Body(receive, self._limits.max_body_bytes)
        body.check_announced(headers)
        with self._admitted():
            try:
                async with asyncio.timeout(self._limits.request_timeout_s) as deadline:
                    await self._app(scope, body, answer)
            except TimeoutError as error:
                if not deadline.expired():
                    raise
                raise Problem(
                    408,
                    "deadline",
                    f"no answer within {self._limits.request_timeout_s:g} s; try again, with a "
                    "smaller picture or fewer boxes",
                ) from error

    def _check_key(self, headers: Headers) -> None:
        digest = self._limits.key_digest
        if digest is None:
            return
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest_of(key.strip()), digest):
            raise Problem(
                401,
                "unauthorized",
                "this service needs its key in one header, Authorization: Bearer <key>",
                headers={"WWW-Authenticate": "Bearer"},
            )

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        if self._under_way >= self._limits.max_requests:
            raise Problem(
                429,
                "overloaded",
                f"{self._under_way} requests are under way, which is the limit; try again in "
                f"{RETRY_AFTER_S} s",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1


def _request_id(headers: Headers) -> str:
    """The client's, when it is short and harmless."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


class _Body:
    """`receive` that stops a body at its limit, announced or not."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._seen = 0

    def check_announced(self, headers: Headers) -> None:
        """Refuse by Content-Length, before a byte is read."""
        lengths = headers.getlist("content-length")
        if len(lengths) > 1 or not all(text.isascii() and text.isdecimal() for text in lengths):
            raise Problem(
                400,
                "content_length",
                f"content-length {', '.join(lengths):.60}: must be one whole number of bytes",
            )
        if lengths:
            self._check(int(lengths[0]))

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._check(self._seen)
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise Problem(
                413,
                "body_too_large",
                f"the body has {size:,} bytes or more; at most {self._limit:,} are accepted, "
                "shrink the picture",
            )


class _Answer:
    """`send` that knows whether an answer has begun, and completes its headers."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await self._send(message)
