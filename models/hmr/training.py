"""One training loop that knows no launcher.

The loop meets its surroundings in three places: a TrainContext (who am I, where do checkpoints go),
a TrainData (batches of an epoch) and a callback for progress. It therefore runs the same in a unit
test, in one process on a GPU machine, and under a cluster's launcher.

After every epoch each rank calls `context.report` once; rank 0 adds a checkpoint. A run continues
after the last complete epoch. Everything random is a function of (seed, epoch, rank), so a resumed
run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hmr.augment import augment
from hmr.body import Body
from hmr.checkpoint import load_training_state, save_training_state
from hmr.config import TrainConfig
from hmr.errors import HmrError
from hmr.local_context import LocalContext as LocalContext
from hmr.losses import hmr_losses
from hmr.metrics import MetricAccumulator, person_errors
from hmr.model import HMR
from hmr.optimizer import GuardedAdamW
from hmr.progress import Meter, print_progress
from hmr.structures import Batch


class TrainContext(Protocol):
    """The loop's only window to its launcher."""

    rank: int
    world_size: int
    device: torch.device

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """The model as it trains here, for example wrapped for data-parallel gradients."""
        ...

    def report(self, metrics: dict[str, float], checkpoint_dir: str | None) -> None:
        """Called once an epoch by every rank with the same validation errors; only rank 0 brings a
        checkpoint folder, which the context copies before it returns."""
        ...

    def latest_checkpoint(self) -> str | None:
        """Local folder of the newest complete checkpoint, the same on all ranks; none for a fresh
        run."""
        ...


class TrainData(Protocol):
    """Batches of this rank: the same number on every rank, and the same in every run."""

    steps_per_epoch: int

    def train_batches(self, epoch: int) -> Iterator[Batch]:
        """Exactly `steps_per_epoch` batches."""
        ...

    def val_batches(self) -> Iterator[Batch]:
        """This rank's share of the validation split; the shares together are the whole split."""
        ...


