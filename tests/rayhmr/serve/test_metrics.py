"""What `/metrics` counts, read back with Prometheus's own parser."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from rayhmr.serve.metrics import GONE, Metered, Metrics
from rayhmr.serve.problems import Problem


def values(metrics):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.text({}).decode())
        for sample in family.samples
    }


@pytest.fixture
def counted():
    async def good(request):
        return PlainTextResponse(request.path_params["name"])

    async def refused(request):
        return Problem(429, "overloaded", "too much").response("id")

    async def left(request):
        raise asyncio.CancelledError

    metrics = Metrics()
    app = Starlette(routes=[
        Route("/models/{name}", good), Route("/refused", refused), Route("/left", left),
    ])  # fmt: skip
    return metrics, Metered(app, metrics, app.routes)


def test_requests_are_counted_by_route_and_status_whatever_their_address(counted):
    metrics, app = counted
    with TestClient(app) as client:
        for name in ("a", "b", "c"):
            assert client.get(f"/models/{name}").text == name
        for number in range(5):
            client.get(f"/scan/{number}.php")
    found = values(metrics)
    assert found["rayhmr_serve_requests_total", "/models/{name}", "200"] == 3
    assert found["rayhmr_serve_requests_total", "404", "other"] == 5
    assert found["rayhmr_serve_request_seconds_count", "/models/{name}"] == 3
    assert 0 < found["rayhmr_serve_request_seconds_sum", "/models/{name}"] < 60
    assert found["rayhmr_serve_requests_in_flight",] == 0
    assert not [key for key in found if "php" in str(key)], "addresses are no labels"


def test_refusals_are_counted_by_their_reason(counted):
    metrics, app = counted
    with TestClient(app) as client:
        assert client.get("/refused").json()["type"] == "urn:rayhmr:overloaded"
        client.get("/refused")
    found = values(metrics)
    assert found["rayhmr_serve_rejected_total", "overloaded"] == 2
    assert found["rayhmr_serve_requests_total", "/refused", "429"] == 2


def test_a_client_that_left_is_counted_and_not_under_way_any_more(counted):
    metrics, app = counted

    async def nothing(*_):
        return {"type": "http.disconnect"}

    scope = {"type": "http", "path": "/left", "method": "GET", "headers": [], "root_path": "",
             "query_string": b""}  # fmt: skip
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(app(scope, nothing, nothing))
    found = values(metrics)
    assert found["rayhmr_serve_requests_total", "/left", str(GONE)] == 1
    assert found["rayhmr_serve_requests_in_flight",] == 0


def test_batches_and_people_are_counted_by_model():
    metrics = Metrics()
    for size in (1, 3, 16):
        metrics.batch("hmr", size, 0.25)
    metrics.people("hmr", 5)
    found = values(metrics)
    assert found["rayhmr_serve_batch_size_bucket", "1.0", "hmr"] == 1
    assert found["rayhmr_serve_batch_size_bucket", "4.0", "hmr"] == 2
    assert found["rayhmr_serve_batch_size_sum", "hmr"] == 20
    assert found["rayhmr_serve_model_seconds_sum", "hmr"] == 0.75
    assert found["rayhmr_serve_people_total", "hmr"] == 5


def test_series_of_several_replicas_stay_apart():
    one, other = Metrics(replica="one"), Metrics(replica="two")
    one.batch("hmr", 2, 0.1)
    other.batch("hmr", 4, 0.1)
    assert values(one)["rayhmr_serve_batch_size_sum", "hmr", "one"] == 2
    assert values(other)["rayhmr_serve_batch_size_sum", "hmr", "two"] == 4
