"""What a person sees of a training run: times, losses, one line every few steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hmr.structures import Batch


class Meter:
    """Losses and times of one epoch on one rank.

    Losses are summed on the device and fetched only for a report, because every fetch makes the
    host wait for the device. The first step, with its start-up costs, is timed apart.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.steps = self.images = self.first_images = 0
        self.first_batch_s = self.waited_s = 0.0
        self.names: tuple[str, ...] = ()
        self.last = torch.zeros(0)
        self.sums = torch.zeros(0)
        self.created = self.first_done = time.perf_counter()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time spent waiting for each is noted."""
        asked = time.perf_counter()
        for batch in batches:
            waited = time.perf_counter() - asked
            if self.steps == 0:
                self.first_batch_s = waited
            else:
                self.waited_s += waited
            yield batch
            asked = time.perf_counter()

    def add(self, terms: dict[str, Tensor], skipped: Tensor, images: int) -> None:
        """One step of this rank. skipped: () float, 1 where the step was left out."""
        self.steps += 1
        self.images += images * self.world_size
        self.last = torch.stack([value.detach().float() for value in terms.values()])
        counted = torch.where(skipped > 0, 0.0, self.last)
        row = torch.cat([counted, 1 - skipped.reshape(1)])
        self.sums = row if self.steps == 1 else self.sums + row
        if self.steps == 1:
            self.names = tuple(terms)
            self.sums.tolist()  # waits for the device
            self.first_images, self.first_done = self.images, time.perf_counter()

    def rates(self) -> dict[str, float]:
        """images_per_s of all ranks, seconds a step, and the share of time waiting for data."""
        self.sums.tolist()  # waits for the device
        now = time.perf_counter()
        steps, images, since = self.steps - 1, self.images - self.first_images, self.first_done
        if steps < 1:
            steps, images, since = self.steps, self.images, self.created
        seconds = max(now - since, 1e-9)
        return {
            "images_per_s": images / seconds, "step_s": seconds / max(steps, 1),
            "data_wait": self.waited_s / seconds, "first_batch_s": self.first_batch_s,
        }  # fmt: skip

    def losses(self) -> dict[str, float]:
        """The terms of the latest step of this rank."""
        return dict(zip(self.names, self.last.tolist(), strict=True))

    def mean_losses(self) -> dict[str, float]:
        """The terms' means over the steps of all ranks; every rank must call this."""
        if self.world_size > 1:
            dist.all_reduce(self.sums)
        *sums, count = self.sums.tolist()
        means = (total / count if count else math.nan for total in sums)
        return dict(zip(self.names, means, strict=True))


def progress_line(facts: dict[str, Any]) -> str:
    """One line for people: where the run is, losses, images/s, share of time waiting, time left."""
    losses = dict(facts["losses"])
    total = losses.pop("loss")
    terms = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
    minutes, seconds = divmod(round(facts["eta_s"]), 60)
    error = "" if facts["pa_mpjpe_mm"] is None else f"pa {facts['pa_mpjpe_mm']:.1f}mm "
    skipped = f"skipped {facts['skipped_steps']} " if facts["skipped_steps"] else ""
    return (
        f"epoch {facts['epoch']}/{facts['epochs']} step {facts['step']}/{facts['steps']} "
        f"loss {total:.3f} ({terms}) {error}lr {facts['lr']:.2g} {skipped}"
        f"{facts['images_per_s']:.0f} img/s data-wait {100 * facts['data_wait']:.0f}% "
        f"eta {minutes}m{seconds:02d}s"
    )


def epoch_line(facts: dict[str, Any]) -> str:
    """One line for people at the end of an epoch."""
    return (
        f"epoch {facts['epoch']:.0f} done: validation mpjpe {facts['val/mpjpe_mm']:.1f}mm "
        f"pa {facts['val/pa_mpjpe_mm']:.1f}mm pve {facts['val/pve_mm']:.1f}mm "
        f"over {facts['val/count']:.0f} people, best pa {facts['val/best_pa_mpjpe_mm']:.1f}mm"
    )


def print_progress(facts: dict[str, Any]) -> None:
    """Progress on stderr, the default of `fit(log=...)`."""
    line = progress_line(facts) if facts["kind"] == "step" else epoch_line(facts)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
