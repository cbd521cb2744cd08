"""The learning rate by its values, and an AdamW that leaves out steps without finite gradient."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hmr.config import ModelConfig, OptimizerConfig
from hmr.encoder import Encoder
from hmr.errors import HmrError
from hmr.model import HMR, build_model
from hmr.optimizer import GuardedAdamW, learning_rate


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


def test_steps_fall_once_their_share_of_the_run_is_done() -> None:
    settings = {"schedule": "step", "milestones": (0.3, 0.7), "milestone_factor": 0.1}
    found = rates(10, **settings)
    assert found == pytest.approx([0.1] * 3 + [0.01] * 4 + [0.001] * 3)
    # A share that is no whole number of steps: 1.2 of 4 steps are done before step 2.
    assert rates(4, **settings) == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert rates(1, **settings) == pytest.approx([0.1])


@pytest.mark.parametrize("percent", [7, 14, 28, 29, 55, 57, 58])
def test_a_share_in_decimals_falls_at_its_own_step(percent: int) -> None:
    """In floating point, 0.07 * 100 is more than 7 and 0.29 * 100 is less than 29."""
    found = rates(100, schedule="step", milestones=(percent / 100,), milestone_factor=0.5)
    assert found == [0.1] * percent + [0.05] * (100 - percent)


def test_steps_and_warm_up_multiply() -> None:
    found = rates(
        10, schedule="step", milestones=(0.2, 0.8), milestone_factor=0.5, warmup_steps=4
    )  # fmt: skip
    assert found == pytest.approx([0.025, 0.05, 0.0375, 0.05, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_after_the_warm_up_no_schedule_rises(schedule: str) -> None:
    found = rates(40, schedule=schedule, warmup_steps=7)
    assert found[6:] == sorted(found[6:], reverse=True)
    assert max(found) == pytest.approx(0.1)
    assert min(found) > 0


# Updates


class Part(Encoder):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class TwoParts(nn.Module):
    """As much of HMR as an optimizer sees."""

    def __init__(self, encoder: Tensor, regressor: Tensor) -> None:
        super().__init__()
        self.encoder, self.regressor = Part(encoder), Part(regressor)


def new_model(seed: int = 0) -> TwoParts:
    generator = torch.Generator().manual_seed(seed)
    return TwoParts(*(torch.randn(n, 3, generator=generator) for n in (4, 2)))


def guard(model: nn.Module, total_steps: int = 99, **settings: Any) -> GuardedAdamW:
    """Settings of GuardedAdamW and of the optimizer."""
    own = {k: settings.pop(k) for k in ("freeze_encoder", "max_skipped") if k in settings}
    return GuardedAdamW(model, config(**settings), total_steps, **own)  # type: ignore[arg-type]


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
    model = new_model()
    ours, theirs = list(model.parameters()), list(new_model().parameters())
    guarded = guard(model, 5, weight_decay=0.1, grad_clip=clip)
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
        model = new_model()
        parameters = list(model.parameters())
        optimizer = guard(model, 5, warmup_steps=4)
        before = values(parameters)
        give_gradients(parameters, seed=1)
        optimizer.update(step)
        for old, new in zip(before, parameters, strict=True):
            torch.testing.assert_close((new - old).abs(), torch.full_like(old, rate), rtol=1e-4,
                                       atol=0)  # fmt: skip


def test_weight_decay_is_decoupled_from_the_gradient() -> None:
    model = TwoParts(torch.tensor([2.0, -4.0]), torch.tensor([10.0]))
    optimizer = guard(model, 1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.update(0)
    torch.testing.assert_close(model.encoder.weight.detach(), torch.tensor([1.9, -3.8]))
    torch.testing.assert_close(model.regressor.weight.detach(), torch.tensor([9.5]))


def test_long_gradients_are_cut_to_the_allowed_norm() -> None:
    model = new_model()
    parameters = list(model.parameters())
    optimizer = guard(model, 2, grad_clip=0.5)
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
    model = new_model()
    parameters = list(model.parameters())
    optimizer = guard(model, 1)
    give_gradients(parameters, seed=0, scale=1e4)
    long = norm_of_gradients(parameters)
    optimizer.update(0)
    assert norm_of_gradients(parameters) == long


def test_a_parameter_without_gradient_stays() -> None:
    model = new_model()
    first, second = model.parameters()
    before = second.detach().clone()
    optimizer = guard(model, 1, grad_clip=1.0)
    first.grad = torch.ones_like(first)
    assert optimizer.update(0) == 0
    assert torch.equal(second, before)


# Parts of the model


@pytest.mark.parametrize("factor", [0.1, 1.0, 3.0])
def test_the_encoder_has_its_own_rate(factor: float) -> None:
    """The first step of Adam moves every number by the rate."""
    model = new_model()
    optimizer = guard(model, 10, warmup_steps=4, encoder_lr_factor=factor)
    before = values(list(model.parameters()))
    give_gradients(list(model.parameters()), seed=0)
    optimizer.update(1)
    for part, old, rate in zip(
        (model.encoder, model.regressor), before, (0.05 * factor, 0.05), strict=True
    ):
        moved = (part.weight - old).abs()
        torch.testing.assert_close(moved, torch.full_like(old, rate), rtol=1e-4, atol=0)


def test_both_parts_are_cut_by_their_common_norm() -> None:
    model = new_model()
    parameters = list(model.parameters())
    optimizer = guard(model, grad_clip=0.5, encoder_lr_factor=0.1)
    give_gradients(parameters, seed=0, scale=10)
    length = norm_of_gradients(parameters)
    expected = [0.5 / length * p.grad for p in parameters if p.grad is not None]
    optimizer.update(0)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_one_bad_part_stops_both() -> None:
    model = new_model()
    parameters = list(model.parameters())
    optimizer = guard(model, encoder_lr_factor=0.1)
    before = values(parameters)
    for bad in parameters:
        give_gradients(parameters, seed=0)
        bad.grad[0, 0] = math.nan  # type: ignore[index]
        assert optimizer.update(0) == 1
        for old, new in zip(before, parameters, strict=True):
            assert torch.equal(old, new)


def test_parameters_without_gradient_are_in_no_group() -> None:
    model = new_model()
    model.regressor.extra = nn.Parameter(torch.ones(2), requires_grad=False)
    optimizer = guard(model, weight_decay=0.5)
    held = [p for group in optimizer.inner.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(model.encoder.weight), id(model.regressor.weight)]


def hmr_step(model: HMR, optimizer: GuardedAdamW, step: int) -> float:
    generator = torch.Generator().manual_seed(step % 2)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    final = model(images).final
    loss = (final.betas - 1).square().mean() + (final.pred_cam - 0.5).square().mean()
    optimizer.inner.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.update(step)
    return float(loss.detach())


def small_hmr(encoder: str = "small") -> HMR:
    torch.manual_seed(0)
    return build_model(
        ModelConfig(encoder=encoder, encoder_width=4, image_size=32, hidden=16, dropout=0.1)
    )


@pytest.mark.parametrize("encoder", ["small", "resnet18"])
def test_a_frozen_encoder_keeps_every_bit_while_the_regressor_learns(encoder: str) -> None:
    model = small_hmr(encoder)
    optimizer = guard(model, lr=0.01, weight_decay=0.1, freeze_encoder=True)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    losses = []
    for step in range(12):
        model.train()
        losses.append(hmr_step(model, optimizer, step))
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert losses[-1] < losses[0] / 2
    assert model.regressor.training
    trained = [id(p) for group in optimizer.inner.param_groups for p in group["params"]]
    assert trained == [id(p) for p in model.regressor.parameters()]
    assert all(p.grad is None for p in model.encoder.parameters())


def test_an_encoder_that_is_not_frozen_changes() -> None:
    model = small_hmr().train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    hmr_step(model, guard(model, lr=0.01), 0)
    changed = [n for n, value in model.encoder.state_dict().items() if (value != before[n]).any()]
    assert {"stem.0.weight", "stem.1.running_mean", "stem.1.running_var"} <= set(changed)


# Steps that are left out


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_leaves_no_trace(value: float, clip: float | None) -> None:
    models = new_model(), new_model()
    ours, theirs = (list(model.parameters()) for model in models)
    disturbed, quiet = (guard(model, 9, weight_decay=0.1, grad_clip=clip) for model in models)
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
    model = new_model()
    parameters = list(model.parameters())
    optimizer = guard(model, 99, grad_clip=2.0)
    bad_steps(optimizer, parameters, 10 - 1)
    optimizer.refuse_divergence()
    give_gradients(parameters, seed=0)
    optimizer.update(0)
    bad_steps(optimizer, parameters, 10 - 1)
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


def test_the_allowed_number_of_bad_steps_is_a_setting() -> None:
    model = new_model()
    optimizer = guard(model, max_skipped=3)
    bad_steps(optimizer, list(model.parameters()), 2)
    assert not optimizer.diverged
    optimizer.refuse_divergence(["a"])
    bad_steps(optimizer, list(model.parameters()), 1)
    assert optimizer.diverged
    with pytest.raises(HmrError, match="3 steps in a row") as caught:
        optimizer.refuse_divergence()
    assert "samples" not in str(caught.value)
    with pytest.raises(HmrError, match=r"samples of these steps: v1/3, v2/7$"):
        optimizer.refuse_divergence(["v1/3", "v2/7"])


# Going on


def test_a_resumed_optimizer_equals_one_that_went_on() -> None:
    """Rates, weights, moments and counts, after skipped steps on both sides of the cut."""
    settings: dict[str, Any] = {
        "schedule": "step", "milestones": (0.25, 0.5), "warmup_steps": 2, "weight_decay": 0.1,
        "encoder_lr_factor": 0.1, "grad_clip": 1.0, "max_skipped": 3,
    }  # fmt: skip
    bad = {2, 3, 4, 6}

    def steps(model: TwoParts, optimizer: GuardedAdamW, which: range) -> list[list[float]]:
        found = []
        for step in which:
            give_gradients(list(model.parameters()), step, math.nan if step in bad else 1.0)
            optimizer.update(step)
            found.append([group["lr"] for group in optimizer.inner.param_groups])
        return found

    model, resumed = new_model(), new_model(seed=7)
    one, other = guard(model, 8, **settings), guard(resumed, 8, **settings)
    steps(model, one, range(4))
    resumed.load_state_dict(model.state_dict())
    other.inner.load_state_dict(copy.deepcopy(one.inner.state_dict()))
    other.load({name: value.cpu().clone() for name, value in one.state().items()})
    assert steps(model, one, range(4, 8)) == steps(resumed, other, range(4, 8))
    for mine, its in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, its)
        for name, value in one.inner.state[mine].items():
            assert torch.equal(other.inner.state[its][name], value), name
    assert (
        one.state() == other.state() == {"skipped": 4, "streak": 0, "longest": 3, "worst_step": 4}
    )
    assert other.skipped == 4
    assert other.diverged
