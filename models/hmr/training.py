"""One training loop that knows no launcher.

The loop meets its surroundings in three places: a TrainContext (who am I, where do checkpoints go),
a TrainData (batches of an epoch) and a callback for progress. It therefore runs the same in a unit
test, in one process on a GPU machine, and under a cluster's launcher.

Everything random is a function of (seed, epoch, step, rank), and a checkpoint names the step after
which it was taken; so a run that resumes equals an uninterrupted one bit for bit, wherever inside
an epoch it was cut.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hmr.augment import augment
from hmr.body import Body
from hmr.checkpoint_place import epoch_name, step_name
from hmr.config import TrainConfig
from hmr.device_feed import on_device
from hmr.ema import Ema
from hmr.errors import HmrError
from hmr.exchange import Exchange, Wish
from hmr.local_context import LocalContext as LocalContext
from hmr.losses import hmr_losses, label_counts, weighted_terms
from hmr.metrics import MetricAccumulator
from hmr.model import HMR
from hmr.optimizer import GuardedAdamW
from hmr.progress import print_progress
from hmr.step_clock import StepClock
from hmr.structures import Batch
from hmr.train_context import TrainContext as TrainContext
from hmr.train_context import TrainData as TrainData
from hmr.training_state import capture_training_state, load_training_state, write_training_state
from hmr.validation import validation_errors
from hmr.validation_pictures import ValidationPictures, to_png

PICTURED = 6
"""People on a sheet of validation pictures."""


@dataclass
class RunState:
    """Where a run stands, as a checkpoint keeps it.

    epoch: finished epochs. step: optimizer steps, skipped ones included. step_in_epoch: those of
    the unfinished epoch. history: what was reported after each epoch. sums: see `Exchange.sums`.
    """

    epoch: int = 0
    step: int = 0
    step_in_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Lowest validation PA-MPJPE so far in mm; infinite before the first one."""
        return min((m.get("val/pa_mpjpe_mm", math.inf) for m in self.history), default=math.inf)


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
        log: Callable[[dict[str, Any]], None], *, validating: bool = True,
    ) -> None:  # fmt: skip
        self.config, self.data, self.context, self.log = config, data, context, log
        self.validating = validating
        self.model = model.to(context.device)
        self.body = body.to(context.device)
        self.total_steps = config.epochs * data.steps_per_epoch
        self.reduced = reduced_precision(config.precision, context.device)
        self.optimizer = GuardedAdamW(
            self.model, config.optimizer, self.total_steps,
            freeze_encoder=config.freeze_encoder, max_skipped=config.max_skipped,
        )  # fmt: skip
        if config.compile:
            self.model.encoder.compile()
            self.model.regressor.compile()
        self.wrapped = context.prepare_model(self.model)
        if context.world_size > 1:
            self._settle_gradients()
        self.ema = None if config.ema_decay is None else Ema(self.model, config.ema_decay)
        self.exchange = Exchange(context.world_size, context.device)
        self.state = RunState()
        # As far back as a row of bad steps can lie when it is looked for.
        self.recent_ids: deque[tuple[int, tuple[str, ...]]] = deque(
            maxlen=config.max_skipped + config.log_every
        )
        self._saved_step = -1
        self._pictures: ValidationPictures | None = None

    def _settle_gradients(self) -> None:
        """One backward pass for nothing.

        After its first one, data-parallel training puts the gradients into another order, and what
        more than two ranks sum up depends, in the last bit, on a number's place. A new run and one
        that goes on must both have that behind them at their first step.
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        side = self.model.image_size
        images = torch.zeros(2, 3, side, side, dtype=torch.uint8, device=self.context.device)
        final = self.wrapped.train()(images).final
        sum(part.sum() for part in (final.rotmats, final.betas, final.pred_cam)).backward()
        self.optimizer.inner.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)

    def resume(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        checkpoint = self.context.latest_checkpoint()
        if checkpoint is None:
            return
        stored = load_training_state(checkpoint, self.model, self.optimizer.inner, self.ema)
        self.exchange.restart(stored.pop("sums"))
        self.optimizer.load({n: stored.pop(f"guard.{n}") for n in self.optimizer.state()})
        self.state = RunState(**stored)
        self._saved_step = self.state.step
        if self.state.step_in_epoch == 0 and self.state.history:
            self.context.resumed(self.state.history[-1], epoch_name(self.state.epoch))
        if self.context.rank == 0:
            self.log(
                {
                    "kind": "resume", "epoch": self.state.epoch + 1, "step": self.state.step,
                    "checkpoint": checkpoint,
                }
            )  # fmt: skip

    def run(self) -> dict[str, float]:
        """Train what is left; what was reported after the last epoch, and `stopped` = 1 when the
        launcher wanted the run to end before."""
        while self.state.epoch < self.config.epochs:
            stopped = self.train_epoch(self.state.epoch)
            if stopped and self.state.step_in_epoch < self.data.steps_per_epoch:
                self.stop()
            else:
                self.end_epoch()
            if stopped and self.state.epoch < self.config.epochs:
                return (self.state.history or [{}])[-1] | {"stopped": 1.0}
        return self.state.history[-1]

    def end_epoch(self) -> None:
        """Validate, keep a checkpoint, report."""
        metrics = self.epoch_metrics()
        if self.validating:
            metrics |= self.validate()
            metrics["val/best_pa_mpjpe_mm"] = min(self.state.best, metrics["val/pa_mpjpe_mm"])
        self.state.epoch += 1
        self.state.step_in_epoch = 0
        self.exchange.restart()
        metrics |= {
            "epoch": float(self.state.epoch), "step": float(self.state.step),
            "skipped_steps": float(self.optimizer.skipped),
        }  # fmt: skip
        self.state.history.append(metrics)
        name = epoch_name(self.state.epoch)
        if self.context.rank == 0:
            self.log({"kind": "epoch", **metrics})
        self.save(name)
        self.context.report(metrics, name)

    def save(self, name: str) -> None:
        """Rank 0 keeps a checkpoint of this moment."""
        self._saved_step = self.state.step
        if self.context.rank != 0:
            return
        guard = {f"guard.{name}": value for name, value in self.optimizer.state().items()}
        captured = capture_training_state(
            self.model, self.optimizer.inner,
            asdict(self.state) | {"sums": self.exchange.sums} | guard, self.ema,
        )  # fmt: skip
        self.context.save(name, lambda folder: write_training_state(folder, captured))

    def train_epoch(self, epoch: int) -> bool:
        """The rest of an epoch, or until the launcher wants the run to end: whether it does."""
        first, expected = self.state.step_in_epoch, self.data.steps_per_epoch
        self.wrapped.train()
        if first == 0:
            self.exchange.restart()
        self.clock = StepClock()
        batches = self.data.train_batches(epoch, first)
        number = first
        for number, batch in enumerate(
            self.clock.timed(on_device(batches, self.context.device)), start=first + 1
        ):
            if number > expected:
                break
            self.train_step(batch)
            self.state.step_in_epoch = number
            self.after_step()
            if self.exchange.wish() is Wish.STOP:
                return True
        if number != expected:
            raise HmrError(
                f"epoch {epoch + 1}: rank {self.context.rank} got "
                f"{'more than ' * (number > expected)}{min(number, expected)} batches, expected "
                f"{expected}; the data set changed while it was read"
            )
        self.refuse_divergence()
        return False

    def train_step(self, batch: Batch) -> None:
        """Forward, backward, update. batch: on the training device."""
        rank, step = self.context.rank, self.state.step
        self.recent_ids.append((step, batch.sample_ids))
        torch.manual_seed(_seed_for(self.config.seed, step, rank, 0))  # dropout
        generator = torch.Generator().manual_seed(_seed_for(self.config.seed, step, rank, 1))
        batch = augment(batch, self.config.augment, generator)
        counts = self.exchange.begin(label_counts(batch), len(batch), self.context.wish())
        terms = self.gradients(batch, counts)
        skipped = self.optimizer.update(step)
        if self.ema is not None:
            self.ema.update()
        self.exchange.end(terms, skipped)
        self.state.step += 1

    def gradients(self, batch: Batch, counts: Tensor) -> dict[str, Tensor]:
        """Leave the gradients of the whole step, this rank's part of which is `batch`, in the
        parameters; this rank's share of the loss terms. counts: of all ranks."""
        self.optimizer.inner.zero_grad(set_to_none=True)
        parts = batch.parts(min(self.config.accumulate, len(batch)))
        sums: dict[str, Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self._without_exchange(number < len(parts)):
                with torch.autocast(self.context.device.type, torch.bfloat16, enabled=self.reduced):
                    prediction = self.wrapped(part.images)
                terms = hmr_losses(prediction, part, self.body, self.config.losses, counts)
                # Data-parallel training takes the mean over the ranks; the sum is meant.
                (terms["loss"] * self.context.world_size).backward()
            for name, value in terms.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        return sums

    def _without_exchange(self, wanted: bool) -> Any:
        """Gradients of all parts but the last stay on their rank."""
        wrapped: Any = self.wrapped
        return wrapped.no_sync() if wanted and self.context.world_size > 1 else nullcontext()

    def after_step(self) -> None:
        """What happens besides training at some steps."""
        step, config = self.state.step, self.config
        self.clock.step(self.exchange)
        is_last = self.state.step_in_epoch == self.data.steps_per_epoch
        if step % config.log_every == 0:
            self.exchange.flush()
            self.refuse_divergence()
            self.clock.request(self.exchange, step)
        if self.context.rank == 0 and (values := self.clock.ready()) is not None:
            self.log(self.facts(values))
        if config.pictures_every and step % config.pictures_every == 0 and self.context.rank == 0:
            self.show_pictures()
        if is_last:
            return
        every = config.save_every
        due = every is not None and self.state.step_in_epoch % every == 0
        if due or self.exchange.wish() is Wish.CHECKPOINT:
            self.exchange.flush()
            self.save(step_name(step))

    def show_pictures(self) -> None:
        """Log a sheet of the same validation people as they are predicted now."""
        if self._pictures is None:
            for people in self.data.val_batches():
                self._pictures = ValidationPictures(people.first(PICTURED), self.body)
                break
        if self._pictures is None:
            return
        images = self._pictures.batch.images.to(self.context.device)
        with self.ema.applied(self.model) if self.ema is not None else nullcontext():
            self.model.eval()
            with torch.inference_mode():
                estimate = self.model(images).final
        self.model.train()
        sheet = to_png(self._pictures.sheet(estimate))
        self.log({"kind": "pictures", "step": self.state.step, "image": sheet})

    def stop(self) -> None:
        """Keep a checkpoint before the run ends early."""
        self.exchange.flush()
        if self._saved_step != self.state.step:
            self.save(step_name(self.state.step))

    def refuse_divergence(self) -> None:
        """DivergedError, with names of samples, after too many skipped steps in a row."""
        if not self.optimizer.diverged:
            return
        worst = self.optimizer.worst_steps
        ids = [name for step, names in self.recent_ids if step in worst for name in names]
        if self.context.world_size > 1:
            gathered: list[list[str]] = [[] for _ in range(self.context.world_size)]
            dist.all_gather_object(gathered, ids)
            ids = [name for names in gathered for name in names]
        self.optimizer.refuse_divergence(ids)

    def facts(self, values: dict[str, float]) -> dict[str, Any]:
        """What the progress line says. values: of `StepClock`."""
        history = self.state.history
        losses = {name: values.pop(name) for name in self.exchange.names}
        return values | {
            "kind": "step", "epoch": self.state.epoch + 1, "epochs": self.config.epochs,
            "steps": self.total_steps, "losses": losses,
            "weighted": weighted_terms(losses, self.config.losses),
            **self.rates_of_learning(),
            "skipped_steps": self.optimizer.skipped,
            "pa_mpjpe_mm": history[-1].get("val/pa_mpjpe_mm") if history else None,
            "eta_s": (self.total_steps - values["step"]) * values["step_s"],
        }  # fmt: skip

    def rates_of_learning(self) -> dict[str, float]:
        """`lr`, and `lr_encoder` where it is another."""
        rates = [group["lr"] for group in self.optimizer.inner.param_groups]
        different = len(rates) > 1 and rates[0] != rates[-1]
        return {"lr": rates[-1]} | ({"lr_encoder": rates[0]} if different else {})

    def epoch_metrics(self) -> dict[str, float]:
        """Loss terms averaged over the epoch's steps, and this rank's times."""
        self.exchange.flush()
        *sums, count, _ = self.exchange.sums.tolist()
        means = {
            f"train/{name}": value / count if count else math.nan
            for name, value in zip(self.exchange.names, sums, strict=True)
        }
        return means | {f"train/{k}": v for k, v in self.clock.epoch_rates(self.exchange).items()}

    def validate(self) -> dict[str, float]:
        """Errors over the whole validation split, the same on every rank."""
        with self.ema.applied(self.model) if self.ema is not None else nullcontext():
            if self.context.world_size > 1:
                # Each rank's batch norm has seen other people, and its average as well; the
                # checkpoint will hold rank 0's.
                for buffer in self.model.buffers():
                    dist.broadcast(buffer, src=0)
            self.model.eval()
            vector = validation_errors(self.model, self.body, self._watched_val_batches())
        if self.context.world_size > 1:
            vector = vector.to(self.context.device)
            dist.all_reduce(vector)
        means = MetricAccumulator.from_vector(vector).compute()
        return {f"val/{name}": value for name, value in means.items()}

    def _watched_val_batches(self) -> Iterator[Batch]:
        for batch in self.data.val_batches():
            self.context.alive()
            yield batch


def fit(
    config: TrainConfig, *, model: HMR, body: Body, data: TrainData, context: TrainContext,
    log: Callable[[dict[str, Any]], None] = print_progress, validating: bool = True,
) -> dict[str, float]:  # fmt: skip
    """Train `model` in place, from the context's newest checkpoint if it has one.

    Returns what was reported after the last epoch: `val/mpjpe_mm` and its like, `train/<term>`,
    `train/images_per_s`, `epoch`, `step`, `skipped_steps`; `stopped` = 1 when the context wanted
    the run to end before. `log` gets, on rank 0, a dict with `kind` "resume", "step" every
    `config.log_every` steps, "pictures" and "epoch". validating: whether the ranks measure the
    validation errors themselves. DivergedError after `config.max_skipped` steps in a row without a
    finite gradient.
    """
    torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS asks for a workspace of a fixed size, and reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not config.deterministic
    trainer = Trainer(config, model, body, data, context, log, validating=validating)
    try:
        trainer.resume()
        return trainer.run()
    finally:
        context.close()
