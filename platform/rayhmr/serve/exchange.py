"""Batches, their answers and the introduction of a model as messages of `rayhmr.serve.wire`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hmr.body_arrays import BodyArrays
from hmr.errors import DataError, HmrError
from hmr.person_crops import PersonCrop
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.inference import Computed, Prepared
from rayhmr.serve.wire import Arrays

Message = tuple[dict[str, Any], Arrays]

_WISHES = ("n_iter", "mesh", "step_meshes")
_ERRORS: dict[str, type[Exception]] = {
    "DataError": DataError, "HmrError": HmrError, "RuntimeError": RuntimeError,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Introduction:
    """What a model's process says first. padding: side of a square over its box's longer side;
    max_people: most squares it wants in one batch; generation: of two versions under one name the
    one with the higher number answers."""

    info: ModelInfo
    padding: float
    max_people: int
    generation: int


def introduction_message(hello: Introduction) -> Message:
    """As it is sent."""
    body = {f.name: getattr(hello.info.body, f.name) for f in fields(BodyArrays)}
    arrays = {name: value for name, value in body.items() if isinstance(value, np.ndarray)}
    info = {f.name: getattr(hello.info, f.name) for f in fields(ModelInfo) if f.name != "body"}
    tree = {
        "info": info, "body": {name: v for name, v in body.items() if name not in arrays},
        "padding": hello.padding, "max_people": hello.max_people, "generation": hello.generation,
    }  # fmt: skip
    return tree, arrays


def read_introduction(message: Message) -> Introduction:
    """As it was meant."""
    tree, arrays = message
    info = tree["info"] | {"aliases": tuple(tree["info"]["aliases"])}
    body: dict[str, Any] = tree["body"] | arrays
    return Introduction(
        info=ModelInfo(body=BodyArrays(**body), **info),
        padding=tree["padding"], max_people=tree["max_people"], generation=tree["generation"],
    )  # fmt: skip


def batch_message(items: Sequence[Prepared], waiting: int) -> Message:
    """Squares of all items in a row. waiting: items that stay in the queue."""
    crops = [crop for item in items for crop in item.crops]
    tree = {
        "items": [
            {"people": len(item.crops)} | {name: getattr(item, name) for name in _WISHES}
            for item in items
        ],
        "waiting": waiting,
    }  # fmt: skip
    if not crops:
        return tree, {}
    arrays = {
        "pixels": np.stack([crop.pixels for crop in crops]),
        "box": np.stack([crop.box for crop in crops]),
        "center": np.stack([crop.center for crop in crops]),
        "side": np.array([crop.side for crop in crops], np.float64),
        "size": np.array([crop.size for crop in crops], np.int64),
        "focal": np.array([crop.focal for crop in crops], np.float64),
    }
    return tree, arrays


def read_batch(message: Message) -> list[Prepared]:
    """The items of a `batch_message`."""
    tree, arrays = message
    crops = [
        PersonCrop(
            pixels=arrays["pixels"][row], box=arrays["box"][row], center=arrays["center"][row],
            side=float(arrays["side"][row]), focal=float(arrays["focal"][row]),
            size=(int(arrays["size"][row, 0]), int(arrays["size"][row, 1])),
        )
        for row in range(sum(item["people"] for item in tree["items"]))
    ]  # fmt: skip
    items = []
    for item in tree["items"]:
        mine, crops = tuple(crops[: item["people"]]), crops[item["people"] :]
        items.append(Prepared(crops=mine, **{name: item[name] for name in _WISHES}))
    return items


def answer_message(results: Sequence[Computed | Exception]) -> Message:
    """What became of every item of a batch."""
    entries: list[dict[str, Any]] = []
    arrays: Arrays = {}
    for number, result in enumerate(results):
        if isinstance(result, Exception):
            kind = next(name for name in (*_ERRORS, "") if _is(result, name))
            entries.append({"error": kind or "RuntimeError", "text": str(result)})
            continue
        entries.append({"model_ms": result.model_ms})
        arrays |= {f"{number}.{name}": column for name, column in result.columns.items()}
    return {"results": entries}, arrays


def _is(error: Exception, name: str) -> bool:
    return not name or isinstance(error, _ERRORS[name])


def read_answer(message: Message) -> list[Computed | Exception]:
    """The results of an `answer_message`."""
    tree, arrays = message
    columns: list[Arrays] = [{} for _ in tree["results"]]
    for name, array in arrays.items():
        number, _, column = name.partition(".")
        columns[int(number)][column] = array
    return [
        _ERRORS[entry["error"]](entry["text"])
        if "error" in entry
        else Computed(columns=mine, model_ms=entry["model_ms"])
        for entry, mine in zip(tree["results"], columns, strict=True)
    ]
