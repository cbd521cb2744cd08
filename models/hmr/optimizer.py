"""AdamW with a learning-rate schedule that leaves out steps without a finite gradient."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hmr.config import OptimizerConfig
from hmr.errors import HmrError

MAX_BAD_STEPS = 10
"""Steps in a row without a finite gradient before the run fails."""


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0): linear warm-up, then constant or cosine to 2 %."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    last = max(total_steps - 1 - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / last, 1.0)
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class GuardedAdamW:
    """One update after each backward pass.

    Nothing here makes the host wait for the device, except `skipped` and `refuse_divergence`. In
    data-parallel training every rank sees the same gradients, so all of them skip the same steps.

    inner: the AdamW itself, for checkpoints.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], config: OptimizerConfig, total_steps: int
    ) -> None:
        self.config, self.total_steps = config, total_steps
        self.parameters = list(parameters)
        self.inner = AdamW(
            self.parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        zero = torch.zeros((), device=self.parameters[0].device)
        self._skipped, self._streak, self._longest = zero, zero, zero

    def update(self, step: int) -> Tensor:
        """Clip, then step number `step` (from 0); () float, 1 where the weights stayed."""
        rate = learning_rate(self.config, step, self.total_steps)
        for group in self.inner.param_groups:
            group["lr"] = rate
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        if self.config.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, norm)
        bad = (~torch.isfinite(norm)).float()
        # What torch.amp.GradScaler uses: where it is 1, the fused kernel changes nothing.
        self.inner.found_inf = bad  # type: ignore[attr-defined]
        self.inner.step()
        self._skipped = self._skipped + bad
        self._streak = (self._streak + bad) * bad
        self._longest = torch.maximum(self._longest, self._streak)
        return bad

    @property
    def skipped(self) -> int:
        """Steps left out since this object was made."""
        return int(self._skipped)

    def refuse_divergence(self) -> None:
        """HmrError once too many steps in a row were left out."""
        if int(self._longest) >= MAX_BAD_STEPS:
            raise HmrError(
                f"{int(self._longest)} steps in a row had a loss or gradient that is not finite; "
                f"lower train.optimizer.lr ({self.config.lr:g}), set train.optimizer.grad_clip "
                f"({self.config.grad_clip}), or look for labels that are not finite"
            )
