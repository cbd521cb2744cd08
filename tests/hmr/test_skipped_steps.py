"""What a skipped step leaves behind, and whom a diverged run names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hmr.body import Body
from hmr.config import AugmentConfig, ModelConfig, OptimizerConfig, TrainConfig
from hmr.errors import DivergedError
from hmr.local_context import LocalContext
from hmr.model import HMR, build_model
from hmr.optimizer import GuardedAdamW
from hmr.structures import Batch
from hmr.training import fit


def _model() -> HMR:
    torch.manual_seed(0)
    return build_model(ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=1))


class _Poisoned:
    """An epoch of 12 steps; the labels of the first two are not finite."""

    steps_per_epoch = 12

    def train_batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step in range(first_step, self.steps_per_epoch):
            bad = step < 2
            yield Batch(
                images=torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
                keypoints_2d=torch.ones(2, 49, 3),
                keypoints_3d=torch.ones(2, 49, 4),
                rotmats=torch.eye(3).repeat(2, 24, 1, 1),
                betas=torch.full((2, 10), float("nan") if bad else 0.0),
                has_smpl=torch.ones(2, dtype=torch.bool),
                sample_ids=tuple(f"{'bad' if bad else 'good'}-{step}-{n}" for n in range(2)),
            )

    def val_batches(self) -> Iterator[Batch]:
        yield from ()


def test_a_diverged_run_names_the_samples_of_its_bad_steps(tmp_path: Path) -> None:
    config = TrainConfig(
        epochs=1, log_every=12, max_skipped=2, augment=AugmentConfig(flip=0, channel_noise=0)
    )
    with pytest.raises(DivergedError) as caught:
        fit(
            config, model=_model(), body=Body.embedded(), data=_Poisoned(),
            context=LocalContext(tmp_path, "cpu"), log=lambda facts: None,
        )  # fmt: skip
    assert "bad-0-0, bad-0-1, bad-1-0, bad-1-1" in str(caught.value)
    assert "good-" not in str(caught.value)


def test_a_skipped_step_leaves_no_statistics_that_are_not_finite() -> None:
    model = _model()
    optimizer = GuardedAdamW(model, OptimizerConfig(), 10)
    overflow = [True]

    def overflow_once(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("inf") if overflow and overflow.pop() else output

    model.encoder.stem[0].register_forward_hook(overflow_once)
    model.train()
    skipped = []
    for step in range(2):
        optimizer.inner.zero_grad()
        final = model(torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)).final
        (final.rotmats.sum() + final.betas.sum()).backward()
        skipped.append(float(optimizer.update(step)))
    assert skipped == [1.0, 0.0]
    state = {name: value for name, value in model.state_dict().items() if "running" in name}
    assert [name for name, value in state.items() if not value.isfinite().all()] == []
