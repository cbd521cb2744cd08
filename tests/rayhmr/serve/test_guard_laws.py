"""Laws of the guard's parts, for any sequence of requests and any way a body is cut."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from rayhmr.serve.bodies import Body
from rayhmr.serve.keys import Keyring, TokenBucket, digest_of
from rayhmr.serve.problems import Problem

GOOD, OTHER = "a-good-key-of-22-letters", "another-key-of-22-letters"
SCOPE = {"type": "http", "query_string": b""}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def with_key(key):
    return Headers({"authorization": f"Bearer {key}"})


@settings(deadline=None)
@given(rate=st.floats(0.1, 100), waits=st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_no_window_lets_more_through_than_its_rate_and_one_burst(rate, waits):
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    passed = []
    for wait in waits:
        clock.now += wait
        if bucket.take() == 0:
            passed.append(clock.now)
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:], first):
            assert last - first + 1 <= max(1, rate) + rate * (end - start) + 1e-6


@settings(deadline=None)
@given(rate=st.floats(0.1, 100), waits=st.lists(st.floats(0, 1), max_size=30))
def test_whoever_waits_as_told_passes(rate, waits):
    clock = Clock()
    bucket = TokenBucket(rate, clock)
    for wait in waits:
        clock.now += wait
        if told := bucket.take():
            clock.now += told + 1e-6
            assert bucket.take() == 0


def test_fifty_wrong_keys_a_second_cost_a_right_one_nothing():
    clock = Clock()
    ring = Keyring((digest_of(GOOD), digest_of(OTHER)), rate_per_s=2.0, clock=clock)
    refused = []
    for tick in range(500):
        clock.now += 0.02
        with pytest.raises(Problem) as caught:
            ring.admit(SCOPE, with_key(f"wrong-{tick}"))
        refused.append(caught.value)
        if tick % 50 == 0:
            assert ring.admit(SCOPE, with_key(GOOD)) == 0
            assert ring.admit(SCOPE, with_key(OTHER)) == 1
    assert {problem.status for problem in refused} == {401, 429}
    assert sum(problem.status == 401 for problem in refused) <= 221
    for problem in refused:
        assert problem.status == 401 or int(problem.headers["Retry-After"]) >= 1


def test_the_rate_of_one_key_is_not_another_keys():
    clock = Clock()
    ring = Keyring((digest_of(GOOD), digest_of(OTHER)), rate_per_s=3.0, clock=clock)
    assert [ring.admit(SCOPE, with_key(GOOD)) for _ in range(3)] == [0, 0, 0]
    with pytest.raises(Problem, match="try again in 1 s") as caught:
        ring.admit(SCOPE, with_key(GOOD))
    assert (caught.value.status, caught.value.code) == (429, "rate_limited")
    assert [ring.admit(SCOPE, with_key(OTHER)) for _ in range(3)] == [1, 1, 1]
    clock.now += 1 / 3 + 1e-6
    assert ring.admit(SCOPE, with_key(GOOD)) == 0


def test_without_keys_everybody_shares_one_rate():
    ring = Keyring((), rate_per_s=2.0, clock=Clock())
    assert [ring.admit(SCOPE, Headers({})), ring.admit(SCOPE, with_key("any"))] == [0, 0]
    with pytest.raises(Problem, match="more often"):
        ring.admit(SCOPE, Headers({}))


async def read_through(chunks, limit, announce):
    async def receive():
        if left:
            chunk = left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(left)}
        return await asyncio.Event().wait()

    left = list(chunks)
    size = str(sum(map(len, chunks)))
    headers = Headers({"content-length": size} if announce else {"transfer-encoding": "chunked"})
    expected = []
    body = Body(receive, headers, limit, expected.append, lambda: None)
    body.check_announced()
    got = b""
    while True:
        message = await body()
        got += message["body"]
        if not message["more_body"]:
            body.close()
            return got, expected


@settings(deadline=None)
@given(
    chunks=st.lists(st.binary(max_size=50), min_size=1, max_size=10),
    limit=st.integers(0, 200), announce=st.booleans(),
)  # fmt: skip
def test_a_body_passes_unchanged_or_not_at_all(chunks, limit, announce):
    whole = b"".join(chunks)
    if len(whole) <= limit:
        got, expected = asyncio.run(read_through(chunks, limit, announce))
        assert got == whole
        assert expected[-1:] in ([None], []), "after the last byte only the deadline counts"
        timed = expected[:-1]
        assert timed == sorted(timed), "bytes that came only ever give more time"
    else:
        with pytest.raises(Problem) as caught:
            asyncio.run(read_through(chunks, limit, announce))
        assert (caught.value.status, caught.value.code) == (413, "body_too_large")
