"""`rayhmr.client` against a live service, and its manners towards one under load."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import numpy as np
import pytest
import trimesh
from PIL import Image

import rayhmr.client
from hmr.crops import decode_image, encode_jpeg
from rayhmr.client import Camera, Client, ServiceError
from rayhmr.serve.guard import digest_of

KEY = "a-key-of-more-than-22-letters"
BOXES = [[60.0, 20.0, 156.0, 116.0], [0.0, 0.0, 100.0, 140.0]]


@pytest.fixture(scope="module")
def client(app_of, live):
    with Client(live(app_of(key_digests=(digest_of(KEY),), max_body_bytes=2_000_000)), KEY) as made:
        yield made


def assert_is(person, expected):
    for name in ("box_xyxy", "joints_3d", "joints_2d", "cam_t", "global_orient", "body_pose",
                 "betas"):  # fmt: skip
        array = getattr(person, name)
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_paths_contents_and_arrays_give_the_predictors_people(client, predictor, photo, tmp_path):
    (tmp_path / "p.jpg").write_bytes(photo)
    image = decode_image(photo)
    expected = predictor.predict(image, BOXES)
    for given in (tmp_path / "p.jpg", str(tmp_path / "p.jpg"), photo, image):
        answer = client.predict(given, boxes=BOXES)
        assert (answer.width, answer.height, answer.model) == (200, 140, "tiny")
        for person, other in zip(answer.people, expected, strict=True):
            assert_is(person, other)
    assert answer.people[0].joint_names[0] == "pelvis"
    assert answer.camera.assumed


def test_what_is_included_comes_as_arrays(client, predictor, photo):
    camera = Camera(fx=400.0, fy=380.0, cx=95.0, cy=72.0)
    answer = client.predict(photo, boxes=np.array(BOXES), camera=camera, n_iter=2,
                            include=["vertices", "iterations", "overlay"])  # fmt: skip
    assert answer.camera == camera
    (person, _) = answer.people
    pixels = [400.0, 380.0] * (person.joints_3d + person.cam_t)[:, :2]
    pixels = pixels / (person.joints_3d + person.cam_t)[:, 2:] + [95.0, 72.0]
    np.testing.assert_allclose(person.joints_2d, pixels, atol=1e-3)
    (expected, _) = predictor.predict(decode_image(photo), BOXES, n_iter=2)
    np.testing.assert_allclose(person.vertices - person.cam_t, expected.vertices, atol=1e-5)
    assert [step.step for step in person.iterations] == [0, 1, 2]
    np.testing.assert_allclose(person.iterations[-1].vertices, person.vertices, atol=1e-5)
    assert Image.open(io.BytesIO(answer.overlay)).size == (200, 140)


def test_a_mesh_has_the_triangles_that_the_service_publishes(client, predictor, photo):
    (model,) = client.models()
    assert (model.name, model.version, model.aliases) == ("tiny", "1", ("best",))
    np.testing.assert_array_equal(client.faces(model), predictor.body.arrays.faces)
    glb = trimesh.load(io.BytesIO(client.mesh(photo)), file_type="glb", process=False,
                       force="mesh")  # fmt: skip
    (expected,) = predictor.predict(decode_image(photo))
    np.testing.assert_allclose(
        glb.vertices * [1, -1, -1], expected.vertices + expected.cam_t, rtol=1e-5, atol=1e-5
    )
    assert client.is_ready()


def test_a_long_batch_is_sent_in_parts_and_keeps_its_order(client, predictor, monkeypatch):
    monkeypatch.setattr(rayhmr.client, "BATCH_IMAGES", 3)
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 255, (60, 60 + 4 * n, 3), dtype=np.uint8) for n in range(7)]
    boxes = [None, [[5.0, 5.0, 50.0, 50.0]], None, [], None, None, [[0.0, 0.0, 40.0, 60.0]] * 2]
    sent = [encode_jpeg(images[0]), *images[1:5], b"no picture", images[6]]
    results = client.predict_batch(sent, boxes=boxes)
    assert isinstance(results[5], ServiceError)
    assert (results[5].status, results[5].code) == (415, "not_an_image")
    assert [r.width for r in results[:5]] == [60, 64, 68, 72, 76]
    assert [len(r.people) for r in results[:5]] == [1, 1, 1, 0, 1]
    (expected,) = predictor.predict(images[1], boxes[1])
    assert_is(results[1].people[0], expected)
    for person, other in zip(results[6].people, predictor.predict(images[6], boxes[6]),
                             strict=True):  # fmt: skip
        assert_is(person, other)
    with pytest.raises(ValueError, match="1 entries of boxes for 2 images"):
        client.predict_batch(images[:2], boxes=[None])


def test_refusals_carry_the_problem(client, photo):
    with pytest.raises(ServiceError, match=r"422 bad_option: n_iter: .* \(request \w+\)") as caught:
        client.predict(photo, n_iter=99)
    error = caught.value
    assert (error.status, error.code, error.errors[0]["loc"]) == (422, "bad_option", ["n_iter"])
    with pytest.raises(ServiceError, match="404 unknown_model"):
        client.predict(photo, model="other")
    with pytest.raises(ValueError, match="must be uint8"):
        client.predict(np.zeros((4, 4, 3)))


def test_without_the_key_nothing_is_answered(client, photo):
    url = str(client._http.base_url)
    with Client(url) as stranger, pytest.raises(ServiceError) as caught:
        stranger.predict(photo)
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    with Client("http://127.0.0.1:9", key=KEY) as lost:
        assert not lost.is_ready()
        with pytest.raises(httpx.TransportError):
            lost.models()


def stand_in(*answers):
    """A client of a service that gives these answers in turn, the last for ever; the requests."""
    turn = itertools.chain(answers, itertools.repeat(answers[-1]))
    requests = []

    def handle(request):
        requests.append(request)
        status, headers = next(turn)
        return httpx.Response(status, headers=headers, json={"models": []})

    return Client("http://service", transport=httpx.MockTransport(handle), retries=3), requests


@pytest.fixture
def waits(monkeypatch):
    slept = []
    monkeypatch.setattr(rayhmr.client.time, "sleep", slept.append)
    return slept


def test_a_loaded_service_is_asked_again_when_it_says(waits):
    client, requests = stand_in((429, {"retry-after": "2"}), (503, {"retry-after": "5"}), (200, {}))
    assert client.models() == []
    assert len(requests) == 3
    assert 2 <= waits[0] <= 3
    assert 5 <= waits[1] <= 7.5


def test_waits_grow_where_the_service_names_none_and_end_after_the_retries(waits):
    client, requests = stand_in((503, {}))
    with pytest.raises(ServiceError):
        client.models()
    assert len(requests) == 4
    assert all(base <= wait <= 1.5 * base for base, wait in zip((0.5, 1, 2), waits, strict=True))


def test_a_date_is_understood_and_too_long_a_wait_is_not_begun(waits):
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    client, _ = stand_in((429, {"retry-after": later}), (200, {}))
    client.models()
    assert 15 < waits.pop() <= 30
    client, requests = stand_in((429, {"retry-after": "3600"}))
    with pytest.raises(ServiceError) as caught:
        client.models()
    assert caught.value.retry_after_s == 3600
    assert len(requests) == 1
    assert not waits


@pytest.mark.parametrize("status", [400, 401, 404, 408, 422, 500, 502])
def test_nothing_else_is_sent_twice(waits, status):
    client, requests = stand_in((status, {"retry-after": "1"}))
    with pytest.raises(ServiceError):
        client.models()
    assert len(requests) == 1
    assert not waits


def test_importing_the_client_needs_neither_torch_nor_ray_nor_pillow():
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'PIL', 'cv2', 'pydantic', 'fastapi', 'hmr'):\n"
        "    sys.modules[name] = None\n"
        "import rayhmr.client; print('ok')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ok", done.stderr
