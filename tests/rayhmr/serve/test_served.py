"""Choosing among models, and exchanging them while the service runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.api import build_app
from rayhmr.serve.guard import Limits
from rayhmr.serve.inference import recover_batch
from rayhmr.serve.problems import Problem
from rayhmr.serve.served import ServedModel, Service


@pytest.fixture(scope="module")
def model(predictor):
    """Makes a served model of this name and version."""

    def make(name, version, aliases=(), *, is_ready=True):
        async def recover(work):
            (result,) = recover_batch(predictor, [work])
            return result

        info = ModelInfo.of(predictor, name=name, version=version, aliases=aliases)
        return ServedModel(info=info, recover=recover, is_ready=lambda: is_ready)

    return make


def service(models):
    return Service(models=models, threads=ThreadPoolExecutor(1))


def test_references_find_their_model_and_the_first_is_the_default(model):
    models = {
        "hmr": model("hmr", "4", ("best",)), "hmr@3": model("hmr", "3", ("previous",)),
        "small": model("small", "1", ("best",)),
    }  # fmt: skip
    made = service(models)
    for reference, key in {
        None: "hmr", "hmr": "hmr", "hmr@4": "hmr", "hmr@best": "hmr", "hmr@3": "hmr@3",
        "hmr@previous": "hmr@3", "small": "small", "small@best": "small",
    }.items():  # fmt: skip
        assert made.find(reference) is models[key], reference
    for reference in ("hmr@5", "best", "", "HMR", "small@4"):
        with pytest.raises(Problem, match="this service has hmr, hmr@4, hmr@best, ") as caught:
            made.find(reference)
        assert caught.value.status == 404


def test_a_service_is_ready_when_all_its_models_are(model):
    assert service({"a": model("a", "1")}).is_ready()
    assert not service({"a": model("a", "1"), "b": model("b", "1", is_ready=False)}).is_ready()


def test_a_model_exchanged_while_the_service_runs_answers_the_next_request(model, photo):
    models = {"hmr": model("hmr", "1")}
    app = build_app(service(models), Limits(
        max_body_bytes=200_000, request_timeout_s=20.0, max_requests=8))  # fmt: skip
    with TestClient(app) as client:

        def version():
            answer = client.post("/v1/predict", files={"image": photo})
            return answer.json()["model"]["version"]

        assert version() == "1"
        models["hmr"] = model("hmr", "2", ("best",))
        assert version() == "2"
        assert client.get("/v1/models/hmr").json()["aliases"] == ["best"]
        assert client.get("/v1/models/hmr@1").status_code == 404
        assert 'version="2"' in client.get("/metrics").text
