"""How published checkpoints name their tensors, and what model their shapes ask for.

Names are those of the published code: SPIN (models/hmr.py), mmhuman3d (HMRHead and its ResNet, both
inside an estimator), the ETH course project (a torchvision ResNet, three layers in a Sequential).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hmr.config import ModelConfig

ENCODER, REGRESSOR = "encoder.net.", "regressor."
"""Our prefixes."""

_RESNETS: dict[tuple[int, ...], str] = {
    (2, 2, 2, 2): "resnet18",
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
"""Blocks of the four stages."""


@dataclass(frozen=True)
class Layout:
    """How a kind of checkpoint is laid out.

    key: where the weights lie in the saved dictionary. names: our prefix to theirs; the first that
    fits counts. settings: of ModelConfig. ignored: their prefixes of what is no part of the network
    (body arrays, discriminators). optional: endings of our names that may be missing; the new
    model's values stand in (batch norm counts its batches only since torch 0.4.1).
    """

    key: str
    names: dict[str, str]
    settings: dict[str, Any]
    ignored: tuple[str, ...] = ()
    optional: tuple[str, ...] = (".num_batches_tracked",)

    def theirs(self, ours: str) -> str:
        """Their name of one of our tensors."""
        prefix = next(prefix for prefix in self.names if ours.startswith(prefix))
        return self.names[prefix] + ours.removeprefix(prefix)


LAYOUTS = {
    "spin": Layout("model", {ENCODER: "", REGRESSOR: ""}, {"image_size": 224}),
    "mmhuman3d": Layout(
        "state_dict",
        {ENCODER: "backbone.", REGRESSOR: "head."},
        {"image_size": 224},
        ignored=("body_model_train.", "body_model_test.", "smpl.", "disc."),
    ),
    "hmr_eth": Layout(
        "model",
        {
            ENCODER: "backbone.",
            f"{REGRESSOR}fc1.": "regressor.fc_blocks.regressor_fc_0.",
            f"{REGRESSOR}fc2.": "regressor.fc_blocks.regressor_fc_1.",
            f"{REGRESSOR}fc3.": "regressor.fc_blocks.regressor_fc_2.",
            f"{REGRESSOR}root.": "nn_root_orient.",
            f"{REGRESSOR}body.": "nn_pose_body.",
            f"{REGRESSOR}hands.": "nn_pose_hand.",
            f"{REGRESSOR}shape.": "nn_betas.",
            REGRESSOR: "regressor.",
        },
        # The project's loader makes 512 px crops, whatever its configuration says.
        {"image_size": 512, "regressor": "axis_angle"},
        ignored=("body_model.",),
        # It was given the person's place and has no camera: ours stays at its start.
        optional=(".num_batches_tracked", "regressor.init_cam"),
    ),
}


def configuration(found: Mapping[str, Tensor], layout: Layout) -> ModelConfig:
    """Depth of the ResNet and width of the regressor as the tensors show them."""
    encoder = layout.names[ENCODER]
    depth = tuple(
        len({name.split(".")[stage.count(".")] for name in found if name.startswith(stage)})
        for stage in (f"{encoder}layer{number}." for number in (1, 2, 3, 4))
    )
    first = found.get(layout.theirs(f"{REGRESSOR}fc1.weight"))
    hidden = first.shape[0] if first is not None and first.ndim == 2 else 1024
    return ModelConfig(
        encoder=_RESNETS.get(depth, "resnet50"), hidden=min(max(hidden, 16), 8192), n_iter=3,
        dropout=0.5, activation=False, **layout.settings,
    )  # fmt: skip
