"""A server as the service runs one, in a process of its own: its first line of output is its port.

Arguments: a bundle, and the API key. The patience of its connections is a second, for the tests.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from hmr.checkpoint import load_bundle
from rayhmr.serve import bodies, connections
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.api import build_app
from rayhmr.serve.guard import Limits
from rayhmr.serve.inference import recover_batch
from rayhmr.serve.keys import digest_of
from rayhmr.serve.served import ServedModel, Service


def main(bundle: str, key: str) -> None:
    predictor = load_bundle(bundle)

    async def recover(work):
        (result,) = await asyncio.to_thread(recover_batch, predictor, [work])
        if isinstance(result, Exception):
            raise result
        return result

    info = ModelInfo.of(predictor, name="tiny", version="1", aliases=())
    served = ServedModel(info=info, recover=recover, is_ready=lambda: True)
    service = Service(models={"tiny": served}, threads=ThreadPoolExecutor(2))
    limits = Limits(
        max_body_bytes=20_000_000, request_timeout_s=30.0, max_requests=80,
        key_digests=(digest_of(key),),
    )  # fmt: skip
    bodies.GRACE_S = 1.0
    connections.Connection.head_s = connections.Connection.read_s = 1.0
    listener = socket.create_server(("127.0.0.1", 0))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    config = uvicorn.Config(
        build_app(service, limits), lifespan="off", log_level="info",
        **connections.uvicorn_options(),
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
