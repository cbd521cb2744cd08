"""Batches out of a node's cache are those of the shards, bit for bit; each split is made once."""

from __future__ import annotations

import threading
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from hmr.errors import DataError
from hmr.features import as_features
from rayhmr.config import DataConfig
from rayhmr.data import cache
from rayhmr.data.cache import CachedSplit, Encoding, cache_key, open_cached
from rayhmr.data.cache_store import CacheStore
from rayhmr.data.reading import fetch_here
from rayhmr.data.schema import encode_shard
from rayhmr.data.stream import ShardStream, split_files

FILES = (("a", 300), ("b", 40), ("c", 83))
"""Names and rows of the training files: more and less than a row group."""
MANY = 2**40
MEANS = Encoding(
    identity="means", width=3, features=lambda images: images.float().mean((2, 3)), batch_size=7
)
"""An encoder whose features are the mean colours."""


@pytest.fixture(scope="module")
def info(write_numbered, make_person, tmp_path_factory):
    """423 training people and 40 to validate."""
    rng = np.random.default_rng(0)

    def person(number):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        labels = {} if number % 5 else {"pose": None, "betas": None}
        return make_person(number, image=np.kron(pixels, np.ones((9, 9, 1), np.uint8)), **labels)

    folder = tmp_path_factory.mktemp("shards")
    return write_numbered(folder, (*FILES, ("val", 40)), person, image_size=36)


@pytest.fixture
def store(tmp_path):
    """A place for caches with as much room as they want."""
    return CacheStore(tmp_path, room=lambda root: (MANY, MANY, MANY))


