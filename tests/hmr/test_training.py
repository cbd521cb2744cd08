"""The training loop with a tiny model: it learns, resumes bit for bit, and refuses nonsense."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hmr.body import Body
from hmr.camera import project_weak
from hmr.checkpoint import is_complete, load_model_weights
from hmr.config import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.errors import HmrError
from hmr.exchange import Wish
from hmr.local_context import LocalContext
from hmr.losses import hmr_losses
from hmr.metrics import person_errors
from hmr.model import HMR, build_model
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Batch, Prediction
from hmr.training import RunState, Trainer, fit, reduced_precision

SIZE = 32
MODEL = ModelConfig(encoder_width=4, image_size=SIZE, hidden=32, n_iter=2)
PLAIN = AugmentConfig(flip=0, channel_noise=0)
TIMES = {"train/images_per_s", "train/step_s", "train/data_wait", "train/first_batch_s"}


def new_model(seed: int = 0, **settings: Any) -> HMR:
    torch.manual_seed(seed)
    return build_model(MODEL.model_copy(update=settings))


def people(body: Body, count: int, seed: int) -> Batch:
    """Pictures of noise with consistent labels, upright before the camera."""
    g = torch.Generator().manual_seed(seed)
    rotmats = axis_angle_to_matrix(0.3 * torch.randn(count, 24, 3, generator=g))
    rotmats[:, 0] = torch.diag(torch.tensor([1.0, -1.0, -1.0])) @ rotmats[:, 0]
    betas = torch.randn(count, 10, generator=g)
    cams = torch.tensor([0.9, 0.0, 0.0]) + 0.05 * torch.randn(count, 3, generator=g)
    joints = body.landmarks(rotmats, betas)
    ones = torch.ones(count, 49, 1)
    return Batch(
        images=torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=g),
        keypoints_2d=torch.cat([project_weak(joints, cams, SIZE), ones], -1),
        keypoints_3d=torch.cat([joints, ones], -1),
        rotmats=rotmats,
        betas=betas,
        has_smpl=torch.ones(count, dtype=torch.bool),
    )


def joined(*batches: Batch) -> Batch:
    names = ("images", "keypoints_2d", "keypoints_3d", "rotmats", "betas", "has_smpl")
    return Batch(**{name: torch.cat([getattr(b, name) for b in batches]) for name in names})


def without_finite_labels(batch: Batch) -> Batch:
    return replace(batch, betas=torch.full_like(batch.betas, math.nan))


class Data:
    """The same batches in every epoch; `at` is called before each with (epoch, number)."""

    def __init__(
        self, train: list[Batch], val: list[Batch],
        at: Callable[[int, int], None] = lambda epoch, number: None,
    ) -> None:  # fmt: skip
        self.train, self.val, self.at = train, val, at
        self.steps_per_epoch = len(train)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for number, batch in enumerate(self.train[first_step:], start=first_step):
            self.at(epoch, number)
            yield batch

    def val_batches(self) -> Iterator[Batch]:
        yield from self.val


class Recorder(nn.Module):
    """A wrapped model that notes the pictures it was given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Prediction:
        self.seen.append(images.clone())
        prediction: Prediction = self.inner(images)
        return prediction


class RecordingContext(LocalContext):
    """A LocalContext of any rank that wraps the model."""

    def __init__(self, folder: Path, rank: int = 0) -> None:
        super().__init__(folder, "cpu")
        self.rank = rank
        self.saved: list[str] = []

    def prepare_model(self, model: nn.Module) -> nn.Module:
        self.wrapped = Recorder(model)
        return self.wrapped

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        self.saved.append(name)
        super().save(name, write)


@pytest.fixture(scope="module")
def train(small_body: Body) -> list[Batch]:
    return [people(small_body, 4, seed) for seed in (1, 2)]


@pytest.fixture(scope="module")
def val(small_body: Body) -> list[Batch]:
    return [people(small_body, 3, 3)]


@pytest.fixture
def data(train: list[Batch], val: list[Batch]) -> Data:
    return Data(train, val)


Run = Callable[..., tuple[HMR, dict[str, float]]]


