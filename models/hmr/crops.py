"""Images in and out, and the square crop of a person.

Pixels are continuous: the centre of the first pixel is (0.5, 0.5). One real-valued affine maps a
frame to a crop and is used for the image, the keypoints and the way back; nothing is rounded.
numpy, Pillow and OpenCV only: data workers use this module without torch.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from hmr.errors import DataError, ImageError

MAX_PIXELS = 25_000_000
"""Larger pictures are refused before they are decoded."""
MAX_SCANS = 16
"""Passes over all pixels in which the largest JPEG may come (usual are ten); smaller ones more."""
MIN_SIDE = 16
FORMATS = ("JPEG", "PNG", "WEBP")
OTHER_FORMATS = ("GIF", "BMP", "TIFF", "ICO", "PPM")
"""Recognised only for the message; every further parser is one more for hostile bytes."""
DEFAULT_PADDING = 1.2
"""Side of the crop over the longer side of a person's box."""

_STRIP_PIXELS = 1_000_000
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientations (1 is upright) and what undoes them."""
SPARE_PIXELS = 4.0
"""A picture is read smaller only while a crop's side still spans this many times the pixels that
the crop has: libjpeg leaves the averaging that is seen most to `crop_image`."""
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class Frame:
    """An upright picture, all of its pixels or fewer.

    pixels: (H / shrink, W / shrink, 3) uint8 RGB. shrink: side of the square of the picture's
    pixels that each of them stands for; it divides W and H, so that x of the picture is x / shrink
    here. Boxes, centres and cameras are always in the picture's own pixels.
    """

    pixels: np.ndarray
    shrink: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width W and height H of the picture."""
        height, width = self.pixels.shape[:2]
        return width * self.shrink, height * self.shrink


def decode_image(data: bytes) -> np.ndarray:
    """Encoded JPEG, PNG or WebP to (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Gray, palette, CMYK and 16-bit pictures become 8-bit RGB; transparency lies on white. Anything
    else is an ImageError with a reason: zero_byte, not_an_image, format_not_allowed,
    too_many_pixels, too_small, animated, truncated.
    """
    return _decoded(data).pixels


def decode_frame(data: bytes, image_size: int, box_side: float | None = None) -> Frame:
    """`decode_image` with no more pixels than crops of image_size x image_size need.

    box_side: the shortest of the boxes' longer sides in pixels; none: the whole picture is the box.
    A JPEG much larger than its crops is read at 1/2, 1/4 or 1/8: libjpeg leaves out frequencies
    that the crop would average away. It saves a third of the time for a picture of 12 megapixels
    (and nine tenths of the cropping), and moves the crop by less than half a gray level.
    """
    return _decoded(data, image_size, box_side)


