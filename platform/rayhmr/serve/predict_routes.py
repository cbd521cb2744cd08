"""The routes that take pictures: one a request, or several."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import Response

from hmr.crops import Frame, decode_frame, is_turned
from hmr.person_crops import shortest_box
from rayhmr.serve import answers
from rayhmr.serve.answered import Answered
from rayhmr.serve.batch_answers import MEDIA_OF_FILE, Item, batch_json, batch_zip
from rayhmr.serve.batch_intake import read_batch
from rayhmr.serve.inference import Camera, Work
from rayhmr.serve.intake import Intake, read_request
from rayhmr.serve.media import JSON, ZIP, negotiate
from rayhmr.serve.problems import Problem, problem_of
from rayhmr.serve.schema import Options
from rayhmr.serve.served import ServedModel, Service

_IN_FLIGHT = 16
"""Images of batch requests, all together, that are decoded or computed at a time: a bound on their
memory, and room for requests with one picture."""

_FEW_PEOPLE = 4
"""JSON of more people is written off the event loop."""

_SMALL_FILE = 1 << 16
"""Bytes of a picture that is decoded in about a millisecond."""

_log = logging.getLogger(__name__)


def add_predict(app: FastAPI, service: Service) -> None:
    """POST /v1/predict and /v1/predict/batch."""

    @app.post("/v1/predict", response_class=Response, tags=["predict"])
    async def predict(request: Request) -> Response:
        """The people of one picture. `Accept` chooses the form of the answer: JSON, a GLB scene, an
        npz archive, or the picture with the meshes drawn over it as PNG."""
        media = negotiate(request.headers.get("accept"))
        intake = await read_request(request)
        served = service.find(intake.options.model)
        answered = await recovered(
            service, served, intake, request.state.request_id, mesh=_has_mesh(media, intake.options)
        )  # fmt: skip
        if media == JSON and _is_short(answered):  # less than the way to a thread and back
            content = answers.write(answered, media)
        else:
            content = await service.run(answers.write, answered, media)
        return Response(content, media_type=media, headers={"vary": "accept"})

    free = asyncio.Semaphore(_IN_FLIGHT)

    @app.post("/v1/predict/batch", response_class=Response, tags=["predict"])
    async def predict_batch(request: Request) -> Response:
        """The people of several pictures, in the order they were sent. A picture that fails has a
        problem in its place and the others their answers; the status is then 207. `Accept` chooses
        JSON, or a ZIP archive with a file for each picture in the form that `files` names."""
        media = negotiate(request.headers.get("accept"), (JSON, ZIP))
        batch = await read_batch(request)
        served = service.find(batch.options.model)
        request_id = request.state.request_id
        ending = "json" if media == JSON else batch.options.files

        async def answer(intake: Intake | Problem) -> Item:
            if isinstance(intake, Problem):
                return intake
            async with free:
                media = MEDIA_OF_FILE[ending]
                answered = await recovered(
                    service, served, intake, request_id, mesh=_has_mesh(media, intake.options)
                )
                return await service.run(answers.write, answered, media)

        items = [
            _item(service, one, request_id)
            for one in await asyncio.gather(*map(answer, batch.items), return_exceptions=True)
        ]
        status = 207 if any(isinstance(item, Problem) for item in items) else 200
        if media == JSON:
            content = await service.run(batch_json, served.info, request_id, items)
        else:
            content = await service.run(batch_zip, served.info, request_id, items, ending)
        return Response(content, status, media_type=media, headers={"vary": "accept"})


def _has_mesh(media: str, options: Options) -> bool:
    """Whether the answer shows or holds vertices."""
    return media != JSON or not {"vertices", "overlay"}.isdisjoint(options.include)


def _is_short(answered: Answered) -> bool:
    """Whether the JSON is a few numbers a person."""
    return not answered.options.include and len(answered.recovery.people) <= _FEW_PEOPLE


def _item(service: Service, result: Item | BaseException, request_id: str) -> Item:
    """What stands in an image's place; failures are counted and, where they are ours, logged."""
    if isinstance(result, bytes):
        return result
    if not isinstance(result, Exception):
        raise result
    problem = problem_of(result)
    if problem.status >= 500:
        _log.error("an image of request %s failed", request_id, exc_info=result)
    service.metrics.reject(problem.code)
    return problem


async def recovered(
    service: Service, served: ServedModel, intake: Intake, request_id: str, *, mesh: bool
) -> Answered:
    """What came of one picture: decode, and wait for the model. mesh: whether it is needed."""
    start = time.perf_counter()
    if service.metrics.in_flight == 1 and _is_small(intake):  # nobody would be held up
        work, exif_rotated = _work(intake, served.info.input_size, mesh)
    else:
        work, exif_rotated = await service.run(_work, intake, served.info.input_size, mesh)
    decoded = time.perf_counter()
    recovery = await served.recover(work)
    waited_ms = 1000 * (time.perf_counter() - decoded)
    service.metrics.people(served.info.name, len(recovery.people))
    return Answered(
        request_id=request_id, info=served.info, options=intake.options,
        work=work, exif_rotated=exif_rotated, recovery=recovery,
        content=intake.data if isinstance(intake.data, bytes) and work.frame.shrink > 1 else None,
        timing_ms={
            "decode": 1000 * (decoded - start),
            "queue": max(0.0, waited_ms - recovery.model_ms - recovery.post_ms),
            "model": recovery.model_ms,
            "post": recovery.post_ms,
        },
    )  # fmt: skip


def _is_small(intake: Intake) -> bool:
    return len(intake.data) <= _SMALL_FILE


def _work(intake: Intake, image_size: int, mesh: bool) -> tuple[Work, bool]:
    """Decode; whether the picture had to be turned upright."""
    given, options = intake.data, intake.options
    boxes = _boxes(options)
    if isinstance(given, np.ndarray):
        frame, turned = Frame(given), False
    else:
        side = None if boxes is None else shortest_box(boxes)
        frame, turned = decode_frame(given, image_size, side), is_turned(given)
    work = Work(
        image=frame, boxes=boxes, n_iter=options.n_iter, camera=_camera(options), mesh=mesh,
        step_meshes={"vertices", "iterations"} <= set(options.include),
    )  # fmt: skip
    return work, turned


def _boxes(options: Options) -> np.ndarray | None:
    if options.boxes is None:
        return None
    return np.array(options.boxes, np.float64).reshape(-1, 4)


def _camera(options: Options) -> Camera | None:
    if options.camera is None:
        return None
    return Camera(**options.camera.model_dump())
