"""Settings of the model: short forms and presets."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from hmr.config import AugmentConfig, TrainConfig

WARPS = ("rotation", "scale", "translation")
AMOUNTS = ("flip", "channel_noise", *WARPS, "colour", "occlusion")


def amounts(config: AugmentConfig, *names: str) -> dict[str, float]:
    return {name: getattr(config, name) for name in names}


def test_augmentation_without_settings_is_flip_and_noise() -> None:
    used = {n: v for n, v in amounts(AugmentConfig(), *AMOUNTS).items() if v}
    assert used == {"flip": 0.5, "channel_noise": 0.4}


def test_the_preset_none_changes_nothing() -> None:
    assert not any(amounts(AugmentConfig(preset="none"), *AMOUNTS).values())


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("spin", {"flip": 0.5, "channel_noise": 0.4, "rotation": 30, "rotation_probability": 0.4,
                  "scale": 0.25, "translation": 0, "colour": 0, "occlusion": 0}),
        ("hmr2", {"flip": 0.5, "channel_noise": 0.2, "rotation": 30, "rotation_probability": 0.6,
                  "scale": 0.3, "translation": 0.02, "colour": 0, "occlusion": 0}),
    ],
)  # fmt: skip
def test_presets_are_the_published_numbers(preset: str, published: dict[str, float]) -> None:
    """SPIN turns nobody with probability 0.6, HMR2 turns somebody with probability 0.6."""
    config = AugmentConfig.model_validate({"preset": preset})
    assert amounts(config, *published) == published


@pytest.mark.parametrize("preset", ["default", "none", "spin", "hmr2"])
def test_the_short_form_is_the_preset(preset: str) -> None:
    short = TrainConfig.model_validate({"augment": preset})
    assert short == TrainConfig.model_validate({"augment": {"preset": preset}})


def test_given_amounts_win() -> None:
    config = AugmentConfig.model_validate({"preset": "spin", "rotation": 10, "colour": 0.1})
    assert amounts(config, "rotation", "colour", "scale") == {
        "rotation": 10, "colour": 0.1, "scale": 0.25,
    }  # fmt: skip


def test_written_settings_hold_the_numbers_and_read_back_the_same() -> None:
    config = AugmentConfig.model_validate({"preset": "hmr2", "occlusion": 0.2})
    written = config.model_dump(mode="json")
    assert "preset" not in written
    assert AugmentConfig.model_validate(written).model_dump() == config.model_dump()


def test_a_preset_that_could_not_matter_is_refused() -> None:
    """As in a search over presets whose trial has every amount written out."""
    written = AugmentConfig().model_dump()
    with pytest.raises(ValidationError, match=r"search `train\.augment`"):
        AugmentConfig.model_validate(written | {"preset": "spin"})


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ("spn", "preset"), ({"preset": ["spin"]}, "preset"), ({"scale": 0.6}, "scale"),
        ({"preset": "spin", "flop": 1}, "flop"), ({"rotation": -1}, "rotation"),
        ({"occlusion_size": 0}, "occlusion_size"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(wrong: Any, where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AugmentConfig.model_validate(wrong)
    assert [problem["loc"] for problem in caught.value.errors()] == [(where,)]
