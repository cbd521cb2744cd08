"""Speed as ratios: candidates take turns, medians count, and peers compute the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rayhmr import benchmark
from rayhmr.benchmark import body_ratios, interleaved
from rayhmr.config import BenchmarkJob


class Clock:
    """Time that passes only where a candidate spends it."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def perf_counter(self):
        return self.now

    def candidate(self, name, durations):
        """Each call takes the next of the durations; the last one stays."""
        left = list(durations)

        def call():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_candidates_take_turns_in_every_round(clock):
    names = {"a": 0.06, "b": 0.07, "c": 0.08}
    interleaved({n: clock.candidate(n, [s]) for n, s in names.items()}, rounds=3, at_least_s=0.05)
    assert "".join(clock.calls) == "aabbcc" + 3 * "abc"


def test_the_figure_is_the_median_of_the_rounds(clock):
    # The first call, which compiles, and the second, which is measured to choose the repeats.
    slow = clock.candidate("slow", [99, 1, 2, 50, 4])
    steady = clock.candidate("steady", [7, 3])
    found = interleaved({"slow": slow, "steady": steady}, rounds=3, at_least_s=0.05)
    assert found == pytest.approx({"slow": 4, "steady": 3})


def test_short_calls_are_repeated_and_counted_singly(clock):
    quick = clock.candidate("quick", [0.001])
    long = clock.candidate("long", [0.2])
    found = interleaved({"quick": quick, "long": long}, rounds=2, at_least_s=0.0505)
    assert found == pytest.approx({"quick": 0.001, "long": 0.2})
    turns = "".join(name[0] for name in clock.calls)
    assert turns == "qqll" + 2 * (50 * "q" + "l")


def test_a_call_without_a_measurable_time_is_no_division_by_zero(clock):
    found = interleaved({"none": clock.candidate("none", [0.0])}, rounds=1, at_least_s=1e-5)
    assert found == {"none": 0.0}
    assert len(clock.calls) == 2 + 10


def test_ratios_are_the_peers_time_over_ours_and_peers_compute_the_same(monkeypatch):
    seconds = {"smplx": 6.0, "ours": 2.0, "landmarks": 0.5, "smplx_bwd": 9.0, "ours_bwd": 4.5,
               "landmarks_bwd": 1.0, "ours_bf16": 3.0, "ours_bf16_bwd": 2.25}  # fmt: skip

    def known(candidates, *, rounds):
        assert rounds == 5
        assert candidates.keys() == seconds.keys()
        smplx, ours = candidates["smplx"](), candidates["ours"]()
        torch.testing.assert_close(ours.vertices, smplx.vertices, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.joints, smplx.joints, atol=1e-5, rtol=0)
        return seconds

    monkeypatch.setattr(benchmark, "interleaved", known)
    monkeypatch.setattr(benchmark, "BATCHES", (2,))
    rows, ratios = body_ratios(5)
    assert ratios == {
        "ratio_vs_smplx_b2": 3.0, "ratio_vs_smplx_b2_bwd": 2.0,
        "ratio_vs_smplx_b2_landmarks": 12.0, "ratio_vs_smplx_b2_bf16": 2.0,
        "ratio_vs_smplx_b2_bf16_bwd": 4.0,
    }  # fmt: skip
    assert rows[0]["batch"] == 2
    assert rows[0]["landmarks ms"] == 500


def test_a_gradient_is_taken_with_respect_to_pose_and_shape(monkeypatch):
    seen = []

    def function(rotmats, betas):
        for tensor in (rotmats, betas):
            tensor.register_hook(lambda gradient: seen.append(gradient.clone()))
        return rotmats.sum() * betas

    monkeypatch.setattr(benchmark, "BATCHES", ())
    rotmats, betas = benchmark._random_input(2)
    benchmark._forward_backward(function, rotmats, betas)()
    assert [gradient.shape for gradient in seen] in (
        [rotmats.shape, betas.shape], [betas.shape, rotmats.shape]
    )  # fmt: skip
    assert all(gradient.abs().max() > 0 for gradient in seen)
    assert not rotmats.requires_grad, "the input serves every call"


def test_figures_of_the_chosen_measurements_are_rounded(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "generator_rates", lambda rounds: ([{"side": 64}], {"r": 1 / 3}))
    monkeypatch.setattr(benchmark, "body_ratios", lambda rounds: 1 / 0)
    found = benchmark.benchmark(BenchmarkJob(what=("synthetic",), rounds=2))
    assert found == {"threads": 1, "r": 0.333}
    assert "measuring synthetic (2 rounds, 1 thread)" in capsys.readouterr().err


def test_the_loaders_are_measured_with_the_jobs_rounds_and_threads(monkeypatch):
    asked = []

    def rates(*arguments):
        asked.append(arguments)
        return [{"loader": "ours"}], {"shards_over_classic_loader": 12.3456}

    monkeypatch.setattr(benchmark, "data_rates", rates)
    found = benchmark.benchmark(BenchmarkJob(what=("data",), rounds=3, threads=1))
    assert asked == [(3, 1)]
    assert found == {"threads": 1, "shards_over_classic_loader": 12.346}
