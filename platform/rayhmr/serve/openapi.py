"""`/openapi.json`, and `/docs`: the same as a page made here, since the usual one needs a CDN."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rayhmr.serve import page
from rayhmr.serve.intake import IMAGE_TYPES
from rayhmr.serve.media import GLB, JSON, NPZ, PNG, ZIP
from rayhmr.serve.schema import (
    MAX_IMAGES,
    BatchAnswer,
    BatchOptions,
    Options,
    PredictAnswer,
    PredictBatchBody,
    PredictBody,
    ProblemAnswer,
)

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = "application/problem+json"
_BINARY = {"type": "string", "format": "binary"}
_REFUSALS = {
    "400": "Malformed form or JSON",
    "401": "Key missing or wrong",
    "404": "Nothing of that name",
    "406": "No form of the answer that Accept allows",
    "408": "The deadline passed",
    "413": "Body or picture too large",
    "415": "Not a picture, or a content type that is not taken",
    "422": "An option or the picture breaks a rule",
    "429": "Overload; try again after Retry-After seconds",
    "500": "Ours",
}
_CURL = {
    "/v1/predict": (
        "curl -sF image=@person.jpg {base}/v1/predict",
        "curl -s --data-binary @person.jpg -H 'content-type: image/jpeg' "
        "-H 'accept: model/gltf-binary' {base}/v1/predict -o person.glb",
    ),
    "/v1/predict/batch": (
        "curl -sF image=@one.jpg -F image=@two.jpg {base}/v1/predict/batch",
        "curl -sF image=@one.jpg -F image=@two.jpg -F files=glb -H 'accept: application/zip' "
        "{base}/v1/predict/batch -o people.zip",
    ),
}


def add_description(app: FastAPI, *, key_required: bool) -> None:
    """Routes for the description of the other routes. key_required: whether there is a key."""
    description = describe(app, key_required=key_required)
    content = _page(description).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(description)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(content, media_type="text/html", headers=page.HEADERS)


def describe(app: FastAPI, *, key_required: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of the application's routes, with what FastAPI cannot see in the code."""
    tree = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    own = (
        *((model, "serialization") for model in (PredictAnswer, BatchAnswer, ProblemAnswer)),
        *((model, "validation") for model in (PredictBody, PredictBatchBody)),
    )
    _, schemas = models_json_schema(own, ref_template=_REFERENCE)  # type: ignore[arg-type]
    tree.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    tree["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    files = _binary(GLB, NPZ, PNG)
    tree["paths"]["/v1/predict"]["post"] |= {
        "parameters": _parameters(Options),
        "requestBody": _body(Options, PredictBody, _BINARY, IMAGE_TYPES),
        "responses": {"200": _answer("The people of the picture", PredictAnswer, files)},
    }
    images = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": MAX_IMAGES}
    archive = _binary(ZIP)
    tree["paths"]["/v1/predict/batch"]["post"] |= {
        "parameters": _parameters(BatchOptions),
        "requestBody": _body(BatchOptions, PredictBatchBody, images, ()),
        "responses": {
            "200": _answer("The people of every picture", BatchAnswer, archive),
            "207": _answer("Some pictures failed, the others did not", BatchAnswer, archive),
        },
    }
    for methods in tree["paths"].values():
        for operation in methods.values():
            _add_refusals(operation, key_required)
    return tree


def _reference(model: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _binary(*kinds: str) -> dict[str, Any]:
    return {kind: {"schema": _BINARY} for kind in kinds}


def _parameters(options: type[BaseModel]) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "description": options.model_fields[name].description}
        | _as_text(schema)
        for name, schema in _schemas(options).items()
    ]


def _schemas(options: type[BaseModel]) -> dict[str, Any]:
    """The schema of every option by its name."""
    schemas: dict[str, Any] = options.model_json_schema(ref_template=_REFERENCE)["properties"]
    return schemas


def _as_text(schema: dict[str, Any]) -> dict[str, Any]:
    """How an option stands in an address: words as they are, several with a comma between, and
    everything else as JSON."""
    if schema.get("items", {}).get("type") == "string":
        return {"schema": schema, "style": "form", "explode": False}
    if {"type": "string"} in schema.get("anyOf", ()) or schema.get("type") == "string":
        return {"schema": {"type": "string"} | {k: schema[k] for k in ("enum",) if k in schema}}
    return {"content": {JSON: {"schema": schema}}}


def _body(
    options: type[BaseModel], body: type[BaseModel], image: dict[str, Any], kinds: tuple[str, ...]
) -> dict[str, Any]:
    """A form with the options as text, the same as JSON, or an image alone in one of `kinds`."""
    schemas = _schemas(options)
    texts = {name: _as_text(schema) for name, schema in schemas.items()}
    form = {
        "schema": {
            "type": "object", "required": ["image"], "properties": {"image": image} | schemas,
        },
        "encoding": {name: {"contentType": JSON} for name, text in texts.items()
                     if "content" in text},
    }  # fmt: skip
    content = {"multipart/form-data": form, JSON: {"schema": _reference(body)}}
    return {"required": True, "content": content | _binary(*kinds)}


def _answer(text: str, model: type, files: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {JSON: {"schema": _reference(model)}} | files}


def _add_refusals(operation: dict[str, Any], key_required: bool) -> None:
    if operation["responses"]["200"]["description"] == "Successful Response":
        operation["responses"]["200"]["description"] = "The answer"
    if "health" in operation["tags"]:
        return
    operation["security"] = [{"key": []}] if key_required else [{"key": []}, {}]
    named = ("404",) if any(one["in"] == "path" for one in operation.get("parameters", ())) else ()
    expected = _REFUSALS if "predict" in operation["tags"] else ("401", *named, "500")
    operation["responses"].pop("422", None)  # FastAPI's own form, which never leaves
    for status in expected:
        content = {_PROBLEM: {"schema": _reference(ProblemAnswer)}}
        operation["responses"][status] = {"description": _REFUSALS[status], "content": content}


def _page(description: dict[str, Any]) -> str:
    sections = [
        _operation(path, method, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return page.text("docs.html").replace("<!-- operations -->", "\n".join(sections))


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    curl = _CURL.get(path, (f"curl -s {{base}}{path.replace('{', '<').replace('}', '>')}",))
    examples = "\n".join(escape(line.format(base="http://127.0.0.1:8000")) for line in curl)
    rows = "".join(
        f"<tr><td><code>{escape(one['name'])}</code></td>"
        f"<td>{_marked(one.get('description', one['in']))}</td></tr>"
        for one in operation.get("parameters", [])
    )
    bodies = ", ".join(operation.get("requestBody", {}).get("content", {}))
    rows += f"<tr><td>body</td><td><code>{escape(bodies)}</code></td></tr>" if bodies else ""
    for status, answer in operation["responses"].items():
        kinds = ", ".join(answer.get("content", {}))
        rows += (f"<tr><td>{status}</td><td>{escape(answer['description'])} "
                 f"<code>{escape(kinds)}</code></td></tr>")  # fmt: skip
    return (
        f"<section class=card><h2><span class=method>{method.upper()}</span> "
        f"<code>{escape(path)}</code></h2><p>{_marked(operation.get('description', ''))}</p>"
        f"<table>{rows}</table><pre>{examples}</pre></section>"
    )


def _marked(text: str) -> str:
    """Text as HTML, what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if n % 2 else part for n, part in enumerate(parts))
