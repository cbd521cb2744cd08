"""The page in headless Chromium, over a real service in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from hmr.body_arrays import body_from_path
from hmr.checkpoint import load_bundle
from hmr.crops import encode_jpeg
from hmr.predictor import Predictor
from hmr.render import layer
from hmr.synthetic import Generator
from rayhmr.serve.answers import ModelInfo
from rayhmr.serve.api import build_app
from rayhmr.serve.guard import Limits, digest_of
from rayhmr.serve.inference import recover_batch
from rayhmr.serve.served import ServedModel, Service

KEY = "a-key-of-more-than-22-letters"
expect.set_options(timeout=30_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.browser)


@contextmanager
def running(predictor: Predictor, names: tuple[str, ...], key: str | None) -> Iterator[str]:
    """A service with the same model under every name; gives its base URL."""

    async def recover(work: Any) -> Any:
        (result,) = await asyncio.to_thread(recover_batch, predictor, [work])
        if isinstance(result, Exception):
            raise result
        return result

    models = {
        name: ServedModel(
            info=ModelInfo.of(predictor, name=name, version="1"), recover=recover,
            is_ready=lambda: True,
        )
        for name in names
    }  # fmt: skip
    with ThreadPoolExecutor(2) as threads:
        limits = Limits(
            max_body_bytes=2_000_000, request_timeout_s=60.0, max_requests=8,
            key_digests=() if key is None else (digest_of(key),),
        )  # fmt: skip
        app = build_app(Service(models=models, threads=threads), limits)
        config = uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive(), "uvicorn did not start"
                thread.join(0.02)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def predictor(bundle: Path) -> Predictor:
    return load_bundle(bundle)


@pytest.fixture(scope="session")
def url(predictor: Predictor) -> Iterator[str]:
    with running(predictor, ("tiny",), None) as address:
        yield address


@pytest.fixture(scope="session")
def guarded_url(predictor: Predictor) -> Iterator[str]:
    """Two models, behind a key."""
    with running(predictor, ("tiny", "second"), KEY) as address:
        yield address


@pytest.fixture(scope="session")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people side by side, 480 x 300 pixels."""
    people = Generator(body_from_path("embedded"), "easy", 240, 5, "test").samples([1, 2])
    frame = np.full((300, 480, 3), 90, np.uint8)
    frame[30:270] = np.concatenate([person.image for person in people], axis=1)
    path = tmp_path_factory.mktemp("photos") / "two people.jpg"
    path.write_bytes(encode_jpeg(frame))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module only: while it lives, nothing else in this thread may run an event loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader",
                  "--enable-unsafe-swiftshader"],
        )  # fmt: skip
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page that was opened. expected: words of console errors that a test provokes."""

    page: Page
    base: str
    expected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def open_photo(self, path: Path) -> None:
        """Choose a photo, and wait for the answer."""
        with self.page.expect_response("**/v1/predict"):
            self.page.set_input_files("#file", path)
        expect(self.page.locator("#step-name")).to_contain_text("result")

    def text(self, selector: str, visible: bool = True) -> str:
        """Of an element; visible: as it is seen."""
        element = self.page.locator(selector)
        return element.inner_text() if visible else str(element.text_content())

    def canvas(self, name: str) -> np.ndarray:
        """(H, W, 4) uint8: what is painted on a canvas."""
        address = self.page.evaluate("id => document.getElementById(id).toDataURL()", name)
        png = base64.b64decode(address.partition(",")[2])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))


@pytest.fixture
def visit(browser: Browser, url: str) -> Iterator[Callable[..., Visit]]:
    """Opens the page in a window of its own; afterwards its console must be clean, and nothing may
    have been asked of another address."""
    visits = []

    def opened(base: str = url, script: str = "", **options: Any) -> Visit:
        context = browser.new_context(**({"reduced_motion": "reduce"} | options))
        if script:
            context.add_init_script(script)
        visit = Visit(page=context.new_page(), base=base)
        visits.append((context, visit))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda message: visit.errors.append(message.text)
                      if message.type in ("error", "warning") else None)  # fmt: skip
        visit.page.on("request", lambda request: visit.requested.append(request.url))
        visit.page.goto(base + "/")
        if base == url:
            expect(visit.page.locator("#model-facts")).to_contain_text("px")
        return visit

    yield opened
    for context, visit in visits:
        context.close()
        outside = [address for address in visit.requested if not address.startswith(
            (f"{visit.base}/", f"blob:{visit.base}/"))]  # fmt: skip
        assert not outside
        unexpected = [
            error for error in visit.errors
            if not any(words in error for words in visit.expected) and "ReadPixels" not in error
        ]  # fmt: skip
        assert not unexpected


@pytest.fixture(scope="session")
def ask(url: str) -> Callable[..., dict[str, Any]]:
    """The service's own answer, with vertices, of everybody and every step as arrays."""

    def answered(path: Path, boxes: list[list[float]] | None = None) -> dict[str, Any]:
        fields = {"include": "vertices,iterations"}
        if boxes:
            fields["boxes"] = str(boxes)
        answer = httpx.post(
            f"{url}/v1/predict", files={"image": path.read_bytes()}, data=fields, timeout=60
        ).raise_for_status().json()  # fmt: skip
        for person in answer["people"]:
            person["mesh"] = _array(person["vertices"])
            person["meshes"] = [_array(step["vertices"]) for step in person["iterations"]]
        return answer

    return answered


def _array(packed: dict[str, Any]) -> np.ndarray:
    data = np.frombuffer(base64.b64decode(packed["data"]), "<f4")
    return data.reshape(packed["shape"]).astype(np.float64)


@pytest.fixture(scope="session")
def silhouette(predictor: Predictor) -> Callable[..., np.ndarray]:
    """(H, W) bool: where hmr.render, which draws the service's overlays, sees meshes on a canvas
    that shows a whole photo of the answer."""

    def of(meshes: list[np.ndarray], answer: dict[str, Any], canvas: np.ndarray) -> np.ndarray:
        height, width = canvas.shape[:2]
        image, camera = answer["image"], answer["camera"]
        scale = np.array([width / image["width"], height / image["height"]])
        _, alpha = layer(
            meshes, predictor.body.arrays.faces, (width, height),
            scale * [camera["fx"], camera["fy"]], scale * [camera["cx"], camera["cy"]],
        )  # fmt: skip
        return alpha > 0.5

    return of


@pytest.fixture(scope="session")
def iou() -> Callable[[np.ndarray, np.ndarray], float]:
    """Of two masks that must not be empty."""

    def of(a: np.ndarray, b: np.ndarray) -> float:
        assert a.any()
        assert b.any()
        return float((a & b).sum() / (a | b).sum())

    return of
