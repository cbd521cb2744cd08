"""The training loop: it learns, it goes on as if nothing had happened, it says when it cannot."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from hmr.camera import project_weak
from hmr.checkpoint import load_model_weights
from hmr.config import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.errors import HmrError
from hmr.local_context import LocalContext
from hmr.metrics import pa_mpjpe
from hmr.model import build_model
from hmr.optimizer import MAX_BAD_STEPS, GuardedAdamW, learning_rate
from hmr.regressor import MeanParameters
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch
from hmr.training import fit, reduced_precision

SIZE, PEOPLE = 32, 24
NO_CHANGE = AugmentConfig(flip=0, channel_noise=0)


def labelled(body, people=PEOPLE, seed=0):
    """People whose picture tells their pose: 72 of its pixels are the axis-angles themselves."""
    generator = torch.Generator().manual_seed(seed)
    pose = 0.4 * torch.randn(people, 24, 3, generator=generator).clamp(-2, 2)
    rotmats = axis_angle_to_matrix(pose)
    betas = torch.randn(people, 10, generator=generator)
    joints = body.landmarks(rotmats, betas)
    ones = torch.ones(people, 49, 1)
    camera = torch.tensor([0.8, 0.0, 0.0]).expand(people, 3)
    seen = project_weak(joints, camera, SIZE)
    images = torch.full((people, 3, SIZE, SIZE), 128, dtype=torch.uint8)
    told = (128 + 100 * pose.reshape(people, 72)).clamp(0, 255).to(torch.uint8)
    # Each number fills a cell of 3 x 3 pixels, 8 x 9 cells in all.
    cells = told.reshape(people, 1, 8, 9).repeat_interleave(3, 2).repeat_interleave(3, 3)
    images[:, :, :24, :27] = cells
    return Batch(
        images=images, keypoints_2d=torch.cat([seen, ones], -1),
        keypoints_3d=torch.cat([joints, ones], -1), rotmats=rotmats, betas=betas,
        has_smpl=torch.ones(people, dtype=torch.bool),
    )  # fmt: skip


class Given:
    """The same people every epoch, in an order that depends on the epoch."""

    def __init__(self, people, batch=8, change=None):
        self.people, self.batch, self.change = people, batch, change
        self.steps_per_epoch = len(people) // batch

    def train_batches(self, epoch):
        order = torch.randperm(len(self.people), generator=torch.Generator().manual_seed(epoch))
        for number, rows in enumerate(order.split(self.batch)):
            values = {n: getattr(self.people, n)[rows] for n in Batch.__dataclass_fields__}
            batch = Batch(**values)
            yield self.change(epoch, number, batch) if self.change else batch

    def val_batches(self):
        yield self.people


def small_model(dropout=0.2):
    torch.manual_seed(1)
    config = ModelConfig(image_size=SIZE, encoder_width=4, hidden=64, dropout=dropout)
    return build_model(config, MeanParameters.from_rotations(torch.eye(3).repeat(24, 1, 1)))


def settings(epochs=3, lr=3e-3, **changes):
    return TrainConfig(
        epochs=epochs, log_every=1,
        optimizer=OptimizerConfig(lr=lr, schedule="cosine", warmup_steps=2, grad_clip=1.0),
        losses=LossConfig(scale=1.0, keypoint_error="l1", iteration_weights="all"),
    ).model_copy(update=changes)  # fmt: skip


def run(folder, body, data, config, model=None, log=lambda facts: None):
    model = model or small_model()
    context = LocalContext(folder, "cpu", keep=100)
    last = fit(config, model=model, body=body, data=data, context=context, log=log)
    return model, context, last


def same(ours, theirs):
    a, b = ours.state_dict(), theirs.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def people(small_body):
    return labelled(small_body)


def test_people_seen_often_are_known_in_the_end(tmp_path, small_body):
    config = settings(epochs=120, augment=NO_CHANGE)
    data = Given(labelled(small_body, people=8))
    _, context, last = run(tmp_path, small_body, data, config, small_model(dropout=0.0))
    first = context.reports[0]
    assert last["val/pa_mpjpe_mm"] < 0.35 * first["val/pa_mpjpe_mm"]
    assert last["val/mpjpe_mm"] < 0.35 * first["val/mpjpe_mm"]
    assert last["train/loss"] < 0.5 * first["train/loss"]
    assert last["val/best_pa_mpjpe_mm"] == min(r["val/pa_mpjpe_mm"] for r in context.reports)


def test_the_reported_error_is_that_of_the_saved_weights(tmp_path, small_body, people):
    _, context, last = run(tmp_path, small_body, Given(people), settings(epochs=2))
    fresh = small_model()
    load_model_weights(context.latest_checkpoint(), fresh)
    with torch.inference_mode():
        found = fresh.eval()(people.images).final
        errors = pa_mpjpe(
            small_body(found.rotmats, found.betas).joints,
            small_body(people.rotmats, people.betas).joints,
        )
    assert last["val/pa_mpjpe_mm"] == pytest.approx(1000 * float(errors.mean()), rel=1e-5)


def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path, small_body, people):
    whole, *_ = run(tmp_path / "whole", small_body, Given(people), settings(epochs=4))

    class PowerCutError(Exception):
        pass

    def cut(epoch, number, batch):
        if (epoch, number) == (2, 1):
            raise PowerCutError
        return batch

    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", small_body, Given(people, change=cut), settings(epochs=4))
    lines = []
    resumed, context, last = run(
        tmp_path / "cut", small_body, Given(people), settings(epochs=4), log=lines.append
    )
    assert [int(r["epoch"]) for r in context.reports] == [3, 4], "two epochs were not repeated"
    assert last["step"] == 12
    assert lines[0]["step"] == 7
    assert same(resumed, whole)


def test_another_seed_is_another_run(tmp_path, small_body, people):
    runs = [
        run(tmp_path / str(n), small_body, Given(people), settings(epochs=1, seed=seed))[0]
        for n, seed in enumerate((0, 0, 1))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_a_batch_that_is_not_finite_changes_nothing_but_the_count(tmp_path, small_body, people):
    def spoil(epoch, number, batch):
        if (epoch, number) != (0, 1):
            return batch
        return replace(batch, keypoints_3d=batch.keypoints_3d * math.nan)

    model, context, last = run(
        tmp_path, small_body, Given(people, change=spoil), settings(epochs=2)
    )
    assert [r["skipped_steps"] for r in context.reports] == [1, 1]
    assert math.isfinite(context.reports[0]["train/loss"]), "the mean is over the other steps"
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert last["step"] == 6


def test_a_run_of_bad_steps_ends_with_the_cure(tmp_path, small_body, people):
    def spoil(epoch, number, batch):
        return replace(batch, betas=batch.betas * math.inf)

    data = Given(people, batch=2, change=spoil)
    with pytest.raises(HmrError, match=r"1[0-9] steps in a row .* lower train\.optimizer\.lr"):
        run(tmp_path, small_body, data, settings(epochs=2))


@pytest.mark.parametrize(
    ("promised", "said"),
    [(4, "got 3 batches, expected 4"), (2, "got more than 2 batches, expected 2")],
)
def test_a_data_set_that_changed_while_it_was_read_is_noticed(
    tmp_path, small_body, people, promised, said
):
    data = Given(people)
    data.steps_per_epoch = promised
    with pytest.raises(HmrError, match=said):
        run(tmp_path, small_body, data, settings(epochs=1))


def test_progress_counts_every_image(tmp_path, small_body, people):
    lines = []
    run(tmp_path, small_body, Given(people), settings(epochs=2), log=lines.append)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["step"] * 3 + ["epoch"] + ["step"] * 3 + ["epoch"]
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4, 5, 6]
    etas = [line["eta_s"] for line in lines if line["kind"] == "step"]
    assert etas[-1] == 0
    assert all(line["images_per_s"] > 0 for line in lines if line["kind"] == "step")
    assert lines[-1]["val/count"] == PEOPLE


@pytest.mark.parametrize("warmup", [0, 5])
def test_the_rate_rises_to_its_peak_and_falls_to_a_fiftieth(warmup):
    config = OptimizerConfig(lr=0.4, schedule="cosine", warmup_steps=warmup)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[warmup] == max(rates) == pytest.approx(0.4)
    assert rates[-1] == pytest.approx(0.02 * 0.4)
    assert sorted(rates[warmup:], reverse=True) == rates[warmup:]
    if warmup:
        assert rates[0] == pytest.approx(0.4 / warmup)
        middle = warmup + (99 - warmup) // 2
        assert rates[middle] == pytest.approx(0.51 * 0.4, rel=0.02), "half-way between the ends"
    constant = OptimizerConfig(lr=0.4)
    assert {learning_rate(constant, step, 100) for step in range(100)} == {0.4}


def parameter(value):
    return torch.nn.Parameter(torch.tensor(value))


def test_one_step_is_that_of_adamw_with_the_clipped_gradient():
    ours, theirs = parameter([1.0, -2.0]), parameter([1.0, -2.0])
    config = OptimizerConfig(lr=0.1, weight_decay=0.3, grad_clip=1.0)
    optimizer = GuardedAdamW([ours], config, 10)
    reference = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3)
    for gradient in ([3.0, 4.0], [0.1, 0.0], [-6.0, 8.0]):
        ours.grad = torch.tensor(gradient)
        length = math.hypot(*gradient)
        theirs.grad = torch.tensor(gradient) / max(length, 1.0)
        optimizer.update(0)
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_leaves_weights_and_moments_alone():
    weight = parameter([1.0, 2.0])
    optimizer = GuardedAdamW([weight], OptimizerConfig(lr=0.1, grad_clip=1.0), 10)
    weight.grad = torch.tensor([0.5, 0.5])
    optimizer.update(0)
    before = weight.detach().clone()
    moments = {k: v.clone() for k, v in optimizer.inner.state[weight].items()}
    weight.grad = torch.tensor([math.nan, 0.5])
    assert float(optimizer.update(1)) == 1
    assert torch.equal(weight, before)
    for name, value in optimizer.inner.state[weight].items():
        assert torch.equal(value, moments[name]), name
    assert optimizer.skipped == 1


def test_only_bad_steps_in_a_row_are_divergence():
    weight = parameter([1.0])
    optimizer = GuardedAdamW([weight], OptimizerConfig(lr=0.1), 10)

    def bad(times):
        for _ in range(times):
            weight.grad = torch.tensor([math.inf])
            optimizer.update(0)

    bad(MAX_BAD_STEPS - 1)
    weight.grad = torch.tensor([1.0])
    optimizer.update(0)
    bad(MAX_BAD_STEPS - 1)
    optimizer.refuse_divergence()
    bad(1)
    with pytest.raises(HmrError, match="10 steps in a row"):
        optimizer.refuse_divergence()


def test_precision_follows_the_setting_and_auto_follows_the_device():
    cpu = torch.device("cpu")
    assert reduced_precision("bfloat16", cpu)
    assert not reduced_precision("float32", cpu)
    capable = torch.cpu.get_capabilities()
    wanted = any(capable.get(n, False) for n in ("avx512_bf16", "amx_bf16", "bf16"))
    assert reduced_precision("auto", cpu) == wanted


def test_bfloat16_learns_the_same_people(tmp_path, small_body, people):
    config = settings(epochs=12, augment=NO_CHANGE)
    results = {}
    for precision in ("float32", "bfloat16"):
        _, _, last = run(
            tmp_path / precision, small_body, Given(people),
            config.model_copy(update={"precision": precision}), small_model(0.0),
        )  # fmt: skip
        results[precision] = last["val/pa_mpjpe_mm"]
    assert results["bfloat16"] == pytest.approx(results["float32"], rel=0.15)


def test_the_local_context_keeps_the_newest_and_passes_over_a_damaged_one(
    tmp_path, small_body, people
):
    context = LocalContext(tmp_path, "cpu", keep=2)
    model = small_model()
    fit(settings(epochs=4), model=model, body=small_body, data=Given(people), context=context,
        log=lambda facts: None)  # fmt: skip
    folders = sorted(path.name for path in tmp_path.iterdir())
    assert folders == ["epoch-0003", "epoch-0004"]
    weights = tmp_path / "epoch-0004" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert context.latest_checkpoint() == str(tmp_path / "epoch-0003")
