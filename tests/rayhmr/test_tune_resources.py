"""How many trials run side by side: never more than can all go on."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhmr.config import ScalingConfig
from rayhmr.tune_resources import NodeRoom, TrialNeeds, concurrent_trials, place_trials


def node(cpus, gpus=0, **more):
    return NodeRoom(name=f"{cpus}-{gpus}", cpus=cpus, gpus=(1.0,) * gpus, **more)


def needs(workers, cpus, gpus=0.0, **more):
    return TrialNeeds(workers=workers, cpus=cpus, gpus=gpus, **more)


@pytest.mark.parametrize(
    ("nodes", "trial", "expected"),
    [
        ([node(2)], (1, 1), 1),  # one worker, one whole CPU for the data
        ([node(4)], (1, 1), 2),
        ([node(2), node(2)], (1, 1), 2),
        ([node(2)], (2, 1), 0),
        ([node(3)], (2, 1), 1),
        # Two workers on two nodes: each node keeps a CPU free.
        ([node(2), node(2)], (2, 1), 1),
        # CPUs of different nodes do not add up.
        ([node(1), node(1), node(1)], (1, 1), 0),
        ([node(0), node(16, 4)], (1, 2, 1), 4),
        ([node(64, 2)], (1, 2, 1), 2),
        # Four trials share a GPU, and five could not.
        ([node(64, 2)], (1, 2, 0.25), 8),
        ([node(64, 1)], (1, 2, 0.3), 3),
        ([node(64, 1)], (1, 1, 1 / 3), 3),
        # What is left of two GPUs is no share of one.
        ([NodeRoom(name="used", cpus=64, gpus=(0.3, 0.3))], (1, 1, 0.5), 0),
        # GPUs without CPUs beside them are of no use.
        ([node(1, 8), node(64)], (1, 1, 1), 0),
        # All workers on one node cost one CPU less than on two.
        ([node(4), node(5)], (4, 1), 1),
    ],
)  # fmt: skip
def test_only_as_many_trials_run_at_once_as_cannot_block_each_other(nodes, trial, expected):
    assert concurrent_trials(nodes, needs(*trial)) == expected


def test_memory_limits_the_trials_on_the_nodes_that_have_too_little():
    trial = needs(1, 1, worker_mb=1000, driver_mb=500)
    assert concurrent_trials([node(16, memory_mb=6000, is_head=True)], trial) == 4
    head, other = node(1, memory_mb=1400, is_head=True), node(16, memory_mb=9000)
    assert concurrent_trials([head, other], trial) == 2, "two drivers fill the head"
    assert concurrent_trials([node(16)], trial) == 8, "memory that nobody knows does not count"


NODES = st.lists(
    st.builds(
        NodeRoom,
        name=st.just("node"),
        cpus=st.integers(0, 24),
        gpus=st.lists(st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.75, 1.0]), max_size=4).map(tuple),
        memory_mb=st.sampled_from([500.0, 4000.0, 20000.0, float("inf")]),
    ),
    max_size=6,
)
MANY_WORKERS = st.builds(
    TrialNeeds,
    workers=st.integers(1, 6),
    cpus=st.integers(1, 5),
    gpus=st.sampled_from([0.0, 1.0]),
    worker_mb=st.sampled_from([0.0, 900.0]),
)
SHARES = st.builds(
    TrialNeeds,
    workers=st.just(1),
    cpus=st.integers(1, 5),
    gpus=st.sampled_from([0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7]),
)
NEEDS = MANY_WORKERS | SHARES


@given(NODES, NEEDS)
def test_nothing_is_given_twice(nodes, trial):
    placed = place_trials(nodes, trial)
    seats = [seat for seats in placed for seat in seats]
    assert all(len(seats) == trial.workers for seats in placed)
    workers = Counter(seat.node for seat in seats)
    hosted = Counter(number for seats in placed for number in {seat.node for seat in seats})
    for number, room in enumerate(nodes):
        # The last CPU of each trial on the node belongs to its data.
        assert workers[number] * trial.cpus + hosted[number] <= room.cpus
        assert workers[number] * trial.worker_mb <= room.memory_mb
    held = defaultdict(float)
    for seat in seats:
        assert (seat.gpu is None) == (trial.gpus == 0)
        if seat.gpu is not None:
            held[seat.node, seat.gpu] += trial.gpus
    for (number, gpu), share in held.items():
        assert share <= nodes[number].gpus[gpu] + 1e-5, "a worker's share is of one GPU"


@given(NODES, NEEDS, st.integers(0, 5))
def test_one_more_node_or_cpu_never_costs_a_trial(nodes, trial, cpus):
    before = concurrent_trials(nodes, trial)
    assert concurrent_trials([*nodes, node(cpus, 1)], trial) >= before
    if nodes:
        first = nodes[0]
        more = NodeRoom(
            name="more", cpus=first.cpus + cpus, gpus=first.gpus, memory_mb=first.memory_mb
        )
        assert concurrent_trials([more, *nodes[1:]], trial) >= before


@given(NODES, NEEDS)
def test_no_more_fit_after_those_that_fit(nodes, trial):
    everything = len(place_trials(nodes, trial))
    for most in range(everything + 2):
        assert len(place_trials(nodes, trial, most)) == min(most, everything)


@given(NODES, NEEDS, st.randoms(use_true_random=False))
def test_wherever_ray_seats_the_workers_all_find_a_seat_and_data_its_cpus(nodes, trial, random):
    """Ray follows rules of its own; it only must not run out of seats, nor leave Data no CPU."""
    trials = concurrent_trials(nodes, trial)
    cpus = [room.cpus for room in nodes]
    shares = [list(room.gpus) for room in nodes]
    for _ in range(trials * trial.workers):
        seats = [
            (number, gpu)
            for number in range(len(nodes)) if cpus[number] >= trial.cpus
            for gpu in (range(len(shares[number])) if trial.gpus else [None])
            if gpu is None or shares[number][gpu] + 1e-6 >= trial.gpus
        ]  # fmt: skip
        assert seats, "a worker would wait for ever"
        number, gpu = random.choice(seats)
        cpus[number] -= trial.cpus
        if gpu is not None:
            shares[number][gpu] -= trial.gpus
    assert sum(cpus) >= trials, "each trial's data needs a whole CPU somewhere"


def test_small_clusters_carry_as_many_trials_as_any_arrangement_does():
    """Against a search through all arrangements of single workers."""

    def best(sizes, trial):
        shapes = set(itertools.combinations_with_replacement(range(len(sizes)), trial.workers))
        rest = []
        for shape in shapes:
            left = [s - shape.count(i) * trial.cpus - (i in shape) for i, s in enumerate(sizes)]
            if min(left) >= 0:
                rest.append(1 + best(left, trial))
        return max(rest, default=0)

    for sizes in itertools.product(range(1, 6), repeat=2):
        for trial in (needs(1, 1), needs(2, 1), needs(2, 2), needs(3, 1)):
            found = concurrent_trials([node(size) for size in sizes], trial)
            assert found == best(list(sizes), trial), (sizes, trial)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"gpus_per_worker": 0.5}, "without use_gpu=true"),
        ({"gpus_per_worker": 0.5, "use_gpu": True}, "cannot share a GPU"),
        ({"gpus_per_worker": 1.5, "use_gpu": True}, "less than or equal to 1"),
    ],
)
def test_shares_of_gpus_that_cannot_work_are_refused(settings, rule):
    with pytest.raises(ValueError, match=rule):
        ScalingConfig(**settings)
    assert ScalingConfig(num_workers=1, use_gpu=True, gpus_per_worker=0.25).gpus == 0.25
    assert ScalingConfig().gpus == 0
