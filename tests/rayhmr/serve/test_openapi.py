"""docs/openapi.json is the description that the service gives of itself.

A change of the interface shows in review: `RAYHMR_WRITE_OPENAPI=1 python -m pytest <this file>`
writes the file anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from rayhmr.serve.guard import digest_of
from rayhmr.serve.intake import IMAGE_TYPES
from rayhmr.serve.media import MEDIA_TYPES

FILE = Path(__file__).resolve().parents[3] / "docs" / "openapi.json"
KEY = "a-key-of-more-than-22-letters"


@pytest.fixture(scope="module")
def description(app_of):
    with TestClient(app_of(key_digests=(digest_of(KEY),))) as client:
        headers = {"authorization": f"Bearer {KEY}"}
        page = client.get("/docs", headers=headers).text
        tree = client.get("/openapi.json", headers=headers).json()
    tree["info"]["version"] = "1"
    return tree, page


def test_the_file_is_the_description(description):
    tree, _ = description
    text = json.dumps(tree, indent=1, sort_keys=True) + "\n"
    if os.environ.get("RAYHMR_WRITE_OPENAPI"):
        FILE.write_text(text, encoding="utf-8")
    assert json.loads(FILE.read_text(encoding="utf-8")) == tree, (
        "the interface changed: write the file anew, as this module says, and look at the diff"
    )


def test_every_form_and_refusal_is_described(description):
    tree, page = description
    assert tree["openapi"].startswith("3.1")
    predict = tree["paths"]["/v1/predict"]["post"]
    assert set(predict["responses"]["200"]["content"]) == set(MEDIA_TYPES)
    assert set(IMAGE_TYPES) < set(predict["requestBody"]["content"])
    batch = tree["paths"]["/v1/predict/batch"]["post"]
    assert {"200", "207"} < set(batch["responses"])
    for path, methods in tree["paths"].items():
        assert path in page.replace("&lt;", "<"), path
        for operation in methods.values():
            assert operation["description"], f"{path} says nothing of itself"
            if "health" not in operation["tags"]:
                assert operation["security"] == [{"key": []}]


def test_every_reference_leads_somewhere(description):
    tree, _ = description
    names = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(tree)))
    assert names
    assert names <= set(tree["components"]["schemas"])
