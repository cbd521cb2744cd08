"""Laws of the tracker: the cheapest pairing, the same persons in any order and across gaps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from hmr.assignment import assign
from hmr.errors import DataError
from hmr.tracking import BoxTracker, box_overlaps

SIZES = st.integers(0, 7)


@given(SIZES, SIZES, st.integers(0, 2**32 - 1), st.booleans())
def test_the_pairing_costs_as_little_as_possible(rows, columns, seed, whole):
    costs = np.random.default_rng(seed).normal(size=(rows, columns))
    costs = np.round(costs) if whole else costs  # ties
    first, second = assign(costs)
    assert len(set(first)) == len(set(second)) == len(first) == min(rows, columns)
    assert list(first) == sorted(first)
    peer = linear_sum_assignment(costs)
    assert costs[first, second].sum() == pytest.approx(costs[peer].sum(), abs=1e-9)


def test_costs_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match="NaN or infinity"):
        assign(np.array([[0.0, np.nan]]))


def test_overlaps_of_known_boxes():
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1]])
    expected = np.array([[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(box_overlaps(boxes, boxes), expected)


def people_at(frame):
    """Three persons: one stands, two walk through each other's place at different heights."""
    places = [(500, 50), (4 * frame, 300), (300 - 4 * frame, 340)]
    return np.array([[x, y, x + 60, y + 150] for x, y in places], float)


@given(st.integers(0, 2**32 - 1))
def test_persons_keep_their_numbers_in_any_order_of_the_boxes(seed):
    rng, tracker = np.random.default_rng(seed), BoxTracker()
    names = None
    for frame in range(40):
        order = rng.permutation(3)
        numbers = tracker.update(frame, people_at(frame)[order] + rng.normal(0, 0.5, (3, 4)))
        found = dict(zip(order.tolist(), numbers.tolist(), strict=True))
        names = names or found
        assert found == names
    assert sorted(names.values()) == [0, 1, 2]


def test_numbers_of_newcomers_do_not_depend_on_the_order_of_the_boxes():
    boxes = people_at(3)
    np.testing.assert_array_equal(
        BoxTracker().update(0, boxes)[::-1], BoxTracker().update(0, boxes[::-1])
    )


@pytest.mark.parametrize("gap", [1, 5, 10, 11, 20])
def test_a_walker_is_known_again_after_a_gap_that_is_not_too_long(gap):
    tracker = BoxTracker(max_gap=10)
    for frame in range(10):
        (before,) = tracker.update(frame, people_at(frame)[1:2])
    frame += gap + 1
    # 20 frames at 4 pixels leave no overlap with where the walker was last seen.
    (after,) = tracker.update(frame, people_at(frame)[1:2])
    assert (after == before) == (gap <= 10)


def test_one_who_leaves_does_not_give_the_number_to_another():
    tracker = BoxTracker()
    assert list(tracker.update(0, people_at(0))) == [2, 0, 1]
    assert list(tracker.update(1, people_at(1)[1:])) == [0, 1]
    far = np.array([[900.0, 10, 960, 160]])
    assert list(tracker.update(2, np.concatenate([far, people_at(2)[1:]]))) == [3, 0, 1]
    assert list(tracker.update(3, np.zeros((0, 4)))) == []


def test_time_goes_forward():
    tracker = BoxTracker()
    tracker.update(4, people_at(4))
    with pytest.raises(DataError, match="frame 4 after frame 4"):
        tracker.update(4, people_at(4))
