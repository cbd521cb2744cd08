"""Three ways to send the same request: multipart, the raw image, JSON with base64."""

from __future__ import annotations

import asyncio
import base64
import binascii
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from rayhmr.serve.problems import Problem
from rayhmr.serve.schema import INCLUDABLE, Options

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp")
_FORM, _JSON = "multipart/form-data", "application/json"
_OPTION_NAMES = tuple(Options.model_fields)
_AS_TEXT = ("include", "model")
"""Options whose text is taken as it is; the text of the others is JSON."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A request as it came in: the encoded image and checked options."""

    data: bytes
    options: Options


async def read_request(request: Request) -> Intake:
    """The image and options of a request; Problem 400, 413, 415 or 422 says what is wrong."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Problem(
            415, "content_encoding", f"content-encoding {encoding}: send the body uncompressed"
        )
    given = _once((name, _parsed(name, text)) for name, text in request.query_params.multi_items())
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        data = await request.body()
    elif kind == _FORM:
        data, fields = await _read_form(request)
        given = _once([*given.items(), *fields])
    elif kind == _JSON:
        body = await request.body()
        data, fields = await asyncio.to_thread(_read_json, body)
        given = _once([*given.items(), *fields])
    else:
        raise Problem(
            415,
            "content_type",
            f"content-type {kind or 'missing'}: send {_FORM}, {_JSON}, or the image itself as "
            f"{', '.join(IMAGE_TYPES)}",
        )
    return Intake(data=data, options=_checked(given))


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, value in pairs:
        if name in given:
            raise Problem(422, "repeated_option", f"{name} is given twice; give it once")
        given[name] = value
    return given


def _parsed(name: str, text: str) -> Any:
    """The value of an option that came as text."""
    if name in _AS_TEXT or name not in _OPTION_NAMES:
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


async def _read_form(request: Request) -> tuple[bytes, list[tuple[str, Any]]]:
    async with request.form(max_files=1, max_fields=len(_OPTION_NAMES)) as form:
        file: UploadFile | None = None
        fields = []
        for name, value in form.multi_items():
            if isinstance(value, str):
                if name == "image":
                    break
                fields.append((name, _parsed(name, value)))
            elif name == "image":
                file = value
        if file is None:
            raise Problem(
                400,
                "no_image",
                "the form has no file called image; curl sends one with -F image=@person.jpg",
            )
        return await file.read(), fields


def _read_json(body: bytes) -> tuple[bytes, list[tuple[str, Any]]]:
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
    image = tree.pop("image", None)
    if not isinstance(image, dict) or set(image) != {"b64"} or not isinstance(image["b64"], str):
        raise Problem(
            422,
            "no_image",
            'image must be {"b64": "<the file in base64>"}; addresses are not fetched',
            errors=[{"loc": ["image"], "msg": "must be an object with the one key b64"}],
        )
    try:
        return base64.b64decode(image["b64"], validate=True), list(tree.items())
    except (binascii.Error, ValueError) as error:
        raise Problem(
            422,
            "bad_base64",
            f"image.b64 is not base64 ({error}); encode the file as standard base64",
            errors=[{"loc": ["image", "b64"], "msg": str(error)}],
        ) from error


def _checked(given: dict[str, Any]) -> Options:
    include = given.get("include")
    if isinstance(include, str):
        given = given | {"include": [word.strip() for word in include.split(",") if word.strip()]}
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        problems = [
            {"loc": list(problem["loc"]), "msg": _message(problem)} for problem in error.errors()
        ]
    first = problems[0]
    path = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    raise Problem(422, "bad_option", f"{path}: {first['msg']}{more}", errors=problems)


def _message(problem: Any) -> str:
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, _OPTION_NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"options are {', '.join(_OPTION_NAMES)}"
        return f"unknown option; {hint}"
    if name == "include":
        return f"must be one of {', '.join(INCLUDABLE)} (got {problem['input']!r:.40})"
    return f"{problem['msg']} (got {problem['input']!r:.40})"
