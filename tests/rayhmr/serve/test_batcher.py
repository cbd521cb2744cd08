"""Batches without a timer: nobody waits, nobody is lost, nobody pays for another's fault."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from hmr.errors import DataError, HmrError
from hmr.person_crops import person_crops
from rayhmr.serve.batcher import MAX_LOSSES, Batcher, LaneLostError
from rayhmr.serve.inference import (
    Computed,
    Prepared,
    Work,
    compute_batch,
    finish,
    recover_batch,
)
from rayhmr.serve.problems import Problem

SOON_S = 20.0


def item(value: int, people: int = 1) -> Prepared:
    """A request whose pixels say which one it is."""
    image = np.full((32, 32, 3), value, np.uint8)
    boxes = [[0, 0, 32, 32]] * people
    return Prepared(
        crops=tuple(person_crops(image, boxes, image_size=32)), n_iter=None, mesh=value % 2 == 0,
        step_meshes=False,
    )  # fmt: skip


def value_of(prepared: Prepared) -> int:
    return int(prepared.crops[0].pixels[16, 16, 0])


def answer(prepared: Prepared) -> Computed:
    return Computed(columns={"value": np.array([value_of(prepared)])}, model_ms=0.0)


class Model:
    """A lane that computes when it is told to, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Semaphore(0)

    async def __call__(self, items):
        self.batches.append([value_of(one) for one in items])
        await self.go.acquire()
        return [answer(one) for one in items]


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, SOON_S))


