"""Rows to batches: none is lost or comes twice, and the numbers are right."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from hmr.crops import decode_image, encode_jpeg
from hmr.errors import DataError
from hmr.rotations import axis_angle_to_matrix
from rayhmr.data.batches import (
    decoded_ahead,
    read_batches,
    read_tables,
    smpl_labels,
    to_batch,
)
from rayhmr.data.schema import SCHEMA, DatasetInfo, encode_shard

# Decoding ahead


def decode_threads():
    return {t for t in threading.enumerate() if t.name.startswith("decode")}


def assert_ended(threads):
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_batches_keep_the_order_of_their_tables():
    def decode(number):
        time.sleep(0.002 * (7 * number % 5))
        return number

    found = list(decoded_ahead(range(40), decode, threads=4, ahead=6))
    assert found == list(range(40))


def test_as_many_tables_are_decoded_at_a_time_as_there_are_threads():
    together = threading.Barrier(3, timeout=20)

    def decode(number):
        together.wait()
        return number

    assert list(decoded_ahead(range(6), decode, threads=3, ahead=3)) == list(range(6))


def test_no_more_than_the_asked_number_is_pulled_ahead():
    pulled = []

    def tables():
        for number in range(20):
            pulled.append(number)
            yield number

    for used, _ in enumerate(decoded_ahead(tables(), lambda n: n, threads=2, ahead=3)):
        assert len(pulled) == min(used + 1 + 3, 20)


def test_an_error_comes_in_its_place_and_ends_the_threads():
    before = decode_threads()
    started = set()

    def decode(number):
        started.add(threading.current_thread())
        if number == 3:
            raise DataError("the fourth is damaged")
        return number

    found = []
    with pytest.raises(DataError, match="the fourth is damaged"):
        found.extend(decoded_ahead(range(9), decode, threads=2, ahead=2))
    assert found == [0, 1, 2]
    assert_ended(started | decode_threads() - before)


def test_an_error_of_the_stream_is_not_swallowed():
    before = decode_threads()

    def tables():
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(decoded_ahead(tables(), lambda n: n, threads=2, ahead=2))
    assert_ended(decode_threads() - before)


def test_the_threads_end_when_nobody_wants_more():
    before = decode_threads()
    decoded = []
    batches = decoded_ahead(range(1000), lambda n: decoded.append(n) or n, threads=2, ahead=5)
    assert next(batches) == 0
    threads = decode_threads() - before
    assert threads
    batches.close()
    assert_ended(threads)
    assert len(decoded) <= 6


# Values


def table_of(people):
    return pa.Table.from_pylist([person.row(95) for person in people], SCHEMA)


@pytest.mark.parametrize("image_size", [32, 16, 48])
def test_keypoints_are_counted_from_minus_one_to_one_over_the_crop(make_person, image_size):
    keypoints = np.zeros((49, 3), np.float32)
    keypoints[:4] = [[0, 0, 1], [32, 32, 0.5], [16, 16, 0], [8, 24, 1]]
    batch = to_batch(table_of([make_person(keypoints_2d=keypoints)]), image_size)
    expected = [[-1, -1, 1], [1, 1, 0.5], [0, 0, 0], [-0.5, 0.5, 1]]
    assert batch.keypoints_2d[0, :4].tolist() == expected


def test_crops_of_different_sides_share_a_batch(make_person):
    keypoints = np.full((49, 3), 20, np.float32)
    people = [
        make_person(image=np.full((side, side, 3), side, np.uint8), keypoints_2d=keypoints)
        for side in (40, 20)
    ]
    batch = to_batch(table_of(people), 20)
    assert batch.keypoints_2d[:, 0, 0].tolist() == [0, 1]
    assert batch.images.flatten(1).float().mean(1).tolist() == pytest.approx([40, 20], abs=1)


def test_labels_are_the_stored_numbers(make_person):
    people = [make_person(number) for number in range(5)]
    batch = to_batch(table_of(people), 32)
    for name, shape in (("keypoints_3d", (49, 4)), ("betas", (10,))):
        stored = np.stack([getattr(p, name).astype(np.float32).reshape(shape) for p in people])
        np.testing.assert_array_equal(getattr(batch, name).numpy(), stored)
    assert batch.sample_ids == tuple(f"made/{number:05d}/0" for number in range(5))


def test_rotations_are_those_of_the_axis_angles(make_person):
    quarter = np.zeros((24, 3), np.float32)
    quarter[4] = [0, 0, np.pi / 2]
    people = [make_person(pose=quarter.reshape(-1)), make_person(1)]
    rotmats = to_batch(table_of(people), 32).rotmats
    about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(rotmats[0, 4], about_z, atol=1e-6, rtol=0)
    assert torch.equal(rotmats[0, 5], torch.eye(3))
    expected = axis_angle_to_matrix(torch.tensor(people[1].pose).double().view(24, 3))
    torch.testing.assert_close(rotmats[1].double(), expected, atol=1e-6, rtol=0)


def test_pictures_are_rgb_with_their_top_on_top(make_person):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :, 0] = 200  # red above
    image[:, 16:, 2] = 100  # blue at the right
    (found,) = to_batch(table_of([make_person(image=image)]), 32).images.float()
    corners = found[:, [4, 4, 28, 28], [4, 28, 4, 28]].T
    expected = torch.tensor([[200.0, 0, 0], [200, 0, 100], [0, 0, 0], [0, 0, 100]])
    torch.testing.assert_close(corners, expected, atol=3, rtol=0)


def test_a_smaller_crop_averages_and_does_not_pick(make_person):
    board = np.indices((32, 32)).sum(0) % 2 * 200
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    images = to_batch(table_of([make_person(image=image)]), 16).images.float()
    torch.testing.assert_close(images, torch.full_like(images, 100), atol=12, rtol=0)


def test_a_stored_crop_is_upright_whatever_its_exif_says(make_person):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 200
    turned = Image.Exif()
    turned[0x0112] = 6
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=95, exif=turned)
    row = make_person(image=image).row(95)
    row["image"]["bytes"] = content.getvalue()
    (found,) = to_batch(pa.Table.from_pylist([row], SCHEMA), 32).images.float()
    assert found[:, :14].min() > 180
    assert found[:, 18:].max() < 20
    assert decode_image(content.getvalue())[:, 20:].min() > 180, "the tag is there"


def test_a_part_of_a_table_gives_that_part_of_the_batch(make_person):
    table = table_of([make_person(number) for number in range(9)])
    whole = to_batch(table, 32)
    part = to_batch(table.slice(3, 4), 32)
    chunked = to_batch(pa.concat_tables([table.slice(3, 1), table.slice(4, 3)]), 32)
    for name in ("images", "keypoints_2d", "keypoints_3d", "rotmats", "betas", "has_smpl"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[3:7]), name
        assert torch.equal(getattr(chunked, name), getattr(whole, name)[3:7]), name


def test_people_without_smpl_labels_are_marked_and_give_none(make_person):
    people = [make_person(0), make_person(1, pose=None, betas=None), make_person(2)]
    table = table_of(people)
    assert to_batch(table, 32).has_smpl.tolist() == [True, False, True]
    rotmats, betas = smpl_labels(table)
    np.testing.assert_array_equal(betas.numpy(), [people[0].betas, people[2].betas])
    assert torch.equal(rotmats, to_batch(table, 32).rotmats[[0, 2]])


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", encode_jpeg(np.zeros((20, 30, 3), np.uint8)), None],
    ids=["empty", "text", "not square", "cut"],
)
def test_a_damaged_picture_is_named(make_person, content):
    rows = [make_person(number).row(95) for number in range(3)]
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:100] if content is None else content
    with pytest.raises(
        DataError, match=r"made/00001/0: its picture .* damaged .*; prepare the data set again"
    ):
        to_batch(pa.Table.from_pylist(rows, SCHEMA), 32)


# Reading


@pytest.fixture
def info(tmp_path, make_person):
    """A split of two files with 7 and 5 people."""
    files = []
    for name, numbers in (("a.parquet", range(7)), ("b.parquet", range(7, 12))):
        (tmp_path / name).write_bytes(encode_shard([make_person(n).row(90) for n in numbers]))
        files.append({"name": name, "rows": len(numbers)})
    return DatasetInfo(
        location=str(tmp_path), fingerprint="", source="made", image_size=32,
        files={"train": files}, statistics={}, rejected={}, body={},
    )  # fmt: skip


def test_a_split_is_read_from_beginning_to_end(info):
    tables = list(read_tables(info, "train", 3))
    assert max(map(len, tables)) == 3
    ids = [name for table in tables for name in table["sample_id"].to_pylist()]
    assert ids == [f"made/{number:05d}/0" for number in range(12)]
    (first, *_) = read_tables(info, "train", 3, columns=["subject", "transl"])
    assert first.column_names == ["subject", "transl"]


def test_read_batches_are_the_decoded_tables(info):
    batches = list(read_batches(info, "train", batch_size=4, image_size=16, threads=2))
    tables = list(read_tables(info, "train", 4))
    assert len(batches) == len(tables)
    for batch, table in zip(batches, tables, strict=True):
        alone = to_batch(table, 16)
        assert torch.equal(batch.betas, alone.betas)
        assert torch.equal(batch.images, alone.images)
