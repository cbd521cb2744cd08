"""Several images in one request: `image` parts of a form, or `images` of a JSON object.

What is wrong with the request as a whole refuses it; what is wrong with one image stands in that
image's place.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from rayhmr.serve.intake import (
    FORM,
    JSON,
    Intake,
    Pairs,
    body_kind,
    checked,
    decode_base64,
    no_image,
    query_options,
    read_form,
    read_object,
    wrong_kind,
)
from rayhmr.serve.problems import Problem
from rayhmr.serve.schema import (
    MAX_BATCH_PEOPLE,
    MAX_IMAGES,
    BatchOptions,
    Box,
    CameraOption,
    Options,
)


@dataclass(frozen=True, kw_only=True)
class BatchIntake:
    """items: the images in their order, each with its own options, or why it cannot be one."""

    items: tuple[Intake | Problem, ...]
    options: BatchOptions


async def read_batch(request: Request) -> BatchIntake:
    """The images and options of a request; Problem 400, 413, 415 or 422 refuses all of it."""
    kind = body_kind(request)
    pairs = query_options(request, BatchOptions)
    images: list[bytes | Problem]
    if kind == FORM:
        files, fields = await read_form(request, BatchOptions, MAX_IMAGES)
        images = [*files]
    elif kind == JSON:
        images, fields = await asyncio.to_thread(_read_json, await request.body())
    else:
        raise wrong_kind(kind, (FORM, JSON))
    options = checked(pairs + fields, BatchOptions)
    if {"vertices", "iterations"} <= set(options.include):
        raise Problem(
            422,
            "bad_option",
            "include=vertices,iterations: the meshes of every step fill an answer; ask for them "
            "image by image, at /v1/predict",
        )
    boxes = _one_each("boxes", options.boxes, len(images))
    if sum(len(of_image or ()) for of_image in boxes) > MAX_BATCH_PEOPLE:
        raise Problem(
            422, "bad_option", f"boxes: at most {MAX_BATCH_PEOPLE} in one request; send several"
        )
    cameras = options.camera
    if cameras is None or isinstance(cameras, CameraOption):
        cameras = [cameras] * len(images)
    cameras = _one_each("camera", cameras, len(images))
    items = tuple(
        image if isinstance(image, Problem) else Intake(data=image, options=_own(options, b, c))
        for image, b, c in zip(images, boxes, cameras, strict=True)
    )
    return BatchIntake(items=items, options=options)


def _own(options: BatchOptions, boxes: list[Box] | None, camera: CameraOption | None) -> Options:
    """What one image is asked with; checked already, as part of `options`."""
    return Options.model_construct(
        boxes=boxes, camera=camera, n_iter=options.n_iter, include=options.include,
        model=options.model,
    )  # fmt: skip


def _read_json(body: bytes) -> tuple[list[bytes | Problem], Pairs]:
    tree = read_object(body)
    images = tree.pop("images", None)
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_IMAGES:
        raise no_image(
            f'images must be a list of 1 to {MAX_IMAGES} objects {{"b64": "<a file in base64>"}}',
            [{"loc": ["images"], "msg": f"must be a list of 1 to {MAX_IMAGES} images"}],
        )
    return [_decoded(image, number) for number, image in enumerate(images)], list(tree.items())


def _decoded(image: Any, number: int) -> bytes | Problem:
    try:
        return decode_base64(image, ["images", number])
    except Problem as problem:
        return problem


def _one_each(name: str, values: list[Any] | None, count: int) -> list[Any]:
    if values is None:
        return [None] * count
    if len(values) != count:
        raise Problem(
            422,
            "bad_option",
            f"{name}: {len(values)} entries for {count} images; give one for each, null for none",
            errors=[{"loc": [name], "msg": f"must have {count} entries"}],
        )
    return values
