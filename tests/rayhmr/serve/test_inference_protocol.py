"""`/v2`: the Open Inference Protocol says the same as `/v1`, in JSON and in raw tensors."""

from __future__ import annotations

import base64
import json
import struct

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hmr.crops import decode_image
from rayhmr.serve.guard import digest_of
from rayhmr.serve.schema import ProblemAnswer

BOXES = [[60.0, 20.0, 156.0, 116.0], [0.0, 0.0, 100.0, 140.0]]
HEADER = "inference-header-content-length"
INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def client(app_of):
    with TestClient(app_of(options={"inference_protocol": True}, max_body_bytes=2_000_000)) as made:
        yield made


def tensor(name, datatype, shape, data):
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def encoded(photo):
    return tensor("image", "BYTES", [1], [base64.b64encode(photo).decode()])


def boxes(rows=BOXES):
    return tensor("boxes", "FP32", [len(rows), 4], [value for row in rows for value in row])


def arrays(answer):
    """Outputs by name, whether they came as JSON or after it."""
    assert answer.status_code == 200, answer.text
    end = int(answer.headers.get(HEADER, len(answer.content)))
    content, rest = json.loads(answer.content[:end]), answer.content[end:]
    found = {}
    for output in content["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.array(output["data"], np.float32)
        else:
            flat, rest = np.frombuffer(rest[:size], "<f4"), rest[size:]
        found[output["name"]] = flat.reshape(output["shape"])
    assert not rest
    return content, found


def assert_are(found, people):
    for name, values in found.items():
        attribute = {"weak_cam": "pred_cam"}.get(name, name)
        expected = [
            p.vertices + p.cam_t if name == "vertices" else getattr(p, attribute) for p in people
        ]
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_an_encoded_picture_with_boxes_gives_the_predictors_people(client, predictor, photo):
    body = {"id": "mine", "inputs": [encoded(photo), boxes()]}
    content, found = arrays(client.post(INFER, json=body))
    assert (content["model_name"], content["model_version"], content["id"]) == ("tiny", "1", "mine")
    assert set(found) == {"box_xyxy", "global_orient", "body_pose", "betas", "cam_t", "weak_cam",
                          "joints_3d", "joints_2d"}  # fmt: skip
    assert_are(found, predictor.predict(decode_image(photo), BOXES))


def test_pixels_and_raw_tensors_say_the_same(client, predictor, photo):
    image = decode_image(photo)
    people = predictor.predict(image, BOXES, n_iter=2)
    steps = tensor("n_iter", "INT32", [1], [2])
    pixels = tensor("image", "UINT8", [1, *image.shape], image.reshape(-1).tolist())
    _, found = arrays(client.post(INFER, json={"inputs": [pixels, boxes(), steps]}))
    assert_are(found, people)

    element = struct.pack("<I", len(photo)) + photo
    raw_boxes = np.array(BOXES, "<f4").tobytes()
    head = json.dumps({
        "inputs": [
            {"name": "image", "datatype": "BYTES", "shape": [1],
             "parameters": {"binary_data_size": len(element)}},
            {"name": "boxes", "datatype": "FP32", "shape": [2, 4],
             "parameters": {"binary_data_size": len(raw_boxes)}},
            steps,
        ],
        "outputs": [{"name": "vertices", "parameters": {"binary_data": True}},
                    {"name": "joints_2d"}],
    }).encode()  # fmt: skip
    answer = client.post(
        "/v2/models/tiny/versions/1/infer", content=head + element + raw_boxes,
        headers={HEADER: str(len(head))},
    )  # fmt: skip
    assert answer.headers["content-type"] == "application/octet-stream"
    _, found = arrays(answer)
    assert list(found) == ["vertices", "joints_2d"]
    assert_are(found, people)


def test_the_camera_moves_pixels_and_place(client, predictor, photo):
    camera = tensor("camera", "FP64", [4], [321.5, 321.5, 100.0, 70.0])
    _, found = arrays(client.post(INFER, json={"inputs": [encoded(photo), camera]}))
    assert_are(found, predictor.predict(decode_image(photo), focal=321.5))


def test_state_and_metadata(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/tiny/ready").json() == {"name": "tiny", "ready": True}
    metadata = client.get("/v2/models/tiny/versions/1").json()
    assert metadata == client.get("/v2/models/tiny").json()
    outputs = {output["name"]: output["shape"] for output in metadata["outputs"]}
    assert outputs["vertices"] == [-1, 6890, 3]
    assert outputs["joints_2d"] == [-1, 24, 2]
    assert client.get("/v2/models/tiny/versions/9").status_code == 404


def refused(answer, status, code):
    assert answer.status_code == status, answer.text
    content = answer.json()
    assert content.pop("error") == content["detail"]
    ProblemAnswer.model_validate(content)
    assert content["type"] == f"urn:rayhmr:{code}"
    return content["detail"]


def test_refusals_are_problems_with_the_protocols_error(client, photo):
    def ask(*inputs, **more):
        return client.post(INFER, json={"inputs": list(inputs)} | more)

    assert "called image" in refused(ask(boxes()), 422, "no_image")
    refused(ask(encoded(b"no picture")), 415, "not_an_image")
    refused(ask(encoded(photo), encoded(photo)), 422, "bad_tensor")
    refused(ask(encoded(photo), tensor("other", "FP32", [1], [1.0])), 422, "bad_tensor")
    assert "8 numbers for the shape" in refused(
        ask(encoded(photo), boxes() | {"shape": [3, 4]}), 422, "bad_tensor"
    )
    refused(ask(encoded(photo), boxes([[9.0, 2.0, 3.0, 4.0]])), 422, "bad_value")
    refused(ask(tensor("image", "FP32", [1], [1.0])), 422, "bad_tensor")
    refused(ask(tensor("image", "UINT8", [4, 4, 3], [0] * 48)), 422, "bad_tensor")
    refused(ask(tensor("image", "UINT8", [1], [256])), 422, "bad_tensor")
    refused(ask(encoded(photo), tensor("n_iter", "INT64", [1], [99])), 422, "bad_option")
    refused(ask(encoded(photo), outputs=[{"name": "depth"}]), 422, "bad_tensor")
    refused(client.post("/v2/models/other/infer", json={}), 404, "unknown_model")
    refused(client.post(INFER, content=b"{"), 400, "malformed_json")
    refused(client.post(INFER, content=b"{}", headers={HEADER: "99"}), 400, "header_length")
    refused(client.post(INFER, content=b'{"inputs":[]}'), 422, "bad_tensor")


def test_without_the_option_there_is_no_v2_and_with_a_key_only_health_is_open(app_of, photo):
    with TestClient(app_of()) as plain:
        assert plain.get("/v2").status_code == 404
        assert plain.post(INFER, json={"inputs": [encoded(photo)]}).status_code == 404
    key = "a-key-of-more-than-22-letters"
    guarded = app_of(options={"inference_protocol": True}, key_digests=(digest_of(key),))
    with TestClient(guarded) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.get("/v2/models/tiny").status_code == 401
        assert client.post(INFER, json={"inputs": [encoded(photo)]}).status_code == 401


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=8,
)  # fmt: skip
tensors = st.fixed_dictionaries({
    "name": st.sampled_from(["image", "boxes", "camera", "n_iter", "x"]),
    "datatype": st.sampled_from(["BYTES", "UINT8", "INT32", "INT64", "FP32", "FP64", "FP16"]),
    "shape": st.lists(st.integers(-2, 2**40), max_size=5),
    "data": values,
}, optional={"parameters": st.dictionaries(st.just("binary_data_size"), values)})  # fmt: skip


@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(content=st.fixed_dictionaries({"inputs": st.lists(tensors, max_size=3)}) | values,
       rest=st.binary(max_size=30), cut=st.none() | st.integers(-5, 400))  # fmt: skip
def test_whatever_is_sent_the_answer_is_a_refusal(client, content, rest, cut):
    body = json.dumps(content).encode()
    headers = {} if cut is None else {HEADER: str(min(cut, len(body)))}
    answer = client.post(INFER, content=body + rest, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]
