"""Crops against analytic pictures; decoding against everything people upload."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmr.crops import (
    MAX_PIXELS,
    SPARE_PIXELS,
    apply_affine,
    box_to_affine,
    box_xyxy_to_square,
    centre_box,
    crop_image,
    decode_frame,
    decode_image,
    encode_jpeg,
    invert_affine,
    read_image,
)
from hmr.errors import DataError, ImageError

sides = st.floats(8, 6000)
coordinates = st.floats(-3000, 6000)
angles = st.floats(-180, 180)


@settings(deadline=None)
@given(coordinates, coordinates, sides, st.sampled_from([64, 224, 256]), angles)
def test_there_and_back_is_the_identity(
    x: float, y: float, side: float, out: int, angle: float
) -> None:
    affine = box_to_affine((x, y), side, out, angle)
    points = np.array([[0.0, 0.0], [x, y], [1234.5, -77.25], [5999.0, 4001.0]])
    back = apply_affine(invert_affine(affine), apply_affine(affine, points))
    np.testing.assert_allclose(back, points, atol=1e-6)


def test_a_box_becomes_the_whole_crop() -> None:
    affine = box_to_affine((310.25, 140.5), 87.3, 224)
    low, high = np.array([310.25, 140.5]) - 87.3 / 2, np.array([310.25, 140.5]) + 87.3 / 2
    np.testing.assert_allclose(apply_affine(affine, low), [0, 0], atol=1e-9)
    np.testing.assert_allclose(apply_affine(affine, high), [224, 224], atol=1e-9)


def test_content_turns_counter_clockwise_about_the_centre() -> None:
    affine = box_to_affine((100, 50), 40, 80, rotation_deg=90)
    # What was right of the centre is above it: 10 px are 20 px in the crop.
    np.testing.assert_allclose(apply_affine(affine, np.array([110.0, 50.0])), [40, 20], atol=1e-9)


@settings(deadline=None)
@given(angles, angles)
def test_turns_add_up(first: float, second: float) -> None:
    points = np.random.default_rng(0).uniform(0, 500, (20, 2))
    at_once = apply_affine(box_to_affine((200, 300), 120, 96, first + second), points)
    turned = apply_affine(box_to_affine((200, 300), 120, 96, first), points)
    again = apply_affine(box_to_affine((48, 48), 96, 96, second), turned)
    np.testing.assert_allclose(at_once, again, atol=1e-9)


@pytest.mark.parametrize(
    ("center", "side"), [((0, 0), 0.0), ((0, 0), -3.0), ((0, 0), np.nan), ((np.inf, 0), 5.0)]
)
def test_impossible_boxes_are_refused(center: tuple[float, float], side: float) -> None:
    with pytest.raises(DataError, match="must be finite and the side above 0"):
        box_to_affine(center, side, 64)


Function = Callable[[np.ndarray, np.ndarray], np.ndarray]


def picture_of(function: Function, width: int, height: int) -> np.ndarray:
    """Three channels of a function of continuous pixel coordinates, sampled at pixel centres."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.rint(function(x, y)).astype(np.uint8)


