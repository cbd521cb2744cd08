"""Crops to pixels: the decoder's shortcuts change neither the picture nor where things are."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hmr.embedded_body import embedded_body
from hmr.errors import ConfigError, DataError
from hmr.synthetic import Generator
from rayhmr.data.batches import to_batch
from rayhmr.data.decode import SIDE, decode_all, decode_square, decode_table
from rayhmr.data.schema import SCHEMA


@pytest.fixture(scope="module")
def pictures():
    """People before busy backgrounds, (4, 512, 512, 3)."""
    generator = Generator(embedded_body(), "medium", 512, seed=0, split="train")
    return np.stack([person.image for person in generator.samples(range(4))])


def jpeg(image, mode="RGB", **options):
    content = io.BytesIO()
    Image.fromarray(image).convert(mode).save(content, "JPEG", **({"quality": 92} | options))
    return content.getvalue()


def decoded(content, size):
    out = np.zeros((size, size, 3), np.uint8)
    decode_square(content, out)
    return out


def reference(content, size):
    """The whole picture decoded by OpenCV, then averaged over the area of each pixel."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


# One picture


@pytest.mark.parametrize(
    "options",
    [{"subsampling": 0}, {"subsampling": 2}, {"subsampling": 2, "quality": 60}, {"mode": "L"},
     {"mode": "CMYK"}, {"progressive": True}, {"optimize": True}],
    ids=str,
)  # fmt: skip
def test_at_the_stored_side_the_pixels_are_those_of_opencv(pictures, options):
    for image in pictures[:, :96, 100:196]:
        content = jpeg(image, **options)
        np.testing.assert_array_equal(decoded(content, 96), reference(content, 96))


@pytest.mark.parametrize(
    ("stored", "wanted", "mean", "most"),
    [
        # Bilinear sampling alone.
        (256, 224, 0.7, 30), (320, 224, 0.7, 30), (333, 210, 0.8, 40),
        # The average over the area itself.
        (251, 120, 0.01, 1), (333, 64, 0.01, 1),
        # The decoder's own reduction.
        (384, 240, 1.5, 50), (384, 144, 1.5, 50), (512, 256, 0.7, 20),
        (256, 64, 0.7, 20), (512, 64, 0.7, 20),
        # The decoder's, then one of the others.
        (512, 224, 2.0, 50), (384, 224, 2.0, 50), (480, 224, 2.0, 50), (300, 64, 3.0, 60),
        (512, 170, 2.0, 50),
    ],
)  # fmt: skip
def test_a_smaller_picture_is_the_average_over_the_area(pictures, stored, wanted, mean, most):
    for image in pictures:
        content = jpeg(cv2.resize(image, (stored, stored), interpolation=cv2.INTER_AREA))
        difference = decoded(content, wanted).astype(float) - reference(content, wanted)
        assert np.abs(difference).mean() < mean
        assert np.abs(difference).max() <= most
        assert abs(difference.mean()) < 0.3


@settings(deadline=None, max_examples=60)
@given(stored=st.integers(16, 500), wanted=st.integers(16, 260), x=st.floats(0.3, 0.8))
def test_things_stay_where_they_are_whatever_the_sides(stored, wanted, x):
    """The centre of a soft spot, in shares of the side."""
    y = 1 - x / 2
    line = (np.arange(stored) + 0.5) / stored
    spot = np.exp(-((line - x) ** 2 + (line[:, None] - y) ** 2) / (2 * 0.08**2))
    image = np.repeat((250 * spot).round().astype(np.uint8)[..., None], 3, axis=2)
    weights = np.maximum(decoded(jpeg(image, quality=100), wanted)[..., 0] - 60.0, 0)
    seen = (np.arange(wanted) + 0.5) / wanted
    assert (weights.sum(0) * seen).sum() / weights.sum() == pytest.approx(x, abs=4e-3)
    assert (weights.sum(1) * seen).sum() / weights.sum() == pytest.approx(y, abs=4e-3)


@given(stored=st.integers(8, 400), wanted=st.integers(8, 200))
@settings(deadline=None, max_examples=40)
def test_one_colour_stays_that_colour_to_the_last_pixel(stored, wanted):
    content = jpeg(np.full((stored, stored, 3), (200, 40, 90), np.uint8))
    out = np.zeros((wanted, wanted, 3), np.uint8)
    assert decode_square(content, out) == stored
    assert np.abs(out.astype(int) - (200, 40, 90)).max() <= 2


def test_every_thread_decodes_the_same_bits(pictures):
    contents = [jpeg(image) for image in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: decoded(contents[number % 4], 200), range(40)))
    for number, image in enumerate(found):
        np.testing.assert_array_equal(image, found[number % 4])


