"""Reading .npz files of strangers: plain arrays or a ValueError, never a pickle, never a crash."""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Container

import numpy as np

# What numpy raises on files that are no .npz, break off, are damaged inside a member, encrypted
# (RuntimeError), compressed in an unknown way (its subclass), of an absurd size (MemoryError,
# OverflowError), or with a header that is no Python literal (TokenError).
UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error,
    RuntimeError, MemoryError, OverflowError, tokenize.TokenError,
)  # fmt: skip


def read_npz(
    path: str | os.PathLike[str], keys: Container[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of an .npz (those with these keys, where keys are given) by name.

    ValueError says why a file cannot be read; an array of Python objects is such a reason, since it
    would have to be unpickled.
    """
    try:
        # Opened here: numpy leaves the file of a broken archive open.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array")
            return {key: archive[key] for key in archive.files if keys is None or key in keys}
    except UNREADABLE as error:
        raise ValueError(str(error) or type(error).__name__) from error
