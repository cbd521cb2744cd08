"""Equal pictures are found however they are stored, and others are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from hmr.body_arrays import body_from_path
from hmr.crops import encode_jpeg
from hmr.errors import ImageError
from hmr.synthetic import Generator
from rayhmr.picture_hash import (
    MOST_BITS,
    Prints,
    distance,
    equal_groups,
    near_pairs,
    picture_print,
)


@pytest.fixture(scope="module")
def pictures():
    people = Generator(body_from_path("embedded"), "medium", 96, 3, "test").samples(range(40))
    return [person.image for person in people]


def stored(image, quality=92, factor=1.0, kind="JPEG"):
    size = round(image.shape[0] * factor)
    stream = io.BytesIO()
    Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS).save(
        stream, kind, quality=quality
    )
    return stream.getvalue()


@pytest.mark.parametrize(
    ("quality", "factor", "kind"),
    [(60, 1.0, "JPEG"), (90, 0.75, "JPEG"), (90, 1.5, "JPEG"), (90, 1.0, "PNG")],
)
def test_another_encoding_or_a_small_resize_is_the_same_picture(pictures, quality, factor, kind):
    first = Prints.of([picture_print(encode_jpeg(p)) for p in pictures])
    again = Prints.of([picture_print(stored(p, quality, factor, kind)) for p in pictures])
    assert distance(first.hashes, again.hashes).max() <= MOST_BITS
    both = Prints(
        hashes=np.concatenate([first.hashes, again.hashes]),
        thumbs=np.concatenate([first.thumbs, again.thumbs]),
    )
    count = len(pictures)
    assert equal_groups(both) == [[i, i + count] for i in range(count)]


def test_different_pictures_are_far_from_each_other(pictures):
    hashes = Prints.of([picture_print(encode_jpeg(p)) for p in pictures]).hashes
    apart = distance(hashes[:, None], hashes[None])[np.triu_indices(len(hashes), 1)]
    assert apart.min() > MOST_BITS
    assert np.median(apart) > 3 * MOST_BITS


def test_the_search_finds_the_pairs_that_a_comparison_of_all_finds():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, (300, 2), dtype=np.uint64)
    hashes = np.concatenate([base, base[:100]])
    for row in range(300, 400):
        for bit in rng.choice(128, rng.integers(0, 2 * MOST_BITS), replace=False):
            hashes[row, bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    near = distance(hashes[:, None], hashes[None]) <= MOST_BITS
    expected = {(int(i), int(j)) for i, j in np.argwhere(near) if i < j}
    assert set(near_pairs(hashes, np.arange(400))) == expected
    assert 20 < len(expected) < 100


def test_equal_hashes_of_pictures_that_differ_are_no_double():
    prints = Prints(
        hashes=np.zeros((3, 2), np.uint64),
        thumbs=np.repeat(np.array([[10], [200], [11]], np.uint8), 256, axis=1),
    )
    assert equal_groups(prints) == [[0, 2]]


def test_what_is_no_picture_is_refused():
    with pytest.raises(ImageError, match="cannot be decoded"):
        picture_print(b"no picture")
