"""Reading pickles of strangers: plain values or a DataError that names what was refused.

Official SMPL files, 3DPW's labels and the shards of HMR2 are pickles, and an ordinary unpickler
runs whatever code a pickle names. Here a limited process of its own (`hmr.pickle_child`) reads the
pickle with a table of inert stand-ins and sends back JSON and bytes, from which this module builds
dicts, lists, text, numbers and numpy arrays. Nothing that a file names is ever imported or called,
in either process.

Understood: pickles of Python 2 and 3, numpy arrays, scalars and dtypes of any numpy; scipy's csc,
csr and coo matrices, which become dense arrays; chumpy's Ch, Select and Reshape, which become the
arrays they stand for. scipy and chumpy need not be installed. POSIX only.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import IO, Any

import numpy as np

from hmr.errors import DataError
from hmr.npz import UNREADABLE

MAX_BYTES = 1 << 29
"""Twice what SMPL's arrays with 300 shape directions take as a pickle in text form."""

_CHILD = Path(__file__).with_name("pickle_child.py")
_DTYPE = re.compile(r"[<>|=](b1|[iu][1248]|f[248]|[SU][1-9]\d{0,5})")


def read_pickle(
    source: str | os.PathLike[str] | bytes, *, max_bytes: int = MAX_BYTES, max_seconds: int = 60
) -> Any:
    """The value of a pickle, given as a path or as its bytes, without running any of its code.

    Returns dicts, lists (also for tuples, sets and arrays of objects), str (also for bytes, read as
    latin-1), int, float, bool, None and numpy arrays; numpy scalars become Python's.
    Neither the pickle nor what it unfolds to may exceed `max_bytes`; reading may take
    `max_seconds` of processor time and ten times the pickle's size (and 256 MiB) of memory.

    DataError names the file and what it asked for, such as `posix.system`, or how it is broken.
    """
    name = "pickle" if isinstance(source, bytes) else str(source)
    size = len(source) if isinstance(source, bytes) else _file_size(source)
    if size > max_bytes:
        raise DataError(
            f"{name}: {size} bytes, at most {max_bytes} are read. Is it the right file?"
        )
    if isinstance(source, bytes):
        output = _run({"input": source}, name, size, max_bytes, max_seconds)
    else:
        try:
            with open(source, "rb") as file:
                output = _run({"stdin": file}, name, size, max_bytes, max_seconds)
        except OSError as error:
            raise DataError(f"{name}: cannot be read ({error.strerror}).") from error
    header, _, blob = output.partition(b"\n")
    answer = json.loads(header)
    if "refused" in answer:
        raise DataError(
            f"{name}: refused: {answer['refused']}. Only plain values, numpy, scipy.sparse and "
            "chumpy arrays are read and nothing is executed; a file that needs more is damaged, "
            "of another kind, or not to be trusted."
        )
    try:
        return _Builder(blob, max_bytes).value(answer["tree"])
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
            MemoryError) as error:  # fmt: skip
        raise DataError(
            f"{name}: an array in it contradicts itself ({error!r}). Get the file again."
        ) from error


def read_object_npz(
    path: str | os.PathLike[str],
    keys: Container[str] | None = None,
    *,
    max_bytes: int = MAX_BYTES,
    max_seconds: int = 60,
) -> dict[str, Any]:
    """The arrays of an .npz (those with these keys, where keys are given) by name.

    Unlike `hmr.npz.read_npz` it also reads arrays of Python objects, through `read_pickle` and
    with its result: lists in lists, and the object itself for an array without dimensions.

    DataError says why a file cannot be read.
    """
    _file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, Any] = {}
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if keys is not None and key not in keys:
                    continue
                if member.file_size > max_bytes:
                    raise ValueError(
                        f"{key}: {member.file_size} bytes, at most {max_bytes} are read"
                    )
                with archive.open(member) as file:
                    found[key] = _read_member(file, f"{path}: {key}", max_bytes, max_seconds)
            return found
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: not a readable .npz ({error})") from error


def _read_member(file: IO[bytes], name: str, max_bytes: int, max_seconds: int) -> Any:
    formats = np.lib.format
    version = formats.read_magic(file)
    read_header = {
        (1, 0): formats.read_array_header_1_0,
        (2, 0): formats.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"{name} has the .npy version {version}")
    shape, fortran, dtype = read_header(file)
    data = file.read()
    if dtype.hasobject:
        try:
            return read_pickle(data, max_bytes=max_bytes, max_seconds=max_seconds)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    return np.ndarray(shape, dtype, data, order="F" if fortran else "C").copy()


