"""The routes: what each address answers. Knows HTTP and the model's answers, not Ray.

`build_app` is the whole application over anything that turns Work into a Recovery; the replica of
`rayhmr.serve.app` gives it batches, and the tests a bare model.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from rayhmr.serve import openapi, page
from rayhmr.serve.examples import COUNT, Examples
from rayhmr.serve.guard import LIVE_PATHS, READY_PATHS, Guard, Limits
from rayhmr.serve.inference_protocol import add_inference_protocol
from rayhmr.serve.metrics import CONTENT_TYPE, Metered
from rayhmr.serve.predict_routes import add_predict
from rayhmr.serve.problems import Problem
from rayhmr.serve.schema import HealthAnswer, ModelAnswer, ModelsAnswer
from rayhmr.serve.served import Service

FACES_TYPE = "application/octet-stream"
_FOR_EVER = "private, max-age=31536000, immutable"

_Name = Annotated[str, Path(description="name, name@version or name@alias")]
_Body = Annotated[str | None, Query(description="The first 12 or more digits of the body's hash")]
_Number = Annotated[str, Path(description=f"0 to {COUNT - 1}")]


def build_app(service: Service, limits: Limits, *, inference_protocol: bool = False) -> FastAPI:
    """The application; it serves every request in the event loop that runs it.

    inference_protocol: also answer under /v2, as the Open Inference Protocol has it.
    """
    app = FastAPI(
        title="rayhmr", summary="Human mesh recovery: a picture in, a body mesh out",
        version=service.find(None).info.version, docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip
    _add_health(app, service)
    _add_models(app, service)
    add_predict(app, service)
    _add_examples(app, service)
    _add_metrics(app, service)
    if inference_protocol:
        add_inference_protocol(app, service)
    page.add_page(app)
    openapi.add_description(app, key_required=bool(limits.key_digests))
    app.add_exception_handler(HTTPException, _as_problem)
    app.add_middleware(Guard, limits=limits)
    app.add_middleware(Metered, metrics=service.metrics, routes=app.routes)
    return app


async def _as_problem(request: Request, error: Exception) -> Response:
    """Starlette's own refusals in our form."""
    assert isinstance(error, HTTPException)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    detail = f"{request.method} {request.url.path:.80}: {error.detail}; see /docs"
    problem = Problem(error.status_code, code, detail, headers=error.headers)
    return problem.response(request.state.request_id)


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get(LIVE_PATHS[0], response_model=HealthAnswer, tags=["health"])
    @app.get(LIVE_PATHS[1], include_in_schema=False)
    async def live() -> Response:
        """Whether the process answers. Needs no key."""
        return JSONResponse({"status": "live"})

    @app.get(
        READY_PATHS[0], response_model=HealthAnswer, tags=["health"],
        responses={503: {"model": HealthAnswer}},
    )  # fmt: skip
    @app.get(READY_PATHS[1], include_in_schema=False)
    async def ready() -> Response:
        """Whether the model's weights are verified and warm. Needs no key."""
        if service.is_ready():
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "not ready"}, 503)


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", response_model=ModelsAnswer, tags=["models"])
    async def models() -> Response:
        """The models served here, the one that answers unless another is chosen first; and versions
        that are to take over, or were refused, with the reason."""
        models = [one.info.as_json() for one in service.models.values()]
        return JSONResponse({"models": models, "rollouts": service.rollouts()})

    @app.get("/v1/models/{name}", response_model=ModelAnswer, tags=["models"])
    async def model(name: _Name) -> Response:
        """One model: its body, joints, input size and metrics."""
        return JSONResponse(service.find(name).info.as_json())

    @app.get(
        "/v1/models/{name}/faces", response_class=Response, tags=["models"],
        responses={200: {"content": {FACES_TYPE: {}}}},
    )  # fmt: skip
    async def faces(name: _Name, request: Request, body: _Body = None) -> Response:
        """The triangles of the body as little-endian u32, three a triangle. With the `body` of
        `faces_url` the answer may be kept for ever."""
        info = service.find(name).info
        named = body is not None and info.body_hash.startswith(body) and len(body) >= 12
        entity_tag = f'"{info.body_hash[:32]}"'
        headers = {"etag": entity_tag, "cache-control": _FOR_EVER if named else "no-cache"}
        if entity_tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(info.faces, headers=headers, media_type=FACES_TYPE)


def _add_examples(app: FastAPI, service: Service) -> None:
    examples = Examples(service.find(None).info.body)

    @app.get(
        "/v1/examples/{number}", response_class=Response, tags=["examples"],
        responses={200: {"content": {"image/jpeg": {}}}},
    )  # fmt: skip
    async def example(number: _Number) -> Response:
        """A picture of a made-up person to try the service with."""
        return Response(await service.run(examples.jpeg, number), media_type="image/jpeg")


def _add_metrics(app: FastAPI, service: Service) -> None:
    @app.get(
        "/metrics", response_class=Response, tags=["operation"],
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )  # fmt: skip
    async def metrics() -> Response:
        """Counters of this process for Prometheus: requests, refusals, latency, batches, queue."""
        text = await service.run(service.metrics.text, dict(service.models))
        return Response(text, media_type=CONTENT_TYPE)
