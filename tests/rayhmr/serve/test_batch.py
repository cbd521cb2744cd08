"""Several pictures in one request: order, per-picture problems, archives."""

from __future__ import annotations

import base64
import io
import json
import zipfile

import numpy as np
import pytest
import trimesh
from fastapi.testclient import TestClient
from PIL import Image

from hmr.crops import decode_image, encode_jpeg
from rayhmr.serve.schema import MAX_BATCH_PEOPLE, MAX_IMAGES, BatchAnswer, ProblemAnswer

BOX = [60.0, 20.0, 156.0, 116.0]
OTHER_BOX = [0.0, 0.0, 100.0, 140.0]
CAMERA = {"fx": 400.0, "fy": 380.0, "cx": 95.0, "cy": 72.0}


@pytest.fixture(scope="module")
def client(app_of):
    with TestClient(app_of(max_body_bytes=2_000_000)) as made:
        yield made


@pytest.fixture(scope="module")
def noise():
    return encode_jpeg(np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8))


def send(client, *images, accept="application/json", **fields):
    return client.post(
        "/v1/predict/batch", files=[("image", ("p", image, "image/jpeg")) for image in images],
        data=fields, headers={"accept": accept},
    )  # fmt: skip


def alone(client, image, **fields):
    return client.post("/v1/predict", files={"image": image}, data=fields).json()


def problem(response, status, code):
    assert response.status_code == status, response.text
    ProblemAnswer.model_validate(response.json())
    assert response.json()["type"] == f"urn:rayhmr:{code}"
    return response.json()["detail"]


def assert_same_people(result, expected):
    assert len(result["people"]) == len(expected["people"])
    for person, other in zip(result["people"], expected["people"], strict=True):
        for name in ("box_xyxy", "cam_t", "joints_3d", "joints_2d", "weak_cam"):
            np.testing.assert_allclose(person[name], other[name], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            person["smpl"]["body_pose"], other["smpl"]["body_pose"], atol=1e-5
        )


def test_a_batch_answers_each_picture_as_if_it_were_alone(client, photo, noise):
    boxes = [[BOX, OTHER_BOX], None, []]
    cameras = [None, CAMERA, None]
    answer = send(client, photo, noise, photo, boxes=json.dumps(boxes), camera=json.dumps(cameras))
    assert answer.status_code == 200
    BatchAnswer.model_validate(answer.json())
    first, second, third = (item["result"] for item in answer.json()["items"])
    assert_same_people(first, alone(client, photo, boxes=json.dumps(boxes[0])))
    assert_same_people(second, alone(client, noise, camera=json.dumps(CAMERA)))
    assert second["camera"]["fx"] == 400.0
    assert third["people"] == []
    assert answer.json()["failed"] == 0


def test_pictures_that_fail_have_their_problem_in_their_place(client, photo, noise):
    outside = [[[500.0, 500.0, 600.0, 600.0]], None, None, None]
    answer = send(client, photo, b"no picture", photo[:900], noise, boxes=json.dumps(outside))
    assert answer.status_code == 207
    content = answer.json()
    BatchAnswer.model_validate(content)
    assert [item["status"] for item in content["items"]] == [422, 415, 422, 200]
    codes = [item["problem"]["type"] for item in content["items"][:3]]
    assert codes == ["urn:rayhmr:bad_value", "urn:rayhmr:not_an_image", "urn:rayhmr:truncated"]
    assert content["failed"] == 3
    assert_same_people(content["items"][3]["result"], alone(client, noise))
    counted = client.get("/metrics").text
    assert 'rayhmr_serve_rejected_total{reason="truncated"}' in counted


def test_the_json_form_says_the_same(client, photo, noise):
    images = [{"b64": base64.b64encode(image).decode()} for image in (photo, noise)]
    as_json = client.post("/v1/predict/batch", json={"images": images, "boxes": [[BOX], None]})
    as_form = send(client, photo, noise, boxes=json.dumps([[BOX], None]))
    for one, other in zip(as_json.json()["items"], as_form.json()["items"], strict=True):
        assert_same_people(one["result"], other["result"])
    mixed = client.post("/v1/predict/batch", json={"images": [{"url": "http://x/"}, images[0]]})
    assert [item["status"] for item in mixed.json()["items"]] == [422, 200]
    assert "not fetched" in mixed.json()["items"][0]["problem"]["detail"]


def test_an_archive_holds_a_file_for_each_picture(client, photo):
    boxes = json.dumps([[BOX], None, [BOX, OTHER_BOX]])
    expected = [alone(client, photo, boxes=json.dumps([BOX])),
                alone(client, photo, boxes=json.dumps([BOX, OTHER_BOX]))]  # fmt: skip
    for ending, read in {
        "npz": lambda content: len(np.load(io.BytesIO(content))["joints_3d"]),
        "glb": lambda content: len(trimesh.load(io.BytesIO(content), file_type="glb").geometry),
        "json": lambda content: len(json.loads(content)["people"]),
    }.items():
        answer = send(client, photo, b"?", photo, boxes=boxes, files=ending,
                      accept="application/zip")  # fmt: skip
        assert (answer.status_code, answer.headers["content-type"]) == (207, "application/zip")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            index = json.loads(archive.read("index.json"))
            names = [item["file"] for item in index["items"]]
            assert names == [f"00.{ending}", "01.problem.json", f"02.{ending}"]
            assert [read(archive.read(names[0])), read(archive.read(names[2]))] == [1, 2]
            assert json.loads(archive.read(names[1]))["status"] == 415
            if ending == "json":
                assert_same_people(json.loads(archive.read(names[2])), expected[1])
    png = send(client, photo, files="png", accept="application/zip")
    with zipfile.ZipFile(io.BytesIO(png.content)) as archive:
        overlay = np.asarray(Image.open(io.BytesIO(archive.read("00.png"))))
    assert overlay.shape == (140, 200, 3)
    assert (overlay != decode_image(photo)).any()


def test_what_is_wrong_with_the_request_refuses_all_of_it(client, photo):
    assert "2 entries for 1 images" in problem(
        send(client, photo, boxes="[null,null]"), 422, "bad_option"
    )
    assert "boxes.0.0" in problem(send(client, photo, boxes="[[[1,2,3]]]"), 422, "bad_option")
    assert "image by image" in problem(
        send(client, photo, include="vertices,iterations"), 422, "bad_option"
    )
    problem(send(client, photo, model="other"), 404, "unknown_model")
    problem(send(client, photo, files="obj"), 422, "bad_option")
    problem(send(client, photo, accept="image/png"), 406, "not_acceptable")
    problem(send(client), 415, "content_type")
    problem(client.post("/v1/predict/batch", json={"images": []}), 422, "no_image")
    assert str(MAX_IMAGES) in problem(send(client, *[photo] * (MAX_IMAGES + 1)), 400, "bad_request")
    many = json.dumps([[BOX] * 30] * (MAX_BATCH_PEOPLE // 30 + 1))
    assert "at most" in problem(
        send(client, *[photo] * (MAX_BATCH_PEOPLE // 30 + 1), boxes=many), 422, "bad_option"
    )