@pytest.fixture
def opened(info, store):
    """Opens caches, and closes them."""
    made = []

    def make(
        kind="decoded", encoding=None, image_size=32, store=store, info=info, warn=pytest.fail
    ):
        made.append(
            open_cached(
                info, split_files(info, "train"), split_files(info, "val"),
                config=DataConfig(cache=kind, decode_threads=2), image_size=image_size,
                encoding=encoding, warn=warn, store=store,
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for one in made:
        if one is not None:
            one.close()


@pytest.fixture
def stream(info):
    """Makes streams of two lanes that shuffle windows of many rows, with or without a cache."""

    def make(cached=None, rank=0, world_size=1):
        fetch = fetch_here(info.location)
        return ShardStream(
            info, config=DataConfig(decode_threads=2, prefetch_batches=2), fetch=fetch,
            fetch_val=fetch, batch_size=20, image_size=32, seed=3, epochs=2, lanes=2, rank=rank,
            world_size=world_size, cached=cached,
        )  # fmt: skip

    return make


def assert_equal(batches, others):
    batches, others = list(batches), list(others)
    assert len(batches) == len(others) > 0
    for one, other in zip(batches, others, strict=True):
        for field in fields(one):
            ours, theirs = getattr(one, field.name), getattr(other, field.name)
            if isinstance(ours, torch.Tensor):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs), field.name
                assert ours.stride() == theirs.stride(), "memory order decides what is computed"
            else:
                assert ours == theirs


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_are_those_of_the_shards_on_every_rank_from_every_step(stream, opened, workers):
    for rank in range(workers):
        cached, plain = stream(opened(), rank, workers), stream(None, rank, workers)
        for epoch, first in ((0, 0), (1, 0), (1, 7), (0, 21)):
            assert_equal(cached.train_batches(epoch, first), plain.train_batches(epoch, first))
        assert_equal(cached.val_batches(), plain.val_batches())
        assert_equal(cached.val_batches(), plain.val_batches())


def test_windows_of_a_lane_follow_each_other_in_the_cache_too(stream, opened, monkeypatch):
    monkeypatch.setattr("rayhmr.data.stream.EpochOrder", short_windows())
    assert stream().order(0).windows(0) > 3
    assert_equal(stream(opened()).train_batches(0, 2), stream().train_batches(0, 2))


def short_windows():
    from rayhmr.data.order import EpochOrder

    return lambda *values: EpochOrder(*values, window_rows=33)


def test_features_stand_in_the_place_of_pictures(stream, opened):
    cached, plain = stream(opened("features", MEANS), 1, 2), stream(None, 1, 2)
    for split in ("train", "val"):
        batches = cached.train_batches(0, 3) if split == "train" else cached.val_batches()
        others = plain.train_batches(0, 3) if split == "train" else plain.val_batches()
        reduced = (replace(b, images=b.images.float().mean((2, 3))) for b in others)
        for ours, theirs in zip(batches, reduced, strict=True):
            torch.testing.assert_close(ours.images, theirs.images, atol=1e-4, rtol=0)
            assert ours.side == 32
            assert_equal(
                [replace(ours, images=theirs.images)], [as_features(theirs, theirs.images, 32)]
            )


def test_a_split_is_made_once_and_then_mapped(opened, store, monkeypatch):
    opened()
    monkeypatch.setattr(cache, "_make", pytest.fail)
    again = opened()
    assert len(again.train) == 423
    assert len(again.val) == 40
    folders = sorted(path.name for path in store.root.iterdir() if path.is_dir())
    assert [name.split("-")[:2] for name in folders] == [["decoded", "train"], ["decoded", "val"]]


def test_many_at_once_make_it_once(opened, info, tmp_path, monkeypatch):
    made, original = [], cache._make

    def counted(folder, **parts):
        made.append(folder.name)
        original(folder, **parts)

    monkeypatch.setattr(cache, "_make", counted)
    ready = threading.Barrier(4)

    def start():
        ready.wait()
        # Each opens the lock files by itself, as processes do.
        opened(store=CacheStore(tmp_path, room=lambda root: (MANY, MANY, MANY)))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2


def test_the_key_is_all_that_the_values_depend_on(info):
    files = split_files(info, "train")
    other = replace(MEANS, identity="others")
    keys = [
        cache_key(info, "train", files, 32, None),
        cache_key(info, "train", files, 64, None),
        cache_key(info, "train", files[:1], 32, None),
        cache_key(replace(info, fingerprint="g"), "train", files, 32, None),
        cache_key(info, "train", files, 32, MEANS),
        cache_key(info, "train", files, 32, other),
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(replace(info, location="elsewhere"), "train", files, 32, None) == keys[0]


def test_without_room_the_shards_are_read_and_a_line_says_why(opened, tmp_path):
    lines = []
    full = CacheStore(tmp_path, room=lambda root: (MANY, 1_000_000, 2_000_000))
    assert opened(store=full, warn=lines.append) is None
    assert lines == [
        f"data.cache=decoded: it takes 2 MB of the 1 MB that are free in {tmp_path}, of whose "
        "disk 5 % stay free; this worker reads the shards instead"
    ]
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_a_split_that_fits_is_let_go_when_the_other_does_not(opened, tmp_path):
    lines = []
    # Another process fills the disk between the two.
    free = iter([10_000_000, 100_000])
    narrow = CacheStore(tmp_path, room=lambda root: (MANY, next(free), 1_000_000))
    assert opened(store=narrow, warn=lines.append) is None
    assert "it takes 0 MB of the 0 MB that are free" in lines[0]
    assert [name[:13] for name in narrow.remove_unused()] == ["decoded-train"]


def test_a_damaged_picture_is_named_and_leaves_nothing(opened, info, store, make_person, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    rows = [make_person(n).row(90) for n in range(3)]
    rows[1]["image"]["bytes"] = b"no JPEG"
    (folder / "x").write_bytes(encode_shard(rows))
    files = {"train": [{"name": "x", "rows": 3}], "val": [{"name": "x", "rows": 3}]}
    with pytest.raises(DataError, match="made/00001/0: its picture"):
        opened(info=replace(info, location=str(folder), files=files))
    assert [path.name for path in store.root.iterdir() if path.is_dir()] == ["damaged"]


def test_the_default_caches_nothing(opened):
    assert opened("none") is None


def test_rows_are_copied_out_of_the_file(opened, store):
    opened()
    folder = next(store.root.glob("decoded-train-*[!.lock]"))
    split = CachedSplit(folder, 32)
    before = split.batch(np.array([5, 2]))
    split.batch(np.array([5, 2])).images.zero_()
    assert torch.equal(split.batch(np.array([5, 2])).images, before.images)
    assert isinstance(split._labels, pa.Table)
    assert split._labels["sample_id"].num_chunks == 1, "rows are taken without joining pieces"
