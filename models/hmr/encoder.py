"""Image encoders: a small one that keeps the spatial grid, and torchvision's by name.

`forward` takes normalised images (B, 3, S, S) and returns features (B, C); C is `out_features`.
"""

from __future__ import annotations

import difflib
import os
import pickle
from typing import Any, Self

import torch
from torch import Tensor, nn

from hmr.errors import ConfigError, HmrError

GRID_CHANNELS = 32
"""Channels of the flattened grid of the small encoder."""


class Encoder(nn.Module):
    """What all encoders share: they can be frozen."""

    out_features: int
    frozen = False

    def freeze(self) -> None:
        """Leave weights and running statistics as they are from now on, whatever the mode of the
        model: no parameter gets a gradient, and `train()` leaves the encoder in eval mode."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """See nn.Module.train."""
        return super().train(mode and not self.frozen)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., 2016, ResNet-18's block).

    The last norm starts at zero, so a new block is the identity and deep stacks train at once.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.bn2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class SmallEncoder(Encoder):
    """ResNet-18's layout at a chosen width, with the last stage unstrided and no global pooling.

    Where a limb is matters more than that it is there: the grid (1/8 of the side; 1/16 from 96 px
    on) is reduced to 32 channels and flattened. Trained from scratch this learns several times
    faster than global average pooling.
    """

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        large = image_size >= 96
        kernel = 7 if large else 5
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, kernel, 2, kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1) if large else nn.Identity(),
        )
        stages = []
        in_channels = width
        for out_channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (4 * width, 1)):
            stages += [
                ResidualBlock(in_channels, out_channels, stride),
                ResidualBlock(out_channels, out_channels, 1),
            ]
            in_channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.reduce = nn.Sequential(
            nn.Conv2d(in_channels, GRID_CHANNELS, 1, bias=False),
            nn.BatchNorm2d(GRID_CHANNELS),
            nn.ReLU(inplace=True),
        )
        side = image_size
        for _ in range(4 if large else 3):  # every stride-2 layer rounds up
            side = (side + 1) // 2
        self.out_features = GRID_CHANNELS * side * side

    def forward(self, images: Tensor) -> Tensor:
        return self.reduce(self.stages(self.stem(images))).flatten(1)


class TorchvisionEncoder(Encoder):
    """A torchvision classification model without its classifier."""

    def __init__(self, name: str, image_size: int, *, pretrained: bool) -> None:
        super().__init__()
        self.net = _torchvision_model(name, image_size, pretrained=pretrained)
        _remove_classifier(self.net, name)
        self.out_features = _feature_size(self.net, name, image_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).flatten(1)


def _torchvision_model(name: str, image_size: int, *, pretrained: bool) -> nn.Module:
    # Imported late: it brings torch's compiler with it, a second that the small encoder saves.
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        close = difflib.get_close_matches(name, ["small", *names], n=3)
        raise ConfigError(
            f"model.encoder={name}: neither `small` nor a torchvision classification model; "
            f"near: {', '.join(close) or 'resnet50'}"
        )
    if name in ("googlenet", "inception_v3"):
        raise ConfigError(
            f"model.encoder={name}: has auxiliary classifiers, which are of no use here; "
            "choose another one, such as resnet50"
        )
    options: dict[str, Any] = {"image_size": image_size} if name.startswith("vit_") else {}
    if not pretrained:
        return torchvision.models.get_model(name, weights=None, **options)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        # torchvision's own reader would run any code in the file: read it without that first.
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return torchvision.models.get_model(name, weights=weights, **options)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(weights.url))
        raise HmrError(
            f"model.pretrained=true: the ImageNet weights of {name} belong into {path}, where "
            f"they are missing or damaged, and could not be fetched ({_first_line(error)}). Put a "
            f"good copy of {weights.url} there, or set model.pretrained=false"
        ) from error
    except ValueError as error:  # a vision transformer's position table fits one size only
        raise ConfigError(
            f"model.image_size={image_size}: does not fit the ImageNet weights of {name} "
            f"({_first_line(error)}); change it, or set model.pretrained=false"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _remove_classifier(net: nn.Module, name: str) -> None:
    """Replace the last linear layer by the identity."""
    linear = [path for path, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"model.encoder={name}: has no linear classifier to take off; choose a ResNet, "
            "ConvNeXt, EfficientNet, RegNet, Swin or ViT"
        )
    parent, _, leaf = linear[-1].rpartition(".")
    setattr(net.get_submodule(parent), leaf, nn.Identity())


def _feature_size(net: nn.Module, name: str, image_size: int) -> int:
    """Width of the features of one black image; also finds sizes that a model cannot take."""
    training = net.training
    try:
        with torch.inference_mode():
            features = net.eval()(torch.zeros(1, 3, image_size, image_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model.image_size={image_size}: {name} does not work at this size "
            f"({_first_line(error)}); try 224"
        ) from error
    net.train(training)
    return int(features.flatten(1).shape[1])


def build_encoder(
    name: str, *, width: int, image_size: int, pretrained: bool = False
) -> SmallEncoder | TorchvisionEncoder:
    """`small`, or a torchvision model by name.

    ConfigError for an unknown name (with near ones) or a size that the model cannot take; HmrError
    when ImageNet weights are wanted and cannot be had.
    """
    if name != "small":
        return TorchvisionEncoder(name, image_size, pretrained=pretrained)
    if pretrained:
        raise ConfigError(
            "model.pretrained=true: the small encoder has no published weights; "
            "set model.pretrained=false, or choose a torchvision encoder such as resnet50"
        )
    return SmallEncoder(width, image_size)
