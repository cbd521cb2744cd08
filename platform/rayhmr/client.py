"""The service from Python: `Client(url, key).predict("person.jpg")`. Needs httpx and numpy only.

with Client("http://127.0.0.1:8000") as client:
    answer = client.predict("person.jpg", boxes=[[10, 20, 110, 220]])
    answer.people[0].joints_3d, answer.people[0].joint_names
"""

from __future__ import annotations

import email.utils
import json
import os
import random
import ssl
import struct
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import numpy as np

from rayhmr.client_answers import (
    Answer,
    Camera,
    Iteration,
    Model,
    Person,
    ServiceError,
    read_answer,
    read_model,
)

__all__ = ["Answer", "Camera", "Client", "Iteration", "Model", "Person", "ServiceError"]

Image = str | os.PathLike[str] | bytes | np.ndarray
"""A file's path, its content, or upright RGB pixels (H, W, 3) uint8."""
Boxes = Sequence[Sequence[float]] | np.ndarray
"""(N, 4) x1, y1, x2, y2 in pixels of the upright image."""

BATCH_IMAGES = 16
BATCH_BYTES = 8_000_000
"""A batch that exceeds either is sent as several requests."""
_TRY_AGAIN = (429, 503)
_FIRST_WAIT_S = 0.5


class Client:
    """One service; keeps its connections, may be shared by threads.

    url: with or without a path in front. key: the bearer key, where the service has one.
    timeout_s: of each read and write. retries: further attempts after 429 and 503, which a service
    under load answers before it has begun; nothing else is sent twice. max_wait_s: an attempt that
    the service wants to be later than this is not made. ca_file: certificates to trust instead of
    the machine's own, for https with one's own authority. transport: httpx's, such as a proxy's.

    Methods raise ServiceError for refusals, and httpx.TransportError where nobody answers.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retries: int = 4,
        max_wait_s: float = 30.0,
        ca_file: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, transport=transport,
            verify=True if ca_file is None else ssl.create_default_context(cafile=ca_file),
        )  # fmt: skip
        self._retries, self._max_wait_s = retries, max_wait_s

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        image: Image,
        *,
        boxes: Boxes | None = None,
        camera: Camera | None = None,
        n_iter: int | None = None,
        include: Sequence[str] = (),
        model: str | None = None,
    ) -> Answer:
        """The people of one picture.

        boxes: none: the whole picture is one person. camera: none: a focal length is assumed.
        n_iter: refinement steps, 1 to 16. include: of vertices, iterations, overlay. model: name,
        name@version or name@alias.
        """
        fields = _fields(boxes=boxes, camera=camera, n_iter=n_iter, include=include, model=model)
        return read_answer(self._predict(image, fields, "application/json").json())

    def mesh(
        self,
        image: Image,
        *,
        boxes: Boxes | None = None,
        camera: Camera | None = None,
        n_iter: int | None = None,
        model: str | None = None,
    ) -> bytes:
        """The same people as a GLB file, for 3D programs; y is up there."""
        fields = _fields(boxes=boxes, camera=camera, n_iter=n_iter, model=model)
        return self._predict(image, fields, "model/gltf-binary").content

    def predict_batch(
        self,
        images: Sequence[Image],
        *,
        boxes: Sequence[Boxes | None] | None = None,
        camera: Camera | None = None,
        n_iter: int | None = None,
        include: Sequence[str] = (),
        model: str | None = None,
    ) -> list[Answer | ServiceError]:
        """`predict` for any number of pictures; one that fails has its error in its place.

        boxes: one entry for each picture. The rest holds for all of them.
        """
        if boxes is not None and len(boxes) != len(images):
            raise ValueError(
                f"{len(boxes)} entries of boxes for {len(images)} images: give one for each, None "
                "for a whole picture"
            )
        shared = _fields(camera=camera, n_iter=n_iter, include=include, model=model)
        results: list[Answer | ServiceError] = []
        for batch in _batches(images):
            fields = dict(shared)
            if boxes is not None:
                own = boxes[len(results) : len(results) + len(batch)]
                fields["boxes"] = json.dumps([None if b is None else _rows(b) for b in own])
            files = [("image", (f"{number}", one)) for number, one in enumerate(batch)]
            answer = self._send("POST", "v1/predict/batch", files=files, data=fields)
            for item in answer.json()["items"]:
                failed = item["status"] != 200
                results.append(
                    ServiceError(item["status"], item["problem"])
                    if failed
                    else read_answer(item["result"])
                )
        return results

    def models(self) -> list[Model]:
        """What is served, the default first."""
        answer = self._send("GET", "v1/models").json()
        return [read_model(content) for content in answer["models"]]

    def faces(self, model: Model | None = None) -> np.ndarray:
        """(F, 3) uint32 triangles between a person's vertices; none: of the default model."""
        chosen = self.models()[0] if model is None else model
        content = self._send("GET", chosen.faces_url).content
        return np.frombuffer(content, "<u4").reshape(-1, 3)

    def is_ready(self) -> bool:
        """Whether the service is up, with its models verified and warm."""
        try:
            return self._http.get("v1/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def _predict(self, image: Image, fields: Mapping[str, str], accept: str) -> httpx.Response:
        files = [("image", ("image", encoded(image)))]
        return self._send("POST", "v1/predict", files=files, data=fields, accept=accept)

    def _send(
        self, method: str, path: str, *, accept: str = "application/json", **content: Any
    ) -> httpx.Response:
        for attempt in range(self._retries + 1):
            answer = self._http.request(method, path, headers={"accept": accept}, **content)
            if answer.is_success:
                return answer
            error = _error(answer)
            wait = error.retry_after_s
            if wait is None:
                wait = _FIRST_WAIT_S * 2**attempt
            again = answer.status_code in _TRY_AGAIN and attempt < self._retries
            if not again or wait > self._max_wait_s:
                raise error
            # Never earlier than asked; later by chance, so that refused clients do not come back
            # all at once.
            time.sleep(min(self._max_wait_s, wait * (1 + random.random() / 2)))
        raise AssertionError("the last attempt returns or raises")


def encoded(image: Image) -> bytes:
    """The bytes of an image file; arrays become PNG, which loses nothing."""
    if isinstance(image, bytes):
        return image
    if not isinstance(image, np.ndarray):
        return Path(image).read_bytes()
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image is {image.dtype} {image.shape}; it must be uint8 (H, W, 3), RGB and upright"
        )
    height, width = image.shape[:2]
    # Filter 1 of PNG: each pixel less its left neighbour, which makes photos compressible.
    rows = np.ascontiguousarray(image)
    rows = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1).reshape(height, -1)
    filtered = np.concatenate([np.ones((height, 1), np.uint8), rows], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(kind, content)
        for kind, content in (
            (b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 1)), (b"IEND", b""),
        )
    )  # fmt: skip


