"""A request's body on its way in: how large, how slow, and whether anybody waits for the answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from rayhmr.serve.problems import Problem

GRACE_S = 5.0
"""A body may take this long whatever its size ..."""
MIN_BYTES_PER_S = 16_000
"""... and longer while it keeps up this rate, which a weak mobile connection does."""
_LENGTH = re.compile(r"[0-9]{1,18}")
_DRAIN_S = 1.0
"""How long a refused body is still read and thrown away. A client that is cut off while it sends
sees a broken connection instead of the refusal."""


class Body:
    """`receive` that stops a body at its limit, announced or not.

    on_progress: called with the loop time by which more bytes are expected, and with none once the
    body is complete. on_disconnect: called when the client has gone.
    """

    def __init__(
        self,
        receive: Receive,
        headers: Headers,
        limit: int,
        on_progress: Callable[[float | None], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        self._receive, self._limit = receive, limit
        self._on_progress, self._on_disconnect = on_progress, on_disconnect
        self._seen = 0
        self._start = asyncio.get_running_loop().time()
        self.complete = not has_body(headers)
        self._watch: asyncio.Task[None] | None = None
        self._announced = announced_length(headers)
        if not self.complete:
            on_progress(self._start + GRACE_S)

    def check_announced(self) -> None:
        """Refuse by Content-Length, before a byte is read."""
        if self._announced is not None:
            self._check(self._announced)

    async def __call__(self) -> Message:
        if self._watch is not None:
            await asyncio.shield(self._watch)
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.complete = True
            self._on_disconnect()
            return message
        self._seen += len(message.get("body", b""))
        self._check(self._seen)
        if message.get("more_body", False):
            self._on_progress(self._start + GRACE_S + self._seen / MIN_BYTES_PER_S)
        else:
            self.complete = True
            self._on_progress(None)
            self._watch = asyncio.create_task(self._until_disconnect())
        return message

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise Problem(
                413,
                "body_too_large",
                f"the body has {size:,} bytes or more; at most {self._limit:,} are accepted, "
                "shrink the picture",
            )

    async def _until_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._on_disconnect()

    def close(self) -> None:
        """Stop to watch the connection."""
        if self._watch is not None:
            self._watch.cancel()


def announced_length(headers: Headers) -> int | None:
    """The Content-Length; Problem 400 for more than one or a strange one."""
    lengths = headers.getlist("content-length")
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(text) for text in lengths):
        raise Problem(
            400,
            "content_length",
            f"content-length {', '.join(lengths):.60}: must be one whole number of bytes",
        )
    return int(lengths[0]) if lengths else None


def has_body(headers: Headers) -> bool:
    """Whether a request comes with a body, by its headers."""
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


async def drain(receive: Receive) -> None:
    """Read what is left of a refused body, for a short time."""
    try:
        async with asyncio.timeout(_DRAIN_S):
            while (message := await receive())["type"] == "http.request":
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return
