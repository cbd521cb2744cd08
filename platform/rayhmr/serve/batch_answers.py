"""The answer to several images: one JSON object, or a ZIP archive with a file for each."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from typing import Any

from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.media import GLB, JSON, NPZ, PNG
from rayhmr.serve.problems import Problem

MEDIA_OF_FILE = {"json": JSON, "glb": GLB, "npz": NPZ, "png": PNG}
Item = bytes | Problem
"""The written answer to one image, or what it failed with."""


def batch_json(info: ModelInfo, request_id: str, items: Sequence[Item]) -> bytes:
    """The BatchAnswer; items hold JSON, which is put in as it is."""
    head = _head(info, request_id, items)
    parts = [
        json.dumps(_entry(number, item) | {"problem": item.content(request_id)}).encode()
        if isinstance(item, Problem)
        else b'{"index":%d,"status":200,"result":%b}' % (number, item)
        for number, item in enumerate(items)
    ]
    return json.dumps(head).encode()[:-1] + b',"items":[' + b",".join(parts) + b"]}"


def batch_zip(info: ModelInfo, request_id: str, items: Sequence[Item], ending: str) -> bytes:
    """`index.json`, and for each image `<number>.<ending>` or `<number>.problem.json`."""
    head = _head(info, request_id, items)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entries = []
        for number, item in enumerate(items):
            failed = isinstance(item, Problem)
            name = f"{number:02}.{'problem.json' if failed else ending}"
            content = json.dumps(item.content(request_id)) if isinstance(item, Problem) else item
            # A fixed date: the same answer is the same file.
            archive.writestr(zipfile.ZipInfo(name), content)
            entries.append(_entry(number, item) | {"file": name})
        archive.writestr(zipfile.ZipInfo("index.json"), json.dumps(head | {"items": entries}))
    return buffer.getvalue()


def _head(info: ModelInfo, request_id: str, items: Sequence[Item]) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model": {"name": info.name, "version": info.version},
        "failed": sum(isinstance(item, Problem) for item in items),
    }


def _entry(number: int, item: Item) -> dict[str, Any]:
    return {"index": number, "status": item.status if isinstance(item, Problem) else 200}
