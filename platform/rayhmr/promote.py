"""Move an alias of the registry, or move it back: `promote` is behind jobs/promote.py.

A running service follows its alias (`rayhmr.serve.rollout`); nothing needs to be told to it.
"""

from __future__ import annotations

import os
from typing import Any

from hmr.errors import ConfigError
from rayhmr.config import PromoteJob
from rayhmr.pinned_model import PinnedModel
from rayhmr.registry import PREVIOUS, Registry
from rayhmr.serve.golden import check_golden
from rayhmr.storage import joined, split
from rayhmr.telemetry import say


def promote(job: PromoteJob) -> dict[str, Any]:
    """Point the alias at a version whose files are whole and whose model answers the golden picture
    as it should; what is wrong with another is raised, and the alias stays."""
    folder, name = split(job.model)
    if "@" in name and not os.path.isdir(job.model):
        raise ConfigError(
            f"model={job.model}: give the model's name alone, as registry/hmr; `version` says what "
            "the alias moves to"
        )
    registry = Registry(folder or ".")
    before = registry.aliases(name).get(job.alias)
    if job.version == PREVIOUS:
        version = registry.previous(name, job.alias)
    else:
        version = registry.version_of(name, job.version)
    if job.check:
        model = PinnedModel.of(joined(folder or ".", f"{name}@{version}"), job.body)
        check_golden(model.load("cpu"), name=f"{name}@{version}")
    registry.set_alias(name, job.alias, version)
    say(f"{name}@{job.alias}: version {before or 'none'} -> {version}")
    return {"model": name, "alias": job.alias, "version": version, "before": before}
