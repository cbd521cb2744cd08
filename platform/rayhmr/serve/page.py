"""The page at `/`: static files of this package and nothing from any other address."""

from __future__ import annotations

import hashlib
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import Response

from rayhmr.serve.problems import Problem

_TYPES = {
    "css": "text/css", "html": "text/html", "js": "text/javascript", "jpg": "image/jpeg",
    "svg": "image/svg+xml",
}  # fmt: skip
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}
"""Of everything a browser shows: only this service's own files may run or load."""
_STATIC = resources.files("rayhmr.serve") / "static"


def text(name: str) -> str:
    """A static file."""
    return (_STATIC / name).read_text(encoding="utf-8")


def add_page(app: FastAPI) -> None:
    """The page and its files; they are read once, where the application runs."""
    files = {file.name: file.read_bytes() for file in _STATIC.iterdir() if file.is_file()}

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, "index.html", files["index.html"])

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str, request: Request) -> Response:
        if name not in files:
            raise Problem(404, "not_found", f"/static/{name:.60}: there is no such file")
        return _answer(request, name, files[name])


def _answer(request: Request, name: str, content: bytes) -> Response:
    entity_tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | {"etag": entity_tag}
    if entity_tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_TYPES[name.rpartition(".")[2]])
