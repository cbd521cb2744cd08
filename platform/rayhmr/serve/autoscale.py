"""How many processes a model gets: more while pictures wait, fewer when batches stay small.

A process computes what waits in one batch, so it is at its best when a batch is full and nothing
waits behind it. Its load, the pictures of a batch and those behind it, is therefore wanted to be
`max_batch_size`; Ray Serve averages it, waits before it acts, and keeps the bounds.
"""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

from rayhmr.config import ServeJob

LOAD = "load"
"""What processes tell Serve under this name is `Worker.load`."""
_LOOK_BACK_S = 5.0


def replica_options(job: ServeJob, policy: str | None = None) -> dict[str, Any]:
    """Options of a Serve deployment: a fixed number of processes, or between two numbers.

    policy: where requests do not pass through Serve, which then cannot count them.
    """
    if job.max_replicas is None:
        return {"num_replicas": job.num_replicas}
    scaling: dict[str, Any] = {
        "min_replicas": job.num_replicas, "max_replicas": job.max_replicas,
        "target_ongoing_requests": job.max_batch_size, "look_back_period_s": _LOOK_BACK_S,
        "metrics_interval_s": 1.0, "upscale_delay_s": job.scale_up_after_s,
        "downscale_delay_s": job.scale_down_after_s,
    }  # fmt: skip
    if policy is not None:
        scaling["policy"] = {"policy_function": policy}
    return {"autoscaling_config": scaling}


def replicas_for_load(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Serve's policy: as many processes as bring the mean load to its aim."""
    loads = context.aggregated_metrics.get(LOAD, {})
    if not loads:  # nobody has told yet
        return context.target_num_replicas, {}
    mean = sum(loads.values()) / len(loads)
    return context.current_num_replicas * mean / context.config.target_ongoing_requests, {}


BY_LOAD = f"{__name__}:{replicas_for_load.__name__}"
