"""Pictures that are the same to the eye: a hash that survives re-encoding, and a search for near
ones that does not compare every picture with every other.

A hash says of 128 slow waves in a picture's brightness (a cosine transform of 32 x 32 cells) which
are stronger than their median ("pHash"). Pictures whose hashes differ in few bits are compared once
more by small thumbnails, because on plain grounds few bits mean little.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from hmr.errors import ImageError

CELLS, THUMB, BITS = 32, 16, 128
MOST_BITS = 14
"""Hashes of one picture in two encodings or sizes differ in fewer bits."""
MOST_GREY = 4.0
"""Thumbnails of one picture differ by less than this on average, of 255 steps of grey."""
_TOGETHER = 256


@dataclass(frozen=True, kw_only=True)
class Prints:
    """Of N pictures. hashes: (N, 2) uint64. thumbs: (N, THUMB²) uint8."""

    hashes: np.ndarray
    thumbs: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    @classmethod
    def of(cls, prints: Sequence[tuple[np.ndarray, np.ndarray]]) -> Prints:
        """Those of `picture_print`, in their order."""
        hashes = [hash_ for hash_, _ in prints]
        thumbs = [thumb for _, thumb in prints]
        return cls(
            hashes=np.array(hashes, np.uint64).reshape(-1, 2),
            thumbs=np.array(thumbs, np.uint8).reshape(-1, THUMB * THUMB),
        )


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.reshape(-1)).view(">u8").astype(np.uint64)


def picture_print(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Hash (2,) uint64 and thumbnail (THUMB²,) uint8 of an encoded picture; ImageError when it
    cannot be decoded. JPEG is decoded at a fraction of its size."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.draft("L", (2 * CELLS, 2 * CELLS))
            grey = image.convert("L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError("undecodable", f"cannot be decoded: {error}") from error
    cells = grey.resize((CELLS, CELLS), Image.Resampling.BOX)
    waves = cv2.dct(np.asarray(cells, np.float32))[:12, :12].reshape(-1)[1 : BITS + 1]
    thumb = np.asarray(grey.resize((THUMB, THUMB), Image.Resampling.BOX)).reshape(-1)
    return _packed(waves > np.median(waves)), thumb


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Bits in which hashes (..., 2) differ."""
    different: np.ndarray = np.bitwise_count(first ^ second).sum(-1, dtype=np.int64)
    return different


class _Groups:
    """Disjoint groups of rows that are joined; the smaller one takes the name of the larger."""

    def __init__(self, count: int) -> None:
        self.names = np.arange(count)
        self._members = {row: [row] for row in range(count)}

    def join(self, a: int, b: int) -> None:
        a, b = int(self.names[a]), int(self.names[b])
        if a == b:
            return
        if len(self._members[a]) < len(self._members[b]):
            a, b = b, a
        moved = self._members.pop(b)
        self.names[moved] = a
        self._members[a] += moved

    def several(self) -> list[list[int]]:
        """Groups of at least two, each rising, by their first row."""
        found = [sorted(rows) for rows in self._members.values() if len(rows) > 1]
        return sorted(found)


def _bands(hashes: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """(N,) numbers: the bits of one of `count` pieces of every hash."""
    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(len(hashes), -1), axis=1)
    for piece in np.array_split(np.arange(BITS), count):
        yield bits[:, piece] @ (1 << np.arange(len(piece), dtype=np.int64))


def _buckets(band: np.ndarray) -> Iterator[np.ndarray]:
    """Rows with one number, for every number that several have."""
    order = np.argsort(band, kind="stable")
    edges = np.flatnonzero(np.diff(band[order])) + 1
    yield from (rows for rows in np.split(order, edges) if len(rows) > 1)


def near_pairs(
    hashes: np.ndarray, names: np.ndarray, most_bits: int = MOST_BITS
) -> Iterator[tuple[int, int]]:
    """Pairs of rows whose hashes differ in at most `most_bits` bits and whose `names` differ at the
    time; the caller may change `names` while it reads.

    A hash is cut into most_bits + 1 pieces: two near hashes have one in common, so only rows with a
    common piece are compared.
    """
    for band in _bands(hashes, most_bits + 1):
        for rows in _buckets(band):
            for start in range(0, len(rows), _TOGETHER):
                some = rows[start : start + _TOGETHER]
                near = distance(hashes[some][:, None], hashes[rows][None]) <= most_bits
                near &= names[some][:, None] != names[rows][None]
                for i, j in np.argwhere(near):
                    if some[i] < rows[j]:
                        yield int(some[i]), int(rows[j])


def equal_groups(prints: Prints) -> list[list[int]]:
    """Rows of pictures that are the same to the eye, in groups of at least two, each rising.

    A picture belongs to a group when it is like one of its members.
    """
    groups = _Groups(len(prints))
    thumbs = prints.thumbs.astype(np.int16)

    def alike(row: int, others: np.ndarray) -> np.ndarray:
        same: np.ndarray = np.abs(thumbs[others] - thumbs[row]).mean(-1) <= MOST_GREY
        return same

    # Equal hashes first, each with a representative: a picture may be there ten thousand times.
    _, numbers = np.unique(prints.hashes, axis=0, return_inverse=True)
    for rows in _buckets(numbers.reshape(-1)):
        rest = rows
        while len(rest):
            same = alike(int(rest[0]), rest)
            for other in rest[same][1:]:
                groups.join(int(rest[0]), int(other))
            rest = rest[~same]
    heads = np.unique(groups.names)
    names = groups.names[heads]
    for i, j in near_pairs(prints.hashes[heads], names):
        a, b = int(heads[i]), int(heads[j])
        if groups.names[a] != groups.names[b] and alike(a, np.array([b]))[0]:
            groups.join(a, b)
            names[:] = groups.names[heads]
    return groups.several()
