"""The errors of a model over a split."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hmr.body import Body
from hmr.metrics import MetricAccumulator, person_errors
from hmr.model import HMR
from hmr.structures import Batch


def validation_errors(model: HMR, body: Body, batches: Iterator[Batch]) -> Tensor:
    """The errors of a model in eval mode on these people, as a MetricAccumulator's vector."""
    accumulator = MetricAccumulator()
    device = next(model.parameters()).device
    with torch.inference_mode():
        for batch in batches:
            on_device = batch.to(device)
            labelled = on_device.has_smpl
            if not labelled.any():
                continue
            estimate = model(on_device.images).final[labelled]
            accumulator.update(
                person_errors(
                    estimate, on_device.rotmats[labelled], on_device.betas[labelled], body
                )
            )
    return accumulator.to_vector()
