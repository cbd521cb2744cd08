"""The service and jobs/predict.py say the same of a picture, in pixels of the upright frame."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from hmr.crops import decode_frame, decode_image
from rayhmr.config import PredictJob
from rayhmr.predict import predict
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.api import build_app
from rayhmr.serve.guard import Limits
from rayhmr.serve.inference import recover_batch
from rayhmr.serve.served import ServedModel, Service

BOXES = [[60.0, 20.0, 156.0, 116.0], [10.0, 5.0, 90.0, 135.0]]
NUMBERS = ("cam_t", "joints_3d", "joints_2d", "box_xyxy")
STORED_TO_UPRIGHT = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
UNDONE_BY = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
             Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}  # fmt: skip


def stored(image, orientation):
    """A PNG that holds the picture turned, and says in its EXIF how to turn it upright."""
    method = STORED_TO_UPRIGHT[orientation]
    picture = Image.fromarray(image)
    if method is not None:
        picture = picture.transpose(UNDONE_BY.get(method, method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def large(image, orientation=1, side=1600):
    """A JPEG many times the size of the model's crops, stored turned."""
    height, width = image.shape[:2]
    size = side, side * height // width // 16 * 16
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    method = STORED_TO_UPRIGHT[orientation]
    if method is not None:
        picture = picture.transpose(UNDONE_BY.get(method, method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def ask(client, content, **fields):
    answer = client.post("/v1/predict", files={"image": content}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_is(person, expected):
    for name in NUMBERS:
        # A pixel near the frame's edge is the small difference of large float32 numbers.
        least = 1e-6 * np.abs(expected[name]).max() if name == "joints_2d" else 0.0
        np.testing.assert_allclose(
            np.ravel(person[name]),
            np.ravel(expected[name]),
            rtol=1e-5,
            atol=max(1e-5, least),
            err_msg=name,
        )
    for name in ("global_orient", "body_pose", "betas"):
        np.testing.assert_allclose(person["smpl"][name], expected[name], atol=1e-5, err_msg=name)


def numbers_of(person):
    names = (*NUMBERS, "global_orient", "body_pose", "betas")
    return {name: getattr(person, name) for name in names}


@pytest.fixture(scope="module")
def client(app_of):
    with TestClient(app_of(max_body_bytes=2_000_000)) as made:
        yield made


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_gives_the_people_of_the_upright_picture(
    client, predictor, photo, orientation
):
    image = decode_image(photo)
    answer = ask(client, stored(image, orientation), boxes=json.dumps(BOXES))
    assert answer["image"] == {"width": 200, "height": 140, "exif_rotated": orientation != 1}
    for person, expected in zip(answer["people"], predictor.predict(image, BOXES), strict=True):
        assert_is(person, numbers_of(expected))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_photo_is_read_smaller_and_nothing_else_changes(
    client, predictor, photo, orientation
):
    content = large(decode_image(photo), orientation)
    whole = decode_image(content)
    boxes = [[480.0, 160.0, 1248.0, 928.0], [400.0, 200.0, 1450.0, 1050.0]]
    frame = decode_frame(content, predictor.image_size, 768)
    assert (frame.shrink, frame.size) == (4, (1600, 1120))
    answer = ask(client, content, boxes=json.dumps(boxes))
    assert answer["image"] == {"width": 1600, "height": 1120, "exif_rotated": orientation != 1}
    for person, same, near in zip(
        answer["people"], predictor.predict(frame, boxes), predictor.predict(whole, boxes),
        strict=True,
    ):  # fmt: skip
        assert_is(person, numbers_of(same))
        assert person["box_xyxy"] == near.box_xyxy.tolist()
        np.testing.assert_allclose(person["joints_3d"], near.joints_3d, atol=0.01)
        np.testing.assert_allclose(person["joints_2d"], near.joints_2d, atol=10)
    overlay = client.post(
        "/v1/predict", files={"image": content}, headers={"accept": "image/png"}
    ).content
    assert decode_image(overlay).shape == whole.shape
    corner = slice(0, 40)
    np.testing.assert_array_equal(decode_image(overlay)[corner, corner], whole[corner, corner])


def test_a_central_camera_is_the_predictors_focal_length(client, predictor, photo):
    camera = {"fx": 321.5, "fy": 321.5, "cx": 100.0, "cy": 70.0}
    answer = ask(client, photo, boxes=json.dumps(BOXES), camera=json.dumps(camera), n_iter="2")
    expected = predictor.predict(decode_image(photo), BOXES, n_iter=2, focal=321.5)
    for person, other in zip(answer["people"], expected, strict=True):
        assert_is(person, numbers_of(other))


def array_of(packed):
    return np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["shape"])


def test_the_last_step_is_the_answer_and_its_mesh_stands_before_the_camera(
    client, predictor, photo
):
    answer = ask(client, photo, include="vertices,iterations,overlay")
    (person,) = answer["people"]
    (expected,) = predictor.predict(decode_image(photo))
    last = person["iterations"][-1]
    placed = expected.vertices + expected.cam_t
    for packed in (last["vertices"], person["vertices"]):
        np.testing.assert_allclose(array_of(packed), placed, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last["smpl"]["body_pose"], person["smpl"]["body_pose"], atol=1e-5)
    np.testing.assert_allclose(last["cam_t"], expected.cam_t, rtol=1e-5)
    first = array_of(person["iterations"][0]["vertices"])
    assert np.abs(first - placed).max() > 0.01, "the body moved on the way"
    overlay = client.post("/v1/predict", files={"image": photo}, headers={"accept": "image/png"})
    assert base64.b64decode(answer["overlay"]["data"]) == overlay.content


@pytest.mark.ray
def test_the_job_and_the_service_agree_whatever_the_batch(
    local_cluster, bundle, predictor, photo, tmp_path
):
    image = decode_image(photo)
    rng = np.random.default_rng(3)
    contents = {
        "photo.jpg": photo, "turned.png": stored(image, 6), "mirrored.png": stored(image, 5),
        "small.png": stored(image[10:120, 40:170], 1),
        "large.jpg": large(image, 6), "larger.jpg": large(image, 1, 3200),
        "noise.png": stored(rng.integers(0, 255, (90, 70, 3), dtype=np.uint8), 1),
    }  # fmt: skip
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    job = PredictJob(model=str(bundle), input=str(folder), output=str(tmp_path / "out"),
                     batch_size=3, overlays=False, num_actors=1)  # fmt: skip
    assert predict(job)["predicted"] == len(contents)
    rows = pq.read_table(tmp_path / "out" / "people.parquet").to_pylist()
    answers = asyncio.run(_in_one_batch(predictor, contents))
    for row in rows:
        answer = answers[row["image"]]
        assert (row["image_width"], row["image_height"]) == (
            answer["image"]["width"], answer["image"]["height"]
        )  # fmt: skip
        (person,) = answer["people"]
        assert_is(person, row)


async def _in_one_batch(predictor, contents):
    """Answers of an application whose requests wait for each other and go through the model
    together."""
    import httpx

    waiting = []

    async def recover(work):
        done = asyncio.get_running_loop().create_future()
        waiting.append((work, done))
        if len(waiting) == len(contents):
            results = recover_batch(predictor, [work for work, _ in waiting])
            for (_, future), result in zip(waiting, results, strict=True):
                future.set_result(result)
        return await done

    info = ModelInfo.of(predictor, name="tiny", version="1")
    model = ServedModel(info=info, recover=recover, is_ready=lambda: True)
    with ThreadPoolExecutor(2) as threads:
        app = build_app(
            Service(models={"tiny": model}, threads=threads),
            Limits(max_body_bytes=2_000_000, request_timeout_s=60.0, max_requests=16),
        )
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            requests = (
                client.post("/v1/predict", files={"image": content})
                for content in contents.values()
            )
            found = await asyncio.gather(*requests)
    assert [answer.status_code for answer in found] == [200] * len(contents)
    return dict(zip(contents, (answer.json() for answer in found), strict=True))