# Damage


def test_a_picture_cut_anywhere_is_named():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    content = jpeg(noise)
    for end in range(0, len(content) - 1, 97):
        with pytest.raises(DataError, match=r"cut/0: its picture .*; prepare the data set again"):
            decode_all(["whole", "cut/0"], [content, content[:end]], 32)


def test_a_header_that_promises_a_huge_picture_is_not_believed():
    content = jpeg(np.zeros((32, 32, 3), np.uint8))
    frame = content.index(b"\xff\xc0") + 5
    forged = content[:frame] + 2 * (60_000).to_bytes(2, "big") + content[frame + 4 :]
    with pytest.raises(DataError, match="60000 x 60000 pixels"):
        decode_all(["forged"], [forged], 32)


# Tables that tasks have decoded


@pytest.fixture
def table(make_person, pictures):
    """Nine crops of three sides."""
    people = [
        make_person(number, image=np.ascontiguousarray(pictures[number % 4][:side, :side]))
        for number, side in enumerate([64, 48, 200] * 3)
    ]
    return pa.Table.from_pylist([person.row(92) for person in people], SCHEMA)


def assert_same(found, expected):
    for name in ("images", "keypoints_2d", "keypoints_3d", "rotmats", "betas", "has_smpl"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.sample_ids == expected.sample_ids


def read_only(table):
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return pa.ipc.open_stream(pa.py_buffer(sink.getvalue())).read_all()


def test_a_batch_is_the_same_wherever_it_was_decoded(table):
    ready = decode_table(table, 48)
    assert ready.column_names == [*table.column_names, SIDE]
    assert ready[SIDE].to_pylist() == [64, 48, 200] * 3
    assert_same(to_batch(ready, 48), to_batch(table, 48))
    assert_same(to_batch(read_only(ready), 48), to_batch(table, 48))


def test_parts_and_mixtures_of_decoded_tables_give_those_rows(table):
    ready = decode_table(table, 48)
    assert_same(to_batch(ready.slice(2, 5), 48), to_batch(table.slice(2, 5), 48))
    mixed = pa.concat_tables([ready.slice(7, 2), ready.slice(0, 3)])
    rows = [7, 8, 0, 1, 2]
    assert_same(to_batch(mixed, 48), to_batch(table.take(rows), 48))
    assert_same(to_batch(ready.take(rows), 48), to_batch(table.take(rows), 48))
    assert len(to_batch(ready.slice(0, 0), 48)) == len(to_batch(table.slice(0, 0), 48)) == 0


def test_pixels_are_copied_only_out_of_memory_that_may_not_be_written(table):
    ready = decode_table(table, 48)

    def address(table):
        return table["image"].chunk(0).buffers()[1].address

    assert to_batch(ready, 48).images.data_ptr() == address(ready)
    frozen = read_only(ready)
    images = to_batch(frozen, 48).images
    images.zero_()
    assert_same(to_batch(frozen, 48), to_batch(table, 48))


def test_a_table_decoded_for_another_model_is_refused(table):
    with pytest.raises(ConfigError, match="image_size=64: the table was decoded for a side of 48"):
        to_batch(decode_table(table, 48), 64)


def test_a_task_names_the_damaged_row_too(table):
    rows = table.to_pylist()
    rows[4]["image"]["bytes"] = b"no picture"
    with pytest.raises(DataError, match="made/00004/0: its picture"):
        decode_table(pa.Table.from_pylist(rows, SCHEMA), 48)


def test_other_layouts_of_the_same_rows_give_the_same_pixels(table):
    kind = pa.struct([pa.field("bytes", pa.large_binary()), pa.field("path", pa.string())])
    place = table.schema.get_field_index("image")
    large = table.set_column(place, "image", table["image"].cast(kind))
    assert_same(to_batch(large, 48), to_batch(table, 48))
    parts = [large.slice(0, 0), large.slice(3, 1), large.slice(4, 5)]
    assert_same(to_batch(pa.concat_tables(parts), 48), to_batch(table.slice(3), 48))


def test_a_row_without_a_picture_is_named(table):
    rows = table.to_pylist()
    rows[7]["image"]["bytes"] = None
    with pytest.raises(DataError, match="made/00007/0: its picture"):
        to_batch(pa.Table.from_pylist(rows, SCHEMA), 48)
    with pytest.raises(DataError, match="made/00007/0: its picture"):
        to_batch(pa.Table.from_pylist(rows[7:8], SCHEMA), 48)
