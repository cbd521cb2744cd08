"""The process that answers HTTP: it decodes, cuts out, queues and writes; models run in others.

Models dial in (`rayhmr.serve.worker`) and introduce themselves. From then on they get batches; a
model's process that dies is a closed connection, and its batch goes to another one. Clients keep
one address through every exchange of models. No Ray in here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import uvicorn

from hmr.crops import decode_image, encode_jpeg
from rayhmr.serve import answers, exchange, notices, wire
from rayhmr.serve.answered import Answered
from rayhmr.serve.api import build_app
from rayhmr.serve.batcher import Batcher, LaneLostError
from rayhmr.serve.connections import uvicorn_options
from rayhmr.serve.exchange import Introduction
from rayhmr.serve.guard import Limits
from rayhmr.serve.inference import Computed, Prepared, Recovery, Work, finish, probe_work
from rayhmr.serve.media import MEDIA_TYPES
from rayhmr.serve.metrics import Metrics
from rayhmr.serve.schema import Options
from rayhmr.serve.served import ServedModel, Service

DRAIN_S = 5
_FEW_PEOPLE = 4
"""More than that are finished off the event loop."""
_SMALL_PICTURE = 1 << 17
"""Pixels times people; more is cut out off the event loop (4 ms a person in a megapixel)."""
_READ_AHEAD = 8 << 20
"""Bytes of a model's answer: asyncio's 64 kB would stop and start the reading of every batch."""


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """host, port: where clients come in. address: path of the Unix socket that models dial. models:
    names that must have introduced themselves before clients are let in, the default first.
    threads: that decode pictures and write answers. inference_protocol: also answer under /v2.
    tls: paths of a certificate and its key, to answer by HTTPS."""

    host: str
    port: int
    address: str
    models: tuple[str, ...]
    limits: Limits
    threads: int
    inference_protocol: bool = False
    tls: tuple[str, str] | None = None


@dataclass(frozen=True)
class _Version:
    """One version of one model and its queue."""

    hello: Introduction
    batcher: Batcher
    served: ServedModel


class Front:
    """One listening process. It binds its port at once, and answers once its models are there."""

    def __init__(self, settings: FrontSettings) -> None:
        self._settings = settings
        self._listener = _bound(settings.host, settings.port)
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="pictures")
        self._metrics = Metrics()
        self._versions: dict[tuple[str, str, int], _Version] = {}
        self._models: dict[str, ServedModel] = {}
        self._complete = asyncio.Event()
        self._server: uvicorn.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_stopped = False
        self._dialled: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def port(self) -> int:
        """Where clients come in."""
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Answer until `stop`; for a thread of its own."""
        config = uvicorn.Config("", log_config=None, **uvicorn_options())
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(self._run())

    def stop(self) -> None:
        """Let requests under way end, then return from `run`; from any thread."""
        self._is_stopped = True
        if self._server is not None:
            self._server.should_exit = True
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(self._complete.set)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        with self._listener:
            async with await asyncio.start_unix_server(
                self._dials, self._settings.address, limit=_READ_AHEAD
            ):
                await self._complete.wait()
                if not self._is_stopped:
                    await self._answer()
                await self._hang_up()

    async def _answer(self) -> None:
        await self._warm_up()
        folder = Path(self._settings.address).parent
        service = Service(
            models=self._models, threads=self._threads, metrics=self._metrics,
            rollouts=lambda: notices.read(folder, notices.ROLLOUTS, []),
        )  # fmt: skip
        app = build_app(
            service, self._settings.limits, inference_protocol=self._settings.inference_protocol
        )
        certificate, key = self._settings.tls or (None, None)
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, timeout_graceful_shutdown=DRAIN_S,
            ssl_certfile=certificate, ssl_keyfile=key, **uvicorn_options(),
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        await self._server.serve([self._listener])

    async def _hang_up(self) -> None:
        for writer in self._dialled.values():
            writer.close()
        if self._dialled:
            await asyncio.wait(self._dialled)

    async def _warm_up(self) -> None:
        """Do once what a first request would otherwise wait for: functions that are compiled when
        they are first used."""
        loop = asyncio.get_running_loop()
        for served in list(self._models.values()):
            work = probe_work()
            decode_image(encode_jpeg(work.frame.pixels))
            answered = Answered(
                request_id="warm-up", info=served.info, options=Options(), work=work,
                exif_rotated=False, recovery=await served.recover(work), timing_ms={},
            )  # fmt: skip
            for media in MEDIA_TYPES:
                await loop.run_in_executor(self._threads, answers.write, answered, media)

    async def _dials(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One model's process, from its introduction to its end."""
        task = asyncio.current_task()
        assert task is not None  # this is a coroutine
        self._dialled[task] = writer
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                await self._talk(reader, writer)
        finally:
            del self._dialled[task]
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version = self._version(exchange.read_introduction(await wire.read(reader)))
        lane = _Lane(writer, version, self._metrics)
        number = version.batcher.add(lane.compute)
        self._choose(version.hello.info.name)
        try:
            while True:
                lane.answer(await wire.read(reader))
        finally:
            version.batcher.remove(number)
            lane.lose()
            self._choose(version.hello.info.name)

    def _version(self, hello: Introduction) -> _Version:
        info = hello.info
        key = (info.name, info.version, hello.generation)
        if key not in self._versions:
            batcher = Batcher(hello.max_people)
            served = ServedModel(
                info=info,
                recover=partial(self._recover, hello, batcher),
                is_ready=lambda: batcher.lanes > 0,
                queue_length=lambda: batcher.waiting,
            )
            self._versions[key] = _Version(hello, batcher, served)
        return self._versions[key]

    def _choose(self, name: str) -> None:
        """Let the newest version of `name` that has a process answer; forget the others'."""
        mine = {k: v for k, v in self._versions.items() if k[0] == name}
        alive = [v for v in mine.values() if v.batcher.lanes]
        if not alive:
            return  # requests wait for one to come back
        newest = max(alive, key=lambda version: version.hello.generation)
        models = self._models | {name: newest.served}
        order = [n for n in dict.fromkeys(chain(self._settings.models, models)) if n in models]
        self._models.clear()
        self._models.update({n: models[n] for n in order})
        for key, version in mine.items():
            if not version.batcher.lanes and not version.batcher.waiting:
                del self._versions[key]
        generations = {n: self._generation_of(one) for n, one in self._models.items()}
        notices.leave(Path(self._settings.address).parent, notices.ANSWERING, generations)
        if all(n in models for n in self._settings.models):
            self._complete.set()

    def _generation_of(self, served: ServedModel) -> int:
        return next(v.hello.generation for v in self._versions.values() if v.served is served)

    async def _recover(self, hello: Introduction, batcher: Batcher, work: Work) -> Recovery:
        loop = asyncio.get_running_loop()
        cut = partial(
            Prepared.of, work, image_size=hello.info.input_size, padding=hello.padding
        )  # fmt: skip
        if _is_small(work):  # takes less time than the way to a thread and back
            prepared = cut()
        else:
            prepared = await loop.run_in_executor(self._threads, cut)
        computed = await batcher.submit(prepared)
        if len(prepared.crops) <= _FEW_PEOPLE:
            result = finish(work, prepared, computed)
        else:
            result = await loop.run_in_executor(self._threads, finish, work, prepared, computed)
        if isinstance(result, Exception):
            raise result
        return result


class _Lane:
    """The way to one model's process; it has one batch at a time."""

    def __init__(self, writer: asyncio.StreamWriter, version: _Version, metrics: Metrics) -> None:
        self._writer, self._version, self._metrics = writer, version, metrics
        self._pending: asyncio.Future[exchange.Message] | None = None
        self._is_lost = False

    async def compute(self, items: Sequence[Prepared]) -> list[Computed | Exception]:
        """LaneLostError when the process ends before it has answered."""
        if self._is_lost:
            raise LaneLostError
        self._pending = asyncio.get_running_loop().create_future()
        message = exchange.batch_message(items, self._version.batcher.waiting)
        try:
            await wire.write(self._writer, *message)
        except ConnectionError as error:
            raise LaneLostError from error
        results = exchange.read_answer(await self._pending)
        self._measure(results)
        return results

    def _measure(self, results: Sequence[Computed | Exception]) -> None:
        good = [result.model_ms for result in results if isinstance(result, Computed)]
        if good:
            name = self._version.hello.info.name
            self._metrics.batch(name, len(results), max(good) / 1000)

    def answer(self, message: exchange.Message) -> None:
        """What the process sent."""
        if self._pending is not None and not self._pending.done():
            self._pending.set_result(message)

    def lose(self) -> None:
        """The process has hung up."""
        self._is_lost = True
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(LaneLostError())


def _is_small(work: Work) -> bool:
    height, width = work.frame.pixels.shape[:2]
    people = 1 if work.boxes is None else len(work.boxes)
    return height * width * people <= _SMALL_PICTURE


def _bound(host: str, port: int) -> socket.socket:
    family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place)
    return listener
