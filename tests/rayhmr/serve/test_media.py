"""Which form of an answer an Accept header asks for."""

from __future__ import annotations

import pytest

from rayhmr.serve.media import GLB, JSON, NPZ, PNG, ZIP, negotiate
from rayhmr.serve.problems import Problem


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG; charset=x", PNG),
        ("image/*", PNG),
        ("model/*;q=0.5, application/x-npz", NPZ),
        ("application/json;q=0.1, model/gltf-binary;q=0.9", GLB),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("video/mp4, image/png;q=0.001", PNG),
        ("application/json;q=0, image/png;q=0.2", PNG),
        ("application/json;q=a, image/png;q=0.2", PNG),
    ],
)
def test_the_form_with_the_highest_quality_wins(accept, media):
    assert negotiate(accept) == media


@pytest.mark.parametrize("accept", ["video/mp4", "application/json;q=0", "image", ",,;;", "a/b/c"])
def test_what_cannot_be_had_is_406_and_says_what_can(accept):
    with pytest.raises(Problem, match="model/gltf-binary") as caught:
        negotiate(accept)
    assert (caught.value.status, caught.value.code) == (406, "not_acceptable")


def test_a_batch_offers_other_forms():
    assert negotiate("application/zip", (JSON, ZIP)) == ZIP
    with pytest.raises(Problem, match="ask for one of application/json, application/zip"):
        negotiate("image/png", (JSON, ZIP))
