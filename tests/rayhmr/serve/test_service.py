"""The service on a real cluster, and its page in a real browser."""

from __future__ import annotations

import json
import os
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
from rayhmr.serve.host import read_key, running_service


@pytest.fixture(scope="module")
def url(local_cluster, model_reference):
    job = ServeJob(model=model_reference, port=0, max_batch_size=4, max_queued_requests=16)
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
    assert read_key(ServeJob()) is None
    with pytest.raises(ConfigError, match=r"host=0\.0\.0\.0: .* needs a key"):
        read_key(ServeJob(host="0.0.0.0"))
    (tmp_path / "key").write_text("short\n")
    with pytest.raises(ConfigError, match="at least 22"):
        read_key(ServeJob(host="0.0.0.0", api_key_file=str(tmp_path / "key")))
    monkeypatch.setenv("RAYHMR_API_KEY", "0123456789abcdefghijklmnop")
    assert read_key(ServeJob(host="0.0.0.0")) == "0123456789abcdefghijklmnop"


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--disable-dev-shm-usage", "--window-size=1280,1000",
                 f"--user-data-dir={tmp_path / 'profile'}"):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


PAINTED = """
const canvas = document.getElementById(arguments[0]);
const copy = document.createElement("canvas");
copy.width = canvas.width; copy.height = canvas.height;
const context = copy.getContext("2d");
context.drawImage(canvas, 0, 0);
const data = context.getImageData(0, 0, copy.width, copy.height).data;
let painted = 0;
for (let i = 3; i < data.length; i += 4) painted += data[i] > 0;
return painted / (copy.width * copy.height);
"""


@pytest.mark.ray
@pytest.mark.browser
def test_a_person_gets_an_overlay_and_a_body_to_turn(url, photos, browser, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    (tmp_path / "person.jpg").write_bytes(photos[0])
    browser.get(url + "/")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "person.jpg"))
    wait = WebDriverWait(browser, 30)
    wait.until(lambda d: d.find_element(By.ID, "result").is_displayed())
    wait.until(lambda d: d.execute_script(PAINTED, "overlay") > 0.01)
    wait.until(lambda d: d.execute_script(PAINTED, "orbit") > 0.01)
    assert browser.find_element(By.ID, "step-name").text == "step 3 of 3"
    answer = browser.find_element(By.ID, "answer").get_attribute("textContent")
    assert '"joint_set"' in answer
    if folder := os.environ.get("RAYHMR_SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/page.png")

    (tmp_path / "broken.jpg").write_bytes(photos[0][: len(photos[0]) // 2])
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "broken.jpg"))
    wait.until(lambda d: d.find_element(By.ID, "message").is_displayed())
    assert "breaks off" in browser.find_element(By.ID, "message").text

    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {
        event["params"]["request"]["url"]
        for event in asked
        if event["method"] == "Network.requestWillBeSent"
    }
    # The browser's own pages (chrome:, blob:, data:) leave no machine.
    outside = {a for a in addresses if a.startswith("http") and not a.startswith(url)}
    assert not outside
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("422" in entry["message"] for entry in errors), errors
