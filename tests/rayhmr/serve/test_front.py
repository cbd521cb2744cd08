"""The process that answers HTTP and the models that dial it, without Ray: over real sockets."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest

from hmr.body_arrays import body_from_path
from hmr.checkpoint import load_bundle
from hmr.config import BodyConfig
from hmr.crops import decode_image, encode_jpeg
from hmr.synthetic import Generator
from rayhmr.client import Client
from rayhmr.cluster import open_here
from rayhmr.pinned_model import PinnedModel
from rayhmr.serve import exchange, wire
from rayhmr.serve.front import Front, FrontSettings
from rayhmr.serve.guard import Limits
from rayhmr.serve.loaded_model import LoadedModel, ModelSettings
from rayhmr.serve.tls import client_context
from rayhmr.serve.worker import Worker

SOON_S = 30.0


@pytest.fixture(scope="module")
def predictor(bundle):
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def model(bundle):
    return LoadedModel(
        ModelSettings(
            model=PinnedModel.of(str(bundle), BodyConfig()), version="1", aliases=("best",),
            threads=1, device="cpu", max_batch_size=8,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def photos():
    people = Generator(body_from_path("embedded"), "easy", 128, 6, "test").samples(range(6))
    return [encode_jpeg(person.image) for person in people]


def until(condition):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Running:
    """A front in a thread, and workers that dial it."""

    def __init__(self, folder, model, tls=None):
        self._model, self._address = model, str(folder / "models")
        settings = FrontSettings(
            host="127.0.0.1", port=0, address=self._address, models=(model.info.name,),
            limits=Limits(max_body_bytes=10**6, request_timeout_s=SOON_S, max_requests=64),
            threads=2, tls=tls,
        )  # fmt: skip
        self._front = Front(settings)
        self._thread = threading.Thread(target=self._front.run)
        self._thread.start()
        self._workers = []
        self.url = f"http://127.0.0.1:{self._front.port}"

    def worker(self, compute=None, **changes):
        """One more process with the model, so to speak."""
        hello = replace(self._model.introduction, **changes)
        worker = Worker(compute or self._model.compute, hello, self._address)
        worker.start()
        self._workers.append(worker)
        return worker

    def dial(self):
        """A model that a test plays itself."""
        connection = socket.socket(socket.AF_UNIX)
        until(lambda: connection.connect_ex(self._address) == 0)
        wire.send(connection, *exchange.introduction_message(self._model.introduction))
        return connection

    def ready(self):
        """Whether clients are let in and a model is there."""
        try:
            return httpx.get(self.url + "/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self):
        for worker in self._workers:
            worker.stop()
        self._front.stop()
        self._thread.join(SOON_S)
        assert not self._thread.is_alive()


@pytest.fixture
def running(tmp_path, model):
    one = Running(tmp_path, model)
    with ExitStack() as stack:
        stack.callback(one.stop)
        one.worker()
        until(one.ready)
        yield one


def ask(url, photo):
    kind = {"content-type": "image/jpeg"}
    return httpx.post(f"{url}/v1/predict", content=photo, headers=kind, timeout=SOON_S)


@contextmanager
def asked(url, photos):
    """Answers to photos that were sent all at once, as futures."""
    with ThreadPoolExecutor(len(photos)) as pool:
        yield [pool.submit(ask, url, photo) for photo in photos]


def check(answers, photos, predictor):
    for photo, answer in zip(photos, answers, strict=True):
        assert answer.status_code == 200, answer.text
        (expected,) = predictor.predict(decode_image(photo))
        (person,) = answer.json()["people"]
        np.testing.assert_allclose(person["joints_3d"], expected.joints_3d, atol=1e-5)
        np.testing.assert_allclose(person["cam_t"], expected.cam_t, rtol=1e-5)


def test_many_at_once_get_the_predictors_answers_and_a_bad_one_hurts_nobody(
    running, photos, predictor
):
    sent = [*photos, b"no picture", *photos]
    with asked(running.url, sent) as futures:
        answers = [future.result() for future in futures]
    assert answers.pop(len(photos)).status_code == 415
    check(answers, photos * 2, predictor)


def test_a_model_that_dies_in_the_middle_costs_no_request(running, photos, predictor):
    dying = running.dial()  # beside the healthy one
    with asked(running.url, photos) as futures:
        batch = exchange.read_batch(wire.receive(dying))
        dying.close()
        answers = [future.result() for future in futures]
    assert len(batch) >= 1
    check(answers, photos, predictor)


def test_requests_wait_for_a_model_to_come_back(running, photos, predictor, model):
    running._workers[0].stop()
    until(lambda: not running.ready())
    with asked(running.url, photos[:3]) as futures:
        assert not any(future.done() for future in futures)
        running.worker()
        check([future.result() for future in futures], photos[:3], predictor)


def test_a_newer_version_takes_over_and_the_older_one_may_leave(running, photos, model):
    info = replace(model.info, version="2")
    newer = running.worker(info=info, generation=1)
    versions = lambda: [  # noqa: E731
        m["version"] for m in httpx.get(running.url + "/v1/models").json()["models"]
    ]
    until(lambda: versions() == ["2"])
    assert ask(running.url, photos[0]).json()["model"]["version"] == "2"
    newer.stop()  # it was a bad one: the older one is still there
    until(lambda: versions() == ["1"])
    assert ask(running.url, photos[0]).json()["model"]["version"] == "1"


def test_a_worker_that_stops_first_ends_its_batch(running, photos):
    entered, go = threading.Event(), threading.Event()

    def slowly(items):
        entered.set()
        assert go.wait(SOON_S)
        return running._model.compute(items)

    running._workers[0].stop()
    until(lambda: not running.ready())
    slow = running.worker(slowly)
    until(running.ready)
    with asked(running.url, photos[:1]) as futures:
        assert entered.wait(SOON_S)
        stopping = threading.Thread(target=slow.stop)
        stopping.start()
        go.set()
        assert futures[0].result().status_code == 200
        stopping.join(SOON_S)
    assert not slow.is_alive


def test_a_front_that_starts_anew_is_dialled_again(tmp_path, model, photos, predictor):
    worker = Worker(model.compute, model.introduction, str(tmp_path / "models"))
    worker.start()
    try:
        for _ in range(2):
            one = Running(tmp_path, model)
            try:
                until(one.ready)
                check([ask(one.url, photos[0])], photos[:1], predictor)
            finally:
                one.stop()
    finally:
        worker.stop()


def test_a_front_without_models_lets_nobody_in_and_can_be_stopped(tmp_path, model):
    one = Running(tmp_path, model)
    assert not one.ready()
    until(lambda: one._front._loop is not None)
    one.stop()


def test_metrics_count_the_batches(running, photos):
    assert ask(running.url, photos[0]).status_code == 200
    text = httpx.get(running.url + "/metrics").text
    name = running._model.info.name
    assert f'rayhmr_serve_batch_size_count{{model="{name}"}} ' in text
    assert f'rayhmr_serve_queue_length{{model="{name}"}} 0.0' in text


def test_by_https_who_trusts_the_certificate_is_answered_and_nobody_else(
    tmp_path, model, photos, make_certificate
):
    pair, (other, _) = make_certificate(), make_certificate("other")
    running = Running(tmp_path, model, tls=pair)
    address = running.url.removeprefix("http")
    trusted = client_context(pair[0])

    def answers():
        try:
            return open_here(f"https{address}/readyz", 5, trusted).status == 200
        except OSError:
            return False

    try:
        running.worker()
        until(answers)
        with Client(f"https{address}", ca_file=pair[0]) as client:
            assert len(client.predict(photos[0]).people) == 1
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            open_here(f"https{address}/readyz", 5, client_context(other))
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"https{address}/readyz")
        with pytest.raises(httpx.TransportError):  # not in the clear
            httpx.get(f"http{address}/readyz")
    finally:
        running.stop()


def test_poison_and_numbers_that_are_none_fail_alone_in_a_full_batch(
    running, photos, predictor, monkeypatch
):
    """Two pictures in one batch with good ones: the model breaks at one, and has no finite answer
    to the other."""
    poison, hollow = (encode_jpeg(np.full((64, 64, 3), gray, np.uint8)) for gray in (40, 80))
    own = running._model._predictor
    true_columns, sizes = own.columns, []

    def columns(crops, *arguments, **wishes):
        grays = [int(crop.pixels.mean()) if np.ptp(crop.pixels) == 0 else None for crop in crops]
        sizes.append(len(crops))
        if 40 in grays:
            raise RuntimeError("a picture that no model can bear")
        found = dict(true_columns(crops, *arguments, **wishes))
        found["joints_3d"] = found["joints_3d"].copy()
        found["joints_3d"][[gray == 80 for gray in grays]] = np.nan
        return found

    monkeypatch.setattr(own, "columns", columns)
    running._workers[0].stop()
    until(lambda: not running.ready())
    sent = [photos[0], poison, photos[1], photos[2], hollow, photos[3]]
    version = next(iter(running._front._versions.values()))
    with asked(running.url, sent) as futures:
        until(lambda: version.batcher.waiting == len(sent))
        running.worker()
        answers = [future.result() for future in futures]
    assert sizes[0] == len(sent)
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200, 500, 200]
    assert answers[4].json()["type"] == "urn:rayhmr:model_nonfinite"
    for answer in (answers[1], answers[4]):
        assert answer.headers["content-type"] == "application/problem+json"
        assert "bear" not in answer.text  # what broke is for the log
    check([answers[n] for n in (0, 2, 3, 5)], photos[:4], predictor)