def _file_size(path: str | os.PathLike[str]) -> int:
    if not os.path.isfile(path):
        raise DataError(f"{path}: there is no such file.")
    return os.path.getsize(path)


def _run(stdin: dict[str, Any], name: str, size: int, max_bytes: int, max_seconds: int) -> bytes:
    """What the child writes: a line of JSON and bytes. `stdin`: an argument of subprocess.run."""
    # Text pickles pass through several copies: six times their size was measured.
    memory = (256 << 20) + 10 * size
    limits = [str(number) for number in (memory, max_seconds, max_bytes)]
    # -I and -S: nothing of the environment or of site-packages is imported.
    command = [sys.executable, "-I", "-S", str(_CHILD), *limits]
    too_slow = DataError(
        f"{name}: reading took more than {max_seconds} seconds. A file of measurements is read "
        "in a few; this one is not to be trusted."
    )
    try:
        # The processor may be shared: a generous clock only ends what waits for ever.
        done = subprocess.run(
            command, capture_output=True, check=False, timeout=60 + 10 * max_seconds, **stdin
        )
    except subprocess.TimeoutExpired as error:
        raise too_slow from error
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise too_slow
    if done.returncode != 0:
        detail = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise DataError(
            f"{name}: the reading process ended with {done.returncode} {detail}. "
            "The file is damaged or made to break readers."
        )
    return done.stdout


class _Builder:
    """Values from the child's JSON and bytes; whatever does not fit raises."""

    def __init__(self, blob: bytes, max_bytes: int) -> None:
        self._blob = blob
        self._left = max_bytes

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        ((kind, content),) = node.items()
        if kind == "dict":
            return {key: self.value(item) for key, item in content}
        if kind == "array":
            return self._array(*content)
        if kind == "scalar":
            return self._array(*content).item()
        state = self.value(content)
        if kind in ("csc", "csr", "coo"):
            return self._dense(kind, state)
        return self._chumpy(kind, state)

    def _array(
        self, code: str, shape: list[int], fortran: bool, start: int, size: int
    ) -> np.ndarray:
        if not _DTYPE.fullmatch(code):
            raise ValueError(f"the dtype {code!r} is not one of numbers or text")
        dtype = np.dtype(code)
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"{size} bytes for the shape {shape} of {dtype}")
        array: np.ndarray = np.ndarray(
            tuple(shape), dtype, self._blob, start, order="F" if fortran else "C"
        )
        return array.astype(dtype.newbyteorder("="))  # a copy that may be written to

    def _dense(self, kind: str, state: dict[str, Any]) -> np.ndarray:
        """A sparse matrix as an array; entries that stand twice are summed, as scipy does."""
        shape = tuple(int(n) for n in state["_shape" if "_shape" in state else "shape"])
        data = state["data"]
        if kind == "coo":
            rows, columns = state["coords"] if "coords" in state else (state["row"], state["col"])
        else:
            counts = np.diff(state["indptr"])
            if counts.min(initial=0) < 0 or counts.sum() != len(data):
                raise ValueError(f"a {kind} matrix with {len(data)} numbers and another indptr")
            major = np.repeat(np.arange(len(counts)), counts)
            rows, columns = (
                (state["indices"], major) if kind == "csc" else (major, state["indices"])
            )
        if min(np.min(rows, initial=0), np.min(columns, initial=0)) < 0:
            raise ValueError(f"a {kind} matrix with negative indices")
        self._spend(math.prod(shape) * data.itemsize)
        dense = np.zeros(shape, data.dtype)
        np.add.at(dense, (rows, columns), data)
        return dense

    def _chumpy(self, kind: str, state: dict[str, Any]) -> np.ndarray:
        """What chumpy would compute for a constant, a selection, or another shape."""
        inner = np.asarray(state["x" if kind == "Ch" else "a"])
        if kind == "Ch":
            return inner
        if kind == "Reshape":
            return inner.reshape(state["newshape"])
        picked: np.ndarray = inner.ravel()[np.asarray(state["idxs"])]
        self._spend(picked.nbytes)
        return picked.reshape(state.get("preferred_shape", picked.shape))

    def _spend(self, size: int) -> None:
        """Small files can describe huge arrays: zeros of a sparse matrix, repeated indices."""
        self._left -= size
        if self._left < 0:
            raise ValueError("more bytes than allowed")
