"""AdamW with a learning-rate schedule that leaves out steps without a finite gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from hmr.config import OptimizerConfig
from hmr.errors import DivergedError
from hmr.model import HMR


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (from 0): linear warm-up, then the schedule.

    constant: the peak. cosine: from the peak after the warm-up to 2 % at the last step. step: times
    `milestone_factor` from each step on before which that share of all steps is done.
    """
    warm = min((step + 1) / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
    if config.schedule == "step":
        # A quotient, not a product: 7 / 100 is 0.07, but 0.07 * 100 is more than 7.
        passed = sum(step / total_steps >= share for share in config.milestones)
        return config.lr * warm * config.milestone_factor**passed
    if config.schedule == "constant" or step < config.warmup_steps:
        return config.lr * warm
    last = max(total_steps - 1 - config.warmup_steps, 1)
    done = min((step - config.warmup_steps) / last, 1.0)
    return config.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


class GuardedAdamW:
    """One update after each backward pass, with one rate for the encoder and one for the rest.

    Nothing here makes the host wait for the device, except `skipped`, `diverged` and
    `refuse_divergence`. In data-parallel training every rank sees the same gradients, so all of
    them skip the same steps.

    freeze_encoder: see `Encoder.freeze`. Make this object before the model is wrapped for
    data-parallel training, which would wait for gradients that do not come. Parameters that want
    no gradient are in no group.
    max_skipped: steps in a row without a finite gradient after which `diverged` is true.

    inner: the AdamW itself, for checkpoints; the encoder's parameters first, unless it is frozen,
    then the others.
    """

    def __init__(
        self, model: HMR, config: OptimizerConfig, total_steps: int, *,
        freeze_encoder: bool = False, max_skipped: int = 10,
    ) -> None:  # fmt: skip
        self.config, self.total_steps, self.max_skipped = config, total_steps, max_skipped
        if freeze_encoder:
            model.encoder.freeze()
        groups = _parameter_groups(model, config.encoder_lr_factor)
        self.inner = AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        self.parameters = [p for group in self.inner.param_groups for p in group["params"]]
        zero = torch.zeros((), device=self.parameters[0].device)
        self._skipped, self._streak, self._longest, self._worst_step = zero, zero, zero, zero
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._good_buffers = self._flat_buffers()

    def update(self, step: int) -> Tensor:
        """Clip, then step number `step` (from 0); () float, 1 where the weights stayed."""
        rate = learning_rate(self.config, step, self.total_steps)
        for group in self.inner.param_groups:
            group["lr"] = rate * group["lr_factor"]
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad = (~torch.isfinite(norm)).float()
        # What torch.amp.GradScaler uses: the fused kernel divides by the one, which saves a pass
        # over the gradients, and changes nothing where the other is 1.
        if self.config.grad_clip is not None:
            self.inner.grad_scale = (  # type: ignore[attr-defined]
                norm.float() / self.config.grad_clip
            ).clamp(min=1)
        self.inner.found_inf = bad  # type: ignore[attr-defined]
        self.inner.step()
        self._restore_buffers(bad)
        self._skipped = self._skipped + bad
        self._streak = (self._streak + bad) * bad
        self._worst_step = torch.where(self._streak > self._longest, step, self._worst_step)
        self._longest = torch.maximum(self._longest, self._streak)
        return bad

    def _flat_buffers(self) -> Tensor:
        nothing = self._skipped.new_zeros(0)  # for models without such buffers
        return torch.cat([nothing, *(buffer.detach().flatten() for buffer in self._buffers)])

    @torch.no_grad()
    def _restore_buffers(self, bad: Tensor) -> None:
        """Batch norm has seen the step before anybody knew that it was bad; an activation that was
        infinite once would stay in its statistics for ever."""
        if not self._buffers:
            return
        self._good_buffers = torch.where(bad > 0, self._good_buffers, self._flat_buffers())
        parts = self._good_buffers.split([buffer.numel() for buffer in self._buffers])
        shaped = [part.view(b.shape) for part, b in zip(parts, self._buffers, strict=True)]
        torch._foreach_copy_(self._buffers, shaped)

    def state(self) -> dict[str, Tensor]:
        """The counts of skipped steps, () float each, which `inner` does not hold."""
        return {"skipped": self._skipped, "streak": self._streak, "longest": self._longest,
                "worst_step": self._worst_step}  # fmt: skip

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the counts of `state()`, and with the statistics that the model has now."""
        self._skipped, self._streak, self._longest, self._worst_step = (
            state[name].to(self._skipped) for name in self.state()
        )
        self._good_buffers = self._flat_buffers()

    @property
    def skipped(self) -> int:
        """Steps left out since the run began."""
        return int(self._skipped)

    @property
    def worst_steps(self) -> range:
        """The longest row of steps that were left out."""
        last = int(self._worst_step)
        return range(last + 1 - int(self._longest), last + 1)

    @property
    def diverged(self) -> bool:
        """Whether `max_skipped` steps in a row were left out, ever."""
        return int(self._longest) >= self.max_skipped

    def refuse_divergence(self, sample_ids: Sequence[str] = ()) -> None:
        """DivergedError when `diverged`. sample_ids: of the worst steps, for the message."""
        if not self.diverged:
            return
        samples = f"; the samples of these steps: {', '.join(sample_ids)}"
        raise DivergedError(
            f"{int(self._longest)} steps in a row had a loss or gradient that is not finite; "
            f"lower train.optimizer.lr ({self.config.lr:g}), set train.optimizer.grad_clip "
            f"({self.config.grad_clip}), or look for labels that are not finite"
            f"{samples if sample_ids else ''}"
        )


def _parameter_groups(model: HMR, encoder_lr_factor: float) -> list[dict[str, object]]:
    """The trained parameters of the encoder and the others, with their factors on the rate."""
    encoder = list(model.encoder.parameters())
    in_encoder = set(encoder)
    others = [p for p in model.parameters() if p not in in_encoder]
    return [
        {"params": trained, "lr_factor": factor}
        for parameters, factor in ((encoder, encoder_lr_factor), (others, 1.0))
        if (trained := [p for p in parameters if p.requires_grad])
    ]
