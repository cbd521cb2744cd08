"""The process in which `hmr.safe_pickle` reads a pickle: run as a script, never imported.

A pickle is a program whose only dangerous instruction is "fetch this global". Here every global is
looked up in a table of inert stand-ins, which keep what they are given and do nothing; a name that
is not in the table ends the reading. What a pickle can still do is exhaust memory or time, so the
process first puts limits on itself: memory, seconds, no files, no further processes.

It needs the standard library only, neither numpy nor scipy nor chumpy. Standard input is the
pickle. Standard output is one line of JSON, then the bytes of the arrays; or {"refused": why}.
JSON holds text, numbers, true, false, null and lists as they are; anything else is an object with
one key that says what it is: "dict", "array", "scalar", "csc", "csr", "coo", "Ch", "Select",
"Reshape".
"""

from __future__ import annotations

import json
import math
import pickle
import resource
import sys
from typing import Any, BinaryIO

MAX_NODES = 1_000_000
MAX_DEPTH = 60


class RefusedError(Exception):
    """The pickle asks for something that is not in the table, or says what makes no sense."""


class StandIn:
    """Stands for an object of a pickle: keeps its arguments and its state, does nothing."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Any:
        self = object.__new__(cls)
        self.args = args
        self.state = None
        return self

    def __init__(self, *args: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(StandIn):
    """numpy.ndarray; state: version, shape, dtype, Fortran order, bytes or list of objects."""


class Buffer(StandIn):
    """numpy's _frombuffer; arguments: bytes, dtype, shape, "C" or "F"."""


class Scalar(StandIn):
    """numpy's scalar; arguments: dtype, bytes."""


class Dtype(StandIn):
    """numpy.dtype; arguments: code, two flags. state: version, byte order, subarray, names, ..."""


class Collection(StandIn):
    """set and frozenset; arguments: a list."""


class PlainObject(StandIn):
    """object, the base that old protocols name."""


class Structure(StandIn):
    """An object known by its attributes, its state; `kind` is its name in the output."""

    kind = ""
    attributes: tuple[str, ...] = ()


_ATTRIBUTES = {
    "csc": ("_shape", "shape", "data", "indices", "indptr"),
    "csr": ("_shape", "shape", "data", "indices", "indptr"),
    "coo": ("_shape", "shape", "data", "row", "col", "coords"),
    "Ch": ("x",),
    "Select": ("a", "idxs", "preferred_shape"),
    "Reshape": ("a", "newshape"),
}
_STRUCTURES: dict[str, type[Structure]] = {
    kind: type(kind, (Structure,), {"kind": kind, "attributes": attributes})
    for kind, attributes in _ATTRIBUTES.items()
}


class Reconstruct(StandIn):
    """numpy's _reconstruct: an empty array, whose state follows."""

    def __new__(cls, kind: Any, *_: Any) -> Any:
        if kind is not Array:
            raise RefusedError("a subclass of numpy.ndarray")
        return Array()


class Reconstructor(StandIn):
    """copyreg's _reconstructor: an empty object of a class, whose state follows."""

    def __new__(cls, kind: Any, base: Any, state: Any) -> Any:
        if not (isinstance(kind, type) and issubclass(kind, Structure) and base is PlainObject):
            raise RefusedError("copyreg._reconstructor of a class that is no known array type")
        return kind()


class Encode(StandIn):
    """_codecs.encode: how Python 3 spells bytes in old protocols."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding not in ("latin1", "latin-1"):
            raise RefusedError(f"_codecs.encode with the encoding {encoding!r}")
        return text.encode("latin-1")


class NoBytes(StandIn):
    """bytes without arguments: how Python 3 spells b"" in old protocols."""

    def __new__(cls) -> Any:
        return b""


_ALLOWED: dict[tuple[str, str], type[StandIn]] = {
    ("numpy", "ndarray"): Array,
    ("numpy", "dtype"): Dtype,
    ("_codecs", "encode"): Encode,
    ("chumpy.ch", "Ch"): _STRUCTURES["Ch"],
    ("chumpy.reordering", "Select"): _STRUCTURES["Select"],
    ("chumpy.reordering", "Reshape"): _STRUCTURES["Reshape"],
    ("copy_reg", "_reconstructor"): Reconstructor,
    ("copyreg", "_reconstructor"): Reconstructor,
}
for _module in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_module}.multiarray", "_reconstruct"] = Reconstruct
    _ALLOWED[f"{_module}.multiarray", "scalar"] = Scalar
    _ALLOWED[f"{_module}.numeric", "_frombuffer"] = Buffer
for _module in ("__builtin__", "builtins"):
    _ALLOWED[_module, "object"] = PlainObject
    _ALLOWED[_module, "set"] = _ALLOWED[_module, "frozenset"] = Collection
    _ALLOWED[_module, "bytes"] = NoBytes
for _kind in ("csc", "csr", "coo"):
    for _module in (_kind, f"_{_kind}"):
        for _form in ("matrix", "array"):
            _ALLOWED[f"scipy.sparse.{_module}", f"{_kind}_{_form}"] = _STRUCTURES[_kind]


class Unpickler(pickle.Unpickler):
    """Reads pickles of Python 2 and 3; every global comes from the table."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise RefusedError(f"{module}.{name}")
        return _ALLOWED[module, name]


