"""The sheet of held-out people: the right people, the true body on its picture, in order."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from hmr.checkpoint import load_bundle
from hmr.crops import decode_image
from hmr.skeleton import SMPL_VERTEX_IDS, joint49_index
from hmr.synthetic import Generator
from rayhmr.config import SyntheticConfig
from rayhmr.data.schema import DatasetInfo, encode_shard
from rayhmr.data.sources.synthetic import SyntheticSource
from rayhmr.sheet import held_out, people_sheet, spread, triptych

PEOPLE = SyntheticConfig(image_size=64, seed=8)


@pytest.fixture(scope="module")
def people():
    return list(SyntheticSource(PEOPLE, "embedded").people("test", 0, 9))


@pytest.fixture(scope="module")
def info(people, tmp_path_factory):
    """A test split of two files."""
    folder = tmp_path_factory.mktemp("shards")
    files = []
    for name, some in (("a.parquet", people[:4]), ("b.parquet", people[4:])):
        (folder / name).write_bytes(encode_shard([person.row(95) for person in some]))
        files.append({"name": name, "rows": len(some)})
    return DatasetInfo(
        location=str(folder), fingerprint="", source="synthetic", image_size=64,
        files={"test": files}, statistics={}, rejected={}, body={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def predictor(bundle):
    return load_bundle(bundle)


@pytest.mark.parametrize(
    ("ranked", "count", "chosen"),
    [
        (range(10, 20), 4, [10, 13, 16, 19]),
        ([5, 3, 9], 3, [5, 3, 9]),
        ([5, 3, 9], 8, [5, 3, 9]),
        ([5, 3, 9], 1, [5]),
        ([], 3, []),
    ],
)
def test_the_chosen_lie_evenly_from_the_best_to_the_worst(ranked, count, chosen):
    assert spread(ranked, count) == chosen


def test_people_are_found_by_their_place_in_the_split_in_the_order_asked_for(
    people, info, predictor
):
    found = held_out(info, "test", [7, 0, 4], predictor)
    for person, number in zip(found, (7, 0, 4), strict=True):
        assert person.sample_id == people[number].sample_id
        assert person.jpeg == people[number].row(95)["image"]["bytes"]
        np.testing.assert_allclose(person.intrinsics, people[number].intrinsics, rtol=1e-6)


def test_the_true_body_stands_where_its_2d_labels_are(people, info, predictor):
    landmarks = dict(zip(SMPL_VERTEX_IDS, predictor.body.arrays.landmark_vertices, strict=True))
    for person, labelled in zip(
        held_out(info, "test", range(9), predictor), people, strict=True
    ):  # fmt: skip
        for name in ("nose", "left_heel", "right_big_toe", "left_ear"):
            x, y, z = person.vertices[landmarks[name]]
            fx, fy, cx, cy = person.intrinsics
            label = labelled.keypoints_2d[joint49_index(f"op_{name}"), :2]
            np.testing.assert_allclose([fx * x / z + cx, fy * y / z + cy], label, atol=1e-2)


def test_a_triptych_is_the_photo_the_model_and_the_truth(people, info, predictor):
    (person,) = held_out(info, "test", [2], predictor)
    photo, predicted, true = triptych(person, predictor, 128)
    stored = decode_image(person.jpeg)
    shown = cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shown.astype(int) - stored).mean() < 2
    (drawn,) = Generator(predictor.body.arrays, PEOPLE.preset, 64, PEOPLE.seed, "test").samples([2])
    covered = cv2.resize(drawn.mask, (128, 128)) > 0.5
    changed = np.abs(true.astype(int) - photo).max(-1) > 12
    assert (changed & covered).sum() > 0.8 * covered.sum()
    assert (changed & ~covered).sum() < 0.1 * covered.sum()
    assert np.abs(predicted.astype(int) - photo).max() > 50
    assert not np.array_equal(predicted, true)


def test_the_sheet_shows_three_pictures_of_everybody_row_by_row(info, predictor):
    people = held_out(info, "test", range(5), predictor)
    sheet = people_sheet(people, predictor, side=32, across=2)
    gap = 4
    assert sheet.shape == (3 * (32 + gap) + gap, 6 * (32 + gap) + gap, 3)
    for number, person in enumerate(people):
        row, first = divmod(number, 2)
        for place, picture in enumerate(triptych(person, predictor, 32)):
            y, x = gap + row * (32 + gap), gap + (3 * first + place) * (32 + gap)
            np.testing.assert_array_equal(sheet[y : y + 32, x : x + 32], picture)
    assert (sheet[-32:, -32:] == 255).all(), "the place of a sixth person stays white"
