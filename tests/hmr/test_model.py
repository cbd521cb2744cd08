"""HMR as a whole: normalisation inside, every parameter learns, wrong crops are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hmr.config import ModelConfig
from hmr.errors import ConfigError, DataError
from hmr.model import HMR, build_model
from hmr.regressor import MeanParameters
from hmr.structures import Parameters

CONFIG = ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=2, dropout=0.0)


def new_model(config: ModelConfig = CONFIG, mean: MeanParameters | None = None) -> HMR:
    torch.manual_seed(0)
    model = build_model(config, mean)
    # New heads are close to zero; open them, so that images and steps differ visibly.
    for head in (model.regressor.decpose, model.regressor.decshape, model.regressor.deccam):
        nn.init.normal_(head.weight, std=0.3)
    return model


def random_images(count: int, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_images_are_normalised_with_imagenets_statistics() -> None:
    model = new_model().eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = random_images(2)
    model(images)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (images.numpy() / 255 - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-5)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_prediction_has_the_start_and_every_step() -> None:
    model = new_model().eval()
    images = random_images(3)
    assert model(images).n_iter == 2
    assert [len(model(images, n).iterations) for n in (1, 3, 5)] == [2, 4, 6]
    steps = model(images).iterations
    assert torch.equal(steps[0].pred_cam, torch.tensor([[0.9, 0.0, 0.0]]).expand(3, 3))
    assert (steps[1].betas - steps[0].betas).abs().max() > 1e-3
    assert (steps[2].betas - steps[1].betas).abs().max() > 1e-3


def test_a_person_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = new_model().eval()
    images = random_images(5)
    together = model(images).final
    for row in range(5):
        alone = model(images[row : row + 1]).final
        for key in ("rotmats", "betas", "pred_cam"):
            torch.testing.assert_close(
                getattr(alone, key)[0], getattr(together, key)[row], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("encoder", ["small", "resnet18"])
def test_every_parameter_gets_a_gradient(encoder: str) -> None:
    model = new_model(CONFIG.model_copy(update={"encoder": encoder}))
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):  # zero in a new block, which cuts off what lies before
            nn.init.ones_(parameter)
    final = model(random_images(4)).final
    # Weights that no symmetry cancels: the squares of a rotation's entries always sum to nine.
    generator = torch.Generator().manual_seed(5)
    loss = sum(
        (value * torch.randn(value.shape, generator=generator)).sum()
        for value in (final.rotmats, final.betas, final.pred_cam)
    )
    loss.backward()
    silent = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or p.grad.abs().max() == 0
    ]
    assert silent == []


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(2, 3, 32, 32),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
    ],
    ids=["size", "float", "channels last", "no batch"],
)
def test_wrong_crops_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"takes uint8 \(B, 3, 32, 32\): crop with hmr\.crops"):
        new_model()(images)


def start(model: HMR) -> Parameters:
    return model.eval()(random_images(1), 0).final


def test_mean_parameters_go_in_order_file_argument_upright(tmp_path: Path) -> None:
    upright = MeanParameters.upright()
    given = replace(upright, shape=torch.full((10,), 2.0))
    stored = replace(upright, shape=torch.full((10,), 3.0))
    path = tmp_path / "mean.npz"
    np.savez(path, **{key: getattr(stored, key).numpy() for key in ("pose", "shape", "cam")})
    with_file = CONFIG.model_copy(update={"mean_params": str(path)})
    assert start(new_model()).betas.unique().tolist() == [0.0]
    assert start(new_model(CONFIG, given)).betas.unique().tolist() == [2.0]
    assert start(new_model(with_file, given)).betas.unique().tolist() == [3.0]


def test_start_travels_with_the_weights() -> None:
    mean = replace(MeanParameters.upright(), shape=torch.full((10,), 2.0))
    other = new_model()
    other.load_state_dict(new_model(CONFIG, mean).state_dict())
    assert start(other).betas.unique().tolist() == [2.0]


def test_half_precision_agrees() -> None:
    model = new_model().eval()
    images = random_images(4)
    exact = model(images).final
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images).final
    assert rounded.rotmats.dtype == torch.float32
    torch.testing.assert_close(rounded.rotmats, exact.rotmats, atol=0.1, rtol=0)


def test_configuration_reaches_every_part() -> None:
    model = build_model(ModelConfig(encoder_width=6, image_size=48, hidden=20, n_iter=4,
                                    dropout=0.25, activation=True))  # fmt: skip
    regressor = model.regressor
    assert model.image_size == 48
    assert model.encoder.out_features == regressor.in_features == 32 * 6 * 6
    assert regressor.fc1.out_features == regressor.fc2.out_features == 20
    assert regressor.n_iter == 4
    assert (regressor.drop1.p, regressor.drop2.p) == (0.25, 0.25)
    assert isinstance(regressor.activation, nn.ReLU)


def test_unknown_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.encoder=resnet51.*resnet50"):
        build_model(CONFIG.model_copy(update={"encoder": "resnet51"}))
