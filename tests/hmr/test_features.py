"""A frozen encoder's features in the place of pictures train and measure the same regressor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hmr.body import Body
from hmr.config import AugmentConfig, LossConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.errors import DataError
from hmr.features import as_features, encoder_identity, frozen_features
from hmr.local_context import LocalContext
from hmr.model import HMR, build_model
from hmr.structures import Batch
from hmr.training import fit

MODEL = ModelConfig(encoder_width=4, image_size=32, hidden=32, n_iter=2, dropout=0.3)


def new_model(seed: int = 0) -> HMR:
    """With statistics of batch norm that are not those of a new one."""
    torch.manual_seed(seed)
    model = build_model(MODEL)
    model.train()(pictures(16, seed))
    return model


def pictures(count: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def people(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(count, *shape, generator=generator)

    return Batch(
        images=pictures(count, seed), keypoints_2d=random(49, 3).abs(),
        keypoints_3d=random(49, 4).abs(), rotmats=torch.eye(3).repeat(count, 24, 1, 1),
        betas=random(10), has_smpl=torch.ones(count, dtype=torch.bool),
    )  # fmt: skip


class Data:
    """The same batches in every epoch."""

    def __init__(self, train: list[Batch], val: list[Batch]) -> None:
        self.train, self.val, self.steps_per_epoch = train, val, len(train)

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        yield from self.train[first_step:]

    def val_batches(self) -> Iterator[Batch]:
        yield from self.val


@pytest.mark.parametrize("reduced", [False, True])
def test_features_go_on_where_pictures_do(reduced: bool) -> None:
    model = new_model().eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        of_pictures = model(pictures(5)).final
        of_features = model(frozen_features(model, pictures(5), reduced=reduced)).final
        longer = model(frozen_features(model, pictures(5), reduced=reduced), 4)
    assert torch.equal(of_features.rotmats, of_pictures.rotmats)
    assert torch.equal(of_features.pred_cam, of_pictures.pred_cam)
    assert longer.n_iter == 4


def test_features_are_those_of_running_statistics_and_leave_the_mode() -> None:
    model = new_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one_by_one = torch.cat([frozen_features(model, image[None]) for image in pictures(3)])
    torch.testing.assert_close(frozen_features(model, pictures(3)), one_by_one)
    assert model.encoder.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert one_by_one.dtype == torch.float32
    assert one_by_one.shape == (3, model.encoder.out_features)


def test_pictures_of_another_kind_are_still_refused() -> None:
    with pytest.raises(DataError, match=r"images are torch.float32 \(2, 3, 32, 32\)"):
        new_model()(torch.zeros(2, 3, 32, 32))
    with pytest.raises(DataError, match=r"images are torch.uint8 \(2, 512\)"):
        new_model()(torch.zeros(2, 512, dtype=torch.uint8))


def test_an_identity_is_that_of_the_encoder_and_not_of_the_regressor() -> None:
    model, same = new_model(), new_model()
    assert encoder_identity(model) == encoder_identity(same)
    with torch.no_grad():
        same.regressor.fc1.weight.add_(1)
    assert encoder_identity(model) == encoder_identity(same)
    with torch.no_grad():
        same.encoder.stem[1].running_mean[0] += 1e-6
    assert encoder_identity(model) != encoder_identity(same)
    assert encoder_identity(model) != encoder_identity(new_model(1))


def test_a_batch_of_features_is_split_and_moved_like_one_of_pictures() -> None:
    batch = people(5, 1)
    features = as_features(batch, torch.arange(10.0).view(5, 2), 32)
    assert (len(features), features.side, batch.side) == (5, 32, 32)
    parts = features.to("cpu").parts(2)
    assert [(len(part), part.side) for part in parts] == [(3, 32), (2, 32)]
    assert torch.equal(parts[1].images, torch.tensor([[6.0, 7.0], [8.0, 9.0]]))
    assert torch.equal(parts[1].betas, batch.betas[3:])


def test_a_regressor_trained_on_features_is_the_one_trained_behind_a_frozen_encoder(
    small_body: Body, tmp_path: Path
) -> None:
    config = TrainConfig(
        epochs=2, batch_size=8, freeze_encoder=True, optimizer=OptimizerConfig(lr=1e-2),
        augment=AugmentConfig(preset="none"), losses=LossConfig(scale=1.0), ema_decay=0.9,
        accumulate=2,
    )  # fmt: skip
    train, val = [people(8, seed) for seed in range(4)], [people(8, 9)]
    behind, on_features, encoder = new_model(), new_model(), new_model()

    def seen(batches: list[Batch]) -> list[Batch]:
        return [as_features(b, frozen_features(encoder, b.images), b.side) for b in batches]

    results = []
    for model, data in (
        (behind, Data(train, val)), (on_features, Data(seen(train), seen(val)))
    ):  # fmt: skip
        context = LocalContext(tmp_path / str(len(results)), "cpu")
        results.append(
            fit(config, model=model, body=small_body, data=data, context=context,
                log=lambda facts: None)
        )  # fmt: skip
    assert results[0]["val/pa_mpjpe_mm"] == results[1]["val/pa_mpjpe_mm"]
    for name, tensor in behind.state_dict().items():
        assert torch.equal(tensor, on_features.state_dict()[name]), name
    assert not torch.equal(behind.regressor.fc1.weight, encoder.regressor.fc1.weight)
    assert torch.equal(behind.encoder.stem[1].running_mean, encoder.encoder.stem[1].running_mean)
