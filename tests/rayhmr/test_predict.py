"""A folder with good and bad pictures: nothing is lost, and every refusal says why."""

from __future__ import annotations

import csv
import json
import struct
import zlib

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from hmr.body_arrays import body_from_path
from hmr.checkpoint import load_bundle
from hmr.crops import decode_image, encode_jpeg
from hmr.errors import BundleError, ConfigError
from hmr.synthetic import Generator
from rayhmr.config import PredictJob, PredictOutput
from rayhmr.predict import predict


def png_that_claims_to_be_huge(side):
    """A valid header and next to no pixels: what a decompression bomb looks like."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(
            ">I", zlib.crc32(kind + content)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photos, one of them in a folder, one of them grey, and six files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    people = Generator(body_from_path("embedded"), "easy", 96, 5, "test").samples(range(6))
    photos = [encode_jpeg(person.image) for person in people]
    for number, photo in enumerate(photos[:4]):
        (folder / f"good-{number}.jpg").write_bytes(photo)
    (folder / "album").mkdir()
    (folder / "album" / "good-0.jpg").write_bytes(photos[4])
    grey = cv2.cvtColor(people[5].image, cv2.COLOR_RGB2GRAY)
    (folder / "grey.png").write_bytes(cv2.imencode(".png", grey)[1].tobytes())
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(photos[0][: len(photos[0]) // 2])
    (folder / "bomb.png").write_bytes(png_that_claims_to_be_huge(60_000))
    (folder / "moving.gif").write_bytes(b"GIF89a" + bytes(40))
    (folder / "dot.jpg").write_bytes(encode_jpeg(np.zeros((1, 1, 3), np.uint8)))
    (folder / ".hidden.jpg").write_bytes(photos[0])
    return folder


@pytest.fixture(scope="module")
def predicted(local_cluster, folder, bundle, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "predictions"
    job = PredictJob(model=str(bundle), input=str(folder), output=str(output), batch_size=5,
                     num_actors=1)  # fmt: skip
    return output, predict(job)


@pytest.mark.ray
def test_every_file_is_predicted_or_rejected_with_a_reason(predicted):
    output, results = predicted
    assert (results["listed"], results["predicted"], results["rejected"]) == (12, 6, 6)
    with (output / "rejected/rejected.csv").open() as file:
        rejected = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rejected) == {
        "text.jpg", "empty.jpg", "cut.jpg", "bomb.png", "moving.gif", "dot.jpg"
    }  # fmt: skip
    assert results["reasons"] == {
        reason: [row["reason"] for row in rejected.values()].count(reason)
        for reason in {row["reason"] for row in rejected.values()}
    }
    assert rejected["bomb.png"]["reason"] == "too_many_pixels"
    assert "60000" in rejected["bomb.png"]["detail"].replace(",", "")
    assert all(len(row["detail"]) > 10 for row in rejected.values())
    table = pq.read_table(output / "people.parquet")
    assert sorted(table["image"].to_pylist()) == [
        "album/good-0.jpg", "good-0.jpg", "good-1.jpg", "good-2.jpg", "good-3.jpg", "grey.png",
    ]  # fmt: skip
    stored = json.loads((output / "predictions.json").read_text())
    assert (stored["predicted"], stored["rejected"]) == (6, 6)


@pytest.mark.ray
def test_the_rows_are_what_the_model_says_of_each_picture(predicted, folder, bundle):
    output, _ = predicted
    predictor = load_bundle(bundle)
    rows = pq.read_table(output / "people.parquet").to_pylist()
    for row in rows:
        (person,) = predictor.predict(decode_image((folder / row["image"]).read_bytes()))
        for name in ("global_orient", "body_pose", "betas", "cam_t", "joints_2d"):
            np.testing.assert_allclose(
                row[name], getattr(person, name).reshape(-1), atol=2e-3, err_msg=name
            )
        np.testing.assert_allclose(
            np.reshape(row["joints_3d"], (24, 3)), person.joints_3d, atol=1e-5
        )
    joints = np.array([row["joints_3d"] for row in rows])
    assert np.ptp(joints, axis=0).max() > 1e-3, "different pictures have different answers"


@pytest.mark.ray
def test_an_overlay_is_the_photo_with_a_body_over_it(predicted, folder):
    output, _ = predicted
    names = {str(p.relative_to(output / "overlays")) for p in output.rglob("overlays/**/*.jpg")}
    assert names == {
        "album/good-0.jpg", "good-0.jpg", "good-1.jpg", "good-2.jpg", "good-3.jpg", "grey.jpg",
    }  # fmt: skip
    photo = cv2.imread(str(folder / "good-1.jpg")).astype(int)
    drawn = cv2.imread(str(output / "overlays/good-1.jpg")).astype(int)
    changed = np.abs(photo - drawn).max(-1) > 40
    assert 0.02 < changed.mean() < 0.8


@pytest.mark.ray
def test_an_earlier_prediction_is_replaced_and_foreign_folders_are_left_alone(
    predicted, folder, bundle, tmp_path
):
    one = PredictJob(
        model=str(bundle), input=str(folder / "good-0.jpg"), output=str(tmp_path / "out"),
        num_actors=1,
    )  # fmt: skip
    assert predict(one)["predicted"] == 1
    again = predict(one.model_copy(update={"overlays": False}))
    assert again["predicted"] == 1
    assert not (tmp_path / "out/overlays").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing half-written stays"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"holds no predictions\.json"):
        predict(one.model_copy(update={"output": PredictOutput(path=str(tmp_path / "mine"))}))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_what_cannot_work_is_refused_before_ray_starts(folder, bundle, tmp_path):
    job = PredictJob(model=str(bundle), input=str(folder), output=str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="no such folder or file"):
        predict(job.model_copy(update={"input": str(tmp_path / "nowhere")}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="the folder holds no files"):
        predict(job.model_copy(update={"input": str(tmp_path / "empty")}))
    with pytest.raises(ConfigError, match="lies inside input="):
        predict(job.model_copy(update={"output": PredictOutput(path=str(folder / "out"))}))
    with pytest.raises(BundleError, match="no-model"):
        predict(job.model_copy(update={"model": str(tmp_path / "no-model")}))
    assert not (tmp_path / "out").exists()
