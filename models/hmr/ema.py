"""Exponential moving average of a model's weights.

After update n the average is sum_i (1 - d) d^(n-i) w_i / (1 - d^n) over the weights w_1 ... w_n
after each update: Adam's correction (Kingma and Ba, 2015, section 3), without which the random
weights of the start would count for much of a short run.

Running statistics of batch norms are averaged like weights. They belong to the weights they were
measured with: to first order in the weights, the statistics of averaged weights are the averaged
statistics, and not those of the newest weights. Integers, such as batch norm's counters, are
copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

UPDATES = "ema.updates"
"""The key of the number of updates beside the tensors of the average."""


class Ema:
    """The average of everything in a model's `state_dict`; no update makes the host wait.

    The average is kept in float32 where the model is in less: of a bfloat16 weight, a thousandth
    of a change would be rounded away.

    decay: d above, in (0, 1). updates: their number so far.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        current: dict[str, Tensor] = model.state_dict(keep_vars=True)  # the tensors themselves
        self._average = {
            name: value.detach().to(_precise(value.dtype), copy=True)
            for name, value in current.items()
        }
        averaged = [name for name, value in current.items() if value.is_floating_point()]
        copied = [name for name, value in current.items() if not value.is_floating_point()]
        self._averaged = _pairs(self._average, current, averaged)
        self._copied = _pairs(self._average, current, copied)

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the average; call this after the optimizer."""
        self.updates += 1
        weight = (1 - self.decay) / -math.expm1(self.updates * math.log(self.decay))
        average, current = self._averaged
        # Casts only what is not in the average's precision already.
        now = [new.to(old.dtype) for old, new in zip(average, current, strict=True)]
        torch._foreach_lerp_(average, now, weight)
        _copy(*self._copied)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the average for weights inside the block, and its own bits after it, also
        when the block raises. What the block does to the weights is lost.

        model: the averaged one, or another with the same `state_dict`.
        """
        state = model.state_dict()
        before = {name: value.clone() for name, value in state.items()}
        with torch.no_grad():
            _copy(*_pairs(state, self._average, state))
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(*_pairs(state, before, state))

    def state_dict(self) -> dict[str, Tensor]:
        """The average itself, under the model's names, and `UPDATES`; updates change it."""
        return self._average | {UPDATES: torch.tensor(self.updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()` bit for bit."""
        self.updates = int(state[UPDATES])
        with torch.no_grad():
            _copy(*_pairs(self._average, state, self._average))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype


def _pairs(
    targets: Mapping[str, Tensor], sources: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[list[Tensor], list[Tensor]]:
    chosen = list(names)
    return [targets[name] for name in chosen], [sources[name] for name in chosen]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:  # foreach functions refuse empty lists
        torch._foreach_copy_(targets, sources)
