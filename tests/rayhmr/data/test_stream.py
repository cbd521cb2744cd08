"""A worker's part of the data: full batches, an order of its own, and every validation row once.

Ray's iterators are replaced by tables in memory; with Ray they are tested by a real training.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from hmr.errors import ConfigError, DataError
from rayhmr.config import DataConfig
from rayhmr.data.schema import SCHEMA, DatasetInfo
from rayhmr.data.stream import ShardStream, batch_of_worker, steps_per_epoch


class Rows:
    """What a DataIterator gives: the same rows at every pass, in pieces."""

    def __init__(self, table):
        self.table = table

    def iter_batches(self, *, batch_size, batch_format, prefetch_batches):
        assert batch_format == "pyarrow"
        for start in range(0, len(self.table), 7):
            yield self.table.slice(start, 7)


def info_of(*rows):
    files = [{"name": f"{number}.parquet", "rows": count} for number, count in enumerate(rows)]
    return DatasetInfo(
        location="shards", fingerprint="", source="made", image_size=32,
        files={"train": files}, statistics={}, rejected={}, body={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def table(make_person):
    """40 people; the first number of betas is the person's own."""
    people = [make_person(n, betas=np.full(10, n, np.float32)) for n in range(40)]
    return pa.Table.from_pylist([person.row(90) for person in people], SCHEMA)


def stream(table, *, rank=0, world_size=1, seed=3, steps=6, batch_size=6):
    return ShardStream(
        Rows(table), Rows(table), config=DataConfig(decode_threads=2, prefetch_batches=2),
        steps=steps, batch_size=batch_size, image_size=32, seed=seed, rank=rank,
        world_size=world_size,
    )  # fmt: skip


def people_in(batches):
    """Numbers of the people, batch by batch."""
    return [batch.betas[:, 0].int().tolist() for batch in batches]


def flat(lists):
    return [number for inside in lists for number in inside]


@pytest.mark.parametrize(("batch_size", "workers", "share"), [(64, 1, 64), (64, 4, 16), (3, 3, 1)])
def test_every_worker_takes_an_equal_part_of_a_batch(batch_size, workers, share):
    assert batch_of_worker(batch_size, workers) == share


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"train\.batch_size=10: must be a multiple of scaling\.num_workers=4, since every",
    ):
        batch_of_worker(10, 4)


@pytest.mark.parametrize(
    ("rows", "batch_size", "workers", "steps"),
    [
        ((100,), 10, 1, 10),
        ((109,), 10, 1, 10),
        ((50, 50), 10, 2, 10),
        # Each of the four workers has 27 of 109 rows, which is 9 times its 3.
        ((109,), 12, 4, 9),
        ((12,), 12, 4, 1),
    ],
)
def test_an_epoch_has_as_many_steps_as_the_smallest_part_fills(rows, batch_size, workers, steps):
    found = steps_per_epoch(
        info_of(*rows), DataConfig(), batch_size=batch_size, num_workers=workers
    )
    assert found == steps
    assert steps * batch_size <= sum(rows)


def test_a_fraction_of_the_files_shortens_the_epoch():
    config = DataConfig(train_fraction=0.5)
    assert steps_per_epoch(info_of(30, 20, 10, 5), config, batch_size=5, num_workers=1) == 10


def test_fewer_rows_than_a_batch_are_refused():
    with pytest.raises(
        ConfigError, match=r"train\.batch_size=12: the 11 training rows of shards do not fill one"
    ):
        steps_per_epoch(info_of(11), DataConfig(), batch_size=12, num_workers=2)
    with pytest.raises(DataError, match="has no train split"):
        steps_per_epoch(info_of(), DataConfig(), batch_size=12, num_workers=2)


def test_an_epoch_has_exactly_its_steps_and_no_person_twice(table):
    batches = people_in(stream(table, steps=6, batch_size=6).train_batches(0))
    assert [len(batch) for batch in batches] == [6] * 6
    assert len(set(flat(batches))) == 36
    assert set(flat(people_in(stream(table, steps=8, batch_size=5).train_batches(0)))) == set(
        range(40)
    )
    assert len(people_in(stream(table, steps=2, batch_size=5).train_batches(0))) == 2


def test_the_order_is_that_of_seed_epoch_and_rank(table):
    def order(epoch, **changes):
        return flat(people_in(stream(table, **changes).train_batches(epoch)))

    # A run that resumes at an epoch sees what an uninterrupted one would have seen there.
    going_on = stream(table)
    assert [flat(people_in(going_on.train_batches(epoch))) for epoch in (0, 1)] == [
        order(0), order(1)
    ]  # fmt: skip
    orders = [order(0), order(1), order(0, seed=4), order(0, rank=1, world_size=2)]
    assert len({tuple(found) for found in orders}) == 4
    assert order(0) != sorted(order(0))


def test_labels_stay_with_their_pictures(table, make_person):
    for batch in stream(table).train_batches(0):
        for image, keypoints, number in zip(
            batch.images, batch.keypoints_3d, batch.betas[:, 0].int().tolist(), strict=True
        ):
            person = make_person(number)
            assert torch.equal(keypoints, torch.tensor(person.keypoints_3d, dtype=torch.float32))
            colour = image.float().mean((1, 2))
            assert (colour - torch.tensor(person.image[0, 0])).abs().max() < 4


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_shares_of_validation_rows_are_disjoint_and_complete(table, workers):
    shares = [
        flat(people_in(stream(table, rank=rank, world_size=workers).val_batches()))
        for rank in range(workers)
    ]
    assert sorted(flat(shares)) == list(range(40))
    assert all(shares), "by name, so about equal"


def test_shares_do_not_depend_on_the_order_in_which_rows_arrive(table):
    backwards = table.take(list(range(39, -1, -1)))
    for rank in range(2):
        ours, theirs = (
            flat(people_in(stream(t, rank=rank, world_size=2).val_batches()))
            for t in (table, backwards)
        )
        assert sorted(ours) == sorted(theirs)


def test_validation_is_the_same_at_every_pass_and_in_bounded_batches(table):
    ours = stream(table, batch_size=6)
    first, second = people_in(ours.val_batches()), people_in(ours.val_batches())
    assert first == second
    assert max(map(len, first)) <= 6
