"""A service that follows its registry while clients are answered, on a real cluster."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.checkpoint import load_bundle, save_bundle
from hmr.config import ModelConfig
from hmr.crops import decode_image, encode_jpeg
from hmr.errors import ConfigError
from hmr.model import build_model
from rayhmr.config import PromoteJob, ServeJob
from rayhmr.promote import promote
from rayhmr.registry import Registry
from rayhmr.serve import notices
from rayhmr.serve.golden import golden_work
from rayhmr.serve.host import running_service
from rayhmr.serve.rollout import _reason, slots_of

SOON_S = 120.0
JPEG = {"content-type": "image/jpeg"}


def other_bundle(folder, bias):
    """Another model: its weights begin elsewhere. bias: on its shape, NaN for one without use."""
    torch.manual_seed(1)
    config = ModelConfig(image_size=32, encoder_width=4, hidden=32)
    model = build_model(config)
    with torch.no_grad():
        model.regressor.decshape.bias.fill_(bias)
    return save_bundle(
        folder, model=model, model_config=config, body=Body.embedded(), metrics={}, provenance={}
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundles(bundle, tmp_path_factory):
    """The versions 1 to 4: a model, another, one whose answers are NaN, and one that is damaged
    once it is registered."""
    folder = tmp_path_factory.mktemp("bundles")
    return [bundle, other_bundle(folder / "b", 0.1), other_bundle(folder / "nan", float("nan")),
            other_bundle(folder / "d", 0.2)]  # fmt: skip


def registry_of(folder, bundles):
    registry = Registry(str(folder / "registry"))
    for bundle in bundles:
        registry.register("tiny", bundle)
    registry.set_alias("tiny", "best", 1)
    with (folder / "registry" / "tiny" / "4" / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\xff" * 8)
    return registry


@pytest.fixture(scope="module")
def photo():
    return encode_jpeg(golden_work().image)


class Clients:
    """Two clients that ask one request after the other, each on a connection it keeps."""

    def __init__(self, url, photo):
        self.outcomes = Counter()
        self._url, self._photo = url, photo
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(2)]

    def _ask(self):
        with httpx.Client(timeout=SOON_S, trust_env=False) as client:
            while not self._ended.is_set():
                try:
                    answer = client.post(self._url + "/v1/predict", content=self._photo,
                                         headers=JPEG)  # fmt: skip
                    outcome = answer.status_code, answer.json().get("model", {}).get("version")
                except httpx.HTTPError as error:
                    outcome = type(error).__name__, None
                self.outcomes[outcome] += 1
                time.sleep(0.02)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def service(**settings):
    job = ServeJob(port=0, max_batch_size=4, follow_every_s=0.2, **settings)
    with running_service(job, "rolling") as url:
        yield url


def models(url):
    return httpx.get(url + "/v1/models", timeout=SOON_S).json()


def until(condition, what):
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def versions(url):
    return {model["name"]: model["version"] for model in models(url)["models"]}


def refusal(url, version):
    """What the service says of a version once it has refused it."""
    wanted = {"wanted": version, "state": "refused"}
    until(lambda: any(wanted.items() <= r.items() for r in models(url)["rollouts"]), wanted)
    (told,) = models(url)["rollouts"]
    return told


@pytest.mark.ray
def test_versions_change_under_load_bad_ones_are_refused_and_no_request_fails(
    local_cluster, bundles, photo, tmp_path, monkeypatch
):
    registry = registry_of(tmp_path, bundles)
    name = f"{tmp_path}/registry/tiny"
    with (
        service(model=f"{name}@best", models=(f"{name}@1",)) as url,
        Clients(url, photo) as clients,
    ):
        assert versions(url) == {"tiny": "1", "tiny@1": "1"}
        promote(PromoteJob(model=name, version="2"))
        until(lambda: versions(url) == {"tiny": "2", "tiny@1": "1"}, "version 2")
        until(lambda: models(url)["rollouts"] == [], "the end of the rollout")

        # Each request chooses, and gets the answer of the version that it names.
        for chosen, bundle in (("tiny", bundles[1]), ("tiny@1", bundles[0])):
            answer = httpx.post(url + "/v1/predict", content=photo, headers=JPEG,
                                params={"model": chosen}, timeout=SOON_S).json()  # fmt: skip
            (expected,) = load_bundle(bundle).predict(decode_image(photo))
            joints = answer["people"][0]["joints_3d"]
            np.testing.assert_allclose(joints, expected.joints_3d, atol=1e-5)

        registry.set_alias("tiny", "best", 3)  # past the check of `promote`
        told = refusal(url, "3")
        assert told["serving"] == "2"
        assert "finite" in told["reason"]
        registry.set_alias("tiny", "best", 4)
        told = refusal(url, "4")
        assert "tiny/4/model.safetensors: sha256 is" in told["reason"]
        assert str(tmp_path) not in told["reason"]
        assert versions(url) == {"tiny": "2", "tiny@1": "1"}

        begun = clients.outcomes.copy()
        back = promote(PromoteJob(model=name, version="previous", check=False))
        assert back["version"] == 3  # the alias had been there
        assert promote(PromoteJob(model=name, version="previous"))["version"] == 2
        until(lambda: models(url)["rollouts"] == [], "nothing to tell")
        assert promote(PromoteJob(model=name, version="previous"))["version"] == 1
        until(lambda: versions(url)["tiny"] == "1", "version 1 again")
        until(lambda: clients.outcomes[200, "1"] > begun[200, "1"] + 5, "answers")
    assert set(clients.outcomes) == {(200, "1"), (200, "2")}
    assert min(clients.outcomes.values()) > 5


def test_one_name_with_several_versions_and_twice_the_same_one(bundles, tmp_path):
    registry_of(tmp_path, bundles)
    name = f"{tmp_path}/registry/tiny"
    copy = shutil.copytree(bundles[0], tmp_path / "plain")
    slots = slots_of(
        ServeJob(model=f"{name}@best", models=(f"{name}@2", f"{name}@best", str(copy)))
    )
    assert [slot.name for slot in slots] == ["tiny", "tiny@2", "tiny@best", "plain"]
    assert [slot.settings.version for slot in slots[:3]] == ["1", "2", "1"]
    assert [slot.follows is not None for slot in slots] == [True, False, True, False]
    with pytest.raises(ConfigError, match="is there twice under the name tiny@2"):
        slots_of(ServeJob(model=f"{name}@best", models=(f"{name}@2", f"{name}@2")))


def test_the_reason_is_the_errors_own_words():
    told = (
        "The deployment failed to start 1 times in a row.\nTraceback (most recent call last):\n"
        "  File x, in y\nRuntimeError: one\n\nhmr.errors.BundleError: tiny@3: failed: NaN\n"
    )
    assert _reason(told) == "tiny@3: failed: NaN"
    assert _reason("no  room\nat all") == "no room at all"


def test_a_notice_is_an_old_one_or_a_new_one(tmp_path):
    assert notices.read(tmp_path, notices.ANSWERING, {}) == {}
    ended = threading.Event()

    def write():
        number = 0
        while not ended.is_set():
            notices.leave(tmp_path, notices.ANSWERING, {"tiny": [number] * 1000})
            number += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: notices.read(tmp_path, notices.ANSWERING, None), "a notice")
        for _ in range(300):
            seen = notices.read(tmp_path, notices.ANSWERING, {})["tiny"]
            assert seen == [seen[0]] * 1000
    finally:
        ended.set()
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == [notices.ANSWERING]