def _decoded(data: bytes, image_size: int | None = None, box_side: float | None = None) -> Frame:
    if not data:
        raise ImageError("zero_byte", "the image is empty (0 bytes); send the file's content")
    image = _open(data)
    _check_header(image)
    _check_scans(image, data)
    width, height = image.size
    if image_size is not None and image.format in ("JPEG", "MPO"):
        side = max(width, height) if box_side is None else box_side
        shrink = _spare(width, height, side / (SPARE_PIXELS * image_size))
        image.draft(None, (width // shrink, height // shrink))
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise all kinds of errors on hostile bytes
        raise ImageError(
            "truncated", f"the image breaks off or is damaged ({error}); save it again"
        ) from error
    shrink = width // image.size[0]
    image = _upright(image)  # the picture as it lay is free from here on
    return Frame(_to_rgb(image), shrink)


def _spare(width: int, height: int, most: float) -> int:
    """The largest of libjpeg's reductions up to `most` that divides both sides."""
    return next((k for k in (8, 4, 2) if k <= most and width % k == height % k == 0), 1)


def is_turned(data: bytes) -> bool:
    """Whether `decode_image` turns or mirrors this picture to make it upright."""
    return _turn(_open(data)) is not None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Pillow warns of large or odd headers, which are judged here. The lock is there because
    Python's list of warning filters belongs to all threads."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes) -> Image.Image:
    """Read the header only."""
    try:
        with _without_warnings():
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(*_unidentified(data)) from error
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", _too_large(str(error))) from error
    except Exception as error:  # Pillow's parsers raise all kinds of errors on hostile bytes
        raise ImageError(
            "truncated", f"the image's header is damaged ({error}); save it again"
        ) from error


def _unidentified(data: bytes) -> tuple[str, str]:
    if data[4:8] == b"ftyp":
        return "format_not_allowed", "a HEIC, AVIF or video file; convert it to JPEG, PNG or WebP"
    try:
        with _without_warnings(), Image.open(io.BytesIO(data), formats=OTHER_FORMATS) as image:
            kind = image.format
    except Exception:  # whatever a hostile header makes Pillow raise, it is not an image to us
        return "not_an_image", (
            f"{len(data)} bytes that are no picture; send a JPEG, PNG or WebP file"
        )
    return "format_not_allowed", f"a {kind} picture; convert it to JPEG, PNG or WebP"


def _too_large(what: str) -> str:
    return f"{what}; at most {MAX_PIXELS:,} pixels are accepted, shrink the picture"


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError("too_many_pixels", _too_large(f"{width} x {height} pixels"))
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            "too_small",
            f"{width} x {height} pixels; every side needs at least {MIN_SIDE}, send it larger",
        )
    # A JPEG of a phone may carry a depth or brightness map behind its picture (MPO): no animation.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise ImageError("animated", f"{frames} frames; send one of them as a still picture")


def _check_scans(image: Image.Image, data: bytes) -> None:
    """A small file with thousands of scans would keep a decoder busy for minutes."""
    if image.format not in ("JPEG", "MPO"):
        return
    # Compressed data holds no 0xFF without a zero or a restart number behind it.
    scans = data.count(b"\xff\xda")
    width, height = image.size
    if scans * width * height > MAX_SCANS * MAX_PIXELS:
        raise ImageError(
            "too_many_pixels",
            f"{scans} scans of {width} x {height} pixels; at most {MAX_SCANS * MAX_PIXELS:,} "
            "pixels in all scans are accepted, save it again",
        )


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        with _without_warnings():
            return _UPRIGHT.get(int(image.getexif().get(_ORIENTATION_TAG, 1)))
    except Exception:  # damaged EXIF says nothing about the pixels, which are all there
        return None


def _upright(image: Image.Image) -> Image.Image:
    method = _turn(image)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """In strips: what a conversion needs besides the picture and the answer stays small."""
    width, height = image.size
    rgb = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        whole = bottom - top == height
        rgb[top:bottom] = _strip_to_rgb(image if whole else image.crop((0, top, width, bottom)))
    return rgb


def _strip_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):
        # Pillow's own conversion would clip 16 bits to white.
        gray = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return np.asarray(image.convert("RGB"))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A file as `decode_image` gives it; ImageError (`unreadable` without a file) names it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ImageError(
            "unreadable", f"{path}: {error.strerror}; give the path of an image file"
        ) from error
    try:
        return decode_image(data)
    except ImageError as error:
        raise ImageError(error.reason, f"{path}: {error}") from error


def encode_jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    """(H, W, 3) uint8 RGB to JPEG; full colour resolution from quality 90 on."""
    buffer = io.BytesIO()
    subsampling = 0 if quality >= 90 else 2
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


