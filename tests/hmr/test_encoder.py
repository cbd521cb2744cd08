"""Encoders: the grid of the small one, torchvision by name, errors that name the cure."""

from __future__ import annotations

import math
import socket
import urllib.request
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from hmr.encoder import (
    GRID_CHANNELS,
    ResidualBlock,
    SmallEncoder,
    TorchvisionEncoder,
    build_encoder,
)
from hmr.errors import ConfigError, HmrError


def small(image_size: int, width: int = 4) -> SmallEncoder:
    torch.manual_seed(0)
    encoder = build_encoder("small", width=width, image_size=image_size)
    assert isinstance(encoder, SmallEncoder)
    return encoder


def by_name(name: str, *, image_size: int = 64, pretrained: bool = False) -> TorchvisionEncoder:
    torch.manual_seed(0)
    encoder = build_encoder(name, width=1, image_size=image_size, pretrained=pretrained)
    assert isinstance(encoder, TorchvisionEncoder)
    return encoder


def with_open_blocks(encoder: SmallEncoder) -> SmallEncoder:
    """New blocks are the identity; open them, so that a test sees the convolutions."""
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return encoder


@pytest.mark.parametrize(("image_size", "side"), [(64, 8), (112, 7), (96, 6), (65, 9), (33, 5)])
def test_feature_size_is_that_of_the_grid(image_size: int, side: int) -> None:
    encoder = small(image_size)
    features = encoder(torch.rand(2, 3, image_size, image_size))
    assert encoder.out_features == GRID_CHANNELS * side * side
    assert features.shape == (2, encoder.out_features)


def test_widths_follow_the_first_stage() -> None:
    blocks = [m for m in small(64, width=6).modules() if isinstance(m, ResidualBlock)]
    widths = [block.conv1.out_channels for block in blocks]
    assert widths == [6, 6, 12, 12, 24, 24, 24, 24]


def test_place_in_the_image_is_kept() -> None:
    """A mark moved by one grid cell moves the features by one grid cell."""
    encoder = with_open_blocks(small(128)).eval()
    image = torch.zeros(1, 3, 128, 128)
    image[..., 48:64, 48:64] = 1.0

    def response(picture: Tensor) -> Tensor:
        with torch.no_grad():
            return encoder(picture).view(GRID_CHANNELS, 8, 8)

    moved = response(image.roll(16, dims=-1))
    still = response(image)
    assert not torch.allclose(moved, still, atol=1e-3)
    torch.testing.assert_close(moved[:, 3:5, 4:6], still[:, 3:5, 3:5], atol=0.05, rtol=0.2)


def test_new_blocks_are_the_identity() -> None:
    block = small(64).stages[1].eval()
    x = torch.rand(2, 4, 5, 5)
    assert torch.equal(block(x), x)


def test_new_features_have_unit_scale_in_training() -> None:
    features = with_open_blocks(small(64)).train()(torch.randn(8, 3, 64, 64))
    assert 0.2 < features.std() < 2.0


