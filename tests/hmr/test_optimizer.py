"""The learning rate by its values, and an AdamW that leaves out steps without finite gradient."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hmr.config import OptimizerConfig
from hmr.errors import HmrError
from hmr.optimizer import MAX_BAD_STEPS, GuardedAdamW, learning_rate


def config(**settings: Any) -> OptimizerConfig:
    return OptimizerConfig(**({"lr": 0.1} | settings))


def rates(total: int, **settings: Any) -> list[float]:
    return [learning_rate(config(**settings), step, total) for step in range(total)]


# Schedule


def test_warm_up_rises_in_equal_parts_to_the_peak() -> None:
    assert rates(6, warmup_steps=4) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert rates(3) == [0.1, 0.1, 0.1]


def test_cosine_falls_from_the_peak_to_two_per_cent() -> None:
    found = rates(105, schedule="cosine", warmup_steps=4)
    assert found[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert found[4] == pytest.approx(0.1)
    assert found[54] == pytest.approx(0.051)  # half-way
    assert found[104] == pytest.approx(0.002)
    assert found[29] == pytest.approx(0.1 * (0.02 + 0.49 * (1 + math.cos(math.pi / 4))))
    assert found[4:] == sorted(found[4:], reverse=True)


def test_cosine_stays_down_after_the_last_step() -> None:
    settings = config(schedule="cosine")
    assert learning_rate(settings, 500, 10) == pytest.approx(0.002)


@pytest.mark.parametrize("total", [1, 2, 5])
def test_short_runs_have_a_rate(total: int) -> None:
    """Also those that end in the warm-up."""
    found = rates(total, schedule="cosine", warmup_steps=5)
    assert found == pytest.approx([0.02 * (step + 1) for step in range(total)])
    assert rates(1, schedule="cosine") == [pytest.approx(0.1)]


# Updates


def new_parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(n, 3, generator=generator)) for n in (4, 2)]


def give_gradients(parameters: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def values(parameters: list[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def norm_of_gradients(parameters: list[nn.Parameter]) -> float:
    return float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm())


@pytest.mark.parametrize("clip", [None, 2.0])
def test_finite_steps_are_those_of_adamw_with_the_cut_gradient(clip: float | None) -> None:
    ours, theirs = new_parameters(), new_parameters()
    guarded = GuardedAdamW(ours, config(weight_decay=0.1, grad_clip=clip), total_steps=5)
    plain = AdamW(theirs, lr=0.1, weight_decay=0.1, fused=False)
    for step in range(5):
        for parameters in (ours, theirs):
            give_gradients(parameters, seed=step, scale=0.1 + step)
        length = norm_of_gradients(theirs)
        for parameter in theirs:
            assert parameter.grad is not None
            parameter.grad *= 1 if clip is None else min(1, clip / length)
        assert guarded.update(step) == 0
        plain.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert guarded.skipped == 0


def test_each_step_uses_its_own_rate() -> None:
    """The first step of Adam moves every number by the rate."""
    for step, rate in ((0, 0.025), (2, 0.075), (4, 0.1)):
        parameters = new_parameters()
        optimizer = GuardedAdamW(parameters, config(warmup_steps=4), total_steps=5)
        before = values(parameters)
        give_gradients(parameters, seed=1)
        optimizer.update(step)
        for old, new in zip(before, parameters, strict=True):
            torch.testing.assert_close((new - old).abs(), torch.full_like(old, rate), rtol=1e-4,
                                       atol=0)  # fmt: skip


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    (parameter,) = parameters = [nn.Parameter(torch.tensor([2.0, -4.0]))]
    optimizer = GuardedAdamW(parameters, config(weight_decay=0.5), total_steps=1)
    parameter.grad = torch.zeros(2)
    optimizer.update(0)
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.9, -3.8]))


def test_long_gradients_are_cut_to_the_allowed_norm() -> None:
    parameters = new_parameters()
    optimizer = GuardedAdamW(parameters, config(grad_clip=0.5), total_steps=2)
    give_gradients(parameters, seed=0, scale=100)
    direction = [p.grad / norm_of_gradients(parameters) for p in parameters if p.grad is not None]
    optimizer.update(0)
    assert norm_of_gradients(parameters) == pytest.approx(0.5, rel=1e-5)
    for parameter, expected in zip(parameters, direction, strict=True):
        torch.testing.assert_close(parameter.grad, 0.5 * expected, rtol=1e-4, atol=1e-6)
    give_gradients(parameters, seed=1, scale=0.01)
    short = norm_of_gradients(parameters)
    optimizer.update(1)
    assert norm_of_gradients(parameters) == pytest.approx(short, rel=1e-6)


def test_without_a_limit_gradients_keep_their_length() -> None:
    parameters = new_parameters()
    optimizer = GuardedAdamW(parameters, config(), total_steps=1)
    give_gradients(parameters, seed=0, scale=1e4)
    long = norm_of_gradients(parameters)
    optimizer.update(0)
    assert norm_of_gradients(parameters) == long


def test_a_parameter_without_gradient_stays() -> None:
    first, second = parameters = new_parameters()
    before = second.detach().clone()
    optimizer = GuardedAdamW(parameters, config(grad_clip=1.0), total_steps=1)
    first.grad = torch.ones_like(first)
    assert optimizer.update(0) == 0
    assert torch.equal(second, before)


# Steps that are left out


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(value: float, clip: float | None) -> None:
    ours, theirs = new_parameters(), new_parameters()
    settings = config(weight_decay=0.1, grad_clip=clip)
    disturbed, quiet = GuardedAdamW(ours, settings, 9), GuardedAdamW(theirs, settings, 9)
    for step in range(3):
        give_gradients(ours, seed=step)
        disturbed.update(step)
        give_gradients(ours, seed=50)
        ours[1].grad[0, 1] = value  # type: ignore[index]
        assert disturbed.update(step) == 1
        give_gradients(theirs, seed=step)
        quiet.update(step)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
        mine, its = disturbed.inner.state[one], quiet.inner.state[other]
        assert mine.keys() == its.keys()
        for name in mine:
            assert torch.equal(mine[name], its[name]), name
    assert disturbed.skipped == 3
    disturbed.refuse_divergence()


def bad_steps(optimizer: GuardedAdamW, parameters: list[nn.Parameter], count: int) -> None:
    for step in range(count):
        give_gradients(parameters, seed=step, scale=math.nan)
        optimizer.update(step)


def test_ten_bad_steps_in_a_row_end_the_run() -> None:
    parameters = new_parameters()
    optimizer = GuardedAdamW(parameters, config(grad_clip=2.0), total_steps=99)
    bad_steps(optimizer, parameters, MAX_BAD_STEPS - 1)
    optimizer.refuse_divergence()
    give_gradients(parameters, seed=0)
    optimizer.update(0)
    bad_steps(optimizer, parameters, MAX_BAD_STEPS - 1)
    optimizer.refuse_divergence()
    assert optimizer.skipped == 18
    bad_steps(optimizer, parameters, 1)
    # Good steps afterwards do not hide what happened between two looks.
    give_gradients(parameters, seed=1)
    optimizer.update(0)
    with pytest.raises(HmrError, match=r"10 steps in a row .* not finite") as caught:
        optimizer.refuse_divergence()
    assert "train.optimizer.lr (0.1)" in str(caught.value)
    assert "grad_clip (2.0)" in str(caught.value)