def _chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def _batches(images: Sequence[Image]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for image in images:
        content = encoded(image)
        full = len(batch) == BATCH_IMAGES or sum(map(len, batch)) + len(content) > BATCH_BYTES
        if batch and full:
            yield batch
            batch = []
        batch.append(content)
    if batch:
        yield batch


def _rows(boxes: Boxes) -> list[list[float]]:
    return [[float(value) for value in box] for box in boxes]


def _fields(
    *,
    boxes: Boxes | None = None,
    camera: Camera | None = None,
    n_iter: int | None = None,
    include: Sequence[str] = (),
    model: str | None = None,
) -> dict[str, str]:
    fields = {}
    if boxes is not None:
        fields["boxes"] = json.dumps(_rows(boxes))
    if camera is not None:
        fields["camera"] = json.dumps(
            {"fx": camera.fx, "fy": camera.fy, "cx": camera.cx, "cy": camera.cy}
        )
    if n_iter is not None:
        fields["n_iter"] = str(n_iter)
    if include:
        fields["include"] = include if isinstance(include, str) else ",".join(include)
    if model is not None:
        fields["model"] = model
    return fields


def _error(answer: httpx.Response) -> ServiceError:
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"{answer.reason_phrase}: {answer.text:.200}"}
    return ServiceError(answer.status_code, problem, _retry_after(answer))


def _retry_after(answer: httpx.Response) -> float | None:
    """Seconds, from seconds or a date."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
