"""The losses on a GPU: the host hands over work and waits for nothing.

No GPU is needed: the tensors only say that they are on one, and hold no numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hmr.body import Body
from hmr.config import LossConfig
from hmr.losses import hmr_losses, label_counts
from hmr.structures import Batch, Parameters, Prediction


class Waits(TorchDispatchMode):
    """Operations that touch both host and device, or ask the device for a number."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        asks = func.name() in ("aten::_local_scalar_dense", "aten::nonzero")
        if asks or len({tensor.device for tensor in tensors}) > 1:
            self.found.append(func.name())
        return result


def on_gpu(count: int) -> tuple[Prediction, Batch]:
    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(count, *shape, dtype=dtype, device="cuda")

    step = Parameters(rotmats=zeros(24, 3, 3), betas=zeros(10), pred_cam=zeros(3))
    batch = Batch(
        images=zeros(3, 64, 64, dtype=torch.uint8), keypoints_2d=zeros(49, 3),
        keypoints_3d=zeros(49, 4), rotmats=zeros(24, 3, 3), betas=zeros(10),
        has_smpl=zeros(dtype=torch.bool),
    )  # fmt: skip
    return Prediction(iterations=(step, step, step)), batch


@pytest.mark.parametrize("preset", ["spin", "bedlam", "eth", "hmr2-like"])
def test_the_host_does_not_wait(preset: Any) -> None:
    body = Body.embedded()
    config = LossConfig(preset=preset, iteration_weights="all")
    with FakeTensorMode(allow_non_fake_inputs=True):
        prediction, batch = on_gpu(3)
        body = body.to("cuda")
        with Waits() as waits:
            counts = label_counts(batch)
            terms = hmr_losses(prediction, batch, body, config, counts)
        assert waits.found == []
        assert terms["loss"].device.type == "cuda"
        with Waits() as waits:
            counts[[0, 1]]  # a list of indices is copied to the device
        assert waits.found == ["aten::_to_copy"]
