"""Three ways to send the same request: multipart, the raw image, JSON with base64.

`/v1/predict` takes all three, `/v1/predict/batch` (`batch_intake`) those that hold several images.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from rayhmr.serve.problems import Problem
from rayhmr.serve.schema import INCLUDABLE, Options

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
FORM, JSON = "multipart/form-data", "application/json"
MAX_JSON_PARTS = 20_000
"""Lists, objects and values of a body; the largest batch that is allowed has a few thousand."""
_AS_TEXT = ("include", "model", "files")
"""Options whose text is taken as it is; the text of the others is JSON."""
_Model = TypeVar("_Model", bound=BaseModel)
Pairs = list[tuple[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A request as it came in: the encoded image, or upright RGB pixels (H, W, 3) uint8, and
    checked options."""

    data: bytes | np.ndarray
    options: Options


async def read_request(request: Request) -> Intake:
    """The image and options of a request; Problem 400, 413, 415 or 422 says what is wrong."""
    kind = body_kind(request)
    pairs = query_options(request, Options)
    if kind in IMAGE_TYPES:
        data = await request.body()
    elif kind == FORM:
        (data, *_), fields = await read_form(request, Options, max_images=1)
        pairs += fields
    elif kind == JSON:
        data, fields = await asyncio.to_thread(_read_json, await request.body())
        pairs += fields
    else:
        raise wrong_kind(kind, (FORM, JSON, *IMAGE_TYPES))
    return Intake(data=data, options=checked(pairs, Options))


def body_kind(request: Request) -> str:
    """The media type of the body; Problem 415 when it is compressed."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Problem(
            415, "content_encoding", f"content-encoding {encoding:.40}: send the body uncompressed"
        )
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def wrong_kind(kind: str, taken: tuple[str, ...]) -> Problem:
    """The refusal of a media type that is not one of `taken`."""
    return Problem(
        415, "content_type", f"content-type {kind or 'missing':.60}: send {', '.join(taken)}"
    )


def query_options(request: Request, model: type[BaseModel]) -> Pairs:
    """Options of the address, their JSON read."""
    return [(name, _parsed(name, text, model)) for name, text in request.query_params.multi_items()]


async def read_form(
    request: Request, model: type[BaseModel], max_images: int
) -> tuple[list[bytes], Pairs]:
    """The files called image, in their order, and the other fields."""
    async with request.form(max_files=max_images, max_fields=len(model.model_fields)) as form:
        files: list[UploadFile] = []
        fields = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                files += [value] if name == "image" else []
            elif name == "image":
                raise no_image("image is text; send the file itself, addresses are not fetched")
            else:
                fields.append((name, _parsed(name, value, model)))
        if not files:
            raise Problem(
                400,
                "no_image",
                "the form has no file called image; curl sends one with -F image=@person.jpg",
            )
        return [await file.read() for file in files], fields


def check_parts(body: bytes, marks: bytes, limit: int) -> None:
    """Count before reading: 20 MB of empty lists would become a gigabyte of Python's. Problem 400
    for more than `limit` of the `marks` that begin a part."""
    parts = sum(body.count(mark) for mark in marks)
    if parts > limit:
        raise Problem(
            400,
            "malformed_json",
            f"the body has {parts:,} lists, objects and values; at most {limit:,} are accepted, "
            "send less in one request",
        )


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; Problem 400 when it is none, or one of too many parts."""
    check_parts(body, b"[{,", MAX_JSON_PARTS)
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Problem(
            400, "malformed_json", f"the body is not valid JSON ({error!s:.80}); correct it"
        ) from error
    if not isinstance(tree, dict):
        raise Problem(
            400, "malformed_json", 'the body must be a JSON object, {"image": {"b64": "..."}}'
        )
    return tree


def decode_base64(image: Any, place: Sequence[str | int]) -> bytes:
    """The file inside {"b64": "..."}, which stands at `place` of the body; Problem 422."""
    where = ".".join(str(part) for part in place)
    if not isinstance(image, dict) or set(image) != {"b64"} or not isinstance(image["b64"], str):
        raise no_image(
            f'{where} must be {{"b64": "<the file in base64>"}}; addresses are not fetched',
            [{"loc": list(place), "msg": "must be an object with the one key b64"}],
        )
    try:
        return base64.b64decode(image["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise Problem(
            422,
            "bad_base64",
            f"{where}.b64 is not base64 ({error}); encode the file as standard base64",
            errors=[{"loc": [*place, "b64"], "msg": str(error)}],
        ) from error


def no_image(detail: str, errors: Sequence[Mapping[str, Any]] = ()) -> Problem:
    """The refusal of something that stands where an image should."""
    return Problem(422, "no_image", detail, errors=errors)


def _read_json(body: bytes) -> tuple[bytes, Pairs]:
    tree = read_object(body)
    return decode_base64(tree.pop("image", None), ["image"]), list(tree.items())


def checked(pairs: Pairs, model: type[_Model]) -> _Model:
    """The options; Problem 422 names the first that breaks a rule, and lists all."""
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            raise Problem(422, "repeated_option", f"{name:.40} is given twice; give it once")
        given[name] = value
    include = given.get("include")
    if isinstance(include, str):
        given["include"] = [word.strip() for word in include.split(",") if word.strip()]
    try:
        return model.model_validate(given)
    except ValidationError as error:
        problems = [
            {"loc": list(problem["loc"]), "msg": _message(problem, model)}
            for problem in error.errors()
        ]
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise Problem(422, "bad_option", f"{path:.60}: {first['msg']}{more}", errors=problems)


def _parsed(name: str, text: str, model: type[BaseModel]) -> Any:
    """The value of an option that came as text."""
    if name in _AS_TEXT or name not in model.model_fields:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Problem(
            422,
            "bad_option",
            f"{name}={text:.60}: must be JSON, such as boxes=[[10,20,110,220]] or n_iter=3",
            errors=[{"loc": [name], "msg": "not valid JSON"}],
        ) from error


def _message(problem: Any, model: type[BaseModel]) -> str:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        options = tuple(model.model_fields)
        near = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"options are {', '.join(options)}"
        return f"unknown option; {hint}"
    if name == "include":
        return f"must be one of {', '.join(INCLUDABLE)} (got {problem['input']!r:.40})"
    return f"{problem['msg']} (got {problem['input']!r:.40})"
