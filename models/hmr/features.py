"""What a frozen encoder makes of pictures, computed once instead of at every step.

A frozen encoder gives the same features for the same picture as often as it is asked. A training
whose pictures do not change needs it once: HMR takes the features in the place of the pictures.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields

import torch
from torch import Tensor

from hmr.model import HMR
from hmr.structures import Batch, FeatureBatch


def encoder_identity(model: HMR) -> str:
    """Hex sha256 of all that an encoder's features depend on besides the picture: kind, weights and
    running statistics, and the side of the pictures."""
    encoder = model.encoder
    digest = hashlib.sha256(f"{type(encoder).__name__} {model.image_size}".encode())
    for name, tensor in encoder.state_dict().items():
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def as_features(batch: Batch, features: Tensor, crop_size: int) -> FeatureBatch:
    """The same people with (B, C) features in the place of pictures of this side in pixels."""
    values = {f.name: getattr(batch, f.name) for f in fields(Batch)}
    return FeatureBatch(**values | {"images": features}, crop_size=crop_size)


@torch.no_grad()
def frozen_features(model: HMR, images: Tensor, *, reduced: bool = False) -> Tensor:
    """(B, 3, S, S) uint8 to (B, C) float32 on the CPU, as a frozen encoder gives them.

    reduced: compute them under bfloat16 autocast, as a training in reduced precision does.
    """
    device = model.image_scale.device
    encoder = model.encoder
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
            return model.features(images.to(device)).float().cpu()
    finally:
        encoder.train(was_training)
