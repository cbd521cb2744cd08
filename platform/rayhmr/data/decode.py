"""JPEG to pixels: the square crops of shards, decoded at the side that the model wants.

simplejpeg decodes straight into the batch's array, gives the pixels that OpenCV gives, and releases
the interpreter lock. Where the stored crop is larger, the inverse cosine transform leaves out what
the smaller picture cannot show, which costs less than the whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from hmr.crops import MAX_PIXELS
from hmr.errors import ConfigError, DataError

SIDE = "crop_side"
"""Column of a decoded table: side of the stored crop, in whose pixels its 2D keypoints are."""
_EIGHTHS = (1, 2, 3, 4, 5)
"""Parts of the side at which decoding and sampling cost less than decoding the whole and
averaging."""
_BILINEAR = 1.6
"""Up to this reduction the two neighbours that bilinear sampling mixes along each axis are about
the area of an output pixel, in a fifth of the time that averaging takes."""


def decode_square(content: bytes | memoryview, out: np.ndarray) -> int:
    """Decode a square JPEG of any side into `out` (S, S, 3) uint8 RGB; the side it is stored with.

    A larger crop becomes the average over the area of each pixel: within 3 levels of 255 in the
    mean over a picture. A smaller one is interpolated. EXIF orientation is ignored. ValueError for
    anything that is no whole, square JPEG.
    """
    wanted = out.shape[0]
    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    if height != width or height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels")
    side = height * _eighths(height, wanted) // 8
    image = out if side == wanted else np.empty((side, side, 3), np.uint8)
    simplejpeg.decode_jpeg(content, min_height=side, min_width=side, buffer=image)
    if side != wanted:
        method = cv2.INTER_LINEAR if side <= _BILINEAR * wanted else cv2.INTER_AREA
        cv2.resize(image, (wanted, wanted), dst=out, interpolation=method)
    return int(height)


def _eighths(side: int, wanted: int) -> int:
    """Eighths of the side to decode: the fewest that leave the wanted side. Only whole results,
    since the decoder rounds up and the content would move away from its keypoints."""
    for part in _EIGHTHS:
        if side * part % 8 == 0 and side * part >= 8 * wanted:
            return part
    return 8


def decode_all(
    ids: Sequence[str], contents: Sequence[bytes | memoryview], image_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Crops as (B, S, S, 3) uint8 RGB and the sides (B,) int32 they are stored with.

    DataError names the person whose picture cannot be decoded.
    """
    images = np.empty((len(contents), image_size, image_size, 3), np.uint8)
    sides = np.empty(len(contents), np.int32)
    for row, (sample_id, content) in enumerate(zip(ids, contents, strict=True)):
        try:
            sides[row] = decode_square(content, images[row])
        except ValueError as error:
            raise DataError(
                f"{sample_id}: its picture in the shard is no square JPEG ({error}), so the file "
                "was damaged after it was written; prepare the data set again"
            ) from error
    return images, sides


def decode_table(table: pa.Table, image_size: int) -> pa.Table:
    """The same rows with pixels instead of JPEG: `image` becomes a fixed-size binary of the S * S *
    3 bytes of each crop, and a column SIDE is added. DataError as `decode_all`.

    For tasks that decode before a training worker gets the rows; `pixels` reads such a table.
    """
    cv2.setNumThreads(1)  # the task owns one core
    images, sides = decode_all(*_encoded(table), image_size)
    width = 3 * image_size**2
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(width), len(table), [None, pa.py_buffer(images)]
    )
    place = table.schema.get_field_index("image")
    return table.set_column(place, "image", column).append_column(SIDE, pa.array(sides))


def _encoded(table: pa.Table) -> tuple[list[str], list[memoryview]]:
    """Names and JPEG of the rows, in the table's own memory; an absent picture has no bytes."""
    contents: list[memoryview] = []
    for chunk in pc.struct_field(table["image"], "bytes").chunks:
        if len(chunk) == 0:
            continue
        _, offsets, data = chunk.buffers()
        kind = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        edges = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        view = memoryview(b"" if data is None else data).cast("B")
        contents += [view[start:stop] for start, stop in itertools.pairwise(edges)]
    return table["sample_id"].to_pylist(), contents


def pixels(table: pa.Table, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops and stored sides as `decode_all` gives them, of a table with JPEG or a decoded one.

    A decoded table's own memory is used where it may be written to, as tensors expect, else a copy.
    ConfigError when it was decoded for another side.
    """
    if SIDE not in table.column_names:
        return decode_all(*_encoded(table), image_size)
    column = table["image"]
    column = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    width = column.type.byte_width
    if width != 3 * image_size**2:
        raise ConfigError(
            f"image_size={image_size}: the table was decoded for a side of {(width // 3) ** 0.5:g} "
            "pixels; decode it for the model that gets it"
        )
    images = np.frombuffer(
        column.buffers()[1], np.uint8, count=len(table) * width, offset=column.offset * width
    ).reshape(len(table), image_size, image_size, 3)
    return images if images.flags.writeable else images.copy(), table[SIDE].to_numpy()
