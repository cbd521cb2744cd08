"""Bytes from strangers are a picture, or an ImageError with a reason, and cost little memory."""

from __future__ import annotations

import io
import pickle
import re
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmr.crops import MAX_PIXELS, decode_image
from hmr.errors import ImageError

REASONS = {
    "zero_byte", "not_an_image", "format_not_allowed", "too_many_pixels", "too_small", "animated",
    "truncated",
}  # fmt: skip


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode, size=(40, 24)):
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2}[mode]
    values = np.random.default_rng(3).integers(0, 255, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode)


def seeds():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description"
    rgb = noise("RGB")
    sixteen = Image.fromarray(np.arange(24 * 40, dtype=np.uint16).reshape(24, 40) * 60)
    return [
        encoded(rgb, "JPEG"), encoded(rgb, "JPEG", progressive=True, exif=exif),
        encoded(noise("CMYK"), "JPEG"), encoded(noise("L"), "JPEG"),
        encoded(rgb, "PNG", exif=exif), encoded(noise("RGBA"), "PNG"), encoded(sixteen, "PNG"),
        encoded(rgb.quantize(16), "PNG", transparency=3), encoded(noise("LA"), "PNG"),
        encoded(rgb.convert("1"), "PNG"), encoded(rgb, "WEBP", exif=exif),
        encoded(noise("RGBA"), "WEBP", lossless=True),
    ]  # fmt: skip