def ramps(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([20 + 0.5 * x, 230 - 0.6 * y, 60 + 0.2 * x + 0.3 * y], -1)


def waves(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack(
        [
            128 + 90 * np.sin(2 * np.pi * x / 150),
            128 + 90 * np.cos(2 * np.pi * y / 130),
            128 + 90 * np.sin(2 * np.pi * (x - 0.7 * y) / 160),
        ],
        -1,
    )


@pytest.mark.parametrize("function", [ramps, waves])
@pytest.mark.parametrize(
    ("side", "out", "angle"),
    [
        (96, 96, 0), (50.7, 96, 0), (180.3, 64, 0), (150, 96, 33), (70.2, 128, -118), (190, 40, 15),
        (191, 101, 0),
    ],
)  # fmt: skip
def test_crop_equals_the_function_at_the_mapped_pixel_centres(
    function: Function, side: float, out: int, angle: float
) -> None:
    image = picture_of(function, 400, 330)
    affine = box_to_affine((195.3, 160.8), side, out, angle)
    y, x = np.mgrid[:out, :out] + 0.5
    source = apply_affine(invert_affine(affine), np.stack([x, y], -1))
    expected = function(source[..., 0], source[..., 1])
    found = crop_image(image, affine, out).astype(float)
    # 0.5 of rounding, twice, and what averaging over a cell flattens a wave by.
    difference = np.abs(found - expected)
    assert difference.max() < 2.2
    assert np.abs((found - expected).mean()) < 0.15


def test_half_a_pixel_moves_the_picture_by_half_a_pixel() -> None:
    image = picture_of(lambda x, y: np.stack([2 * x, 2 * y, x + y], -1), 120, 120)
    affine = box_to_affine((60, 60), 60.7, 96)
    shifted = affine + np.array([[0, 0, 0.5], [0, 0, 0.5]])
    move = crop_image(image, affine, 96).mean((0, 1)) - crop_image(image, shifted, 96).mean((0, 1))
    np.testing.assert_allclose(move, 2 * 0.5 * 60.7 / 96, atol=0.05)


@pytest.mark.parametrize(
    ("side", "left"),
    [(120, 25), (131.3, 25), (150, 16), (170, 16), (211.7, 16), (460, 16), (900, 16)],
)
def test_fine_detail_does_not_alias_when_shrinking(side: float, left: float) -> None:
    y, x = np.mgrid[:1000, :1000]
    checkers = np.repeat((255 * ((x + y) % 2)).astype(np.uint8)[..., None], 3, 2)
    crop = crop_image(checkers, box_to_affine((500, 500), side, 100), 100).astype(float)
    assert crop.mean() == pytest.approx(127.5, abs=1)
    assert crop.std() < left  # the checkers' own is 127.5


def test_hundredths_of_a_pixel_count() -> None:
    """Places in the picture are real numbers, not steps of a table."""
    image = np.broadcast_to(np.array([0, 0, 50, 150, 250, 250], np.uint8)[:, None], (6, 6, 3))
    crop = crop_image(image, box_to_affine((3.002, 3.0), 0.1, 10), 10)
    # Each pixel of the crop is 0.01 px, one gray value, further; 100 is reached at x = 3.
    np.testing.assert_array_equal(crop[..., 0], np.tile(np.arange(96, 106), (10, 1)))


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_channels_stay_whatever_their_number(channels: tuple[int, ...]) -> None:
    image = np.full((40, 40, *channels), 7, np.uint8)
    for center in ((20, 20), (400, 400)):
        crop = crop_image(image, box_to_affine(center, 20, 16), 16)
        assert crop.shape == (16, 16, *channels)
        assert (crop == (7 if center == (20, 20) else 0)).all()


def test_outside_of_the_image_is_black_and_the_edge_stays_in_place() -> None:
    white = np.full((80, 60, 3), 255, np.uint8)
    crop = crop_image(white, box_to_affine((0, 40), 40, 80), 80)
    assert (crop[:, :39] == 0).all()
    assert (crop[:, 41:] == 255).all()
    shrunk = crop_image(white, box_to_affine((60, 40), 60, 30), 30)
    assert (shrunk[:, :14] == 255).all()
    assert (shrunk[:, 16:] == 0).all()


def test_a_box_beside_the_image_is_all_black() -> None:
    white = np.full((80, 60, 3), 255, np.uint8)
    assert not crop_image(white, box_to_affine((400, 40), 40, 32), 32).any()


@pytest.mark.parametrize(("side", "angle"), [(60, 0), (60, 40), (170.5, 0), (170.5, -70)])
def test_crop_does_not_depend_on_the_rest_of_the_frame(side: float, angle: float) -> None:
    rng = np.random.default_rng(3)
    large = rng.integers(0, 256, (700, 800, 3), np.uint8)
    inner = large[120:620, 90:690]
    whole = crop_image(large, box_to_affine((400.2, 380.7), side, 64, angle), 64)
    part = crop_image(inner, box_to_affine((310.2, 260.7), side, 64, angle), 64)
    assert np.abs(whole.astype(int) - part).max() <= 1


def test_squares() -> None:
    center, side = centre_box(640, 480)
    np.testing.assert_array_equal(center, [320, 240])
    assert side == 640
    center, side = box_xyxy_to_square(np.array([10, 20, 50, 140]))
    np.testing.assert_array_equal(center, [30, 80])
    assert side == pytest.approx(144)
    assert box_xyxy_to_square(np.array([10, 20, 50, 140]), padding=1)[1] == 120


def test_jpeg_keeps_full_colour_resolution_from_quality_90() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2, 0] = 255
    stripes[:, 1::2, 2] = 255
    fine = np.abs(decode_image(encode_jpeg(stripes, 95)).astype(int) - stripes).mean()
    coarse = np.abs(decode_image(encode_jpeg(stripes, 89)).astype(int) - stripes).mean()
    assert fine < 6 < 40 < coarse


# Decoding


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert str(caught.value)
    return caught.value.reason


@pytest.fixture(scope="module")
def upright() -> np.ndarray:
    return picture_of(lambda x, y: np.stack([3 * x, 5 * y, 255 - 2 * x - 2 * y], -1), 60, 40)


STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}
"""How a camera stores an upright picture under each EXIF orientation."""


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 98}), ("PNG", {}), ("WEBP", {"lossless": True})]
)
def test_every_orientation_comes_out_upright(
    upright: np.ndarray, orientation: int, kind: str, options: dict[str, Any]
) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    found = decode_image(encoded(stored, kind, exif=exif(orientation), **options))
    assert found.shape == upright.shape
    assert np.abs(found.astype(int) - upright).max() <= (8 if kind == "JPEG" else 0)
    assert found.flags.writeable
    assert found.flags.c_contiguous