@pytest.mark.parametrize(
    ("name", "features"), [("resnet18", 512), ("mobilenet_v3_small", 1024), ("regnet_y_400mf", 440)]
)
def test_torchvision_model_without_its_classifier(name: str, features: int) -> None:
    encoder = by_name(name).eval()
    assert encoder.out_features == features
    assert not [m for m in encoder.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    assert encoder(torch.rand(3, 3, 64, 64)).shape == (3, features)


def test_resnet_features_are_those_before_the_classifier() -> None:
    encoder = by_name("resnet18").eval()
    reference = torchvision.models.resnet18().eval()
    classifier = reference.fc
    reference.load_state_dict(encoder.net.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(classifier(encoder(images)), reference(images))


@pytest.mark.parametrize(
    ("name", "image_size", "features"),
    [
        ("resnet18", 32, 512), ("convnext_tiny", 32, 768), ("efficientnet_b0", 64, 1280),
        ("regnet_y_400mf", 32, 440), ("swin_t", 32, 768), ("vit_b_16", 32, 768),
    ],
)  # fmt: skip
def test_one_of_each_family_learns(name: str, image_size: int, features: int) -> None:
    """Every weight has a gradient (data-parallel training waits for all of them), and a small step
    against it lowers the loss by about the step times its squared length."""
    encoder = by_name(name, image_size=image_size).to(memory_format=torch.channels_last).eval()
    assert encoder.out_features == features
    images = torch.randn(2, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    target = torch.randn(2, features)

    def loss() -> Tensor:
        return (encoder(images) - target).square().mean()

    before = loss()
    before.backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    squared = sum(float(g.double().square().sum()) for g in gradients.values() if g is not None)
    assert math.isfinite(squared)
    expected = 1e-3 * float(before.detach())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter -= expected / squared * parameter.grad
        assert float(before - loss()) == pytest.approx(expected, rel=0.3)


def test_probing_the_feature_size_leaves_no_trace() -> None:
    encoder = by_name("resnet18")
    assert all(module.training for module in encoder.modules())
    assert int(encoder.state_dict()["net.bn1.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("name", "image_size", "words"),
    [
        ("resnet5", 64, ["model.encoder=resnet5", "resnet50"]),
        ("smal", 64, ["model.encoder=smal", "small"]),
        ("squeezenet1_1", 64, ["squeezenet1_1", "no linear classifier", "ResNet"]),
        ("googlenet", 64, ["googlenet", "auxiliary", "resnet50"]),
        ("maxvit_t", 64, ["model.image_size=64", "maxvit_t", "224"]),
    ],
)
def test_encoder_that_cannot_be_built_is_refused(
    name: str, image_size: int, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        build_encoder(name, width=8, image_size=image_size)
    for word in words:
        assert word in str(caught.value)


def test_small_encoder_has_no_pretrained_weights() -> None:
    with pytest.raises(ConfigError, match=r"model\.pretrained=true: the small encoder"):
        build_encoder("small", width=8, image_size=64, pretrained=True)


@pytest.fixture
def weights_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torchvision looks for resnet18's weights, on a machine whose network is down."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib keeps the proxies of its first call for all later ones.
    monkeypatch.setattr(urllib.request, "_opener", None)
    weights = torchvision.models.get_model_weights("resnet18").DEFAULT
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / weights.url.rpartition("/")[2]


def test_pretrained_weights_come_from_the_cache(weights_file: Path) -> None:
    torch.manual_seed(7)
    published = torchvision.models.resnet18().state_dict()
    torch.save(published, weights_file)
    loaded = by_name("resnet18", pretrained=True)
    for name, value in loaded.net.state_dict().items():
        assert torch.equal(value, published[name]), name


def test_missing_weights_name_the_file_and_the_cure(weights_file: Path) -> None:
    with pytest.raises(HmrError) as caught:
        by_name("resnet18", pretrained=True)
    assert str(weights_file) in str(caught.value)
    assert "model.pretrained=false" in str(caught.value)
    assert not isinstance(caught.value, ConfigError)


def test_without_any_network_the_error_says_so(
    weights_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(socket.socket, "connect", unreachable)
    with pytest.raises(HmrError, match="Network is unreachable") as caught:
        by_name("resnet18", pretrained=True)
    message = str(caught.value)
    assert message.startswith("model.pretrained=true: the ImageNet weights of resnet18 belong into")
    assert str(weights_file) in message
    assert f"https://download.pytorch.org/models/{weights_file.name}" in message
    assert "set model.pretrained=false" in message
    assert not weights_file.exists()


class _Intruder:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


def test_weights_file_cannot_run_code(weights_file: Path, tmp_path: Path) -> None:
    trace = tmp_path / "was-here"
    torch.save({"fc.weight": _Intruder(trace)}, weights_file)
    with pytest.raises(HmrError, match="missing or damaged"):
        by_name("resnet18", pretrained=True)
    assert not trace.exists()


def test_pretrained_transformer_at_another_size_is_refused(weights_file: Path) -> None:
    torch.save(
        {"unused": torch.zeros(1)},
        weights_file.with_name(
            torchvision.models.get_model_weights("vit_b_16").DEFAULT.url.rpartition("/")[2]
        ),
    )
    with pytest.raises(ConfigError, match=r"model\.image_size=64.*vit_b_16"):
        by_name("vit_b_16", pretrained=True)


# Frozen encoders


@pytest.mark.parametrize("name", ["small", "efficientnet_b0"])
def test_a_frozen_encoder_stays_as_it_is_in_a_model_that_trains(name: str) -> None:
    """EfficientNet drops whole layers by chance in training; a frozen one does not."""
    torch.manual_seed(0)
    encoder = build_encoder(name, width=4, image_size=64)
    encoder.freeze()
    model = nn.Sequential(encoder, nn.Dropout(), nn.Linear(encoder.out_features, 2))
    images = torch.randn(4, 3, 64, 64)
    expected = encoder(images)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    for _ in range(2):
        model.train()
        assert torch.equal(encoder(images), expected)
        model(images).sum().backward()
    assert not any(module.training for module in encoder.modules())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None for parameter in model[2].parameters())
    assert model[1].training
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_an_encoder_that_is_not_frozen_follows_its_model() -> None:
    encoder = small(64)
    for mode in (False, True):
        nn.Sequential(encoder).train(mode)
        assert all(module.training is mode for module in encoder.modules())
