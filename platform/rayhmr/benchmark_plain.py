"""The peer of `benchmark.py serve`: what one would write in an afternoon. uvicorn and FastAPI, one
model, one picture at a time in the event loop, the same decoder, predictor and answer as ours.

Run as `python -m rayhmr.benchmark_plain BUNDLE PORT THREADS`. No guard, no queue, no batches.
"""

from __future__ import annotations

import sys
import uuid

import cv2
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from hmr.checkpoint import load_bundle
from hmr.crops import decode_frame
from hmr.predictor import Predictor
from rayhmr.serve import answers
from rayhmr.serve.answered import Answered, ModelInfo
from rayhmr.serve.inference import Work, recover_batch
from rayhmr.serve.media import JSON
from rayhmr.serve.schema import Options


def plain_app(predictor: Predictor, info: ModelInfo) -> FastAPI:
    """One route, which answers as `/v1/predict` does to a picture without options."""
    app = FastAPI()

    @app.get("/readyz")
    async def ready() -> str:
        return "ready"

    @app.post("/v1/predict")
    async def predict(request: Request) -> Response:
        work = Work(image=decode_frame(await request.body(), predictor.image_size), mesh=False)
        (recovery,) = recover_batch(predictor, [work])
        if isinstance(recovery, Exception):
            raise recovery
        answered = Answered(
            request_id=uuid.uuid4().hex, info=info, options=Options(), work=work,
            exif_rotated=False, recovery=recovery,
            timing_ms={"model": recovery.model_ms, "post": recovery.post_ms},
        )  # fmt: skip
        return Response(answers.write(answered, JSON), media_type=JSON)

    return app


def main() -> None:
    """Serve until SIGTERM."""
    bundle, port, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    cv2.setNumThreads(int(threads))
    predictor = load_bundle(bundle)
    info = ModelInfo.of(predictor, name="benchmark", version="1")
    uvicorn.run(plain_app(predictor, info), port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
