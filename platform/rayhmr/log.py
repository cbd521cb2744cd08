"""Lines for people, on stderr; with RAYHMR_LOG=json each is one JSON object.

    {"time": "2026-01-31T10:00:00.123Z", "level": "info", "run": "spin", "trial": "t0003",
     "text": "epoch 1/3 step 20/60 loss .91 …", "kind": "step", "step": 20, "losses": {…}, …}

`time` (UTC), `level` (info, warning, error) and `text` are in every line; `run`, `trial` and `rank`
where they are known; facts of a training are fields of their own.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from hmr.errors import ConfigError

FORMAT = "RAYHMR_LOG"
FORMATS = ("text", "json")
Level = Literal["info", "warning", "error"]
_subject: dict[str, str] = {}
"""What all lines of this process are about. No context variable: threads speak as well."""


def check_format() -> None:
    """ConfigError when RAYHMR_LOG is none of `FORMATS`."""
    if os.environ.get(FORMAT, "text") not in FORMATS:
        raise ConfigError(f"{FORMAT}={os.environ[FORMAT]}: must be one of {', '.join(FORMATS)}")


def say(text: str, *, level: Level = "info", facts: Mapping[str, Any] | None = None) -> None:
    """A line for people; stdout belongs to the results. facts: what it tells, for machines."""
    if os.environ.get(FORMAT) == "json":
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {"time": now, "level": level, **_subject} | dict(facts or {}) | {"text": text}
        text = json.dumps(_plain(line | {"time": now, "level": level}), allow_nan=False)
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def speaking_of(**subject: str) -> Iterator[None]:
    """All lines of the block are about this run."""
    before = dict(_subject)
    _subject.update(subject)
    try:
        yield
    finally:
        _subject.clear()
        _subject.update(before)


def _plain(value: Any) -> Any:
    """The same as JSON has it; numbers that it has not, nan and inf, become words."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
