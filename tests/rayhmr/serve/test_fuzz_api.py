"""Schemathesis asks whatever the description of the API allows, and what it does not.

Its own runner takes the description apart (every boundary of every schema, then random cases) and
checks: no 5xx, nothing without the key, every status, media type and body as announced, and wrong
data refused. Pictures are real in some cases, so that the way through the model is fuzzed too.
"""

from __future__ import annotations

import base64
from collections import Counter, defaultdict

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import strategies as st
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import from_schema

from rayhmr.serve.intake import IMAGE_TYPES
from rayhmr.serve.keys import digest_of

KEY = "a-key-of-more-than-22-letters"
BEARER = {"Authorization": f"Bearer {KEY}"}
SETTINGS = {
    "seed": 20,
    "headers": BEARER,
    "workers": 1,
    "generation": {"max-examples": 24, "database": "none", "deterministic": True},
    "phases": {"stateful": {"enabled": False}},
    "checks": {
        # Too large is one way to be wrong.
        "negative_data_rejection": {"expected-statuses": [400, 404, 405, 406, 413, 415, 422]},
        # A schema can say "a file", but not "a picture of 16 pixels or more".
        "positive_data_acceptance": {"enabled": False},
    },
}


@pytest.fixture(scope="module")
def app(app_of):
    return app_of(key_digests=(digest_of(KEY),))


@pytest.fixture(scope="module")
def _some_pictures(photo):
    """What Schemathesis sends where a file, or a file in base64, is asked for."""
    files = st.sampled_from([photo, photo, photo[: len(photo) // 2], b"no picture"])
    schemathesis.openapi.format("binary", files)
    schemathesis.openapi.format("byte", files.map(lambda data: base64.b64encode(data).decode()))
    for kind in IMAGE_TYPES:
        schemathesis.openapi.media_type(kind, files)


@pytest.fixture(scope="module")
def outcome(app, _some_pictures):
    """Failures in words, and how often every operation answered with every status."""
    config = SchemathesisConfig.from_dict(SETTINGS)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, config=config, headers=BEARER)
    failures, statuses = [], defaultdict(Counter)
    for event in from_schema(schema).execute():
        assert not hasattr(event, "info"), f"the runner itself failed: {event.info}"
        if (recorder := getattr(event, "recorder", None)) is None:
            continue
        for interaction in recorder.interactions.values():
            if interaction.response is not None:
                statuses[recorder.label][interaction.response.status_code] += 1
        failures += [
            f"{recorder.label}: {check.name}: {check.failure_info.failure!s:.600}\n"
            f"{check.failure_info.code_sample:.400} ... {check.failure_info.code_sample[-400:]}"
            for checks in recorder.checks.values()
            for check in checks
            if check.failure_info is not None
        ]
    return failures, statuses


def test_every_answer_is_one_that_the_description_announces(outcome):
    failures, _ = outcome
    assert not failures, "\n\n".join(failures[:5])


def test_every_operation_was_asked_and_succeeded_at_times(outcome, app):
    _, statuses = outcome
    description = TestClient(app).get("/openapi.json", headers=BEARER).json()
    assert set(statuses) == {
        f"{method.upper()} {path}"
        for path, methods in description["paths"].items()
        for method in methods
    }
    for operation, counts in statuses.items():
        assert any(status < 300 for status in counts), (operation, counts)
        is_open = operation.startswith("GET /v1/health/")
        assert (counts[401] > 0) != is_open, (operation, counts)
