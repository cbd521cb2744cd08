"""The average of the weights by its closed form; a model that borrows it gets its own bits back."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hmr.config import ModelConfig, OptimizerConfig
from hmr.ema import UPDATES, Ema
from hmr.model import HMR, build_model
from hmr.optimizer import GuardedAdamW


def new_model(seed: int = 0) -> HMR:
    """Channels last, with batch norms, integer counters and buffers."""
    torch.manual_seed(seed)
    return build_model(ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=1))


def disturb(model: nn.Module, seed: int) -> None:
    """New values everywhere, in place as an optimizer does it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator))
            else:
                value += 1


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def averaged_model(seed: int = 0, decay: float = 0.9, updates: int = 3) -> tuple[HMR, Ema]:
    model = new_model(seed)
    ema = Ema(model, decay)
    for number in range(updates):
        disturb(model, 100 * seed + number)
        ema.update()
    return model, ema


# The average


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_has_its_closed_form(decay: float) -> None:
    model = new_model()
    ema = Ema(model, decay)
    seen = []
    for number in range(1, 8):
        disturb(model, number)
        ema.update()
        seen.append(copies(model))
        weights = [(1 - decay) * decay ** (number - i) for i in range(1, number + 1)]
        assert sum(weights) / (1 - decay**number) == pytest.approx(1)
        found = ema.state_dict()
        assert int(found.pop(UPDATES)) == number
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                assert torch.equal(found[name], value), name  # counters are the newest
                continue
            terms = [w * s[name].double() for w, s in zip(weights, seen, strict=True)]
            expected = (torch.stack(terms).sum(0) / (1 - decay**number)).float()
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def test_the_weights_of_the_start_do_not_count() -> None:
    """After one update the average is the weights then, whatever they were before."""
    model, ema = averaged_model(decay=0.999, updates=1)
    average = ema.state_dict()
    del average[UPDATES]
    assert_same_bits(average, model.state_dict())


def test_weights_that_rest_are_their_own_average() -> None:
    model = new_model()
    ema = Ema(model, 0.99)
    for _ in range(200):
        ema.update()
    average = ema.state_dict()
    del average[UPDATES]
    assert_same_bits(average, model.state_dict())


def test_statistics_are_those_of_the_averaged_weights() -> None:
    """The mean of a linear layer's outputs is linear in its weights: here the law is exact. The
    newest statistics, copied, would belong to other weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=1.0)).train()
    inputs = torch.randn(64, 5)
    ema = Ema(model, 0.8)
    for number in range(6):
        disturb(model, number)
        model(inputs)
        ema.update()
    newest = model[1].running_mean.clone()
    with ema.applied(model):
        expected = model[0](inputs).mean(0).detach()
        torch.testing.assert_close(model[1].running_mean, expected, rtol=1e-4, atol=1e-5)
        assert (newest - expected).abs().max() > 0.1
        assert (model[1].running_var > 0).all()


def test_the_average_of_bfloat16_weights_is_kept_in_float32() -> None:
    """A change of 1 in steps of a thousandth would never be seen in bfloat16."""
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    ema = Ema(model, 0.999)
    for _ in range(1000):
        ema.update()
    with torch.no_grad():
        model.weight.fill_(2.0)
    for _ in range(10):
        ema.update()
    share = (1 - 0.999**10) / (1 - 0.999**1010)
    average = ema.state_dict()["weight"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.tensor([[1 + share]]), rtol=1e-5, atol=0)
    with ema.applied(model):
        assert model.weight.dtype == torch.bfloat16
        assert torch.equal(model.weight, average.to(torch.bfloat16))
    assert float(model.weight.detach()) == 2.0


def test_the_average_lies_in_memory_like_the_weights() -> None:
    """Else every update would walk one of the two out of order."""
    model, ema = averaged_model()
    average = ema.state_dict()
    weight = model.encoder.stem[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in model.state_dict().items():
        assert average[name].stride() == value.stride(), name


def test_a_skipped_step_brings_no_nan_into_the_average() -> None:
    model = new_model().train()
    optimizer = GuardedAdamW(model, OptimizerConfig(lr=0.01), total_steps=9)
    ema = Ema(model, 0.5)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    for step, factor in enumerate((1.0, math.nan, math.inf)):
        optimizer.inner.zero_grad(set_to_none=True)
        (factor * model(images).final.betas.square().mean()).backward()
        skipped = optimizer.update(step)
        assert float(skipped) == (step > 0)
        ema.update()
    for name, value in ema.state_dict().items():
        assert torch.isfinite(value).all(), name


# Borrowing it


@pytest.mark.parametrize("inference", [False, True])
def test_a_model_has_the_average_inside_and_its_own_bits_after(inference: bool) -> None:
    model, ema = averaged_model()
    with torch.no_grad():
        model.regressor.fc1.weight[0, 0] = math.nan
        model.regressor.fc1.weight[0, 1] = -0.0
    before, strides = copies(model), [v.stride() for v in model.state_dict().values()]
    average = {k: v.clone() for k, v in ema.state_dict().items() if k != UPDATES}
    with torch.inference_mode(inference), ema.applied(model):
        assert_same_bits(model.state_dict(), average)
        assert not torch.equal(model.regressor.fc2.weight, before["regressor.fc2.weight"])
    for name, value in model.state_dict().items():
        assert value.numpy().tobytes() == before[name].numpy().tobytes(), name
    assert [v.stride() for v in model.state_dict().values()] == strides


def test_a_block_that_raises_gives_the_weights_back() -> None:
    model, ema = averaged_model()
    before = copies(model)
    with pytest.raises(ZeroDivisionError), ema.applied(model):
        raise ZeroDivisionError
    assert_same_bits(model.state_dict(), before)


def test_what_a_block_does_to_the_weights_is_lost() -> None:
    model, ema = averaged_model()
    before = copies(model)
    average = {k: v.clone() for k, v in ema.state_dict().items()}
    with ema.applied(model):
        disturb(model, 77)
    assert_same_bits(model.state_dict(), before)
    assert_same_bits(ema.state_dict(), average)


def test_training_does_not_notice_that_the_average_was_borrowed() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)

    def train(*, borrow: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = new_model().train()
        optimizer = GuardedAdamW(model, OptimizerConfig(lr=0.01), total_steps=9)
        ema = Ema(model, 0.9)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.inner.zero_grad(set_to_none=True)
            model(images).final.betas.sub(1).square().mean().backward()
            optimizer.update(step)
            ema.update()
            if borrow:
                with torch.inference_mode(), ema.applied(model):
                    model.eval()(images)
                model.train()
        return copies(model), ema.state_dict()

    alone, borrowed = train(borrow=False), train(borrow=True)
    assert_same_bits(borrowed[0], alone[0])
    assert_same_bits(borrowed[1], alone[1])


def test_another_model_of_the_kind_can_borrow_it() -> None:
    _, ema = averaged_model()
    other = new_model(seed=5)
    before = copies(other)
    with ema.applied(other):
        found = copies(other)
    average = ema.state_dict()
    del average[UPDATES]
    assert_same_bits(found, average)
    assert_same_bits(other.state_dict(), before)


_RANK = """
import sys, torch, torch.distributed as dist
from types import SimpleNamespace
from hmr.body import Body
from hmr.config import ModelConfig, TrainConfig
from hmr.model import build_model
from hmr.structures import Batch
from hmr.training import Trainer

