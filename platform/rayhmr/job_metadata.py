"""Which settings and which data a job of Ray has: in its metadata, and in a line of its log.

Ray's dashboard and `/api/jobs/` show the metadata of drivers that were started by hand. Of a job
that came by `ray job submit` they show what its sender gave (`--metadata-json`) and no more; there
the line, in `ray job logs`, says it.
"""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel

from rayhmr.log import say

CONFIG_HASH, DATA_FINGERPRINT = "rayhmr_config_hash", "rayhmr_data_fingerprint"


def config_hash(job: BaseModel) -> str:
    """The same for the same settings, whatever they came from: 16 hexadecimal digits."""
    settings = json.dumps(job.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def metadata_of(job: BaseModel, data_fingerprint: str = "") -> dict[str, str]:
    """For `rayhmr.cluster.connect`; says it, too. data_fingerprint: as in dataset.json, empty for a
    job that has no data set yet."""
    facts = {CONFIG_HASH: config_hash(job)}
    if data_fingerprint:
        facts[DATA_FINGERPRINT] = data_fingerprint
    data = f", data {data_fingerprint}" if data_fingerprint else ""
    say(f"settings {facts[CONFIG_HASH]}{data}", facts=facts)
    return facts
