"""The order of an epoch: every row exactly once, whoever reads it and wherever a run goes on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmr.errors import ConfigError
from rayhmr.data.order import EpochOrder, Slice, check_order, in_order, reading_order


def order_of(*rows, seed=0, epoch=0, lanes=1, batch_size=8, window_rows=100):
    files = tuple((f"{number}.parquet", count) for number, count in enumerate(rows))
    return EpochOrder(files, seed, epoch, lanes, batch_size, window_rows)


def all_rows(order):
    return {(name, row) for name, count in order.files for row in range(count)}


def rows_of(window):
    rows = [(c.file, row) for c in window.chunks for row in range(c.start, c.stop)]
    return [rows[number] for number in window.permutation()]


def lane_rows(order, lane):
    windows = [order.window(lane, number) for number in range(order.windows(lane))]
    return list(itertools.chain.from_iterable(map(rows_of, windows)))


def seen(order, step, rank, workers, lanes):
    return [
        row for part in order.part(step, rank, workers)
        for row in lanes[part.lane][part.start : part.stop]
    ]  # fmt: skip


ORDERS = st.builds(
    lambda rows, seed, lanes, share, window: order_of(
        *rows, seed=seed, lanes=lanes, batch_size=lanes * share, window_rows=window
    ),
    st.lists(st.integers(1, 700), min_size=1, max_size=5), st.integers(0, 99), st.integers(1, 7),
    st.integers(2, 40), st.sampled_from([3, 64, 500]),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(order=ORDERS, workers=st.integers(1, 9))
def test_every_row_is_seen_exactly_once_whatever_the_number_of_workers(order, workers):
    lanes = [lane_rows(order, lane) for lane in range(order.lanes)]
    found = [
        row for step in range(order.steps) for rank in range(workers)
        for row in seen(order, step, rank, workers, lanes)
    ]  # fmt: skip
    assert len(found) == order.rows
    assert set(found) == all_rows(order)


@settings(max_examples=60, deadline=None)
@given(order=ORDERS, workers=st.lists(st.integers(1, 9), min_size=2, max_size=2))
def test_a_step_holds_the_same_rows_for_every_number_of_workers(order, workers):
    lanes = [lane_rows(order, lane) for lane in range(order.lanes)]
    for step in range(order.steps):
        sets = [
            {row for rank in range(w) for row in seen(order, step, rank, w, lanes)}
            for w in workers
        ]  # fmt: skip
        assert sets[0] == sets[1]
        assert len(sets[0]) <= order.batch_size


@settings(max_examples=60, deadline=None)
@given(order=ORDERS, workers=st.integers(1, 9), first=st.integers(0, 1000))
def test_what_is_read_is_what_is_needed_in_the_order_of_need(order, workers, first):
    first %= order.steps
    for rank in range(workers):
        windows = list(reading_order(order, first, rank, workers))
        places = [(w.lane, w.first) for w in windows]
        assert len(set(places)) == len(places), "no window is read twice"
        waiting, there = iter(windows), set()
        for step in range(first, order.steps):
            for part in order.part(step, rank, workers):
                wanted = {(part.lane, row) for row in range(part.start, part.stop)}
                while not wanted <= there:
                    window = next(waiting)
                    rows = {(window.lane, window.first + n) for n in range(window.rows)}
                    assert rows & wanted, "nothing is read before it is needed"
                    there |= rows
        assert next(waiting, None) is None, "nothing is read in vain"


@settings(max_examples=40, deadline=None)
@given(order=ORDERS)
def test_steps_are_equal_within_one_row_a_lane(order):
    sizes = [
        sum(p.stop - p.start for p in order.part(step, 0, 1)) for step in range(order.steps)
    ]  # fmt: skip
    assert max(sizes) - min(sizes) <= order.lanes


def test_a_rank_reads_no_other_ranks_lanes_when_they_divide_evenly():
    order = order_of(4000, lanes=4, batch_size=32)
    for rank in range(2):
        lanes = {w.lane for w in reading_order(order, 0, rank, 2)}
        assert lanes == {2 * rank, 2 * rank + 1}
    # Three ranks of four lanes: one lane more at most.
    assert [sorted({w.lane for w in reading_order(order, 0, r, 3)}) for r in range(3)] == [
        [0, 1], [1, 2], [2, 3]
    ]  # fmt: skip


def test_a_full_epoch_of_full_batches_is_cut_as_one_would_by_hand():
    order = order_of(64, lanes=2, batch_size=16)
    assert order.steps == 4
    assert order.part(1, 0, 2) == [Slice(0, 8, 16)]
    assert order.part(1, 1, 2) == [Slice(1, 8, 16)]
    assert order.part(3, 0, 1) == [Slice(0, 24, 32), Slice(1, 24, 32)]
    # One worker more than lanes: each takes two thirds of a lane.
    assert order.part(0, 1, 3) == [Slice(0, 5, 8), Slice(1, 0, 3)]


def test_seed_and_epoch_change_the_order_and_nothing_else_does():
    def flat(**changes):
        order = order_of(300, 500, lanes=2, **changes)
        return [*lane_rows(order, 0), *lane_rows(order, 1)]

    assert flat() == flat()
    assert len({tuple(flat(seed=s, epoch=e)) for s in (0, 1) for e in (0, 1)}) == 4
    assert flat() != sorted(flat())


def test_a_window_holds_rows_from_many_places():
    order = order_of(*[2000] * 10, window_rows=2000, batch_size=50)
    files = [{c.file for c in order.window(0, n).chunks} for n in range(order.windows(0))]
    assert min(map(len, files)) >= 3
    # Neighbours in the order are rarely neighbours in a file.
    rows = np.array([int(f.split(".")[0]) * 2000 + r for f, r in lane_rows(order, 0)])
    assert np.mean(np.abs(np.diff(rows)) == 1) < 0.01


@settings(max_examples=200, deadline=None)
@given(order=ORDERS, workers=st.integers(1, 12))
def test_what_is_accepted_gives_every_worker_a_row_at_every_step(order, workers):
    try:
        check_order(order, workers)
    except ConfigError:
        return
    for step in range(order.steps):
        for rank in range(workers):
            assert sum(p.stop - p.start for p in order.part(step, rank, workers)) >= 1


def test_too_few_rows_and_uneven_batches_are_refused():
    with pytest.raises(ConfigError, match=r"batch_size=10: must be a multiple of data\.lanes=4"):
        check_order(order_of(100, lanes=4, batch_size=10), 4)
    with pytest.raises(ConfigError, match=r"the 3 training rows do not give each of 4 workers"):
        check_order(order_of(3, lanes=4, batch_size=8), 4)
    check_order(order_of(100, lanes=4, batch_size=8), 4)
    check_order(order_of(100, lanes=4, batch_size=8), 3)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_validation_rows_are_dealt_out_completely(workers):
    files = (("a", 600), ("b", 130))
    shares = [
        [row for window in in_order(files, rank, workers) for row in rows_of(window)]
        for rank in range(workers)
    ]
    flat = [row for share in shares for row in share]
    assert sorted(flat) == sorted((name, row) for name, count in files for row in range(count))