body = Body.embedded()

def validated(rank, world_size, decay, updates_of):
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=1))
    torch.nn.init.normal_(model.regressor.decpose.weight)
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=g)
    people = Batch(  # who they are does not matter
        images=images, keypoints_2d=torch.zeros(3, 49, 3), keypoints_3d=torch.zeros(3, 49, 4),
        rotmats=torch.eye(3).repeat(3, 24, 1, 1), betas=torch.zeros(3, 10),
        has_smpl=torch.ones(3, dtype=torch.bool),
    )
    context = SimpleNamespace(
        rank=rank, world_size=world_size, device=torch.device("cpu"), prepare_model=lambda m: m,
        alive=lambda: None,
    )
    data = SimpleNamespace(steps_per_epoch=1, val_batches=lambda: [people])
    config = TrainConfig(ema_decay=decay)
    trainer = Trainer(config, model, body, data, context, print)
    g = torch.Generator().manual_seed(10 + updates_of)
    for _ in range(2):  # each rank sees other people
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=g))
        if trainer.ema is not None:
            trainer.ema.update()
    return trainer.validate()

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for decay in (None, 0.5):
    found = validated(rank, 2, decay, updates_of=rank)
    for other in (0, 1):
        expected = validated(0, 1, decay, updates_of=other)
        same = abs(found["val/mpjpe_mm"] - expected["val/mpjpe_mm"]) < 1e-3
        assert same == (other == 0), (decay, found, expected)
dist.destroy_process_group()
"""


def test_all_ranks_validate_what_rank_0_saves(tmp_path: Path) -> None:
    """Their statistics differ, averaged or not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", _RANK, str(rank), str(tmp_path / "store")],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [(process.communicate(timeout=300)[1], process.returncode) for process in ranks]
    for errors, code in ended:
        assert code == 0, errors


# Going on


def test_a_loaded_average_goes_on_bit_for_bit() -> None:
    model, ema = averaged_model()
    state = {name: value.clone() for name, value in ema.state_dict().items()}
    other, resumed = averaged_model(seed=3, updates=5)
    resumed.load_state_dict(state)
    assert resumed.updates == 3
    for number in range(4):
        for each, average in ((model, ema), (other, resumed)):
            disturb(each, 50 + number)
            average.update()
    counters = [n for n, value in model.state_dict().items() if not value.is_floating_point()]
    found, expected = resumed.state_dict(), ema.state_dict()
    for name in counters:  # each model counts its own
        assert found.pop(name) == expected.pop(name) + 2
    assert_same_bits(found, expected)


def test_loading_copies() -> None:
    _, ema = averaged_model()
    state = {name: value.clone() for name, value in ema.state_dict().items()}
    model, resumed = averaged_model(seed=3)
    resumed.load_state_dict(state)
    expected = {name: value.clone() for name, value in state.items()}
    disturb(model, 9)
    resumed.update()
    assert_same_bits(state, expected)