@pytest.mark.parametrize("orientation", STORED)
def test_sixteen_bits_are_scaled_not_clipped(orientation: int) -> None:
    y, x = np.mgrid[:20, :30]
    values = (1000 * x + 1500 * y + 40).astype(np.uint16)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](values)))
    found = decode_image(encoded(stored, "PNG", exif=exif(orientation)))
    np.testing.assert_array_equal(found, np.repeat((values >> 8)[..., None], 3, 2))


def test_gray_and_black_and_white(upright: np.ndarray) -> None:
    gray = Image.fromarray(upright[..., 0])
    expected = np.repeat(upright[..., :1], 3, 2)
    np.testing.assert_array_equal(decode_image(encoded(gray, "PNG")), expected)
    binary = decode_image(encoded(gray.convert("1", dither=Image.Dither.NONE), "PNG"))
    np.testing.assert_array_equal(binary, np.where(expected >= 128, 255, 0))


def test_palettes_keep_their_colours(upright: np.ndarray) -> None:
    palette = Image.fromarray(upright).quantize(32)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(decode_image(encoded(palette, "PNG")), expected)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_lies_on_white(kind: str) -> None:
    pixels = np.zeros((16, 48, 4), np.uint8)
    pixels[:, :16] = (255, 0, 0, 255)
    pixels[:, 16:32] = (255, 0, 0, 51)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = decode_image(encoded(Image.fromarray(pixels), kind, **options))
    assert found[8, 8].tolist() == [255, 0, 0]
    assert found[8, 24].tolist() == [255, 204, 204]  # 0.2 red + 0.8 white
    assert found[8, 40].tolist() == [255, 255, 255]


