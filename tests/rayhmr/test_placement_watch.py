"""Who goes first, who waits aside, what is left behind: decided from what Ray's tables say."""

from __future__ import annotations

import re
import threading
import time

import pytest

from hmr.errors import HmrError
from rayhmr import placement_watch
from rayhmr.placement_watch import Patience, PlacementWatch, View, view_of, watching_over_trials
from rayhmr.ray_tables import Actor, Group
from rayhmr.tune_resources import NodeRoom, Plan, TrialNeeds

PLAN = Plan(concurrent=2, needs=TrialNeeds(workers=1, cpus=1), driver={"drv": 0.01})


def group(name, creator, *, state="CREATED", since=0, dead=False):
    return Group(id=name, creator=creator, creator_dead=dead, state=state, since=since)


def actor(name, *, kind="Worker", state="ALIVE", group="", owner="driver"):
    return Actor(
        id=name, kind=kind, state=state, worker=f"w-{name}", owner=owner, group=group, node="n",
        pid=1,
    )  # fmt: skip


def seen(groups, creator, actors=(), room=2):
    return view_of(groups, actors, frozenset([creator]), room)


def test_who_runs_goes_before_who_waits_and_then_who_came_first():
    groups = [
        group("g1", "c1", since=30),
        group("g2", "c2", since=20),
        group("g3", "c3", since=10, state="PENDING"),
        group("g4", "c4", since=5, state="RESCHEDULING"),
        group("g5", "c5", since=1, dead=True),
    ]
    before = {name: seen(groups, name).before for name in ("c1", "c2", "c3", "c4")}
    assert before == {"c2": 0, "c1": 1, "c4": 2, "c3": 3}
    assert [seen(groups, name).placed for name in ("c1", "c3", "c4")] == [True, False, False]
    # Who has no group yet comes after all that live.
    assert seen(groups, "c9") == View(room=2, before=4)


def test_a_group_whose_workers_have_no_process_yet_is_not_placed():
    groups = [group("g1", "c1")]
    assert seen(groups, "c1", [actor("a", group="g1")]).placed
    assert not seen(groups, "c1", [actor("a", group="g1", state="PENDING_CREATION")]).placed
    assert seen(groups, "c1", [actor("a", group="g2", state="PENDING_CREATION")]).placed


def test_of_any_trials_exactly_as_many_stay_as_there_is_room():
    groups = [group(f"g{i}", f"c{i}", since=i % 3, state="PENDING") for i in range(7)]
    for room in range(9):
        stay = [i for i in range(7) if (v := seen(groups, f"c{i}", room=room)).before < v.room]
        assert len(stay) == min(room, 7)


def test_patience_ends_after_an_unbroken_while():
    patience = Patience(10)
    assert not patience.is_over(True, 100)
    assert not patience.is_over(True, 110)
    assert patience.is_over(True, 110.1)
    assert not patience.is_over(False, 111)
    assert not patience.is_over(True, 112), "it counts from anew"
    assert not patience.is_over(True, 122)
    assert patience.is_over(True, 123)


@pytest.fixture
def watch(monkeypatch):
    """A watch whose controllers are names in a list."""
    told: list[str] = []
    watch = PlacementWatch(PLAN, 60, warn=told.append, stopped=lambda: False,
                           halted=lambda: False)  # fmt: skip
    watch.told, watch.killed = told, 0

    def end():
        watch.killed += 1

    monkeypatch.setattr(watch, "_end_controllers", end)
    monkeypatch.setattr(watch, "_why", lambda: "no CPU")
    return watch


def view(before=0, room=2, mine=True, placed=True):
    return View(room=room, before=before, mine=mine, placed=placed)


def test_a_trial_that_runs_is_left_alone(watch):
    for now in range(0, 1000, 10):
        watch._judge(view(before=1), now)
        # Before the first group and after the last one nothing is lacking.
        watch._judge(view(before=0, mine=False, placed=False), now + 5)
    assert watch.killed == 0


def test_a_trial_that_is_not_placed_ends_with_the_reason(watch):
    watch._judge(view(placed=False), 0)
    watch._judge(view(placed=False), 55)
    watch._judge(view(mine=False, placed=False), 58)  # Ray tries again
    watch._judge(view(placed=False), 60)
    assert watch.killed == 0
    watch._judge(view(placed=False), 61)
    assert watch.killed == 1
    assert watch.reason == "no CPU"
    watch._judge(view(placed=False), 62)
    assert watch.killed == 2, "whatever is started in between is ended, too"


def test_workers_that_come_in_time_end_the_wait(watch):
    watch._judge(view(placed=False), 0)
    watch._judge(view(placed=True), 59)
    watch._judge(view(placed=False), 60)
    watch._judge(view(placed=False), 119)
    assert watch.killed == 0


def test_the_trial_behind_makes_room_after_a_moment(watch):
    watch._judge(view(before=2), 0)
    watch._judge(view(before=1), 2)  # another one was only ending
    watch._judge(view(before=2), 3)
    watch._judge(view(before=2), 6)
    assert not watch.aside
    watch._judge(view(before=2), 6.1)
    assert watch.aside
    assert watch.killed == 1
    assert watch.reason is None
    assert "makes room: the nodes carry 2 trials now" in watch.told[0]