SEEDS = seeds()
HEADS = [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF"]


def verdict(data):
    try:
        return decode_image(data)
    except ImageError as error:
        return error


def test_the_seeds_are_pictures():
    shapes = {decode_image(data).shape for data in SEEDS}
    assert shapes == {(24, 40, 3), (40, 24, 3)}


@st.composite
def damaged(draw):
    """One of the seeds after a few accidents."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        accident = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "number", "header"]))
        if accident == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif accident == "cut":
            del data[at:]
        elif accident == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif accident == "repeat":
            data[at:at] = data[at : at + 60] * draw(st.integers(1, 20))
        elif accident == "number":
            data[at : at + 4] = struct.pack(">I", draw(st.sampled_from([0, 1, 2**31, 2**32 - 1])))
        else:
            data[:0] = draw(st.sampled_from(HEADS))
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(data=damaged() | st.binary(max_size=200))
def test_damaged_bytes_are_a_picture_or_a_stable_reason(data):
    result = verdict(data)
    if isinstance(result, ImageError):
        assert result.reason in REASONS
        text = str(result)
        assert not re.search(r"0x[0-9a-f]{6}|object at|/site-packages/|\.py\b", text), text
        assert len(text) < 400
    else:
        assert result.dtype == np.uint8
        assert (result.ndim, result.shape[2]) == (3, 3)
        assert min(result.shape[:2]) >= 16
        assert result.shape[0] * result.shape[1] <= MAX_PIXELS


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def archive(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(name, content)
    return buffer.getvalue()


def array_file(trap):
    buffer = io.BytesIO()
    np.save(buffer, np.array([trap], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_pickles_in_any_dress_are_no_pictures_and_run_nothing(tmp_path):
    canary = tmp_path / "canary"
    trap = Trap(canary)
    with open(canary, "w"):
        canary.unlink()  # the trap's own way works
    pickled = pickle.dumps(trap)
    dressed = [
        pickled, pickle.dumps(trap, 0), archive("archive/data.pkl", pickled),
        archive("poses.npy", array_file(trap)), array_file(trap), zlib.compress(pickled),
        b"\xff\xd8\xff\xe0" + pickled, SEEDS[0] + pickled, SEEDS[4] + pickled,
    ]  # fmt: skip
    for data in dressed:
        assert getattr(verdict(data), "reason", None) in (None, "not_an_image", "truncated")
    assert not canary.exists()
    pickle.loads(pickled).close()
    assert canary.exists(), "the trap would have shown itself"


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "zero_byte"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://x/'/></svg>", "not_an_image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run", "not_an_image"),
    (b"%PDF-1.7\n", "not_an_image"), (b"<html><script>alert(1)</script>", "not_an_image"),
    (b"http://169.254.169.254/latest", "not_an_image"), (b"\x00" * 1000, "not_an_image"),
    (b"\x00\x00\x00\x18ftypheic" + bytes(40), "format_not_allowed"),
    (encoded(noise("RGB"), "GIF"), "format_not_allowed"),
    (encoded(noise("RGB"), "BMP"), "format_not_allowed"),
    (encoded(noise("RGB"), "TIFF"), "format_not_allowed"),
    (encoded(Image.new("RGB", (65500, 1)), "JPEG"), "too_small"),
    (encoded(Image.new("L", (1, 30000)), "PNG"), "too_small"),
    (encoded(noise("RGB"), "PNG", save_all=True, append_images=[noise("RGB")]), "animated"),
    (encoded(noise("RGB"), "WEBP", save_all=True,
             append_images=[noise("RGB").rotate(180)]), "animated"),
])  # fmt: skip
def test_files_that_are_not_for_us_have_one_reason(data, reason):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert caught.value.reason == reason


def test_a_small_file_with_many_scans_is_refused_before_it_is_decoded():
    data = encoded(Image.new("RGB", (1000, 1000), (9, 99, 200)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode_image(data[:-2] + last * 20 + data[-2:]).shape == (1000, 1000, 3)
    with pytest.raises(ImageError, match="scans of 1000 x 1000 pixels") as caught:
        decode_image(data[:-2] + last * 50_000 + data[-2:])
    assert caught.value.reason == "too_many_pixels"


def png(width, height, depth, colour, more=b""):
    """Zeros of any size: a small file however large the picture."""

    row = 1 + (width * depth * {0: 1, 2: 3, 3: 1, 6: 4}[colour] + 7) // 8
    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(row)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + chunk(b"IDAT", body)
            + chunk(b"IEND", b""))  # fmt: skip


def chunk(kind, body):
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


PEAK = """
import sys
from hmr.crops import decode_image
from hmr.errors import ImageError

def memory(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) / 1000

for path in sys.argv[1:]:
    data = open(path, "rb").read()
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    before = memory("VmRSS:")
    try:
        result = "x".join(map(str, decode_image(data).shape[:2]))
    except ImageError as error:
        result = error.reason
    print(result, memory("VmHWM:") - before)
"""
SIDE = 5000
TURNED = Image.Exif()
TURNED[0x0112] = 6
BOMBS = {
    "13000 pixels squared": (lambda: png(13_000, 1, 8, 2)[:33] + png(9, 1, 8, 2)[33:], None),
    "100 MB of text": (
        lambda: png(64, 64, 8, 2, chunk(b"zTXt", b"c\0\0" + zlib.compress(bytes(100_000_000), 1))),
        None,
    ),
    "100 MB of colour profile": (
        lambda: png(64, 64, 8, 2, chunk(b"iCCP", b"c\0\0" + zlib.compress(bytes(100_000_000), 1))),
        None,
    ),
    "the widest JPEG": (lambda: encoded(Image.new("RGB", (65_500, 381)), "JPEG"), "381x65500"),
    "sixteen bits": (lambda: png(SIDE, SIDE, 16, 0), f"{SIDE}x{SIDE}"),
    "transparent": (lambda: png(SIDE, SIDE, 8, 6), f"{SIDE}x{SIDE}"),
    "sixteen bits and transparent": (lambda: png(SIDE, SIDE, 16, 6), f"{SIDE}x{SIDE}"),
    "palette": (lambda: png(SIDE, SIDE, 1, 3, chunk(b"PLTE", bytes(6))), f"{SIDE}x{SIDE}"),
    "palette with transparency": (
        lambda: png(SIDE, SIDE, 1, 3, chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\7")),
        f"{SIDE}x{SIDE}",
    ),
    "lying on its side": (
        lambda: encoded(Image.new("RGB", (SIDE, SIDE - 8)), "JPEG", exif=TURNED), "5000x4992",
    ),
}  # fmt: skip


def test_no_picture_takes_more_than_its_pixels_need(tmp_path):
    """Of the largest picture 4 bytes a pixel while it is decoded, 4 while it is turned, and 3 as
    the answer, never more than 2 of these at once."""
    paths = []
    for number, (make, _) in enumerate(BOMBS.values()):
        paths.append(tmp_path / str(number))
        paths[-1].write_bytes(make())
    small = tmp_path / "small"
    small.write_bytes(SEEDS[4])  # loads the decoders
    lines = subprocess.run(
        [sys.executable, "-c", PEAK, small, *paths], capture_output=True, text=True, check=True
    ).stdout.splitlines()[1:]
    for line, (name, (_, expected)) in zip(lines, BOMBS.items(), strict=True):
        result, peak_mb = line.split()
        assert expected == result or (expected is None and result in REASONS), (name, line)
        limit_mb = 210 if expected else 80
        assert float(peak_mb) < limit_mb, (name, line)
