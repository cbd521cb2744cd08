"""What the ranks of a training tell each other: one small sum a step.

Before a step they add up how many people carry each kind of label, so that every loss term is a
mean over the people of the whole step, and whether one of them wants a checkpoint or the end. The
losses of the step before travel along. The host waits for a GPU only in `wish`, and there only
until the step has begun.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor


class Wish(IntEnum):
    """What a rank may want besides going on."""

    NOTHING = 0
    CHECKPOINT = 1
    STOP = 2
    """A checkpoint, and then the end of the run."""


class Fetched:
    """A tensor's way to the host, for which nobody waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._host = tensor.detach()
        if tensor.device.type == "cuda":
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def ready(self) -> bool:
        """Whether `values` would return at once."""
        return self._copied is None or self._copied.query()

    def values(self) -> list[float]:
        """The numbers of a vector; waits for them when they are not there yet."""
        if self._copied is not None:
            self._copied.synchronize()
        values: list[float] = self._host.tolist()
        return values


class Exchange:
    """Sums over all ranks, step by step.

    sums: (K + 2,) float64; the K loss terms over the steps so far that were not skipped, the number
    of those steps, and the number of people in all steps. They are added one step after the other,
    so they do not depend on where a run was interrupted.
    latest: (K,) the terms of the latest step that was added. people: () those of the latest step.
    """

    def __init__(self, world_size: int, device: torch.device) -> None:
        self.world_size, self.device = world_size, device
        self.names: tuple[str, ...] = ()
        self.latest = torch.zeros(0, device=device)
        self.sums = torch.zeros(0, dtype=torch.float64, device=device)
        self._waiting: tuple[Tensor, Tensor, Tensor] | None = None
        self.people = torch.zeros((), device=device)
        self._counts = 0
        self._wishes: Fetched | None = None

    def _summed(self, values: Tensor) -> Tensor:
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def begin(self, counts: Tensor, people: int, wish: Wish = Wish.NOTHING) -> Tensor:
        """The counts of all ranks. counts: (N,) float of this rank's part of the step."""
        wishes = [float(wish == Wish.CHECKPOINT), float(wish == Wish.STOP)]
        own = torch.tensor([float(people), *wishes], pin_memory=self.device.type == "cuda")
        own = own.to(self.device, non_blocking=True)
        terms = self._waiting[0] if self._waiting is not None else self.latest[:0]
        together = self._summed(torch.cat([counts.to(own), own, terms]))
        number = self._counts = len(counts)
        if self._waiting is not None:
            self._add(together[number + 3 :])
        self.people = together[number]
        self._wishes = Fetched(together[number + 1 : number + 3])
        return together[:number]

    def wish(self) -> Wish:
        """The strongest wish of any rank at the latest `begin`: the same on every rank."""
        checkpoint, stop = self._wishes.values() if self._wishes is not None else (0.0, 0.0)
        return Wish.STOP if stop else Wish.CHECKPOINT if checkpoint else Wish.NOTHING

    def end(self, terms: dict[str, Tensor], skipped: Tensor) -> None:
        """Hand over this rank's share of the step's terms. skipped: () float, 1 for a step that
        was left out; the same on every rank."""
        self.names = tuple(terms)
        values = torch.stack([value.detach().float() for value in terms.values()])
        self._waiting = values, skipped.detach(), self.people

    def flush(self) -> None:
        """Add up the latest step now; every rank must call this."""
        if self._waiting is not None:
            # At the place where `begin` would have them: sums of more than two ranks depend on it.
            before = torch.zeros(self._counts + 3, device=self.device)
            together = self._summed(torch.cat([before, self._waiting[0]]))
            self._add(together[self._counts + 3 :])

    def _add(self, terms: Tensor) -> None:
        assert self._waiting is not None
        _, skipped, people = self._waiting
        self._waiting = None
        self.latest = terms
        counted = torch.where(skipped > 0, 0.0, terms.double())
        row = torch.cat([counted, (1 - skipped.double()).reshape(1), people.double().reshape(1)])
        self.sums = self.sums + row if len(self.sums) else row

    def restart(self, sums: Tensor | None = None) -> None:
        """Begin a new epoch, or go on with the sums of a checkpoint."""
        self._waiting = None
        self.sums = torch.zeros(0, dtype=torch.float64, device=self.device)
        if sums is not None and len(sums):
            self.sums = sums.to(self.sums)
