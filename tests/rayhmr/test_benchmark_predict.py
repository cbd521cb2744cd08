"""What is compared recovers the same pictures; quotients are of the same round."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from hmr.checkpoint import load_bundle
from hmr.crops import decode_image, encode_jpeg
from hmr.synthetic import Generator
from rayhmr.benchmark_predict import figures, plain_rate


def test_the_plain_loop_recovers_every_picture(bundle, tmp_path):
    predictor = load_bundle(bundle)
    (tmp_path / "in").mkdir()
    people = Generator(predictor.body.arrays, "easy", 48, 5, "test").samples(range(3))
    for number in range(35):
        content = encode_jpeg(people[number % 3].image)
        (tmp_path / "in" / f"{number:02d}.jpg").write_bytes(content)
    assert plain_rate(predictor, tmp_path / "in", tmp_path / "out.parquet") > 0
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [row["image"] for row in rows] == [f"{number:02d}.jpg" for number in range(35)]
    (person,) = predictor.predict(decode_image(encode_jpeg(people[1].image)))
    assert rows[34]["pose"] == pytest.approx(rows[1]["pose"], abs=1e-3)
    assert rows[1]["betas"] == pytest.approx(person.betas.tolist(), abs=1e-2)


def test_quotients_are_of_the_same_round():
    rates = {"ceiling": [100.0, 50.0, 200.0], "plain": [50.0, 30.0, 80.0],
             "ours_1": [80.0, 40.0, 160.0], "ours_2": [150.0, 80.0, 310.0]}  # fmt: skip
    found = figures(rates, {"ours_1": 4.0, "ours_2": 6.0})
    assert found["ours_1_over_ceiling"] == pytest.approx(0.8)
    assert found["ours_1_over_plain"] == pytest.approx(1.6)
    assert found["ours_2_over_ceiling"] == pytest.approx(1.55)
    assert found["plain_over_ceiling"] == pytest.approx(0.5)
    assert found["ours_2_first_result_s"] == 6.0
    assert found["plain_images_per_s"] == 50.0
