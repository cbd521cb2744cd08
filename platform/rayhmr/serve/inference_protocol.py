"""The Open Inference Protocol (KServe v2) over the same models: `/v2/...`, for platforms that speak
it. Left out unless serve.inference_protocol is set.

Inputs: `image`, BYTES [1], an encoded file, or UINT8 [H, W, 3], upright RGB; optionally `boxes`
[N, 4], `camera` [4] (fx, fy, cx, cy) and `n_iter` [1]. Outputs have the names, units and axes of
`/v1/predict`, a row for each person. Refusals are problems with one more key, `error`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from hmr.crops import MAX_PIXELS, MIN_SIDE
from rayhmr.serve.answer_files import columns
from rayhmr.serve.answered import Answered, ModelInfo
from rayhmr.serve.intake import Intake, Pairs, checked
from rayhmr.serve.media import JSON
from rayhmr.serve.predict_routes import recovered
from rayhmr.serve.problems import Problem, problem_of
from rayhmr.serve.schema import Options
from rayhmr.serve.served import ServedModel, Service
from rayhmr.serve.tensors import HEADER_LENGTH, InferRequest, Tensors, read_infer, write_infer

_INPUTS = (
    {"name": "image", "datatype": "BYTES", "shape": [1]},
    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
    {"name": "camera", "datatype": "FP32", "shape": [4]},
    {"name": "n_iter", "datatype": "INT32", "shape": [1]},
)
_OUTPUTS = {
    "box_xyxy": (4,), "global_orient": (3,), "body_pose": (69,), "betas": (10,), "cam_t": (3,),
    "weak_cam": (3,), "joints_3d": (24, 3), "joints_2d": (24, 2),
}  # fmt: skip
"""Answered unless others are asked for; `vertices` only when asked for."""
_MODEL = "/v2/models/{name}"
_VERSION = _MODEL + "/versions/{version}"

_log = logging.getLogger(__name__)


def add_inference_protocol(app: FastAPI, service: Service) -> None:
    """The routes of the protocol; their description is the protocol's own."""
    _add_state(app, service)

    @app.post(_MODEL + "/infer", include_in_schema=False)
    @app.post(_VERSION + "/infer", include_in_schema=False)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        try:
            return await _infer(service, _find(service, name, version), request)
        except Exception as error:
            problem = problem_of(error)
            request_id = request.state.request_id
            if problem.status >= 500:
                _log.exception("request %s failed", request_id)
            content = problem.content(request_id) | {"error": problem.detail}
            return JSONResponse(
                content, problem.status, problem.headers, media_type="application/problem+json"
            )


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v2", include_in_schema=False)
    async def server() -> Response:
        return JSONResponse(
            {"name": "rayhmr", "version": app.version, "extensions": ["binary_tensor_data"]}
        )

    @app.get("/v2/health/live", include_in_schema=False)
    async def live() -> Response:
        return JSONResponse({"live": True})

    @app.get("/v2/health/ready", include_in_schema=False)
    async def ready() -> Response:
        return JSONResponse({"ready": service.is_ready()}, 200 if service.is_ready() else 503)

    @app.get(_MODEL, include_in_schema=False)
    @app.get(_VERSION, include_in_schema=False)
    async def metadata(name: str, version: str | None = None) -> Response:
        return JSONResponse(_metadata(_find(service, name, version).info))

    @app.get(_MODEL + "/ready", include_in_schema=False)
    @app.get(_VERSION + "/ready", include_in_schema=False)
    async def model_ready(name: str, version: str | None = None) -> Response:
        is_ready = _find(service, name, version).is_ready()
        return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


def _find(service: Service, name: str, version: str | None) -> ServedModel:
    return service.find(name if version is None else f"{name}@{version}")


def _metadata(info: ModelInfo) -> dict[str, Any]:
    shapes = _OUTPUTS | {"vertices": info.body.v_template.shape}
    return {
        "name": info.name,
        "versions": [info.version],
        "platform": "rayhmr",
        "inputs": list(_INPUTS),
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, *shape]}
            for name, shape in shapes.items()
        ],
    }


async def _infer(service: Service, served: ServedModel, request: Request) -> Response:
    body = await request.body()
    asked, tensors = await asyncio.to_thread(read_infer, body, request.headers.get(HEADER_LENGTH))
    names = _wanted(asked)
    answered = await recovered(
        service, served, _intake(tensors), request.state.request_id, mesh="vertices" in names
    )  # fmt: skip
    content, header_length = await service.run(_write, answered, asked, names)
    if header_length is None:
        return Response(content, media_type=JSON)
    return Response(
        content, media_type="application/octet-stream", headers={HEADER_LENGTH: str(header_length)}
    )


def _wanted(asked: InferRequest) -> list[str]:
    known = (*_OUTPUTS, "vertices")
    names = list(_OUTPUTS) if asked.outputs is None else [output.name for output in asked.outputs]
    for name in names:
        if name not in known:
            raise Problem(
                422, "bad_tensor", f"output {name:.60}: there is none; {', '.join(known)} are"
            )
    return list(dict.fromkeys(names))


def _intake(tensors: Tensors) -> Intake:
    image = tensors.pop("image", None)
    if image is None:
        raise Problem(422, "no_image", "inputs: there is none called image; give it as BYTES [1]")
    data = image if isinstance(image, bytes) else _pixels(image)
    pairs: Pairs = []
    for name, value in tensors.items():
        if name not in ("boxes", "camera", "n_iter") or isinstance(value, bytes):
            raise Problem(
                422,
                "bad_tensor",
                f"input {name:.60}: image (BYTES or UINT8) and boxes, camera, n_iter (numbers) are "
                "taken",
            )
        pairs.append((name, _option(name, value)))
    return Intake(data=data, options=checked(pairs, Options))


def _pixels(array: np.ndarray) -> np.ndarray:
    """(H, W, 3) of an upright picture; a leading 1 is dropped."""
    shape = list(array.shape)
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise Problem(
            422,
            "bad_tensor",
            f"image is {array.dtype} {shape}: must be BYTES [1], an encoded file, or UINT8 "
            "[height, width, 3], RGB",
        )
    height, width = array.shape[:2]
    if min(height, width) < MIN_SIDE or height * width > MAX_PIXELS:
        raise Problem(
            422,
            "bad_tensor",
            f"image has {width} x {height} pixels: every side needs {MIN_SIDE}, and "
            f"{MAX_PIXELS:,} are the most",
        )
    return array


def _option(name: str, array: np.ndarray) -> Any:
    """What `/v1/predict` would be given."""
    if name == "boxes":
        return array.reshape(-1, 4).tolist() if array.shape[-1:] == (4,) else array.tolist()
    values = array.reshape(-1).tolist()
    if len(values) != (4 if name == "camera" else 1):
        raise Problem(422, "bad_tensor", f"input {name}: has the shape {list(array.shape)}")
    if name == "camera":
        return dict(zip(("fx", "fy", "cx", "cy"), map(float, values), strict=True))
    return values[0]


def _write(answered: Answered, asked: InferRequest, names: list[str]) -> tuple[bytes, int | None]:
    found = columns(answered)
    outputs = {name: found[name] for name in names}
    # One wish for all, which each output may contradict.
    for_all = asked.parameters.get("binary_data_output", False)
    wishes = {part.name: part.parameters.get("binary_data", for_all)
              for part in asked.outputs or ()}  # fmt: skip
    head = {"model_name": answered.info.name, "model_version": answered.info.version}
    if asked.id is not None:
        head["id"] = asked.id
    binary = [name for name in names if wishes.get(name, for_all) is True]
    return write_infer(head, outputs, binary)