class Encoder:
    """Turns what was read into JSON and the bytes of its arrays."""

    def __init__(self, max_bytes: int) -> None:
        self.parts: list[bytes] = []
        self._offset = 0
        self._left = max_bytes
        self._nodes = 0

    def node(self, value: Any, depth: int = 0) -> Any:
        """`value` as JSON; RefusedError where that is impossible or too large."""
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise RefusedError(
                f"more than {MAX_NODES} values, or nested deeper than {MAX_DEPTH} levels"
            )
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str | bytes | bytearray):
            self._spend(len(value))
            return value if isinstance(value, str) else value.decode("latin-1")
        if isinstance(value, Collection):
            (value,) = value.args or ([],)
        if isinstance(value, list | tuple | set | frozenset):
            return [self.node(item, depth + 1) for item in value]
        if isinstance(value, dict):
            return {"dict": [[_key(k), self.node(v, depth + 1)] for k, v in value.items()]}
        if isinstance(value, Structure):
            state = value.state if isinstance(value.state, dict) else {}
            known = {key: state[key] for key in value.attributes if key in state}
            return {value.kind: self.node(known, depth + 1)}
        if isinstance(value, Array | Buffer | Scalar):
            return self._numpy(value, depth)
        raise RefusedError(f"an object of the type {type(value).__name__}")

    def _numpy(self, value: Array | Buffer | Scalar, depth: int) -> Any:
        if isinstance(value, Array):
            _, shape, dtype, fortran, data = value.state
        elif isinstance(value, Buffer):
            data, dtype, shape, order = value.args
            fortran = order == "F"
        else:
            (dtype, data), shape, fortran = value.args, (), False
        code = _code(dtype)
        if code.endswith("O"):
            items = data if isinstance(value, Array) else [data]
            return self.node(_nested(items, list(shape)), depth + 1)
        start = self._append(data)
        place = [code, list(shape), bool(fortran), start, self._offset - start]
        return {"scalar" if isinstance(value, Scalar) else "array": place}

    def _append(self, data: Any) -> int:
        """Where the bytes of an array begin; Python 2's are text by now."""
        part = data.encode("latin-1") if isinstance(data, str) else bytes(memoryview(data))
        self._spend(len(part))
        self.parts.append(part)
        start, self._offset = self._offset, self._offset + len(part)
        return start

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise RefusedError("more bytes of arrays and text than allowed")


def _key(key: Any) -> Any:
    if key is None or isinstance(key, bool | int | float | str):
        return key
    if isinstance(key, bytes):
        return key.decode("latin-1")
    raise RefusedError(f"a dict key of the type {type(key).__name__}")


def _code(dtype: Any) -> str:
    """Byte order and code of a dtype, such as "<f8"; its validity is checked by the reader."""
    if not isinstance(dtype, Dtype) or not isinstance(dtype.args[0], str):
        raise RefusedError("an array without a numpy dtype")
    code, order = dtype.args[0], "|"
    if dtype.state is not None:
        _, order, subarray, names, *_ = dtype.state
        if subarray is not None or names is not None:
            raise RefusedError("a structured numpy dtype")
    return "|O" if code.startswith("O") else f"{order}{code}"


def _nested(items: list[Any], shape: list[int]) -> Any:
    """An object array as lists in lists; without dimensions, its only object."""
    if len(items) != math.prod(shape) or min(shape, default=1) < 0:
        raise RefusedError(f"an array of {len(items)} objects with the shape {shape}")
    for axis in range(len(shape) - 1, 0, -1):
        length, rows = shape[axis], math.prod(shape[:axis])
        items = [items[i * length : (i + 1) * length] for i in range(rows)]
    return items if shape else items[0]


def _limit(memory: int, seconds: int) -> None:
    """Bounds for this process; what is open stays open, and pipes are no files."""
    wanted = {
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # a signal first, then the end
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (3, 3),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, (soft, hard) in wanted.items():
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


def _read(max_bytes: int) -> tuple[str, list[bytes]]:
    encoder = Encoder(max_bytes)
    try:
        tree = encoder.node(Unpickler(sys.stdin.buffer).load())
        return json.dumps({"tree": tree}), encoder.parts
    except RefusedError as error:
        why = str(error)
    except MemoryError:
        why = "more memory than allowed"
    except Exception as error:
        # Broken pickles raise whatever their instructions run into.
        why = f"a broken pickle ({type(error).__name__}: {error})"
    return json.dumps({"refused": why}), []


def main(memory: int, seconds: int, max_bytes: int) -> None:
    """Read standard input, write standard output."""
    _limit(memory, seconds)
    header, parts = _read(max_bytes)
    sys.stdout.buffer.write(header.encode("ascii") + b"\n")
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
