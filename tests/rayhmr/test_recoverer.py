"""One process of a batch prediction, without Ray: boxes that are none of their picture."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hmr.body_arrays import body_from_path
from hmr.config import BodyConfig
from hmr.crops import decode_image, encode_jpeg
from hmr.synthetic import Generator
from rayhmr.people_table import PEOPLE_SCHEMA
from rayhmr.pictures import table_of
from rayhmr.pinned_model import PinnedModel
from rayhmr.prediction_files import write_people
from rayhmr.prediction_parts import PredictionParts
from rayhmr.recoverer import Recoverer

GOOD = [[10.0, 10.0, 80.0, 90.0], [-20.0, 5.0, 60.0, 60.0]]
OUTSIDE, HUGE = [400.0, 10.0, 450.0, 60.0], [0.0, 0.0, 1e6, 50.0]


@pytest.fixture(scope="module")
def recoverer(bundle):
    model = PinnedModel.of(str(bundle), BodyConfig())
    return Recoverer(model, "cpu", None, overlays=False)


@pytest.fixture(scope="module")
def photo():
    (person,) = Generator(body_from_path("embedded"), "easy", 96, 5, "test").samples([0])
    return encode_jpeg(person.image)


def asked(photo, *boxes):
    return pa.Table.from_pylist(
        [
            {"number": n, "path": f"{n}.jpg", "content": photo, "known": None, "reason": None,
             "detail": None, "boxes": None if b is None else np.ravel(b).tolist()}
            for n, b in enumerate(boxes)
        ]
    )  # fmt: skip


def test_a_bad_box_is_refused_and_its_neighbours_are_recovered(recoverer, photo, tmp_path):
    boxes = [[GOOD[0], OUTSIDE, GOOD[1], HUGE], GOOD, [OUTSIDE, HUGE], None]
    table = recoverer(asked(photo, *boxes))
    mixed, good, bad, whole = table.to_pylist()
    assert [p["person"] for p in mixed["people"]] == [0, 2]
    assert [p["sample_id"] for p in mixed["people"]] == ["0.jpg/0", "0.jpg/2"]
    for one, other in zip(mixed["people"], good["people"], strict=True):
        np.testing.assert_allclose(one["joints_3d"], other["joints_3d"], atol=1e-5)
    expected = recoverer.predictor.predict(decode_image(photo), GOOD)
    for one, person in zip(good["people"], expected, strict=True):
        np.testing.assert_allclose(one["joints_3d"], person.joints_3d.reshape(-1), atol=1e-5)
    assert [one["person"] for one in mixed["refused"]] == [1, 3]
    assert "box 1 [400.0, 10.0, 450.0, 60.0]: it must overlap" in mixed["refused"][0]["detail"]
    assert "no side may be above 100 times" in mixed["refused"][1]["detail"]
    assert (bad["people"], bad["reason"]) == (None, "bad_box")
    assert (len(whole["people"]), whole["refused"]) == (1, [])

    parts = PredictionParts(tmp_path, table_of([{"path": f"{n}.jpg"} for n in range(4)]),
                            recoverer.schema)  # fmt: skip
    parts.add(table)
    parts.check_complete()
    assert (parts.predicted, parts.people, parts.boxes_rejected) == (3, 5, 2)
    assert parts.reasons == {"bad_box": 1}
    again = PredictionParts(tmp_path, table_of([{"path": f"{n}.jpg"} for n in range(4)]),
                            recoverer.schema)  # fmt: skip
    assert (again.found, again.people, again.boxes_rejected) == (4, 5, 2)
    write_people(parts, tmp_path, PEOPLE_SCHEMA)
    assert pq.read_metadata(tmp_path / "people.parquet").num_rows == 5
    with (tmp_path / "rejected/rejected.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    assert [row[:2] for row in rows] == [
        ["0.jpg/box-1", "bad_box"], ["0.jpg/box-3", "bad_box"], ["2.jpg", "bad_box"],
    ]  # fmt: skip