def test_a_trial_that_made_room_goes_on_when_there_is_some(monkeypatch):
    import ray

    views = iter([view(before=0), view(before=2), view(before=2), view(before=1)])
    monkeypatch.setattr(placement_watch, "_look", lambda plan: next(views))
    monkeypatch.setattr(placement_watch, "POLL_S", 0.0)
    monkeypatch.setattr(PlacementWatch, "_watch", lambda self: None)
    watch = PlacementWatch(PLAN, 60, warn=lambda text: None, stopped=lambda: False,
                           halted=lambda: False)  # fmt: skip
    starts = []

    def train():
        starts.append(len(starts))
        if len(starts) == 1:
            watch.aside = True
            raise ray.exceptions.RayActorError
        assert not watch.aside

    watch.run(train)
    assert starts == [0, 1]


def test_what_is_no_doing_of_the_watch_stays_what_it_was(monkeypatch):
    import ray

    monkeypatch.setattr(placement_watch, "_look", lambda plan: view())
    monkeypatch.setattr(PlacementWatch, "_watch", lambda self: None)
    watch = PlacementWatch(PLAN, 60, warn=lambda text: None, stopped=lambda: False,
                           halted=lambda: False)  # fmt: skip

    def fails():
        raise ray.exceptions.RayActorError

    with pytest.raises(ray.exceptions.RayActorError):
        watch.run(fails)

    def in_vain():
        watch.reason = "no GPU on 10.0.0.1"
        raise ray.exceptions.RayActorError

    with pytest.raises(HmrError, match=r"no GPU on 10\.0\.0\.1"):
        watch.run(in_vain)


def test_a_halted_trial_is_ended_and_not_begun_again(watch, monkeypatch):
    import ray.exceptions

    halted = []
    monkeypatch.setattr(watch, "_halted", lambda: bool(halted))
    monkeypatch.setattr(placement_watch, "_look", lambda plan: view())
    monkeypatch.setattr(PlacementWatch, "_watch", lambda self: None)
    starts = []

    def train():
        starts.append(len(starts))
        watch._judge(view(), 0.0)
        assert watch.killed == 0
        halted.append(True)
        watch._judge(view(), 1.0)
        assert watch.killed == 1, "also where nothing lacks"
        assert watch.has_ended_it(), "or the run would be begun again"
        raise ray.exceptions.RayActorError

    watch.run(train)
    watch.run(train)
    assert starts == [0]
    assert watch.told == []


def test_trials_wait_until_there_is_room(monkeypatch):
    views = iter([view(room=0), view(before=2, mine=False), view(before=1, mine=False)])
    monkeypatch.setattr(placement_watch, "_look", lambda plan: next(views))
    monkeypatch.setattr(placement_watch, "POLL_S", 0.0)
    monkeypatch.setattr(PlacementWatch, "_watch", lambda self: None)
    told, started = [], []
    watch = PlacementWatch(PLAN, 60, warn=told.append, stopped=lambda: False,
                           halted=lambda: False)  # fmt: skip
    watch.run(lambda: started.append(next(views, "all seen")))
    assert started == ["all seen"]
    assert told == ["waits: the nodes carry 0 trials now"]


def test_a_study_ends_when_no_node_could_carry_a_trial_for_too_long(monkeypatch):
    nodes = [NodeRoom(name="10.0.0.7", cpus=1)]
    monkeypatch.setattr(placement_watch, "POLL_S", 0.001)
    monkeypatch.setattr(placement_watch, "live_nodes", lambda held: nodes)
    monkeypatch.setattr(placement_watch.ray_tables, "groups", list)
    monkeypatch.setattr(placement_watch.ray_tables, "actors", list)
    ended = threading.Event()
    with watching_over_trials(PLAN, 0.01, ended.set) as reasons:
        assert ended.wait(30)
    assert len(reasons) == 1
    assert re.search(
        r"waited 0\.01 s .*1 worker × 1 CPU.*10\.0\.0\.7 has 1 whole CPU free", reasons[0]
    )
    nodes = [NodeRoom(name="10.0.0.7", cpus=2)]
    with watching_over_trials(PLAN, 0.0, lambda: pytest.fail("has room")) as reasons:
        time.sleep(0.05)
    assert not reasons


def test_a_study_that_ends_starts_nothing(monkeypatch):
    monkeypatch.setattr(placement_watch, "_look", lambda plan: view())
    watch = PlacementWatch(PLAN, 60, warn=lambda text: None, stopped=lambda: True,
                           halted=lambda: False)  # fmt: skip
    watch.run(lambda: pytest.fail("was started"))


def test_only_what_has_been_left_behind_for_a_while_is_freed(monkeypatch):
    freed, ended = [], []
    monkeypatch.setattr(placement_watch.ray_tables, "remove_group", lambda g: freed.append(g.id))
    monkeypatch.setattr(placement_watch.ray_tables, "kill_anywhere", lambda a: ended.append(a.id))
    broom = placement_watch._Broom()
    controller = actor("c1", kind="TrainController")
    groups = [group("g1", "c1"), group("g2", "c2", dead=True, state="PENDING")]
    cleaners = [
        actor("k1", kind="PlacementGroupCleaner", owner="w-c1"),
        actor("k2", kind="PlacementGroupCleaner", owner="w-c2"),
    ]
    broom.sweep(groups, [controller, *cleaners], 0)
    broom.sweep(groups, [controller, *cleaners], 5)
    assert not freed
    assert not ended
    broom.sweep(groups, [controller, *cleaners], 5.5)
    assert freed == ["g2"]
    assert ended == ["k2"]