def test_transparent_palette_gray_and_colour_key() -> None:
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(1, (8, 0, 16, 16))
    found = decode_image(encoded(palette, "PNG", transparency=0))
    assert found[4, 4].tolist() == [255, 255, 255]
    assert found[4, 12].tolist() == [200, 100, 50]
    two = decode_image(encoded(Image.new("LA", (16, 16), (0, 51)), "PNG"))
    assert two[0, 0].tolist() == [204, 204, 204]
    keyed = decode_image(
        encoded(Image.new("RGB", (16, 16), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    )
    assert keyed[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("colour", [(255, 255, 255), (200, 30, 40), (20, 180, 60), (0, 0, 0)])
def test_cmyk_is_not_inverted(colour: tuple[int, int, int]) -> None:
    cmyk = Image.new("RGB", (32, 32), colour).convert("CMYK")
    found = decode_image(encoded(cmyk, "JPEG", quality=98))
    assert np.abs(found.astype(int) - colour).max() <= 4


def test_phone_pictures_with_a_second_frame_give_the_first(upright: np.ndarray) -> None:
    depth = Image.new("RGB", (16, 16))
    data = encoded(
        Image.fromarray(upright), "MPO", save_all=True, append_images=[depth], quality=98
    )
    assert np.abs(decode_image(data).astype(int) - upright).max() <= 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_pictures_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert reason(data[: int(share * len(data))]) == "truncated"


def png_claiming(width: int, height: int) -> bytes:
    """A header and one empty data chunk: decoding it would fail as truncated."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (32, 32)), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("size", [(5001, 5000), (9000, 9000), (10_000, 9_500), (20_000, 20_000)])
def test_bombs_are_refused_from_their_header(size: tuple[int, int]) -> None:
    assert reason(png_claiming(*size)) == "too_many_pixels"
    assert reason(jpeg_claiming(*size)) == "too_many_pixels"


def test_the_largest_accepted_picture() -> None:
    side = int(MAX_PIXELS**0.5)
    assert decode_image(encoded(Image.new("1", (side, side), 1), "PNG")).shape == (side, side, 3)
    assert reason(png_claiming(side, side)) == "truncated"


def test_small_pictures() -> None:
    assert reason(encoded(Image.new("RGB", (200, 15)), "PNG")) == "too_small"
    assert decode_image(encoded(Image.new("RGB", (16, 16)), "PNG")).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), (40 * i, 0, 0)) for i in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert reason(data) == "animated"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_named(kind: str) -> None:
    with pytest.raises(ImageError, match=kind) as caught:
        decode_image(encoded(Image.new("RGB", (32, 32)), kind))
    assert caught.value.reason == "format_not_allowed"


def test_bytes_that_are_no_picture() -> None:
    assert reason(b"") == "zero_byte"
    assert reason(b"hello, this is text and not a picture at all") == "not_an_image"
    assert reason(b"\0" * 500) == "not_an_image"
    assert reason(b"\0\0\0\x18ftypheic" + b"\0" * 200) == "format_not_allowed"


def test_damaged_exif_does_not_cost_the_picture(upright: np.ndarray) -> None:
    for junk in (
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ):
        data = encoded(Image.fromarray(upright), "JPEG", quality=98, exif=junk)
        assert np.abs(decode_image(data).astype(int) - upright).max() <= 8


def test_damaged_bytes_give_a_picture_or_an_image_error(upright: np.ndarray) -> None:
    rng = np.random.default_rng(11)
    image = Image.fromarray(upright)
    sources = [
        encoded(image, "JPEG", exif=exif(6)),
        encoded(image, "PNG", exif=exif(3)),
        encoded(image, "WEBP", exif=exif(8)),
        encoded(image.convert("P"), "PNG", transparency=3),
        encoded(image.convert("CMYK"), "JPEG"),
    ]
    outcomes = set()
    for number in range(1000):
        data = bytearray(sources[number % len(sources)])
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(min(len(data), 300 if number % 2 else len(data)))] = rng.integers(256)
        try:
            found = decode_image(bytes(data))
            assert found.dtype == np.uint8
            assert found.ndim == 3
            outcomes.add("picture")
        except ImageError as error:
            outcomes.add(error.reason)
    assert {"picture", "truncated", "not_an_image"} <= outcomes


def test_threads_leave_the_warning_filters_alone(upright: np.ndarray) -> None:
    pictures = [encoded(Image.fromarray(upright), "PNG", exif=exif(6)), png_claiming(9999, 9500)]
    before = list(warnings.filters)

    def decode(number: int) -> bool:
        try:
            return decode_image(pictures[number % 2]).shape == (60, 40, 3)
        except ImageError as error:
            return error.reason == "too_many_pixels"

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(decode, range(200)))
    assert list(warnings.filters) == before


def test_files_are_named_in_errors(tmp_path: Path, upright: np.ndarray) -> None:
    file = tmp_path / "photo.png"
    with pytest.raises(ImageError, match=r"photo\.png") as caught:
        read_image(file)
    assert caught.value.reason == "unreadable"
    file.write_bytes(encoded(Image.fromarray(upright), "PNG"))
    np.testing.assert_array_equal(read_image(file), upright)
    file.write_bytes(b"no picture, but some bytes")
    with pytest.raises(ImageError, match=r"photo\.png") as caught:
        read_image(file)
    assert caught.value.reason == "not_an_image"


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(16, 700), height=st.integers(16, 700), image_size=st.sampled_from([32, 64]),
    side=st.one_of(st.none(), st.floats(0, 2000)),
)  # fmt: skip
def test_a_frame_keeps_its_size_and_the_pixels_that_crops_need(
    width: int, height: int, image_size: int, side: float | None
) -> None:
    data = encoded(Image.new("RGB", (width, height), (90, 30, 200)), "JPEG")
    frame = decode_frame(data, image_size, side)
    assert frame.size == (width, height)
    if frame.shrink > 1:
        needed = max(width, height) if side is None else side
        assert needed / frame.shrink >= SPARE_PIXELS * image_size
    assert np.abs(frame.pixels.astype(int) - [90, 30, 200]).max() <= 3


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("orientation", STORED)
def test_a_pixel_of_a_frame_is_the_mean_of_its_square(shrink: int, orientation: int) -> None:
    picture = picture_of(waves, 512, 256)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](picture)))
    data = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif(orientation))
    frame = decode_frame(data, 32, SPARE_PIXELS * 32 * shrink)
    assert (frame.shrink, frame.size) == (shrink, (512, 256))
    squares = picture.reshape(256 // shrink, shrink, 512 // shrink, shrink, 3).mean((1, 3))
    difference = frame.pixels - squares
    assert np.abs(difference).max() < 4
    assert np.abs(difference.mean()) < 0.25


def test_a_crop_of_a_frame_lies_where_that_of_the_whole_picture_does() -> None:
    picture = picture_of(ramps, 400, 320)
    data = encoded(Image.fromarray(picture), "JPEG", quality=95, subsampling=0)
    frame = decode_frame(data, 16, 300)
    assert frame.shrink == 4
    whole = crop_image(picture, box_to_affine((210.3, 160.8), 303, 16), 16)
    found = crop_image(frame.pixels, box_to_affine((210.3 / 4, 160.8 / 4), 303 / 4, 16), 16)
    # Half a pixel of the frame is 2 of the picture's, one gray level on every ramp and more.
    assert np.abs(found[1:-1, 1:-1].astype(int) - whole[1:-1, 1:-1]).mean() < 0.7


def test_only_large_jpegs_are_read_smaller() -> None:
    picture = picture_of(waves, 512, 256)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        frame = decode_frame(encoded(Image.fromarray(picture), kind, **options), 16)
        assert frame.shrink == 1
        np.testing.assert_array_equal(frame.pixels, picture)
    odd = encoded(Image.fromarray(picture[:255, :511]), "JPEG")
    assert decode_frame(odd, 16).shrink == 1
    np.testing.assert_array_equal(decode_frame(odd, 16).pixels, decode_image(odd))
    assert decode_frame(encoded(Image.fromarray(picture[:254, :510]), "JPEG"), 16).shrink == 2
