"""The end of a job removes the caches that nobody uses any more, on every node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rayhmr.config import DataConfig
from rayhmr.data.cache_store import CacheStore, cache_root

LONGEST_S = 30.0
"""What a node that does not answer in this time holds goes by its age, at its next job."""


@contextmanager
def cleaning_up(config: DataConfig) -> Iterator[None]:
    """Around a job, inside its connection to a cluster. What another job has mapped stays; what it
    may still want is made again."""
    try:
        yield
    finally:
        if config.cache != "none":
            _clean_nodes(config.cache_folder)


def remove_here(folder: str | None) -> list[str]:
    """Remove this node's unused caches; their names."""
    return CacheStore(cache_root(folder)).remove_unused()


def _clean_nodes(folder: str | None) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(remove_here)
    answers = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answers.append(task.options(scheduling_strategy=there).remote(folder))
    ray.wait(answers, num_returns=len(answers), timeout=LONGEST_S)
