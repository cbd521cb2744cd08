"""`/openapi.json`, and `/docs`: the same as a page made here, since the usual one needs a CDN."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic.json_schema import models_json_schema

from rayhmr.serve import page
from rayhmr.serve.answers import GLB, JSON, NPZ, PNG
from rayhmr.serve.intake import IMAGE_TYPES
from rayhmr.serve.schema import Options, PredictAnswer, PredictBody, ProblemAnswer

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM = "application/problem+json"
_BINARY = {"type": "string", "format": "binary"}
_REFUSALS = {
    "400": "Malformed form or JSON",
    "401": "Key missing or wrong",
    "404": "Unknown model",
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
}


def add_description(app: FastAPI) -> None:
    """Routes for the description of the other routes."""
    description = describe(app)
    content = _page(description).encode()

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return JSONResponse(description)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(content, media_type="text/html", headers=page.HEADERS)


def describe(app: FastAPI) -> dict[str, Any]:
    """OpenAPI 3.1 of the application's routes, with what FastAPI cannot see in the code."""
    tree = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    own = ((PredictAnswer, "serialization"), (PredictBody, "validation"),
           (ProblemAnswer, "serialization"))  # fmt: skip
    _, schemas = models_json_schema(own, ref_template=_REFERENCE)  # type: ignore[arg-type]
    tree.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    tree["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    predict = tree["paths"]["/v1/predict"]["post"]
    predict["parameters"] = [
        {
            "name": name,
            "in": "query",
            "description": field.description,
            "schema": {"type": "string"},
        }
        for name, field in Options.model_fields.items()
    ]
    predict["requestBody"] = {"required": True, "content": _request()}
    predict["responses"] = {"200": {"description": "The people of the picture",
                                    "content": _answers()}}  # fmt: skip
    for methods in tree["paths"].values():
        for operation in methods.values():
            _add_refusals(operation)
    return tree


def _reference(model: type) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _request() -> dict[str, Any]:
    fields = {name: {"type": "string", "description": field.description}
              for name, field in Options.model_fields.items()}  # fmt: skip
    form = {"type": "object", "required": ["image"], "properties": {"image": _BINARY} | fields}
    images = {kind: {"schema": _BINARY} for kind in IMAGE_TYPES}
    return {
        "multipart/form-data": {"schema": form}, JSON: {"schema": _reference(PredictBody)},
    } | images  # fmt: skip


def _answers() -> dict[str, Any]:
    files = {kind: {"schema": _BINARY} for kind in (GLB, NPZ, PNG)}
    return {JSON: {"schema": _reference(PredictAnswer)}} | files


def _add_refusals(operation: dict[str, Any]) -> None:
    if "health" in operation["tags"]:
        return
    operation["security"] = [{"key": []}, {}]
    expected = _REFUSALS if "predict" in operation["tags"] else ("401", "404", "500")
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
        f"<td>{escape(one.get('description', one['in']))}</td></tr>"
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
        f"<code>{escape(path)}</code></h2><p>{escape(operation.get('description', ''))}</p>"
        f"<table>{rows}</table><pre>{examples}</pre></section>"
    )
