"""HMR: encoder and iterative regressor; a crop in, pose, shape and camera of every step out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hmr.axis_angle_regressor import AxisAngleRegressor
from hmr.config import ModelConfig
from hmr.encoder import Encoder, SmallEncoder, TorchvisionEncoder, build_encoder
from hmr.errors import ConfigError, DataError
from hmr.regressor import IterativeRegressor, MeanParameters
from hmr.structures import Prediction

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics of RGB in [0, 1], which the whole field uses."""


class HMR(nn.Module):
    """Images (B, 3, S, S) uint8 RGB to the Prediction of every step; normalises on the device."""

    encoder: Encoder
    image_scale: Tensor
    image_shift: Tensor

    def __init__(
        self, encoder: SmallEncoder | TorchvisionEncoder,
        regressor: IterativeRegressor | AxisAngleRegressor, *, image_size: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.regressor, self.image_size = encoder, regressor, image_size
        mean, std = torch.tensor(IMAGE_MEAN), torch.tensor(IMAGE_STD)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.register_buffer("image_scale", (1 / (255 * std))[:, None, None], persistent=False)
        self.register_buffer("image_shift", (-mean / std)[:, None, None], persistent=False)

    def forward(self, images: Tensor, n_iter: int | None = None) -> Prediction:
        """images: or (B, C) features of this encoder, which then does not run. n_iter: number of
        steps instead of the configured T."""
        is_features = images.ndim == 2 and images.is_floating_point()
        return self.regressor(images if is_features else self.features(images), n_iter)

    def features(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 to (B, C)."""
        expected = (3, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != expected:
            raise DataError(
                f"images are {images.dtype} {tuple(images.shape)}; this model takes uint8 "
                f"(B, {', '.join(map(str, expected))}): crop with hmr.crops.crop_image"
            )
        normalised = images.to(self.image_scale.dtype) * self.image_scale + self.image_shift
        return self.encoder(normalised.contiguous(memory_format=torch.channels_last))


def build_model(config: ModelConfig, mean: MeanParameters | None = None) -> HMR:
    """The single bridge from configuration to model.

    mean: where the regressor starts, such as the mean of the training labels; a file in
    `config.mean_params` goes before it, and without either the start is upright at rest.
    """
    encoder = build_encoder(
        config.encoder, width=config.encoder_width, image_size=config.image_size,
        pretrained=config.pretrained,
    )  # fmt: skip
    regressor = _build_regressor(config, encoder.out_features, mean)
    model = HMR(encoder, regressor, image_size=config.image_size)
    return model.to(memory_format=torch.channels_last)


def _build_regressor(
    config: ModelConfig, in_features: int, mean: MeanParameters | None
) -> IterativeRegressor | AxisAngleRegressor:
    if config.regressor == "axis_angle":
        if config.mean_params is not None:
            raise ConfigError(
                f"model.mean_params={config.mean_params}: the axis-angle regressor starts where "
                "its weights say; leave it out, or set model.regressor=rot6d"
            )
        return AxisAngleRegressor(
            in_features, hidden=config.hidden, dropout=config.dropout, n_iter=config.n_iter
        )
    if config.mean_params is not None:
        mean = MeanParameters.from_file(config.mean_params)
    return IterativeRegressor(
        in_features, mean=mean or MeanParameters.upright(), hidden=config.hidden,
        dropout=config.dropout, n_iter=config.n_iter, activation=config.activation,
    )  # fmt: skip
