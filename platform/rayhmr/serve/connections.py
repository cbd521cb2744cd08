"""Connections that say nothing, or never come to an end, are closed: uvicorn alone keeps them.

uvicorn waits for the head of a request as long as the client likes, takes a head of any size, and
never gives up on a client that does not read. `Connection` is its protocol with these three limits;
`uvicorn_options` are all settings that a server of ours has.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0
"""From a connection, or the first byte of a further request, to the end of the request's head."""
HEAD_BYTES = 64_000
READ_S = 10.0
MIN_BYTES_PER_S = 1000
"""A client that takes less than this of an answer, on average over READ_S, is cut off."""
KEEP_ALIVE_S = 30
MAX_CONNECTIONS = 1000
"""More than that at once get 503 before the guard sees them."""


def uvicorn_options() -> dict[str, Any]:
    """Keyword arguments of uvicorn.Config: limits, no Server header, no WebSockets, no log of
    addresses, and no trust in X-Forwarded headers."""
    return {
        "http": Connection,
        "ws": "none",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": KEEP_ALIVE_S,
        "limit_concurrency": MAX_CONNECTIONS,
    }


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 connection, with an end to its patience."""

    head_s = HEAD_S
    read_s = READ_S

    _head_timer: asyncio.TimerHandle | None = None
    _read_timer: asyncio.TimerHandle | None = None
    _head_size = 0
    _running: Any = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop(self._head_timer)
        self._stop(self._read_timer)
        self._forget_client()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_size += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_size > HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop(self._head_timer)
        self._head_timer = None
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop(self._read_timer)

    def _await_head(self) -> None:
        self._head_size = 0
        self._head_timer = self.loop.call_later(self.head_s, self._stop_waiting)

    def _stop_waiting(self) -> None:
        if self._is_answering():
            # This head was begun behind an answer under way, which has to come first.
            self._await_head()
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: HTTPStatus) -> None:
        if not self._is_answering():
            self.transport.write(
                f"HTTP/1.1 {status.value} {status.phrase}\r\n"
                "content-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
        self.transport.close()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _forget_client(self) -> None:
        """uvicorn tells only the newest of several requests, and the others would write on."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._read_timer = self.loop.call_later(self.read_s, self._check_reader, left)

    def _check_reader(self, before: int) -> None:
        if before - self.transport.get_write_buffer_size() < MIN_BYTES_PER_S * self.read_s:
            self._forget_client()
            self.transport.abort()
        else:
            self._watch_reader()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
