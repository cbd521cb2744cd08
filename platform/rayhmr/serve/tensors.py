"""Tensors of the Open Inference Protocol: as JSON lists, or as raw bytes after the JSON.

The binary form is the protocol's extension: the header `inference-header-content-length` says how
many bytes are JSON, and the tensors follow in their order, little-endian; each element of a BYTES
tensor has its length before it as u32.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rayhmr.serve.intake import check_parts
from rayhmr.serve.problems import Problem

HEADER_LENGTH = "inference-header-content-length"
DTYPES = {"UINT8": "u1", "INT32": "<i4", "INT64": "<i8", "FP32": "<f4", "FP64": "<f8"}
MAX_TENSORS = 32
_BYTES = "BYTES"
_MAX_JSON_PARTS = 500_000
"""Lists, objects and texts; a picture as nested lists has a list for each pixel."""


class _Part(BaseModel):
    """Parts may hold more than we know, as the protocol has it."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field(max_length=100)
    parameters: dict[str, Any] = Field(default_factory=dict)


class InputTensor(_Part):
    shape: list[int] = Field(max_length=4)
    datatype: str = Field(max_length=10)
    data: Any = None


class InferRequest(BaseModel):
    """The JSON of a request. id: comes back. outputs: names of the wanted ones; none: all small."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = Field(None, max_length=200)
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InputTensor] = Field(min_length=1, max_length=MAX_TENSORS)
    outputs: list[_Part] | None = Field(None, max_length=MAX_TENSORS)


Tensors = dict[str, np.ndarray | bytes]
"""Inputs by name: arrays, and of a BYTES tensor its one element."""


def read_infer(body: bytes, header_length: str | None) -> tuple[InferRequest, Tensors]:
    """A request and its tensors; Problem 400 or 422 says what is wrong."""
    content, rest = _split(body, header_length)
    check_parts(content, b'[{"', _MAX_JSON_PARTS)
    try:
        request = InferRequest.model_validate(json.loads(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _wrong(place, f"{first['msg']}; see the Open Inference Protocol") from error
    except (ValueError, RecursionError) as error:
        raise Problem(
            400, "malformed_json", f"the request is not valid JSON ({error!s:.80}); correct it"
        ) from error
    tensors: Tensors = {}
    for tensor in request.inputs:
        if tensor.name in tensors:
            raise _wrong(tensor.name, "is given twice; give it once")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            tensors[tensor.name] = _from_json(tensor)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(rest):
            raise _wrong(tensor.name, f"binary_data_size={size!r:.20}: {len(rest)} bytes are left")
        tensors[tensor.name] = _from_bytes(tensor, rest[:size])
        rest = rest[size:]
    if rest:
        raise _wrong(
            "inputs", f"{len(rest)} bytes belong to none of them; correct binary_data_size"
        )
    return request, tensors


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    if header_length is None:
        return body, b""
    known = header_length.isascii() and header_length.isdecimal() and len(header_length) < 12
    if not known or int(header_length) > len(body):
        raise Problem(
            400,
            "header_length",
            f"{HEADER_LENGTH}={header_length:.20}: must be the number of bytes of JSON at the "
            f"start of the body, which has {len(body)}",
        )
    return body[: int(header_length)], body[int(header_length) :]


def _count(tensor: InputTensor) -> int:
    if min(tensor.shape, default=0) < 0:
        raise _wrong(tensor.name, f"shape={tensor.shape}: no length may be below 0")
    return math.prod(tensor.shape)


def _from_json(tensor: InputTensor) -> np.ndarray | bytes:
    if tensor.datatype == _BYTES:
        element = _only(tensor)
        try:
            return base64.b64decode(element, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise _wrong(
                tensor.name, "its one element must be a file in base64, or raw bytes after the JSON"
            ) from error
    dtype = _dtype(tensor)
    if not isinstance(tensor.data, list):
        raise _wrong(tensor.name, "has neither data, a list of numbers, nor binary_data_size")
    try:
        numbers = np.asarray(tensor.data).reshape(-1)
        if numbers.size and numbers.dtype.kind not in ("iuf" if "f" in dtype else "iu"):
            raise ValueError(f"it has {numbers.dtype}")
        if "f" not in dtype and numbers.size:
            limits = np.iinfo(dtype)
            if not limits.min <= numbers.min() <= numbers.max() <= limits.max:
                raise ValueError("a number is outside the datatype")
        with np.errstate(over="ignore"):
            array = numbers.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise _wrong(
            tensor.name, f"data is no list of {tensor.datatype} ({error!s:.60})"
        ) from error
    return _shaped(tensor, array)


def _from_bytes(tensor: InputTensor, content: bytes) -> np.ndarray | bytes:
    if tensor.datatype == _BYTES:
        if _count(tensor) != 1 or len(content) < 4:
            raise _wrong(tensor.name, "must be BYTES of shape [1], its length first as u32")
        (length,) = struct.unpack_from("<I", content)
        if length != len(content) - 4:
            raise _wrong(tensor.name, f"its element has {len(content) - 4} bytes, not {length}")
        return content[4:]
    dtype = _dtype(tensor)
    if len(content) % np.dtype(dtype).itemsize:
        raise _wrong(tensor.name, f"{len(content)} bytes are no whole number of {tensor.datatype}")
    return _shaped(tensor, np.frombuffer(content, dtype))


def _only(tensor: InputTensor) -> Any:
    data = tensor.data
    while isinstance(data, list) and len(data) == 1:
        data = data[0]
    if _count(tensor) != 1 or not isinstance(data, str):
        raise _wrong(tensor.name, "must be BYTES of shape [1] with one text in data")
    return data


def _dtype(tensor: InputTensor) -> str:
    if tensor.datatype not in DTYPES:
        raise _wrong(
            tensor.name, f"datatype {tensor.datatype}: one of {', '.join((_BYTES, *DTYPES))}"
        )
    return DTYPES[tensor.datatype]


def _shaped(tensor: InputTensor, array: np.ndarray) -> np.ndarray:
    if array.size != _count(tensor):
        raise _wrong(tensor.name, f"{array.size} numbers for the shape {tensor.shape}")
    return array.reshape(tensor.shape)


def write_infer(
    head: Mapping[str, Any], outputs: Mapping[str, np.ndarray], binary: Sequence[str]
) -> tuple[bytes, int | None]:
    """The body of an answer, float32; and the length of its JSON when some outputs are binary."""
    described: list[dict[str, Any]] = []
    raw = []
    for name, array in outputs.items():
        entry: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": "FP32"}
        if name in binary:
            raw.append(array.astype("<f4").tobytes())
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = [float(str(value)) for value in array.astype(np.float32).reshape(-1)]
        described.append(entry)
    content = json.dumps(dict(head) | {"outputs": described}, allow_nan=False).encode()
    return content + b"".join(raw), len(content) if raw else None


def _wrong(place: str, rule: str) -> Problem:
    return Problem(
        422, "bad_tensor", f"{place:.60}: {rule}", errors=[{"loc": [place], "msg": rule}]
    )