@dataclass
class RunState:
    """Where a run stands, as a checkpoint keeps it.

    epoch: finished epochs. step: optimizer steps, skipped ones included. history: what was reported
    after each epoch.
    """

    epoch: int = 0
    step: int = 0
    skipped: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Lowest validation PA-MPJPE so far in mm; infinite before the first epoch ends."""
        return min((m["val/pa_mpjpe_mm"] for m in self.history), default=math.inf)


def reduced_precision(setting: str, device: torch.device) -> bool:
    """Whether to run under bfloat16 autocast; emulated bfloat16 would be slower than float32."""
    if setting != "auto":
        return setting == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _seed_for(seed: int, *parts: int) -> int:
    for part in parts:
        seed = (seed * 1_000_003 + part + 1) % (2**63 - 1)
    return seed


class Trainer:
    """The state of one run on one rank, and the steps that move it on."""

    def __init__(
        self, config: TrainConfig, model: HMR, body: Body, data: TrainData, context: TrainContext,
        log: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self.config, self.data, self.context, self.log = config, data, context, log
        self.model = model.to(context.device)
        self.body = body.to(context.device)
        self.wrapped = context.prepare_model(self.model)
        self.total_steps = config.epochs * data.steps_per_epoch
        self.reduced = reduced_precision(config.precision, context.device)
        self.optimizer = GuardedAdamW(self.model.parameters(), config.optimizer, self.total_steps)
        self.state = RunState()
        self.skipped_before = 0

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = self.context.latest_checkpoint()
        if checkpoint is not None:
            state = load_training_state(checkpoint, self.model, self.optimizer.inner)
            self.state = RunState(**state)
            self.skipped_before = self.state.skipped

    def run(self) -> dict[str, float]:
        """Train the epochs that are left; what was reported after the last one."""
        while self.state.epoch < self.config.epochs:
            metrics = self.train_epoch(self.state.epoch) | self.validate()
            self.state.epoch += 1
            self.state.skipped = self.skipped_before + self.optimizer.skipped
            metrics |= {
                "epoch": float(self.state.epoch), "step": float(self.state.step),
                "skipped_steps": float(self.state.skipped),
                "val/best_pa_mpjpe_mm": min(self.state.best, metrics["val/pa_mpjpe_mm"]),
            }  # fmt: skip
            self.state.history.append(metrics)
            self.report(metrics)
        return self.state.history[-1]

    def report(self, metrics: dict[str, float]) -> None:
        """Hand the epoch's metrics, and on rank 0 a checkpoint, to the launcher."""
        if self.context.rank != 0:
            self.context.report(metrics, None)
            return
        self.log({"kind": "epoch", **metrics})
        folder = tempfile.mkdtemp(prefix="rayhmr-checkpoint-")
        try:
            save_training_state(folder, self.model, self.optimizer.inner, asdict(self.state))
            self.context.report(metrics, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass; loss terms averaged over the epoch and all ranks, and this rank's times."""
        rank, expected = self.context.rank, self.data.steps_per_epoch
        torch.manual_seed(_seed_for(self.config.seed, epoch, rank, 0))  # dropout
        generator = torch.Generator().manual_seed(_seed_for(self.config.seed, epoch, rank, 1))
        self.wrapped.train()
        number = 0
        meter = Meter(self.context.world_size)
        for number, batch in enumerate(meter.timed(self.data.train_batches(epoch)), start=1):
            if number > expected:
                break
            on_device = batch.to(self.context.device, non_blocking=True)
            terms, skipped = self.train_step(augment(on_device, self.config.augment, generator))
            meter.add(terms, skipped, len(batch))
            if self.state.step % self.config.log_every == 0:
                self.optimizer.refuse_divergence()
                if rank == 0:
                    self.log(self.facts(meter))
        if number != expected:
            raise HmrError(
                f"epoch {epoch + 1}: rank {rank} got {'more than ' * (number > expected)}"
                f"{min(number, expected)} batches, expected {expected}; "
                "the data set changed while it was read"
            )
        self.optimizer.refuse_divergence()
        losses = meter.mean_losses()
        return {f"train/{name}": value for name, value in (losses | meter.rates()).items()}

    def train_step(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """Forward, backward, update: loss terms, and 1 when the update was left out, else 0."""
        with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.reduced):
            prediction = self.wrapped(batch.images)
        terms = hmr_losses(prediction, batch, self.body, self.config.losses)
        self.optimizer.inner.zero_grad(set_to_none=True)
        terms["loss"].backward()
        skipped = self.optimizer.update(self.state.step)
        self.state.step += 1
        return terms, skipped

    def facts(self, meter: Meter) -> dict[str, Any]:
        """What the progress line says."""
        rates = meter.rates()
        history = self.state.history
        return rates | {
            "kind": "step", "epoch": self.state.epoch + 1, "epochs": self.config.epochs,
            "step": self.state.step, "steps": self.total_steps, "losses": meter.losses(),
            "lr": self.optimizer.inner.param_groups[0]["lr"],
            "skipped_steps": self.skipped_before + self.optimizer.skipped,
            "pa_mpjpe_mm": history[-1]["val/pa_mpjpe_mm"] if history else None,
            "eta_s": (self.total_steps - self.state.step) * rates["step_s"],
        }  # fmt: skip

    def validate(self) -> dict[str, float]:
        """Errors over the whole validation split, the same on every rank."""
        if self.context.world_size > 1:
            # Each rank's batch norm has seen other people; the checkpoint will hold rank 0's.
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)
        self.model.eval()
        accumulator = MetricAccumulator()
        with torch.inference_mode():
            for batch in self.data.val_batches():
                on_device = batch.to(self.context.device)
                labelled = on_device.has_smpl
                if not labelled.any():
                    continue
                estimate = self.model(on_device.images).final[labelled]
                accumulator.update(
                    person_errors(
                        estimate, on_device.rotmats[labelled], on_device.betas[labelled], self.body
                    )
                )
        vector = accumulator.to_vector()
        if self.context.world_size > 1:
            vector = vector.to(self.context.device)
            dist.all_reduce(vector)
        means = MetricAccumulator.from_vector(vector).compute()
        return {f"val/{name}": value for name, value in means.items()}


def fit(
    config: TrainConfig, *, model: HMR, body: Body, data: TrainData, context: TrainContext,
    log: Callable[[dict[str, Any]], None] = print_progress,
) -> dict[str, float]:  # fmt: skip
    """Train `model` in place, from the context's newest checkpoint if it has one.

    Returns what was reported after the last epoch: `val/mpjpe_mm` and its like, `train/<term>`,
    `train/images_per_s`, `epoch`, `step`, `skipped_steps`. `log` gets, on rank 0, a dict with
    `kind` "step" every `config.log_every` steps and "epoch" after each epoch. HmrError after 10
    steps in a row without a finite gradient.
    """
    torch.set_num_threads(config.threads)
    trainer = Trainer(config, model, body, data, context, log)
    trainer.resume()
    return trainer.run()
