"""Names of published tensors, and the models their shapes ask for."""

from __future__ import annotations

import pytest
import torch
from torchvision.models import get_model

from hmr.published_layouts import LAYOUTS, configuration


@pytest.mark.parametrize(
    ("kind", "ours", "theirs"),
    [
        ("spin", "encoder.net.layer3.5.bn2.weight", "layer3.5.bn2.weight"),
        ("spin", "regressor.decpose.bias", "decpose.bias"),
        ("mmhuman3d", "encoder.net.conv1.weight", "backbone.conv1.weight"),
        ("mmhuman3d", "regressor.init_cam", "head.init_cam"),
        ("hmr_eth", "encoder.net.layer1.0.bn3.bias", "backbone.layer1.0.bn3.bias"),
        ("hmr_eth", "regressor.fc3.bias", "regressor.fc_blocks.regressor_fc_2.bias"),
        ("hmr_eth", "regressor.hands.weight", "nn_pose_hand.weight"),
        ("hmr_eth", "regressor.init_theta", "regressor.init_theta"),
    ],
)  # fmt: skip
def test_names(kind: str, ours: str, theirs: str) -> None:
    assert LAYOUTS[kind].theirs(ours) == theirs


@pytest.mark.parametrize("kind", ["spin", "mmhuman3d", "hmr_eth"])
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "resnet101", "resnet152"])
def test_depth_and_width_are_read_from_the_tensors(kind: str, encoder: str) -> None:
    layout = LAYOUTS[kind]
    with torch.device("meta"):
        state = get_model(encoder, weights=None).state_dict()
        found = {layout.theirs(f"encoder.net.{name}"): value for name, value in state.items()}
        found[layout.theirs("regressor.fc1.weight")] = torch.empty(512, 2205)
    config = configuration(found, layout)
    assert (config.encoder, config.hidden, config.n_iter) == (encoder, 512, 3)
    assert config.image_size == (512 if kind == "hmr_eth" else 224)
    assert config.regressor == ("axis_angle" if kind == "hmr_eth" else "rot6d")
    assert (config.activation, config.dropout) == (False, 0.5)


def test_what_shows_nothing_is_taken_for_spins_model() -> None:
    config = configuration({"fc1.weight": torch.zeros(())}, LAYOUTS["spin"])
    assert (config.encoder, config.hidden) == ("resnet50", 1024)
