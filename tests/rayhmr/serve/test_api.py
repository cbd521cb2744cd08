"""The service's routes over a real model in this process."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
import trimesh
from fastapi.testclient import TestClient
from PIL import Image

from hmr.checkpoint import load_bundle
from hmr.crops import decode_image
from rayhmr.serve.guard import digest_of
from rayhmr.serve.inference import Work, recover_batch
from rayhmr.serve.schema import PredictAnswer, ProblemAnswer

KEY = "a-key-of-more-than-22-letters"


@pytest.fixture(scope="module")
def client(app_of):
    with TestClient(app_of()) as made:
        yield made


def post_image(client, photo, query="", **headers):
    return client.post(
        f"/v1/predict{query}", content=photo, headers={"content-type": "image/jpeg"} | headers
    )


BOX = [60.0, 20.0, 156.0, 116.0]


def test_the_answer_is_the_predictors_and_keeps_to_the_schema(client, predictor, photo):
    answer = post_image(client, photo, f"?boxes={json.dumps([BOX])}&include=vertices,iterations")
    assert answer.status_code == 200
    PredictAnswer.model_validate(answer.json())
    (person,) = answer.json()["people"]
    (expected,) = predictor.predict(decode_image(photo), [BOX])
    np.testing.assert_allclose(person["joints_3d"], expected.joints_3d, atol=1e-5)
    np.testing.assert_allclose(person["joints_2d"], expected.joints_2d, atol=1e-2)
    np.testing.assert_allclose(person["smpl"]["body_pose"], expected.body_pose, atol=1e-5)
    np.testing.assert_allclose(person["cam_t"], expected.cam_t, rtol=1e-5)
    packed = person["vertices"]
    vertices = np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["shape"])
    np.testing.assert_allclose(vertices, expected.vertices + expected.cam_t, atol=1e-4)
    assert len(person["iterations"]) == predictor.n_iter + 1
    plain = post_image(client, photo)
    assert len(plain.content) < 4000, "without vertices the answer is small"


def test_three_ways_of_sending_give_one_answer(client, photo):
    people = [
        response.json()["people"]
        for response in (
            post_image(client, photo),
            client.post("/v1/predict", files={"image": ("p.jpg", photo, "image/jpeg")}),
            client.post("/v1/predict", json={"image": {"b64": base64.b64encode(photo).decode()}}),
        )
    ]
    assert people[0] == people[1] == people[2]


def test_neighbours_in_a_batch_do_not_change_an_answer(predictor, photo):
    image = decode_image(photo)
    noise = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    (alone,) = recover_batch(predictor, [Work(image=image)])
    bad = Work(image=image, boxes=np.array([[5.0, 5.0, 1.0, 1.0]]))
    first, failed, second = recover_batch(predictor, [Work(image=noise), bad, Work(image=image)])
    assert isinstance(failed, Exception)
    assert not isinstance(first, Exception)
    np.testing.assert_allclose(second.people[0].vertices, alone.people[0].vertices, atol=1e-4)


def test_glb_npz_and_png_hold_the_same_mesh(client, predictor, photo):
    (expected,) = predictor.predict(decode_image(photo))
    placed = expected.vertices + expected.cam_t
    glb = post_image(client, photo, accept="model/gltf-binary")
    assert glb.headers["content-type"] == "model/gltf-binary"
    mesh = trimesh.load(io.BytesIO(glb.content), file_type="glb", process=False, force="mesh")
    np.testing.assert_allclose(mesh.vertices * [1, -1, -1], placed, atol=1e-4)
    npz = np.load(io.BytesIO(post_image(client, photo, accept="application/x-npz").content))
    np.testing.assert_allclose(npz["vertices"][0], placed, atol=1e-4)
    assert npz["poses"].shape == (1, 72)
    png = Image.open(io.BytesIO(post_image(client, photo, accept="image/png").content))
    assert png.size == (200, 140)
    assert (np.asarray(png) != decode_image(photo)).any()


def problem(response, status, code):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    ProblemAnswer.model_validate(content)
    assert content["type"] == f"urn:rayhmr:{code}"
    assert content["request_id"]
    return content["detail"]


def test_every_refusal_names_value_rule_and_cure(client, photo):
    assert "send a JPEG, PNG or WebP" in problem(post_image(client, b"no picture"), 415,
                                                 "not_an_image")  # fmt: skip
    assert "breaks off" in problem(post_image(client, photo[: len(photo) // 2]), 422, "truncated")
    problem(post_image(client, b""), 422, "zero_byte")
    assert "at most 200,000" in problem(post_image(client, b"x" * 200_001), 413, "body_too_large")
    assert "did you mean n_iter?" in problem(post_image(client, photo, "?n_itr=3"), 422,
                                             "bad_option")  # fmt: skip
    assert "got 99" in problem(post_image(client, photo, "?n_iter=99"), 422, "bad_option")
    detail = problem(post_image(client, photo, "?boxes=[[150,20,60,116]]"), 422, "bad_value")
    assert "x2 must be above x1" in detail
    problem(client.post("/v1/predict", content=photo, headers={"content-type": "text/plain"}), 415,
            "content_type")  # fmt: skip
    problem(post_image(client, photo, accept="video/mp4"), 406, "not_acceptable")
    problem(client.post("/v1/predict", json={"image": {"url": "http://x"}}), 422, "no_image")
    problem(client.post("/v1/predict", json={"image": {"b64": "???"}}), 422, "bad_base64")
    problem(client.post("/v1/predict", content=b"{", headers={"content-type": "application/json"}),
            400, "malformed_json")  # fmt: skip
    problem(post_image(client, photo, "?model=other"), 404, "unknown_model")
    problem(client.get("/v1/nothing"), 404, "not_found")


def test_a_request_id_of_the_client_comes_back(client, photo):
    answer = post_image(client, photo, **{"x-request-id": "abc-123"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "abc-123"
    odd = post_image(client, photo, **{"x-request-id": "a b\tc"})
    assert odd.json()["request_id"] == odd.headers["x-request-id"] != "a b\tc"
    picture = post_image(client, photo, accept="image/png", **{"x-request-id": "abc-123"})
    assert picture.headers["x-request-id"] == "abc-123", "a file cannot say it inside"


def test_a_picture_on_its_side_is_turned_upright(client, photo):
    image = Image.open(io.BytesIO(photo))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.rotate(90, expand=True).save(buffer, "JPEG", quality=97, subsampling=0, exif=exif)
    turned, upright = post_image(client, buffer.getvalue()).json(), post_image(client, photo).json()
    assert turned["image"] == {"width": 200, "height": 140, "exif_rotated": True}
    np.testing.assert_allclose(
        turned["people"][0]["joints_2d"], upright["people"][0]["joints_2d"], atol=1.5
    )


def test_the_camera_of_the_request_is_used(client, photo):
    camera = {"fx": 400.0, "fy": 380.0, "cx": 95.0, "cy": 72.0}
    answer = post_image(client, photo, f"?camera={json.dumps(camera)}").json()
    assert answer["camera"] == {"model": "pinhole", **camera, "source": "request"}
    (person,) = answer["people"]
    placed = np.array(person["joints_3d"]) + person["cam_t"]
    pixels = np.array([400.0, 380.0]) * placed[:, :2] / placed[:, 2:] + [95.0, 72.0]
    np.testing.assert_allclose(person["joints_2d"], pixels, atol=1e-2)


def test_refusals_of_the_router_are_problems_too(client):
    problem(client.get("/v1/predict"), 405, "method_not_allowed")
    problem(client.post("/v1/models"), 405, "method_not_allowed")
    problem(client.delete("/v1/nothing"), 404, "not_found")
    problem(client.post("/v1/predict", content=b"x", headers={
        "content-type": "multipart/form-data"}), 400, "bad_request")  # fmt: skip
    assert "not fetched" in problem(
        client.post("/v1/predict", data={"x": ""}, files={"image": (None, "http://x/a.jpg")}),
        422, "no_image",
    )  # fmt: skip


def test_several_models_stand_side_by_side_and_each_request_chooses(app_of, bundle, photo):
    first, second = load_bundle(bundle), load_bundle(bundle)
    with torch.no_grad():
        second.model.regressor.decshape.bias.add_(1.0)
    with TestClient(app_of({"plain": first, "wide": second})) as client:
        names = [model["name"] for model in client.get("/v1/models").json()["models"]]
        assert names == ["plain", "wide"]
        betas = {}
        for reference in ("", "?model=plain", "?model=wide", "?model=wide@best", "?model=wide@1"):
            answer = post_image(client, photo, reference).json()
            assert answer["model"]["name"] == ("wide" if "wide" in reference else "plain")
            betas[reference] = answer["people"][0]["smpl"]["betas"]
        assert betas[""] == betas["?model=plain"]
        assert betas["?model=wide"] == betas["?model=wide@best"] == betas["?model=wide@1"]
        difference = np.subtract(betas["?model=wide"], betas["?model=plain"])
        assert np.abs(difference).min() > 0.5
        assert "wide@best" in problem(post_image(client, photo, "?model=none"), 404,
                                      "unknown_model")  # fmt: skip
        assert 'model="wide"' in client.get("/metrics").text


def test_the_model_describes_itself_and_its_triangles_are_cacheable(client, predictor):
    (model,) = client.get("/v1/models").json()["models"]
    assert model == client.get("/v1/models/tiny@best").json()
    faces = client.get(f"/{model['faces_url']}")
    np.testing.assert_array_equal(
        np.frombuffer(faces.content, "<u4").reshape(-1, 3), predictor.body.arrays.faces
    )
    assert "immutable" in faces.headers["cache-control"]
    again = client.get(f"/{model['faces_url']}", headers={"if-none-match": faces.headers["etag"]})
    assert again.status_code == 304


def test_a_key_guards_everything_but_health_and_the_page(app_of, photo):
    with TestClient(app_of(key_digests=(digest_of(KEY),))) as client:
        assert client.get("/healthz").json() == {"status": "live"}
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.get("/").status_code == 200
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}):
            problem(post_image(client, photo, **headers), 401, "unauthorized")
            problem(client.get("/v1/models", headers=headers), 401, "unauthorized")
        assert post_image(client, photo, authorization=f"Bearer {KEY}").status_code == 200


def test_page_and_reference_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for address in ("/", "/docs", "/static/page.js", "/static/page.css"):
        text = client.get(address).text
        for mark in ('src="http', 'href="http', "url(http", 'import "http', "//cdn"):
            assert mark not in text, (address, mark)
    description = client.get("/openapi.json").json()
    assert "/v1/predict" in description["paths"]
    assert "application/problem+json" in json.dumps(description)


def test_an_answer_that_is_not_finite_is_an_error_of_that_item_alone(app_of, bundle, photo):
    broken = load_bundle(bundle)
    with torch.no_grad():
        broken.model.regressor.deccam.bias.fill_(float("nan"))
    with TestClient(app_of({"tiny": broken})) as client:
        problem(post_image(client, photo), 500, "model_nonfinite")
