"""A worker's part of the data: every row once, the same order after a resume, validation rows once.

Windows are read without Ray here; with Ray they are tested by a real training.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayhmr.config import DataConfig
from rayhmr.data.order import Chunk, Window
from rayhmr.data.reading import fetch_here, fetch_with_ray, read_window, whole_windows
from rayhmr.data.stream import ShardStream, split_files
from rayhmr.storage import Folder

FILES = (("a", 300), ("b", 40), ("c", 83))
"""Names and rows of the training files: more and less than a row group."""
ROWS = sum(rows for _, rows in FILES)


@pytest.fixture(scope="module")
def info(write_numbered, make_person, tmp_path_factory):
    """423 training people and 40 to validate; the first number of betas is the person's own."""

    def person(number):
        return make_person(number, betas=np.full(10, number, np.float32))

    folder = tmp_path_factory.mktemp("shards")
    return write_numbered(folder, (*FILES, ("val", 40)), person, image_size=32)


@pytest.fixture
def stream(info):
    """Makes streams, and stops them."""
    made = []

    def make(rank=0, world_size=1, seed=3, batch_size=20, lanes=2, epochs=2, fetch=None):
        fetch = fetch or fetch_here(info.location)
        made.append(
            ShardStream(
                info, config=DataConfig(decode_threads=2, prefetch_batches=2), fetch=fetch,
                fetch_val=fetch, batch_size=batch_size, image_size=32, seed=seed, epochs=epochs,
                lanes=lanes, rank=rank, world_size=world_size,
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for one in made:
        one.close()


def people_in(batches):
    """Numbers of the people, batch by batch."""
    return [batch.betas[:, 0].int().tolist() for batch in batches]


def flat(lists):
    return [number for inside in lists for number in inside]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_an_epoch_is_every_person_exactly_once(stream, workers):
    ranks = [stream(rank=r, world_size=workers) for r in range(workers)]
    batches = [people_in(rank.train_batches(0)) for rank in ranks]
    assert {len(inside) for inside in batches} == {ranks[0].steps_per_epoch} == {22}
    assert sorted(flat(flat(batches))) == list(range(ROWS))


def test_a_resumed_epoch_goes_on_at_the_very_next_person(stream):
    whole = people_in(stream().train_batches(1))
    for first in (1, 7, 21):
        assert people_in(stream().train_batches(1, first)) == whole[first:]


def test_a_resume_with_other_workers_sees_the_rest_exactly_once(stream):
    seen = flat(
        people_in(batch for batch, _ in zip(stream().train_batches(0), range(9), strict=False))
    )
    rest = [flat(people_in(stream(r, 3).train_batches(0, 9))) for r in range(3)]
    assert sorted(seen + flat(rest)) == list(range(ROWS))


def test_the_order_is_that_of_seed_and_epoch(stream):
    def order(epoch, **changes):
        return flat(people_in(stream(**changes).train_batches(epoch)))

    going_on = stream()
    # The second epoch was read ahead.
    assert [flat(people_in(going_on.train_batches(epoch))) for epoch in (0, 1)] == [
        order(0), order(1)
    ]  # fmt: skip
    assert len({tuple(found) for found in (order(0), order(1), order(0, seed=4))}) == 3
    assert order(0) != sorted(order(0))


def test_labels_and_names_stay_with_their_pictures(stream, make_person):
    for batch in stream().train_batches(0):
        numbers = batch.betas[:, 0].int().tolist()
        assert list(batch.sample_ids) == [make_person(n).sample_id for n in numbers]
        for image, keypoints, number in zip(batch.images, batch.keypoints_3d, numbers, strict=True):
            person = make_person(number)
            assert torch.equal(keypoints, torch.tensor(person.keypoints_3d, dtype=torch.float32))
            colour = image.float().mean((1, 2))
            assert (colour - torch.tensor(person.image[0, 0])).abs().max() < 4


def test_what_goes_wrong_while_reading_is_raised_where_the_rows_are_used(stream, info):
    def broken(windows):
        yield next(fetch_here(info.location)(windows))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(stream(fetch=broken).train_batches(0))


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_of_validation_rows_are_disjoint_and_complete(stream, workers):
    ranks = [stream(rank=rank, world_size=workers) for rank in range(workers)]
    shares = [flat(people_in(rank.val_batches())) for rank in ranks]
    assert sorted(flat(shares)) == list(range(ROWS, ROWS + 40))
    assert people_in(ranks[0].val_batches()) == people_in(ranks[0].val_batches())


def test_a_fraction_takes_the_first_files(info):
    assert split_files(info, "train") == FILES
    assert split_files(info, "train", 0.34) == FILES[:1]


def test_a_window_is_read_across_files_and_row_groups(info):
    chunks = (Chunk("c", 3, 9), Chunk("a", 245, 260), Chunk("b", 0, 1))
    table = read_window(Folder(info.location), Window(0, 0, chunks, None))
    firsts = [betas[0] for betas in table["betas"].to_pylist()]
    assert firsts == [*range(343, 349), *range(245, 260), 300]
    drawn = Window(0, 0, chunks, (1, 2))
    order = drawn.permutation()
    assert sorted(order) == list(range(22))
    table = read_window(Folder(info.location), drawn)
    assert [betas[0] for betas in table["betas"].to_pylist()] == [firsts[n] for n in order]


@pytest.mark.parametrize("cut", [1, 5, 7, 100])
def test_pieces_become_whole_windows_again(info, cut):
    windows = [Window(0, 0, (Chunk("a", s, s + n),), None) for s, n in ((0, 9), (9, 14), (23, 2))]
    tables = list(fetch_here(info.location)(windows))
    joined = read_window(Folder(info.location), Window(0, 0, (Chunk("a", 0, 25),), None))
    pieces = [joined.slice(start, cut) for start in range(0, 25, cut)]
    assert [t.to_pylist() for t in whole_windows(pieces, windows)] == [
        t.to_pylist() for t in tables
    ]


@pytest.mark.ray
def test_ray_data_reads_what_is_read_without_it(stream, info, local_cluster):
    with_ray = fetch_with_ray(info.location, tasks=2)
    ours = stream(fetch=with_ray)
    for epoch in (0, 1):
        assert people_in(ours.train_batches(epoch)) == people_in(stream().train_batches(epoch))
    assert people_in(ours.val_batches()) == people_in(stream().val_batches())
