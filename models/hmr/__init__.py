"""Human mesh recovery: the model and its mathematics, in PyTorch.

    predictor = hmr.load_bundle("registry/hmr/1")
    people = predictor.predict(image)

The names below are loaded when they are first used: data workers import `hmr.synthetic` or
`hmr.skeleton` without paying for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hmr.body import Body
    from hmr.camera import crop_to_full, perspective_projection, weak_to_translation
    from hmr.checkpoint import load_bundle
    from hmr.crops import box_to_affine, crop_image
    from hmr.metrics import mpjpe, pa_mpjpe, pve, similarity_transform
    from hmr.model import HMR, build_model
    from hmr.predictor import Predictor
    from hmr.rotations import (
        axis_angle_to_matrix,
        matrix_to_axis_angle,
        matrix_to_rot6d,
        rot6d_to_matrix,
    )

__all__ = [
    "HMR",
    "Body",
    "Predictor",
    "axis_angle_to_matrix",
    "box_to_affine",
    "build_model",
    "crop_image",
    "crop_to_full",
    "load_bundle",
    "matrix_to_axis_angle",
    "matrix_to_rot6d",
    "mpjpe",
    "pa_mpjpe",
    "perspective_projection",
    "pve",
    "rot6d_to_matrix",
    "similarity_transform",
    "weak_to_translation",
]

_HOMES = {
    "body": ("Body",),
    "camera": ("crop_to_full", "perspective_projection", "weak_to_translation"),
    "checkpoint": ("load_bundle",),
    "crops": ("box_to_affine", "crop_image"),
    "metrics": ("mpjpe", "pa_mpjpe", "pve", "similarity_transform"),
    "model": ("HMR", "build_model"),
    "predictor": ("Predictor",),
    "rotations": (
        "axis_angle_to_matrix", "matrix_to_axis_angle", "matrix_to_rot6d", "rot6d_to_matrix",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"hmr.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'hmr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
