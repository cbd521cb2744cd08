"""Successive halving: what a rung decides, for every order in which trials can arrive."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhmr.halving import judge, rungs, score_at, verdicts

SCORE = "val/pa_mpjpe_mm"


def history(*scores):
    return [{"epoch": float(i), SCORE: s} for i, s in enumerate(scores, start=1)]


def survivors(values, factor):
    """The values that go on at one rung, in their order of arrival."""
    return [v for i, v in enumerate(values) if judge(v, values[:i], factor)[0]]


@pytest.mark.parametrize(
    ("grace", "factor", "epochs", "expected"),
    [(1, 2, 8, [1, 2, 4]), (1, 3, 9, [1, 3]), (1, 3, 10, [1, 3, 9]), (2, 4, 8, [2]), (4, 2, 4, []),
     (5, 2, 4, [])],
)  # fmt: skip
def test_rungs_are_powers_before_the_end(grace, factor, epochs, expected):
    assert rungs(grace, factor, epochs) == expected


def test_a_rung_says_who_goes_on_and_where_the_limit_is():
    assert judge(5.0, [], 2) == (True, 5.0)
    assert judge(5.0, [4.0], 2) == (False, 4.0)
    assert judge(3.0, [4.0], 2) == (True, 3.0)
    # The best two of four.
    assert judge(2.0, [1.0, 3.0, 4.0], 2) == (True, 2.0)
    assert judge(3.5, [1.0, 3.0, 4.0], 2) == (False, 3.0)
    # One of five is too few for a third of them to be two.
    assert judge(2.0, [1.0, 3.0, 4.0, 5.0], 3) == (False, 1.0)
    assert judge(2.0, [1.0, 3.0, 4.0, 5.0, 6.0], 3) == (True, 2.0)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_over_all_orders_of_arrival(factor):
    orders = list(itertools.permutations(range(6)))
    kept = [survivors([float(v) for v in order], factor) for order in orders]
    assert all(0.0 in values for values in kept), "the best one always goes on"
    assert survivors([0.0, 1.0, 2.0, 3.0, 4.0, 5.0], 6) == [0.0]
    # The n-th to arrive is among the best k of n with the chance k/n, whatever came before.
    chance = sum(max(1, n // factor) / n for n in range(1, 7))
    assert sum(map(len, kept)) / len(orders) == pytest.approx(chance)


def test_from_the_best_to_the_worst_only_the_head_goes_on():
    for factor in (2, 3, 5):
        assert survivors([float(v) for v in range(30)], factor) == [0.0]


def test_on_average_at_least_half_stop():
    """In a random order, of 16 trials or more: the first few cost a little."""
    for n in (16, 64):
        expected = sum(max(1, i // 2) / i for i in range(1, n + 1))
        assert expected <= n / 2 + 1
        assert expected / n <= 0.53


scores = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(scores, max_size=20), scores, st.integers(2, 5))
def test_laws_of_a_verdict(others, value, factor):
    goes_on, limit = judge(value, others, factor)
    n = len(others) + 1
    if all(value < other for other in others):
        assert goes_on, "never stops the best"
    if goes_on:
        assert sum(other < value for other in others) < max(1, n // factor)
        assert value <= limit
    else:
        assert any(other <= value for other in others)
    assert judge(value, others[::-1], factor) == (goes_on, limit), "arrival order says nothing"
    # Who is better than one that goes on goes on.
    if goes_on:
        assert judge(value - 1.0, others, factor)[0]


def test_equal_scores_are_not_all_kept():
    assert survivors([1.0] * 8, 2) == [1.0]


def test_what_is_no_number_never_goes_on():
    assert judge(math.inf, [], 2)[0] is False
    assert score_at(history(math.nan), 1, SCORE) == math.inf
    kept = verdicts(history(math.nan), [], rungs=[1], factor=2, score=SCORE)
    assert [v.goes_on for v in kept] == [False]


def test_a_rung_is_asked_once_when_a_trial_reaches_it():
    others = [history(1.0, 1.0), history(2.0, 2.0), history(9.0)]
    rule = {"rungs": [1, 2, 4], "factor": 2, "score": SCORE}
    (first,) = verdicts(history(3.0), others, **rule)
    assert (first.rung, first.seen, first.score, first.limit) == (1, 4, 3.0, 2.0)
    assert not first.goes_on
    (second,) = verdicts(history(3.0, 0.5), others, **rule)
    assert (second.rung, second.seen, second.goes_on) == (2, 3, True)
    assert verdicts(history(3.0, 0.5, 0.5), others, **rule) == []
    assert verdicts([], others, **rule) == []


def test_a_lost_epoch_is_judged_by_the_next_one():
    """The first score at or past a rung counts there."""
    late = [{"epoch": 3.0, SCORE: 7.0}]
    assert score_at(late, 2, SCORE) == 7.0
    assert score_at(late, 4, SCORE) is None
    said = verdicts(late, [history(1.0, 1.0)], rungs=[1, 2], factor=2, score=SCORE)
    assert [(v.rung, v.goes_on) for v in said] == [(1, False), (2, False)]
