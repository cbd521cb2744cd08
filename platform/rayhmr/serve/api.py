"""The routes: what each address answers. Knows HTTP and the model's answers, not Ray.

`build_app` is the whole application over anything that turns Work into a Recovery; the replica of
`rayhmr.serve.app` gives it batches, and the tests a bare model.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hmr.crops import decode_image, is_turned
from rayhmr.serve import answers, openapi, page
from rayhmr.serve.answers import Answered, ModelInfo
from rayhmr.serve.examples import Examples
from rayhmr.serve.guard import LIVE_PATHS, READY_PATHS, Guard, Limits
from rayhmr.serve.inference import Camera, Recovery, Work
from rayhmr.serve.intake import Intake, read_request
from rayhmr.serve.problems import Problem
from rayhmr.serve.schema import HealthAnswer, ModelAnswer, ModelsAnswer, Options

FACES_TYPE = "application/octet-stream"
_FOR_EVER = "private, max-age=31536000, immutable"
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes work with.

    recover: answers one Work, waiting for a batch where there is one. is_ready: whether the model
    answers as it should. threads: where pictures are decoded and answers written.
    """

    info: ModelInfo
    recover: Callable[[Work], Awaitable[Recovery]]
    is_ready: Callable[[], bool]
    threads: Executor

    async def run(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """The result of `function`, computed off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)


def build_app(service: Service, limits: Limits) -> FastAPI:
    """The application; it serves every request in the event loop that runs it."""
    app = FastAPI(
        title="rayhmr", summary="Human mesh recovery: a picture in, a body mesh out",
        version=service.info.version, docs_url=None, redoc_url=None, openapi_url=None,
    )  # fmt: skip
    _add_health(app, service)
    _add_models(app, service)
    _add_predict(app, service)
    _add_examples(app, service)
    page.add_page(app)
    openapi.add_description(app)
    app.add_exception_handler(HTTPException, _as_problem)
    app.add_middleware(Guard, limits=limits)
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


def _check_model(info: ModelInfo, reference: str) -> None:
    known = [info.name, f"{info.name}@{info.version}", *(f"{info.name}@{a}" for a in info.aliases)]
    if reference not in known:
        raise Problem(
            404, "unknown_model", f"model {reference:.80}: this service has {', '.join(known)}"
        )


def _add_models(app: FastAPI, service: Service) -> None:
    info = service.info
    entity_tag = f'"{hashlib.sha256(info.faces).hexdigest()[:32]}"'

    @app.get("/v1/models", response_model=ModelsAnswer, tags=["models"])
    async def models() -> Response:
        """The models served here."""
        return JSONResponse({"models": [info.as_json()]})

    @app.get("/v1/models/{name}", response_model=ModelAnswer, tags=["models"])
    async def model(name: str) -> Response:
        """One model: its body, joints, input size and metrics. name, name@version or name@alias."""
        _check_model(info, name)
        return JSONResponse(info.as_json())

    @app.get(
        "/v1/models/{name}/faces", response_class=Response, tags=["models"],
        responses={200: {"content": {FACES_TYPE: {}}}},
    )  # fmt: skip
    async def faces(name: str, request: Request, body: str | None = None) -> Response:
        """The triangles of the body as little-endian u32, three a triangle. With the `body` of
        `faces_url` the answer may be kept for ever."""
        _check_model(info, name)
        named = body is not None and info.body_hash.startswith(body) and len(body) >= 12
        headers = {"etag": entity_tag, "cache-control": _FOR_EVER if named else "no-cache"}
        if entity_tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(info.faces, headers=headers, media_type=FACES_TYPE)


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/v1/predict", response_class=Response, tags=["predict"])
    async def predict(request: Request) -> Response:
        """The people of one picture. `Accept` chooses the form of the answer: JSON, a GLB scene, an
        npz archive, or the picture with the meshes drawn over it as PNG."""
        media = answers.negotiate(request.headers.get("accept"))
        intake = await read_request(request)
        if intake.options.model is not None:
            _check_model(service.info, intake.options.model)
        start = time.perf_counter()
        work, exif_rotated = await service.run(_work, intake)
        decoded = time.perf_counter()
        recovery = await service.recover(work)
        recovered = time.perf_counter()
        waited_ms = 1000 * (recovered - decoded)
        answered = Answered(
            request_id=request.state.request_id, info=service.info, options=intake.options,
            work=work, exif_rotated=exif_rotated, recovery=recovery,
            timing_ms={
                "decode": 1000 * (decoded - start),
                "queue": max(0.0, waited_ms - recovery.model_ms - recovery.post_ms),
                "model": recovery.model_ms,
                "post": recovery.post_ms,
            },
        )  # fmt: skip
        content = await service.run(answers.write, answered, media)
        return Response(content, media_type=media, headers={"vary": "accept"})


def _add_examples(app: FastAPI, service: Service) -> None:
    examples = Examples(service.info.body)

    @app.get(
        "/v1/examples/{number}", response_class=Response, tags=["examples"],
        responses={200: {"content": {"image/jpeg": {}}}},
    )  # fmt: skip
    async def example(number: str) -> Response:
        """A picture of a made-up person to try the service with."""
        return Response(await service.run(examples.jpeg, number), media_type="image/jpeg")


def _work(intake: Intake) -> tuple[Work, bool]:
    """Decode; whether the picture had to be turned upright."""
    image = decode_image(intake.data)
    options = intake.options
    work = Work(
        image=image, boxes=_boxes(options), n_iter=options.n_iter, camera=_camera(options),
        step_meshes={"vertices", "iterations"} <= set(options.include),
    )  # fmt: skip
    return work, is_turned(intake.data)


def _boxes(options: Options) -> np.ndarray | None:
    if options.boxes is None:
        return None
    return np.array(options.boxes, np.float64).reshape(-1, 4)


def _camera(options: Options) -> Camera | None:
    if options.camera is None:
        return None
    return Camera(**options.camera.model_dump())