def box_to_affine(
    center: np.ndarray | tuple[float, float],
    box_size: float,
    out_size: int,
    rotation_deg: float = 0.0,
) -> np.ndarray:
    """(2, 3) float64 map from frame pixels to crop pixels for a square box.

    center: (2,) of the box, box_size: its side, in frame pixels. The picture's content turns
    counter-clockwise on the screen by rotation_deg.
    """
    if not (np.isfinite(box_size) and box_size > 0 and np.isfinite(center).all()):
        raise DataError(
            f"box with centre {np.asarray(center).tolist()} and side {box_size}: centre and side "
            "must be finite and the side above 0 pixels; drop the box or correct it"
        )
    angle = np.deg2rad(rotation_deg)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear = turn * (out_size / box_size)
    shift = out_size / 2 - linear @ np.asarray(center, dtype=np.float64)
    return np.concatenate([linear, shift[:, None]], axis=1)


def invert_affine(affine: np.ndarray) -> np.ndarray:
    """(2, 3) map to the (2, 3) map of the way back."""
    inverse = np.linalg.inv(affine[:, :2])
    return np.concatenate([inverse, -inverse @ affine[:, 2:]], axis=1)


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 2) points through a (2, 3) map."""
    moved: np.ndarray = points @ affine[:, :2].T + affine[:, 2]
    return moved


def crop_image(image: np.ndarray, affine: np.ndarray, out_size: int) -> np.ndarray:
    """(H, W, C) uint8 through a (2, 3) map to (out_size, out_size, C); outside is black.

    Bilinear. Where the crop shrinks the picture, the part it shows is averaged down to the crop's
    resolution first, so that fine detail does not alias. The map turns, scales and shifts; it does
    not shear.
    """
    shrink = max(1.0, float(1 / np.sqrt(abs(np.linalg.det(affine[:, :2])))))
    window = _shown_window(image.shape, affine, out_size, margin=2 * shrink + 2)
    if window is None:
        return np.zeros((out_size, out_size, *image.shape[2:]), np.uint8)
    x1, y1, x2, y2 = window
    part = image[y1:y2, x1:x2]
    width, height = x2 - x1, y2 - y1
    small_w, small_h = max(1, round(width / shrink)), max(1, round(height / shrink))
    if (small_w, small_h) != (width, height):
        part = cv2.resize(part, (small_w, small_h), interpolation=cv2.INTER_AREA)
    to_part = affine.copy()
    to_part[:, 2] += affine[:, :2] @ np.array([x1, y1], np.float64)
    to_part[:, :2] *= [width / small_w, height / small_h]
    # OpenCV counts from pixel centres: shift both sides by half a pixel.
    to_part[:, 2] += to_part[:, :2] @ np.array([0.5, 0.5]) - 0.5
    crop = cv2.warpAffine(
        part,
        to_part,
        (out_size, out_size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0),
    )
    return crop.reshape(out_size, out_size, *image.shape[2:])  # OpenCV drops a single channel


def _shown_window(
    shape: tuple[int, ...], affine: np.ndarray, out_size: int, margin: float
) -> tuple[int, int, int, int] | None:
    """Whole pixels x1, y1, x2, y2 of the image that a crop shows, and a margin; none: nothing."""
    corners = np.array([[0, 0], [out_size, 0], [out_size, out_size], [0, out_size]], np.float64)
    seen = apply_affine(invert_affine(affine), corners)
    height, width = shape[:2]
    low = np.clip(np.floor(seen.min(0) - margin), 0, [width, height]).astype(int)
    high = np.clip(np.ceil(seen.max(0) + margin), 0, [width, height]).astype(int)
    if (low >= high).any():
        return None
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def centre_box(width: int, height: int) -> tuple[np.ndarray, float]:
    """Centre and side of the square around the whole picture, so that nobody is cut off."""
    return np.array([width / 2, height / 2]), float(max(width, height))


def box_xyxy_to_square(
    box: np.ndarray, padding: float = DEFAULT_PADDING
) -> tuple[np.ndarray, float]:
    """Centre and padded side of the square around a box (x1, y1, x2, y2)."""
    box = np.asarray(box, dtype=np.float64)
    center = (box[:2] + box[2:]) / 2
    return center, padding * float(max(box[2] - box[0], box[3] - box[1]))