async def settle():
    """Let everything that can run, run."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_a_lone_request_runs_at_once_and_those_that_come_meanwhile_form_the_next_batch():
    async def scenario():
        batcher, model = Batcher(max_people=3), Model()
        batcher.add(model)
        tasks = []
        for value in range(6):
            tasks.append(asyncio.create_task(batcher.submit(item(value))))
            await settle()
        assert model.batches == [[0]]  # no timer had to pass
        assert batcher.waiting == 5
        for _ in range(3):
            model.go.release()
            await settle()
        assert model.batches == [[0], [1, 2, 3], [4, 5]]
        results = await asyncio.gather(*tasks)
        assert [int(r.columns["value"][0]) for r in results] == list(range(6))

    run(scenario())


def test_the_next_batch_is_under_way_before_answers_of_the_last_are_worked_on():
    async def scenario():
        batcher, model = Batcher(max_people=1), Model()
        batcher.add(model)
        begun = []

        async def client(value: int) -> None:
            await batcher.submit(item(value))
            begun.append(len(model.batches))

        tasks = [asyncio.create_task(client(value)) for value in range(3)]
        await settle()
        for _ in tasks:
            model.go.release()
        await asyncio.gather(*tasks)
        assert begun == [2, 3, 3]

    run(scenario())


def test_every_free_process_gets_its_share():
    async def scenario():
        batcher, models = Batcher(max_people=8), [Model(), Model()]
        for model in models:
            batcher.add(model)
        tasks = [asyncio.create_task(batcher.submit(item(v))) for v in range(2)]
        await settle()
        assert sorted(model.batches for model in models) == [[[0]], [[1]]]
        for model in models:
            model.go.release()
        await asyncio.gather(*tasks)

    run(scenario())


def test_the_limit_counts_people_and_a_crowd_goes_alone():
    async def scenario():
        batcher, model = Batcher(max_people=4), Model()
        model.go = asyncio.Semaphore(100)
        tasks = [
            asyncio.create_task(batcher.submit(item(value, people)))
            for value, people in ((0, 3), (1, 1), (2, 9), (3, 2), (4, 2), (5, 1))
        ]
        await settle()
        batcher.add(model)
        await asyncio.gather(*tasks)
        assert model.batches == [[0, 1], [2], [3, 4], [5]]

    run(scenario())


def test_a_request_whose_client_left_is_not_computed():
    async def scenario():
        batcher, model = Batcher(max_people=8), Model()
        batcher.add(model)
        tasks = [asyncio.create_task(batcher.submit(item(value))) for value in range(4)]
        await settle()
        tasks[2].cancel()
        await settle()
        model.go.release()
        await settle()
        model.go.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert model.batches == [[0], [1, 3]]

    run(scenario())


def test_the_batch_of_a_dead_process_goes_to_others_one_by_one():
    async def scenario():
        batcher, model = Batcher(max_people=8), Model()
        model.go = asyncio.Semaphore(100)
        deaths = []

        async def dies(items):
            deaths.append([value_of(one) for one in items])
            raise LaneLostError

        tasks = [asyncio.create_task(batcher.submit(item(value))) for value in range(3)]
        await settle()
        batcher.add(dies)
        await settle()
        assert (deaths, batcher.lanes, batcher.waiting) == ([[0, 1, 2]], 0, 3)
        later = asyncio.create_task(batcher.submit(item(3)))
        batcher.add(model)
        results = await asyncio.gather(*tasks, later)
        assert [int(r.columns["value"][0]) for r in results] == [0, 1, 2, 3]
        assert model.batches == [[0], [1], [2], [3]]

    run(scenario())


def test_a_picture_that_kills_every_process_is_refused_and_its_mates_are_answered():
    async def scenario():
        batcher = Batcher(max_people=8)

        async def dies_of_seven(items):
            if any(value_of(one) == 7 for one in items):
                batcher.add(dies_of_seven)  # Ray starts a new one
                raise LaneLostError
            return [answer(one) for one in items]

        tasks = [asyncio.create_task(batcher.submit(item(value))) for value in (5, 7, 6)]
        await settle()
        batcher.add(dies_of_seven)
        good, poison, other = await asyncio.gather(*tasks, return_exceptions=True)
        assert int(good.columns["value"][0]) == 5
        assert int(other.columns["value"][0]) == 6
        assert isinstance(poison, Problem)
        assert (poison.status, poison.code) == (500, "model_crashed")
        assert f"{MAX_LOSSES} times" in poison.detail

    run(scenario())


def test_poison_and_numbers_that_are_none_do_not_reach_their_mates(predictor, monkeypatch):
    """One full batch of a real model: two pictures break it, two have no finite answer."""
    poison, hollow = {2, 6}, {3, 5}
    true_columns = predictor.columns

    def columns(crops, n_iter=None, *, mesh=True, step_meshes=False):
        values = [int(crop.pixels[16, 16, 0]) for crop in crops]
        if poison & set(values):
            raise RuntimeError("a picture that no model can bear")
        found = true_columns(crops, n_iter, mesh=mesh, step_meshes=step_meshes)
        for name in ("joints_3d", "vertices"):
            found[name] = found[name].copy()
            found[name][[value in hollow for value in values]] = np.nan
        return found

    box = np.array([[0.0, 0.0, 32.0, 32.0]])
    works = [Work(image=np.full((32, 32, 3), value, np.uint8), boxes=box) for value in range(8)]
    alone = [recover_batch(predictor, [work])[0] for work in works]
    monkeypatch.setattr(predictor, "columns", columns)

    async def scenario():
        batcher = Batcher(max_people=8)
        batches = []

        async def lane(items):
            batches.append(len(items))
            return compute_batch(predictor, items)

        tasks = [asyncio.create_task(batcher.submit(item(value))) for value in range(8)]
        await settle()
        batcher.add(lane)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert batches == [8]
        return results

    results = run(scenario())
    for value, (work, result, expected) in enumerate(zip(works, results, alone, strict=True)):
        if value in poison:
            assert "no model can bear" in str(result)
            continue
        recovery = finish(work, item(value), result)
        if value in hollow:
            assert isinstance(recovery, HmrError)
            assert "finite" in str(recovery)
            continue
        (person,), (other,) = recovery.people, expected.people
        names = ["joints_3d", "joints_2d", "cam_t", "betas", "body_pose"]
        if item(value).mesh:
            names.append("vertices")
        else:
            assert person.person.vertices.shape == (0, 3)
        for name in names:
            np.testing.assert_allclose(
                getattr(person.person, name), getattr(other.person, name), atol=1e-5, err_msg=name
            )


def test_an_error_belongs_to_its_item_and_a_failing_lane_goes_on():
    async def scenario():
        batcher = Batcher(max_people=8)
        calls = []

        async def lane(items):
            calls.append(len(items))
            if len(calls) == 1:
                raise OSError("once")
            return [
                DataError("four") if value_of(one) == 4 else answer(one) for one in items
            ]  # fmt: skip

        batcher.add(lane)
        with pytest.raises(OSError, match="once"):
            await batcher.submit(item(1))
        tasks = [asyncio.create_task(batcher.submit(item(value))) for value in (3, 4, 5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r) for r in results] == [Computed, DataError, Computed]

    run(scenario())


def test_a_lane_that_was_taken_away_gets_nothing_more():
    async def scenario():
        batcher, first, second = Batcher(max_people=8), Model(), Model()
        first.go = second.go = asyncio.Semaphore(100)
        batcher.remove(batcher.add(first))
        batcher.add(second)
        await batcher.submit(item(1))
        assert (first.batches, second.batches) == ([], [[1]])

    run(scenario())
