"""Messages between the process that answers HTTP and those that hold models, over a Unix socket.

A message is a tree of JSON and named arrays of numbers, whose bytes follow it as they lie in
memory. Nothing that is read can name code, and every length is checked before it is believed.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

_PREFIX = struct.Struct("<IQ")
"""Bytes of the JSON head, and of the arrays."""
_MAX_HEAD = 64_000_000
_MAX_ARRAYS = 2_000_000_000
_DTYPES = ("|u1", "|b1", "<i8", "<f4", "<f8")

Arrays = dict[str, np.ndarray]


def pack(tree: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[bytes | memoryview]:
    """The parts of one message, to be sent in their order."""
    solid = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    kinds = [[name, array.dtype.str, array.shape] for name, array in solid.items()]
    head = json.dumps([tree, kinds]).encode()
    total = sum(array.nbytes for array in solid.values())
    body = [array.data.cast("B") for array in solid.values() if array.size]
    return [_PREFIX.pack(len(head), total) + head, *body]


def _unpack(head: bytes, body: bytes | bytearray) -> tuple[dict[str, Any], Arrays]:
    tree, kinds = json.loads(head)
    arrays: Arrays = {}
    start = 0
    for name, dtype, shape in kinds:
        if dtype not in _DTYPES:
            raise ValueError(f"array {name} of kind {dtype!r:.20} in a message")
        count = math.prod(shape)
        arrays[name] = np.frombuffer(body, dtype, count, start).reshape(shape) if count else (
            np.zeros(shape, dtype)
        )  # fmt: skip
        start += arrays[name].nbytes
    return tree, arrays


def _checked_lengths(prefix: bytes | bytearray) -> tuple[int, int]:
    head, total = _PREFIX.unpack(prefix)
    if head > _MAX_HEAD or total > _MAX_ARRAYS:
        raise ValueError(f"a message of {head} and {total} bytes")
    return head, total


def send(connection: socket.socket, tree: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write one message; OSError when the other side has gone."""
    # In one piece: every part of its own would wake the other side once more.
    connection.sendall(b"".join(pack(tree, arrays)))


def receive(connection: socket.socket) -> tuple[dict[str, Any], Arrays] | None:
    """Wait for one message; none when the other side has closed the connection."""
    prefix = _exactly(connection, _PREFIX.size)
    if prefix is None:
        return None
    head, total = _checked_lengths(prefix)
    content = _exactly(connection, head + total)
    if content is None:
        return None
    return _unpack(bytes(content[:head]), content[head:])


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            return None
        view = view[count:]
    return content


async def write(
    writer: asyncio.StreamWriter, tree: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """`send` in an event loop."""
    writer.writelines(pack(tree, arrays))
    await writer.drain()


async def read(reader: asyncio.StreamReader) -> tuple[dict[str, Any], Arrays]:
    """`receive` in an event loop; IncompleteReadError when the other side has closed."""
    head, total = _checked_lengths(await reader.readexactly(_PREFIX.size))
    return _unpack(await reader.readexactly(head), await reader.readexactly(total))
