"""Every series for Prometheus: name, kind, labels, meaning. `rayhmr.metrics` sets those of jobs;
the service shows its own (`rayhmr.serve.metrics`). docs/operations.md lists them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
RAY_PREFIX = "ray_"
"""Ray puts it before the name."""


@dataclass(frozen=True)
class Series:
    """name: as the code has it; a counter's ends in `_total`. labels: ours; Ray adds some."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str

    @property
    def scraped(self) -> str:
        """The name that Prometheus sees."""
        return self.name if self in SERVICE else RAY_PREFIX + self.name


_RUN = ("run", "trial")
DATA = (
    Series("rayhmr_data_rows_read_total", "counter", ("dataset",),
           "Rows of the source that jobs/prepare.py has looked at"),
    Series("rayhmr_data_rows_written_total", "counter", ("dataset", "split"),
           "People written to shards"),
    Series("rayhmr_data_rows_rejected_total", "counter", ("dataset", "reason"),
           "Rows that became no person, by reason"),
    Series("rayhmr_data_rows_streamed_total", "counter", _RUN,
           "People that training workers took from their streams"),
)  # fmt: skip
TRAINING = (
    Series("rayhmr_train_step", "gauge", _RUN, "Optimizer steps made"),
    Series("rayhmr_train_steps_planned", "gauge", _RUN, "Optimizer steps of the whole run"),
    Series("rayhmr_train_epoch", "gauge", _RUN, "The epoch under way, from 1"),
    Series("rayhmr_train_images_per_second", "gauge", _RUN,
           "Speed of all workers since the line before"),
    Series("rayhmr_train_loss", "gauge", (*_RUN, "term"),
           "Loss terms of the step; `total` is what is minimized"),
    Series("rayhmr_train_validation_mm", "gauge", (*_RUN, "error"),
           "Errors of the last validation, mm"),
    Series("rayhmr_train_data_wait_seconds_total", "counter", _RUN,
           "Seconds that rank 0 waited for data"),
    Series("rayhmr_train_checkpoint_seconds_total", "counter", _RUN,
           "Seconds that checkpoints took to be written, beside the steps"),
    Series("rayhmr_train_checkpoints_total", "counter", _RUN, "Checkpoints that were written"),
    Series("rayhmr_train_restarts_total", "counter", _RUN,
           "Starts of the workers after the first one of this driver"),
    Series("rayhmr_train_skipped_steps", "gauge", _RUN,
           "Steps left out because a loss or gradient was not finite"),
)  # fmt: skip
SEARCH = (
    Series("rayhmr_search_trials", "gauge", ("run", "status"),
           "Trials that are running, finished, stopped, failed"),
    Series("rayhmr_search_trial_epochs", "gauge", ("run",), "Epochs trained in all trials"),
    Series("rayhmr_search_best_score", "gauge", ("run", "score"),
           "The lowest score of a finished trial"),
)  # fmt: skip
SERVICE = (
    Series("rayhmr_serve_requests_total", "counter", ("route", "status"), "Answers"),
    Series("rayhmr_serve_request_seconds", "histogram", ("route",),
           "From a request's first byte to its answer's last"),
    Series("rayhmr_serve_rejected_total", "counter", ("reason",),
           "Requests, and pictures of a batch, refused or failed"),
    Series("rayhmr_serve_requests_in_flight", "gauge", (), "Requests under way"),
    Series("rayhmr_serve_batch_size", "histogram", ("model",), "Pictures of one forward pass"),
    Series("rayhmr_serve_model_seconds", "histogram", ("model",), "One forward pass"),
    Series("rayhmr_serve_people_total", "counter", ("model",), "People recovered"),
    Series("rayhmr_serve_model_info", "gauge", ("model", "version"), "The served models"),
    Series("rayhmr_serve_model_ready", "gauge", ("model",),
           "Whether the model answers as it should"),
    Series("rayhmr_serve_queue_length", "gauge", ("model",),
           "Pictures that wait for a forward pass"),
)  # fmt: skip
JOBS = {series.name: series for series in (*DATA, *TRAINING, *SEARCH)}
