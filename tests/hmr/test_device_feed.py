"""Batches reach the device in order, none twice, none lost; streams as on a GPU, by stand-ins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hmr.device_feed import on_device
from hmr.structures import Batch


def batch(number: int) -> Batch:
    return Batch(
        images=torch.full((2, 3, 4, 4), number, dtype=torch.uint8),
        keypoints_2d=torch.zeros(2, 49, 3), keypoints_3d=torch.zeros(2, 49, 4),
        rotmats=torch.zeros(2, 24, 3, 3), betas=torch.zeros(2, 10),
        has_smpl=torch.ones(2, dtype=torch.bool), sample_ids=(f"{number}/a", f"{number}/b"),
    )  # fmt: skip


def numbers(batches: Any) -> list[int]:
    return [int(b.images[0, 0, 0, 0]) for b in batches]


def test_on_a_cpu_nothing_is_touched() -> None:
    given = [batch(n) for n in range(4)]
    assert all(a is b for a, b in zip(on_device(given, torch.device("cpu")), given, strict=True))


class Stream:
    """Notes in which order things are asked of it."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __enter__(self) -> None:
        self.log.append("copy begins")

    def __exit__(self, *_: object) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        self.log.append("wait for copy")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_gpu_gets_each_batch_one_step_ahead(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, "copy"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(log, "main"))
    monkeypatch.setattr(Batch, "pinned", lambda self: self)
    monkeypatch.setattr(Batch, "to", lambda self, device, non_blocking: self)
    monkeypatch.setattr(Batch, "record_stream", lambda self, stream: None)
    found = []
    for given in on_device((batch(n) for n in range(count)), torch.device("cuda")):
        log.append("step")
        found.append(given)
    assert numbers(found) == list(range(count))
    # While one step is computed the next batch is on its way, and no step begins before its copy.
    begun = [log[:place].count("copy begins") for place, what in enumerate(log) if what == "step"]
    assert begun == [min(n + 2, count) for n in range(count)]
    waits = [log[:place].count("wait for copy") for place, w in enumerate(log) if w == "step"]
    assert waits == [n + 1 for n in range(count)]


def test_names_stay_when_a_batch_is_cut() -> None:
    first = batch(3).first(1)
    assert first.sample_ids == ("3/a",)
    assert len(first) == 1
    assert numbers(batch(7).parts(2)) == [7, 7]
    assert [len(part) for part in batch(7).parts(2)] == [1, 1]
