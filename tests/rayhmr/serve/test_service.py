"""The service on a real cluster."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from hmr.body_arrays import body_from_path
from hmr.checkpoint import load_bundle
from hmr.crops import decode_image, encode_jpeg
from hmr.errors import BundleError, ConfigError
from hmr.synthetic import Generator
from rayhmr.config import ServeJob
from rayhmr.serve.host import read_keys, running_service


@pytest.fixture(scope="module")
def url(local_cluster, model_reference):
    job = ServeJob(
        model=model_reference, port=0, max_batch_size=4, max_queued_requests=16,
        inference_protocol=True,
    )  # fmt: skip
    with running_service(job) as address:
        yield address


@pytest.fixture(scope="module")
def photos():
    people = Generator(body_from_path("embedded"), "easy", 128, 6, "test").samples(range(8))
    return [encode_jpeg(person.image) for person in people]


def ask(url, photo):
    return httpx.post(
        f"{url}/v1/predict", content=photo, headers={"content-type": "image/jpeg"}, timeout=60
    )


@pytest.mark.ray
def test_many_at_once_get_their_own_answers_and_a_bad_one_hurts_nobody(url, photos, bundle):
    predictor = load_bundle(bundle)
    sent = [*photos, b"no picture", *photos]
    with ThreadPoolExecutor(len(sent)) as pool:
        answers = list(pool.map(lambda photo: ask(url, photo), sent))
    assert [a.status_code for a in answers] == [200] * 8 + [415] + [200] * 8
    for photo, answer in zip(photos, answers, strict=False):
        (expected,) = predictor.predict(decode_image(photo))
        (person,) = answer.json()["people"]
        np.testing.assert_allclose(person["joints_3d"], expected.joints_3d, atol=1e-5)


@pytest.mark.ray
def test_health_models_and_problems_come_through_the_proxy(url):
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    (model,) = httpx.get(f"{url}/v1/models").json()["models"]
    assert (model["name"], model["version"], model["aliases"]) == ("tiny", "1", ["best", "latest"])
    refused = ask(url, b"GIF89a" + bytes(40))
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["request_id"]


@pytest.mark.ray
def test_the_protocol_asked_for_and_the_counters_are_there(url, photos):
    assert httpx.get(f"{url}/v2/health/ready").json() == {"ready": True}
    counted = []
    for photo in photos[:2]:
        ask(url, photo)
        text = httpx.get(f"{url}/metrics").text
        line = re.search(r"^rayhmr_serve_people_total\{.*\} (\S+)$", text, re.MULTILINE)
        counted.append(float(line[1]))
    assert counted[1] == counted[0] + 1


def test_a_changed_bundle_is_refused_before_anything_starts(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with (
        pytest.raises(BundleError, match=r"model\.safetensors: sha256 is .* changed or damaged"),
        running_service(ServeJob(model=str(copy), port=0)),
    ):
        pass


def test_other_machines_are_let_in_with_a_strong_key_only(tmp_path, monkeypatch):
    monkeypatch.delenv("RAYHMR_API_KEY", raising=False)
    assert read_keys(ServeJob()) == ()
    with pytest.raises(ConfigError, match=r"host=0\.0\.0\.0: .* needs a key"):
        read_keys(ServeJob(host="0.0.0.0"))
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(ConfigError, match="at least 22"):
        read_keys(ServeJob(host="0.0.0.0", api_key_file=str(tmp_path / "key")))
    monkeypatch.setenv("RAYHMR_API_KEY", "0123456789abcdefghijklmnop")
    assert read_keys(ServeJob(host="0.0.0.0")) == ("0123456789abcdefghijklmnop",)


@pytest.mark.ray
def test_the_page_and_all_its_files_come_through_the_proxy(url):
    page = httpx.get(f"{url}/").text
    wanted = set(re.findall(r'(?:href|src)="(static/[^"]+)"', page))
    assert "static/page.js" in wanted
    seen = set()
    while wanted - seen:
        name = (wanted - seen).pop()
        answer = httpx.get(f"{url}/{name}").raise_for_status()
        seen.add(name)
        wanted |= {f"static/{found}" for found in re.findall(r'from "./([^"]+)"', answer.text)}
    assert {"static/orbit.js", "static/geometry.js", "static/page.css"} <= seen