@pytest.fixture
def run(small_body: Body, tmp_path: Path) -> Run:
    """`fit` with these settings: the model, and what was reported last."""

    def call(
        data: Data, config: TrainConfig, *, model: HMR | None = None,
        context: LocalContext | None = None, log: Callable[[dict[str, Any]], None] | None = None,
    ) -> tuple[HMR, dict[str, float]]:  # fmt: skip
        model = new_model() if model is None else model
        metrics = fit(
            config, model=model, body=small_body, data=data,
            context=context or LocalContext(tmp_path / "run", "cpu"),
            log=log or (lambda facts: None),
        )  # fmt: skip
        return model, metrics

    return call


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(**({"epochs": 2, "optimizer": OptimizerConfig(lr=1e-3)} | changes))


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, one), other in zip(
        ours.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def latest_terms(trainer: Trainer) -> dict[str, float]:
    """The loss terms of the latest step."""
    trainer.exchange.flush()
    return dict(zip(trainer.exchange.names, trainer.exchange.latest.tolist(), strict=True))


def without_times(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


# Learning


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_few_people_are_learnt_by_heart(train: list[Batch], run: Run, precision: str) -> None:
    together = joined(*train)
    reports: list[dict[str, Any]] = []
    optimizer = OptimizerConfig(lr=1e-3, schedule="cosine", grad_clip=1.0)
    config = settings(epochs=5, augment=PLAIN, optimizer=optimizer, precision=precision)
    model = new_model(dropout=0.0, hidden=128)
    run(Data([together] * 12, [together]), config, model=model, log=reports.append)
    reports = [facts for facts in reports if facts["kind"] == "epoch"]
    first, last = reports[0], reports[-1]
    assert last["train/loss"] < 0.05 * first["train/loss"]
    for term in ("keypoints_2d", "keypoints_3d", "pose"):
        assert last[f"train/{term}"] < 0.05 * first[f"train/{term}"], term
    assert last["val/pa_mpjpe_mm"] < 0.2 * first["val/pa_mpjpe_mm"]
    assert last["val/best_pa_mpjpe_mm"] == min(r["val/pa_mpjpe_mm"] for r in reports)


# Resuming

FULL = settings(
    epochs=3,
    seed=5,
    optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.1, schedule="cosine", warmup_steps=3,
                              grad_clip=1.0),
)  # fmt: skip
"""With dropout, flips and noise, whose random numbers must not depend on where a run began."""


class PowerCutError(Exception):
    """Nothing of the run's own."""


def power_cut_at(epoch: int, number: int) -> Callable[[int, int], None]:
    def cut(now: int, batch: int) -> None:
        if (now, batch) == (epoch, number):
            raise PowerCutError

    return cut


@pytest.fixture(scope="module")
def whole(
    train: list[Batch], val: list[Batch], small_body: Body, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HMR, list[dict[str, float]]]:
    """An uninterrupted run: the model, and what it reported but for times."""
    model, context = new_model(), LocalContext(tmp_path_factory.mktemp("whole"), "cpu")
    fit(
        FULL, model=model, body=small_body, data=Data(train, val), context=context,
        log=lambda facts: None,
    )  # fmt: skip
    return model, [without_times(metrics) for metrics in context.reports]


Whole = tuple[HMR, list[dict[str, float]]]


@pytest.mark.parametrize(("epoch", "number"), [(1, 0), (2, 1)])
def test_a_resumed_run_equals_an_uninterrupted_one(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path, whole: Whole,
    epoch: int, number: int,
) -> None:  # fmt: skip
    cut = LocalContext(tmp_path / "run", "cpu")
    with pytest.raises(PowerCutError):
        run(Data(train, val, power_cut_at(epoch, number)), FULL, context=cut)
    # Another seed: nothing may come from anywhere but the checkpoint.
    torch.rand(17)
    resumed = LocalContext(tmp_path / "run", "cpu")
    found, metrics = run(Data(train, val), FULL, model=new_model(seed=9), context=resumed)
    expected, reports = whole
    assert_same_weights(found, expected)
    assert len(cut.reports) == epoch
    assert [without_times(m) for m in cut.reports + resumed.reports] == reports
    assert metrics["epoch"] == 3
    assert metrics["step"] == 6


@pytest.mark.parametrize(("epoch", "number"), [(0, 5), (1, 2), (2, 5)])
@pytest.mark.parametrize("save_every", [1, 2, 4])
def test_a_run_cut_inside_an_epoch_goes_on_there_and_loses_no_bit(
    small_body: Body, val: list[Batch], run: Run, tmp_path: Path, epoch: int, number: int,
    save_every: int,
) -> None:  # fmt: skip
    batches = [people(small_body, 3, seed) for seed in range(10, 16)]
    config = FULL.model_copy(update={"save_every": save_every, "log_every": 1})
    lines: dict[str, list[Any]] = {"whole": [], "cut": []}

    def noted(name: str) -> Callable[[dict[str, Any]], None]:
        def note(facts: dict[str, Any]) -> None:
            if facts["kind"] == "step":
                lines[name].append((facts["step"], facts["losses"]))

        return note

    whole = LocalContext(tmp_path / "whole", "cpu")
    expected, _ = run(Data(batches, val), config, context=whole, log=noted("whole"))
    cut = LocalContext(tmp_path / "run", "cpu")
    with pytest.raises(PowerCutError):
        run(Data(batches, val, power_cut_at(epoch, number)), config, context=cut, log=noted("cut"))
    taken: list[tuple[int, int]] = []
    data = Data(batches, val, lambda e, n: taken.append((e, n)))
    resumed = LocalContext(tmp_path / "run", "cpu")
    found, _ = run(data, config, model=new_model(seed=9), context=resumed, log=noted("cut"))
    assert taken[0] == (epoch, number // save_every * save_every)
    assert_same_weights(found, expected)
    assert [without_times(m) for m in cut.reports + resumed.reports] == [
        without_times(m) for m in whole.reports
    ]
    # Where a step was made twice, the same losses came out.
    assert dict(lines["cut"]) == dict(lines["whole"])
    assert len(dict(lines["whole"])) == 18


def test_a_damaged_checkpoint_costs_one_epoch_and_no_bit(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path, whole: Whole
) -> None:
    with pytest.raises(PowerCutError):
        run(Data(train, val, power_cut_at(2, 0)), FULL)
    with (tmp_path / "run/epoch-0002/optimizer.safetensors").open("ab") as file:
        file.write(b"x")
    resumed = LocalContext(tmp_path / "run", "cpu")
    found, _ = run(Data(train, val), FULL, model=new_model(seed=9), context=resumed)
    assert [metrics["epoch"] for metrics in resumed.reports] == [2, 3]
    assert_same_weights(found, whole[0])


def test_a_finished_run_is_only_loaded(data: Data, run: Run, tmp_path: Path) -> None:
    expected, metrics = run(data, settings(epochs=1))
    again = LocalContext(tmp_path / "run", "cpu")
    found, loaded = run(Data([], []), settings(epochs=1), model=new_model(seed=9), context=again)
    assert loaded == metrics
    assert again.reports == []
    assert_same_weights(found, expected)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    data: Data, run: Run, tmp_path: Path
) -> None:
    losses = [
        run(data, settings(epochs=1, seed=seed), context=LocalContext(tmp_path / name, "cpu"))[1]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert without_times(losses[0]) == without_times(losses[1])
    assert losses[0]["train/loss"] != losses[2]["train/loss"]


def test_seeds_epochs_and_ranks_draw_random_numbers_of_their_own(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path
) -> None:
    def drawn(name: str, rank: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
        """The pictures and what dropout kept, in each epoch."""
        context, model = RecordingContext(tmp_path / name, rank), new_model()
        kept: list[Tensor] = []
        model.regressor.drop1.register_forward_hook(
            lambda module, args, output: kept.append(output != 0) if module.training else None
        )
        run(Data(train[:1], val), settings(seed=seed), model=model, context=context)
        assert len(context.wrapped.seen) == 2  # validation uses the bare model
        return context.wrapped.seen, kept[:: model.regressor.n_iter]

    runs = [drawn("a", 0, 0), drawn("b", 1, 0), drawn("c", 0, 1)]
    for kind in (0, 1):
        draws = [draw for of_run in runs for draw in of_run[kind]]
        assert len(draws) == 6
        for one, other in itertools.combinations(draws, 2):
            assert not torch.equal(one, other)
    for one, again in zip(runs[0], drawn("d", 0, 0), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, again, strict=True))


# Batches that are not finite


def test_a_bad_batch_changes_no_weight_and_is_counted(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path
) -> None:
    first, second = train
    config = settings(epochs=1, augment=PLAIN)
    quiet, expected = run(
        Data([first, second], val), config, model=new_model(dropout=0.0),
        context=LocalContext(tmp_path / "quiet", "cpu"),
    )  # fmt: skip
    disturbed, metrics = run(
        Data([first, without_finite_labels(first), second], val), config,
        model=new_model(dropout=0.0), context=LocalContext(tmp_path / "disturbed", "cpu"),
    )  # fmt: skip
    for (name, one), other in zip(disturbed.named_parameters(), quiet.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert metrics["skipped_steps"] == 1
    assert expected["skipped_steps"] == 0
    assert metrics["step"] == 3
    for name in ("loss", "betas", "pose", "keypoints_2d"):  # means of the good steps
        assert metrics[f"train/{name}"] == expected[f"train/{name}"]


def test_skipped_steps_are_counted_across_a_resume(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path
) -> None:
    batches = [train[0], without_finite_labels(train[1])]
    with pytest.raises(PowerCutError):
        run(Data(batches, val, power_cut_at(2, 0)), settings(epochs=3))
    resumed = LocalContext(tmp_path / "run", "cpu")
    _, metrics = run(Data(batches, val), settings(epochs=3), context=resumed)
    assert len(resumed.reports) == 1
    assert metrics["skipped_steps"] == 3


def test_divergence_ends_the_run_at_the_next_progress_line(
    train: list[Batch], val: list[Batch], run: Run
) -> None:
    bad = without_finite_labels(train[0])
    taken: list[int] = []
    data = Data([train[1]] * 2 + [bad] * 30, val, lambda epoch, number: taken.append(number))
    with pytest.raises(HmrError, match=r"\d+ steps in a row .* lower train\.optimizer\.lr"):
        run(data, settings(log_every=5))
    assert len(taken) == 15  # 2 good, 10 bad, seen at the 15th step


def test_divergence_within_an_epoch_is_not_checkpointed(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path
) -> None:
    context = LocalContext(tmp_path / "run", "cpu")
    with pytest.raises(HmrError, match="10 steps in a row"):
        run(Data([without_finite_labels(train[0])] * 10, val), settings(log_every=1000),
            context=context)  # fmt: skip
    assert context.reports == []
    assert context.latest_checkpoint() is None


def test_divergence_names_the_samples(train: list[Batch], val: list[Batch], run: Run) -> None:
    bad = [
        replace(without_finite_labels(train[0]), sample_ids=(f"walk/{n}/a", f"walk/{n}/b"))
        for n in range(3)
    ]
    with pytest.raises(HmrError, match=r"3 steps in a row .*walk/1/a.*walk/2/b"):
        run(Data([train[1], *bad], val), settings(max_skipped=3))


# Wishes of the launcher, accumulation, averaged and frozen weights


class WishingContext(LocalContext):
    """Wants something before one step."""

    def __init__(self, folder: Path, step: int, wanted: Wish) -> None:
        super().__init__(folder, "cpu")
        self.step, self.wanted, self.asked = step, wanted, 0

    def wish(self) -> Wish:
        self.asked += 1
        return self.wanted if self.asked == self.step else Wish.NOTHING


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_run_that_is_told_to_stop_loses_no_step(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path, whole: Whole, step: int
) -> None:
    taken: list[tuple[int, int]] = []
    data = Data(train, val, lambda epoch, number: taken.append((epoch, number)))
    stopping = WishingContext(tmp_path / "run", step, Wish.STOP)
    _, metrics = run(data, FULL, context=stopping)
    assert metrics["stopped"] == 1
    resumed = LocalContext(tmp_path / "run", "cpu")
    found, _ = run(data, FULL, model=new_model(seed=9), context=resumed)
    assert taken == [(epoch, number) for epoch in range(3) for number in range(2)]
    assert_same_weights(found, whole[0])
    assert [without_times(m) for m in stopping.reports + resumed.reports] == whole[1]


def test_a_checkpoint_is_kept_when_the_launcher_wants_one(
    data: Data, run: Run, tmp_path: Path, whole: Whole
) -> None:
    context = WishingContext(tmp_path / "run", 3, Wish.CHECKPOINT)
    found, _ = run(data, FULL, context=context)
    assert is_complete(tmp_path / "run/step-00000003")
    assert_same_weights(found, whole[0])


@pytest.mark.parametrize("accumulate", [2, 3, 50])
def test_a_batch_in_parts_is_the_whole_batch(
    train: list[Batch], val: list[Batch], run: Run, tmp_path: Path, accumulate: int
) -> None:
    """Batch norm would see the parts; a frozen encoder has none that learns."""
    mixed = joined(*train)
    has_smpl = torch.arange(len(mixed)) % 3 == 0
    mixed = replace(mixed, has_smpl=has_smpl)
    found = {}
    for parts in (1, accumulate):
        config = settings(
            epochs=1, augment=PLAIN, accumulate=parts, freeze_encoder=True,
            optimizer=OptimizerConfig(lr=1e-3, grad_clip=1.0),
        )  # fmt: skip
        found[parts] = run(
            Data([mixed, mixed], val), config, model=new_model(dropout=0.0),
            context=LocalContext(tmp_path / str(parts), "cpu"),
        )  # fmt: skip
    for one, other in zip(found[1][0].parameters(), found[accumulate][0].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-4)
    assert found[1][1]["train/loss"] == pytest.approx(found[accumulate][1]["train/loss"], rel=1e-5)


def test_averaged_weights_are_what_is_measured_and_survive_a_resume(
    train: list[Batch], val: list[Batch], run: Run, small_body: Body, tmp_path: Path
) -> None:
    config = FULL.model_copy(update={"ema_decay": 0.5})
    whole, metrics = run(Data(train, val), config, context=LocalContext(tmp_path / "a", "cpu"))
    with pytest.raises(PowerCutError):
        run(Data(train, val, power_cut_at(2, 0)), config)
    found, again = run(Data(train, val), config, model=new_model(seed=9))
    assert_same_weights(found, whole)
    assert without_times(again) == without_times(metrics)
    averaged = new_model(seed=9)
    load_model_weights(tmp_path / "run/epoch-0003", averaged)
    context = LocalContext(tmp_path / "c", "cpu")
    trainer = Trainer(settings(), averaged, small_body, Data(train, val), context, print)
    assert trainer.validate() == {name: metrics[name] for name in trainer.validate()}
    assert not torch.equal(averaged.regressor.decpose.weight, whole.regressor.decpose.weight)


@pytest.mark.filterwarnings("ignore::UserWarning:torch", "ignore:The .grad attribute")
def test_a_compiled_model_trains_the_same_weights_under_the_same_names(
    data: Data, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as for the compiler; the C++ that it would write is left out, it takes a minute."""
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled(self, backend="eager"))
    found = {}
    for wanted in (False, True):
        config = settings(compile=wanted, epochs=1)
        context = LocalContext(tmp_path / str(wanted), "cpu")
        found[wanted] = run(data, config, model=new_model(dropout=0.0), context=context)[0]
    assert found[True].encoder._compiled_call_impl is not None
    for (name, one), (other_name, other) in zip(
        found[True].state_dict().items(), found[False].state_dict().items(), strict=True
    ):
        assert name == other_name
        torch.testing.assert_close(one, other, msg=name)


# The data's promise


@pytest.mark.parametrize(
    ("promised", "message"),
    [
        (3, "epoch 1: rank 0 got 2 batches, expected 3"),
        (1, "epoch 1: rank 0 got more than 1 batches, expected 1"),
    ],
)
def test_another_number_of_batches_is_refused(
    data: Data, run: Run, promised: int, message: str
) -> None:
    data.steps_per_epoch = promised
    with pytest.raises(HmrError, match=f"{message}; the data set changed while it was read"):
        run(data, settings())


def test_no_batch_is_trained_beyond_the_promised_number(
    data: Data, run: Run, tmp_path: Path
) -> None:
    data.steps_per_epoch = 1
    context = RecordingContext(tmp_path / "run")
    with pytest.raises(HmrError, match="more than 1"):
        run(data, settings(), context=context)
    assert len(context.wrapped.seen) == 1


# Validation


def test_validation_is_the_mean_over_labelled_people(small_body: Body, run: Run) -> None:
    batches = [people(small_body, count, seed) for count, seed in ((3, 1), (2, 2), (2, 4))]
    batches[1] = replace(batches[1], has_smpl=torch.tensor([False, True]))
    batches[2] = replace(batches[2], has_smpl=torch.tensor([False, False]))
    model, metrics = run(Data(batches[:1], batches), settings(epochs=1))
    everybody = joined(*batches)
    labelled = everybody.has_smpl
    with torch.inference_mode():
        errors = person_errors(
            model.eval()(everybody.images).final[labelled], everybody.rotmats[labelled],
            everybody.betas[labelled], small_body,
        )  # fmt: skip
    assert metrics["val/count"] == 4
    for name, values in errors.items():
        assert metrics[f"val/{name}"] == pytest.approx(float(values.mean()), rel=1e-5)


def test_the_reported_errors_are_those_of_the_saved_weights(
    data: Data, run: Run, small_body: Body, tmp_path: Path
) -> None:
    _, metrics = run(data, settings())
    saved = new_model(seed=9)
    load_model_weights(tmp_path / "run/epoch-0002", saved)
    trainer = Trainer(
        settings(), saved, small_body, data, LocalContext(tmp_path, "cpu"), lambda facts: None
    )
    found = trainer.validate()
    assert found == {name: metrics[name] for name in found}
    assert found["val/mpjpe_mm"] > 0


def test_validation_leaves_the_model_as_it_was(
    data: Data, small_body: Body, tmp_path: Path
) -> None:
    context = LocalContext(tmp_path, "cpu")
    trainer = Trainer(settings(), new_model(), small_body, data, context, lambda facts: None)
    trainer.train_epoch(0)
    before, draws = copy.deepcopy(trainer.model), torch.get_rng_state()
    assert trainer.validate() == trainer.validate()
    assert_same_weights(trainer.model, before)  # running means of batch norm among them
    assert torch.equal(torch.get_rng_state(), draws)
    trainer.state.step_in_epoch = 0
    trainer.train_epoch(1)
    assert trainer.model.training


# Reports and progress


def test_progress_says_where_the_run_is(data: Data, run: Run) -> None:
    facts: list[dict[str, Any]] = []
    config = settings(epochs=3, log_every=3, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=10))
    run(data, config, log=facts.append)
    assert [(f["kind"], f["step"], f["epoch"]) for f in facts] == [
        ("epoch", 2, 1), ("step", 3, 2), ("epoch", 4, 2), ("step", 6, 3), ("epoch", 6, 3),
    ]  # fmt: skip
    steps = [f for f in facts if f["kind"] == "step"]
    for f in steps:
        assert f["lr"] == pytest.approx(1e-4 * f["step"])
        assert (f["steps"], f["epochs"], f["skipped_steps"]) == (6, 3, 0)
        assert f["eta_s"] == pytest.approx((6 - f["step"]) * f["step_s"])
        total = LossConfig().scale * sum(
            getattr(LossConfig(), name) * value
            for name, value in f["losses"].items() if name != "loss"
        )  # fmt: skip
        assert f["losses"]["loss"] == pytest.approx(total, rel=1e-4)
        assert f["images_per_s"] > 0
    assert steps[0]["pa_mpjpe_mm"] == facts[0]["val/pa_mpjpe_mm"]
    assert steps[1]["pa_mpjpe_mm"] == facts[2]["val/pa_mpjpe_mm"]


def test_pictures_show_the_same_people_and_disturb_nothing(
    data: Data, run: Run, tmp_path: Path, whole: Whole
) -> None:
    facts: list[dict[str, Any]] = []
    config = FULL.model_copy(update={"pictures_every": 2})
    found, _ = run(data, config, log=facts.append)
    assert_same_weights(found, whole[0])
    sheets = [f for f in facts if f["kind"] == "pictures"]
    assert [f["step"] for f in sheets] == [2, 4, 6]
    pictures = [cv2.imdecode(np.frombuffer(f["image"], np.uint8), 1) for f in sheets]
    side = pictures[0].shape[1] // 3
    for picture in pictures[1:]:
        assert np.array_equal(picture[:, : 2 * side], pictures[0][:, : 2 * side]), "crop and truth"
        assert not np.array_equal(picture[:, 2 * side :], pictures[0][:, 2 * side :])


def test_only_the_first_rank_writes_and_speaks(data: Data, run: Run, tmp_path: Path) -> None:
    facts: list[dict[str, Any]] = []
    context = RecordingContext(tmp_path / "run", rank=1)
    _, metrics = run(data, settings(log_every=1), context=context, log=facts.append)
    assert facts == []
    assert context.saved == []
    assert context.reports[-1] == metrics
    assert metrics["val/count"] == 3
    assert not (tmp_path / "run").exists()


def test_the_best_error_is_the_lowest_so_far() -> None:
    state = RunState()
    assert state.best == math.inf
    state.history += [{"val/pa_mpjpe_mm": value} for value in (80.0, 60.5, 71.0)]
    assert state.best == 60.5


# Precision


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "avx512_f": True}, True), ({"amx_bf16": True}, True),
        ({"bf16": True}, True), ({"avx2": True, "avx512_bf16": False}, False), ({}, False),
    ],
)  # fmt: skip
def test_auto_precision_is_what_the_processor_computes_in(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert reduced_precision("auto", cpu) is expected
    assert reduced_precision("bfloat16", cpu) is True
    assert reduced_precision("float32", cpu) is False


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_asks_the_gpu_not_the_processor(
    monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    """Emulated bfloat16 does not count."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": not native})
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    assert reduced_precision("auto", torch.device("cuda")) is native


def test_reduced_precision_changes_the_layers_and_little_of_the_loss(
    train: list[Batch], val: list[Batch], small_body: Body, tmp_path: Path
) -> None:
    found = {}
    for precision in ("float32", "bfloat16"):
        model = new_model(dropout=0.0)
        dtypes = []
        model.regressor.fc2.register_forward_hook(
            lambda module, args, output, into=dtypes: into.append(output.dtype)
        )
        context = LocalContext(tmp_path / precision, "cpu")
        config = settings(precision=precision, augment=PLAIN)
        trainer = Trainer(config, model, small_body, Data(train, val), context, lambda f: None)
        trainer.train_step(train[0])
        terms = latest_terms(trainer)
        assert set(dtypes) == {getattr(torch, precision)}
        assert all(p.dtype == torch.float32 for p in model.parameters())
        found[precision] = terms["loss"]
    assert found["float32"] != found["bfloat16"]
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=0.03)


def test_a_step_takes_the_loss_of_the_given_batch(
    data: Data, small_body: Body, tmp_path: Path
) -> None:
    model = new_model(dropout=0.0)
    before = copy.deepcopy(model).train()
    config = settings(augment=PLAIN, losses=LossConfig(v2v_l1=1.0, iteration_weights="all"))
    trainer = Trainer(config, model, small_body, data, LocalContext(tmp_path, "cpu"), print)
    batch = data.train[0]
    trainer.train_step(batch)
    terms = latest_terms(trainer)
    expected = hmr_losses(before(batch.images), batch, small_body, config.losses)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert terms[name] == pytest.approx(value.item(), rel=1e-5)
    assert trainer.optimizer.skipped == 0
    assert trainer.state.step == 1
    with torch.no_grad():
        again = hmr_losses(model(batch.images), batch, small_body, config.losses)
    assert again["loss"] < terms["loss"]
