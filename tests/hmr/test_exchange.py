"""What ranks tell each other: sums over all of them, in the order of the steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from hmr.exchange import Exchange, Fetched, Wish

CPU = torch.device("cpu")


def one_step(exchange, terms, *, counts=(1.0,), people=1, skipped=0.0, wish=Wish.NOTHING):
    found = exchange.begin(torch.tensor(counts), people, wish)
    exchange.end({"loss": torch.tensor(terms)}, torch.tensor(skipped))
    return found


def test_sums_are_those_of_all_steps_but_the_skipped():
    exchange = Exchange(1, CPU)
    for terms, skipped, people in ((1.0, 0.0, 4), (float("nan"), 1.0, 5), (2.5, 0.0, 6)):
        counts = one_step(exchange, terms, counts=(3.0, 0.0), people=people, skipped=skipped)
        assert counts.tolist() == [3.0, 0.0]
    exchange.flush()
    assert exchange.sums.tolist() == [3.5, 2.0, 15.0]
    assert exchange.latest.tolist() == [2.5]
    exchange.flush()
    assert exchange.sums.tolist() == [3.5, 2.0, 15.0], "nothing is added twice"


def test_flushing_changes_nothing_but_the_time():
    terms = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    often, seldom = Exchange(1, CPU), Exchange(1, CPU)
    for value in terms:
        one_step(often, value)
        often.flush()
        one_step(seldom, value)
    seldom.flush()
    assert torch.equal(often.sums, seldom.sums)


def test_sums_go_on_from_a_checkpoint_bit_for_bit():
    terms = torch.rand(30, generator=torch.Generator().manual_seed(1)).tolist()
    whole, first, second = (Exchange(1, CPU) for _ in range(3))
    for value in terms:
        one_step(whole, value)
    whole.flush()
    for value in terms[:13]:
        one_step(first, value)
    first.flush()
    second.restart(first.sums.clone())
    for value in terms[13:]:
        one_step(second, value)
    second.flush()
    assert torch.equal(whole.sums, second.sums)


def test_the_strongest_wish_wins():
    exchange = Exchange(1, CPU)
    assert exchange.wish() is Wish.NOTHING
    for wish in (Wish.CHECKPOINT, Wish.STOP, Wish.NOTHING):
        one_step(exchange, 0.0, wish=wish)
        assert exchange.wish() is wish


def test_what_is_fetched_from_the_host_is_there_at_once():
    fetched = Fetched(torch.tensor([1.0, 2.0]))
    assert fetched.ready()
    assert fetched.values() == [1.0, 2.0]


_RANK = """
import sys, torch, torch.distributed as dist
from hmr.exchange import Exchange, Wish
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
exchange = Exchange(2, torch.device("cpu"))
wishes = [(Wish.NOTHING, Wish.CHECKPOINT), (Wish.STOP, Wish.CHECKPOINT), (Wish.NOTHING,) * 2]
seen = []
for step, wish in enumerate(wishes):
    counts = exchange.begin(torch.tensor([1.0 + rank, 5.0 * rank]), 3 + rank, wish[rank])
    assert counts.tolist() == [3.0, 5.0], counts
    seen.append(exchange.wish())
    loss = torch.tensor(10.0 * step + rank)
    exchange.end({"loss": loss, "other": loss * 2}, torch.tensor(float(step == 1)))
exchange.flush()
assert seen == [Wish.CHECKPOINT, Wish.STOP, Wish.NOTHING], seen
assert exchange.latest.tolist() == [41.0, 82.0], exchange.latest
assert exchange.sums.tolist() == [42.0, 84.0, 2.0, 21.0], exchange.sums
dist.destroy_process_group()
"""


def test_two_ranks_hear_the_same(tmp_path: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(tmp_path / "store")],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
