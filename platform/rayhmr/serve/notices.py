"""Small JSON files between the processes of one service, in a folder that is theirs alone.

The process that answers HTTP notes which version of each model answers; the one that rolls out
notes what it tries and what it refused. Either may die and read again; a reader sees an old notice
or a new one, never half of one.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

ANSWERING = "answering.json"
"""{name: generation of the version that answers}"""
ROLLOUTS = "rollouts.json"
"""[a `RolloutAnswer` for each model whose alias has moved to a version that does not answer]"""


def leave(folder: Path, name: str, value: Any) -> None:
    """Replace a notice."""
    partial = folder / f".{name}.{uuid.uuid4().hex}"
    partial.write_text(json.dumps(value), encoding="utf-8")
    partial.replace(folder / name)


def read(folder: Path, name: str, default: Any) -> Any:
    """A notice; `default` where nobody has left one."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
