"""The loaders that are compared do the same work, and the figures are what they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from hmr.config import AugmentConfig
from hmr.crops import apply_affine, box_to_affine
from hmr.model import IMAGE_MEAN, IMAGE_STD
from hmr.skeleton import JOINT49_FLIP
from rayhmr import benchmark_data
from rayhmr.benchmark_data import Workload, data_rates, measured, ratios, take_turn
from rayhmr.benchmark_loaders import (
    FrameCrops,
    InProcess,
    classic,
    contents_of,
    decode_alone,
    opencv,
    ours,
    ours_augmented,
    torch_iterable,
    torch_map,
)
from rayhmr.benchmark_people import make_frames, make_shards
from rayhmr.data.batches import read_batches
from rayhmr.data.decode import decode_square

SIZE, PEOPLE, COPIES = 48, 5, 3
UNCHANGED = AugmentConfig.model_validate("none")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    people = make_frames(folder, people=PEOPLE, side=160)
    info = make_shards(folder, people, image_size=SIZE, copies=COPIES, files=4)
    return SimpleNamespace(folder=folder, people=people, info=info)


def sorted_bytes(batches):
    """Pictures of all batches as bytes, in an order that does not depend on theirs."""
    return sorted(np.asarray(image).tobytes() for batch in batches for image in batch)


# The data


def test_shards_hold_every_person_of_the_frames_so_many_times(made):
    batches = read_batches(made.info, "train", batch_size=100, image_size=SIZE)
    rows = [name for batch in batches for name in batch.sample_ids]
    names = [f"frame-{number:05d}.jpg/{copy}" for number in range(PEOPLE) for copy in range(COPIES)]
    assert sorted(rows) == sorted(names)


def test_a_crop_shows_its_frame_and_its_keypoints_stay_on_the_body(made):
    crops = {}
    for batch in read_batches(made.info, "train", batch_size=100, image_size=SIZE):
        for name, image, points in zip(
            batch.sample_ids, batch.images, batch.keypoints_2d, strict=True
        ):
            crops[name] = image.permute(1, 2, 0).numpy(), points.numpy()
    for person in made.people:
        image, points = crops[f"{person.sample_id}/0"]
        frame = cv2.imread(str(made.folder / person.image), cv2.IMREAD_COLOR_RGB)
        side = round(200 * person.scale)
        x, y = (round(corner) for corner in person.center - side / 2)
        square = frame[y : y + side, x : x + side]
        expected = cv2.resize(square, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
        assert np.abs(image.astype(float) - expected).mean() < 8
        inside = (person.keypoints_2d[:, :2] - (x, y)) / side
        seen = person.keypoints_2d[:, 2] > 0
        np.testing.assert_allclose(points[seen, :2], 2 * inside[seen] - 1, atol=1e-5)
        np.testing.assert_array_equal(points[:, 2], seen)


# The loaders


@pytest.mark.parametrize("workers", [1, 2])
def test_every_loader_of_shards_gives_each_picture_once_as_opencv_decodes_it(made, workers):
    contents = contents_of(made.info)
    reference = np.empty((len(contents), SIZE, SIZE, 3), np.uint8)
    for content, image in zip(contents, reference, strict=True):
        opencv(content, image)
    expected = sorted_bytes([reference])
    assert len(expected) == PEOPLE * COPIES
    loaders = {
        "bare": decode_alone(contents, SIZE, decode_square, 4),
        "opencv": decode_alone(contents, SIZE, opencv, 4),
        "ours": ours(made.info, batch_size=4, threads=workers),
        "map": torch_map(made.info, batch_size=4, processes=workers),
        "iterable": torch_iterable(made.info, batch_size=4, processes=workers),
    }
    for name, loader in loaders.items():
        for _ in range(2):  # an epoch must not use the loader up
            assert sorted_bytes(loader) == expected, name


def test_augmented_batches_are_the_same_pictures_when_nothing_is_changed(made):
    loader = ours_augmented(made.info, UNCHANGED, batch_size=4, threads=1)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    found = [(255 * (batch * std + mean)).permute(0, 2, 3, 1) for batch in loader]
    plain = list(ours(made.info, batch_size=4, threads=1))
    for one, other in zip(found, plain, strict=True):
        torch.testing.assert_close(one, other.float(), atol=1e-3, rtol=0)


def test_processes_tell_what_they_have_spent(made):
    loader = torch_map(made.info, batch_size=4, processes=2)
    assert loader.worker_cpu_s() == 0
    list(loader)
    once = loader.worker_cpu_s()
    list(loader)
    assert 0 < once <= loader.worker_cpu_s()


# The classic loader


def restored(sample):
    """The normalised planes as (S, S, 3) in 0..255."""
    mean, std = (np.array(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
    return (255 * (sample["image"] * std + mean)).transpose(1, 2, 0)


def test_the_classic_loader_cuts_the_same_person_out_of_the_frame(made):
    crops = FrameCrops(made.folder, made.people, 77, UNCHANGED)
    assert len(crops) == PEOPLE
    for sample, person in zip((crops[i] for i in range(PEOPLE)), made.people, strict=True):
        # The box has 77 pixels in the frame and lies between whole ones: a plain cut.
        x, y = np.floor(person.center - 38).astype(int)
        frame = cv2.imread(str(made.folder / person.image), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_allclose(restored(sample), frame[y : y + 77, x : x + 77], atol=0.01)
        points = (77 * (sample["keypoints_2d"][:, :2] + 1) / 2) + (x, y)
        np.testing.assert_allclose(points, person.keypoints_2d[:, :2], atol=1e-3)
        np.testing.assert_array_equal(sample["pose"], person.pose)


def test_its_mirror_image_has_mirrored_keypoints_with_swapped_sides(made):
    mirrored = UNCHANGED.model_copy(update={"flip": 1.0})
    plain = FrameCrops(made.folder, made.people, SIZE, UNCHANGED)[2]
    flipped = FrameCrops(made.folder, made.people, SIZE, mirrored)[2]
    np.testing.assert_allclose(flipped["image"], plain["image"][:, :, ::-1], atol=1e-6)
    expected = plain["keypoints_2d"][list(JOINT49_FLIP)] * [-1, 1, 1]
    np.testing.assert_allclose(flipped["keypoints_2d"], expected, atol=1e-6)


def test_its_keypoints_turn_and_zoom_with_the_picture(tmp_path, made):
    person = made.people[0]
    frame = np.zeros((160, 160, 3), np.uint8)
    x, y = person.center + np.array([20, -12])
    line = np.arange(160) + 0.5
    spot = np.exp(-((line - x) ** 2 + (line[:, None] - y) ** 2) / (2 * 3**2))
    frame[:] = (250 * spot[..., None]).round()
    Path(tmp_path / person.image).write_bytes(cv2.imencode(".jpg", frame)[1].tobytes())
    points = np.repeat(np.array([[x, y, 1]], np.float32), 49, axis=0)
    marked = SimpleNamespace(**{**vars(person), "keypoints_2d": points})
    changed = UNCHANGED.model_copy(
        update={"rotation": 30.0, "rotation_probability": 1.0, "scale": 0.2, "flip": 0.5}
    )
    found = set()
    for _ in range(12):
        sample = FrameCrops(tmp_path, [marked], SIZE, changed)[0]
        image = np.maximum(restored(sample)[..., 0] - 60, 0)
        seen = 2 * (np.arange(SIZE) + 0.5) / SIZE - 1
        centre = (image.sum(0) @ seen, image.sum(1) @ seen) / image.sum()
        np.testing.assert_allclose(sample["keypoints_2d"][0, :2], centre, atol=0.02)
        found.add(tuple(centre.round(3)))
    assert len(found) > 6, "each sample draws its own numbers"
    plain = apply_affine(box_to_affine(person.center, 200 * person.scale, SIZE), points[:1, :2])
    assert np.abs(plain / SIZE * 2 - 1).max() < 0.9


def test_its_channels_change_by_no_more_than_the_noise(made):
    noisy = UNCHANGED.model_copy(update={"channel_noise": 0.2})
    plain = restored(FrameCrops(made.folder, made.people, SIZE, UNCHANGED)[1])
    factors = []
    for _ in range(8):
        other = restored(FrameCrops(made.folder, made.people, SIZE, noisy)[1])
        middle = (plain > 20) & (plain < 200)
        for channel in range(3):
            chosen = middle[..., channel]
            ratio = other[..., channel][chosen] / plain[..., channel][chosen]
            assert np.ptp(ratio) < 1e-3, "one number for a whole channel"
            factors.append(ratio.mean())
    assert 0.8 <= min(factors) < 0.97
    assert 1.03 < max(factors) <= 1.2


def test_it_gives_every_person_once_a_pass(made):
    loader = classic(made.folder, made.people, SIZE, UNCHANGED, batch_size=2, processes=1)
    crops = FrameCrops(made.folder, made.people, SIZE, UNCHANGED)
    expected = sorted_bytes([[crops[i]["image"].astype(np.float32) for i in range(PEOPLE)]])
    assert sorted_bytes(batch.numpy() for batch in loader) == expected


# The figures


class Clock:
    """Two clocks that only a loader moves."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def perf_counter(self):
        return self.wall

    def process_time(self):
        return self.cpu


class Known:
    """Batches of known lengths that take known times."""

    def __init__(self, clock, lengths, *, wall, cpu, elsewhere):
        self.clock, self.lengths = clock, lengths
        self.wall, self.cpu, self.elsewhere, self.spent = wall, cpu, elsewhere, 5.0

    def __iter__(self):
        for length in self.lengths:
            self.clock.wall += self.wall
            self.clock.cpu += self.cpu
            self.spent += self.elsewhere
            yield [0] * length

    def worker_cpu_s(self):
        return self.spent


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(benchmark_data, "time", clock)
    return clock


def test_a_turn_counts_the_time_of_all_processes(clock):
    turn = take_turn(Known(clock, [4, 4, 2], wall=2.0, cpu=0.5, elsewhere=1.0))
    assert (turn.images, turn.wall_s, turn.cpu_s, turn.first_batch_s) == (10, 6.0, 4.5, 2.0)
    assert take_turn(InProcess(lambda: iter([[1, 2], [3]]))).images == 3


def test_loaders_take_turns_and_the_first_pass_counts_only_for_its_first_batch(clock):
    order = []

    class Slowing(Known):
        def __iter__(self):
            order.append(self.lengths[0])
            yield from super().__iter__()
            self.wall /= 2

    loaders = {
        "a": Slowing(clock, [8], wall=4.0, cpu=1.0, elsewhere=1.0),
        "b": Slowing(clock, [6, 6], wall=16.0, cpu=2.0, elsewhere=0.0),
    }
    found = measured(loaders, 3)
    assert order == [8, 6] * 4
    # Walls 4, then 2, 1, 0.5: the median of the counted ones is 1.
    assert found["a"] == {"images_per_core_s": 4.0, "images_per_s": 8.0, "first_batch_s": 4.0}
    assert found["b"] == {"images_per_core_s": 3.0, "images_per_s": 1.5, "first_batch_s": 16.0}


def test_ratios_are_quotients_of_their_own_parts():
    cpu = {"bare_decode": 100.0, "opencv_decode": 80.0, "loader": 90.0, "torch_map": 45.0,
           "torch_iterable": 60.0, "augmented": 8.0, "classic": 4.0}  # fmt: skip
    wall = dict.fromkeys(cpu, 1.0) | {"loader": 30.0, "torch_map": 20.0, "torch_iterable": 15.0}
    rates = {name: {"images_per_core_s": cpu[name], "images_per_s": wall[name]} for name in cpu}
    assert ratios(rates) == {
        "loader_over_bare_decode": 0.9, "bare_decode_over_opencv": 1.25,
        "loader_over_torch_map": 2.0, "loader_over_torch_iterable": 1.5,
        "loader_over_torch_wall": 1.5, "shards_over_classic_loader": 22.5,
        "augmented_shards_over_classic_loader": 2.0,
    }  # fmt: skip


def test_a_small_run_gives_consistent_figures():
    work = Workload(people=3, frame_side=160, copies=2, batch_size=2)
    rows, figures = data_rates(1, 1, sizes=(32, 48), work=work)
    assert [row["side"] for row in rows] == [32] * 7 + [48] * 7
    for size in (32, 48):
        for name, upper, lower in (
            ("loader_over_bare_decode", "loader", "bare_decode"),
            ("shards_over_classic_loader", "loader", "classic"),
            ("augmented_shards_over_classic_loader", "augmented", "classic"),
        ):
            parts = (figures[f"{part}_images_per_core_s_{size}"] for part in (upper, lower))
            quotient = next(parts) / next(parts)
            assert figures[f"{name}_{size}"] == pytest.approx(quotient)
    for name in ("shards_over_classic_loader", "loader_over_torch_wall"):
        assert figures[name] == min(figures[f"{name}_{size}"] for size in (32, 48))
    shares = {(row["side"], row["loader"]): row["share of decode"] for row in rows}
    assert shares[48, "shards: ours"] == pytest.approx(figures["loader_over_bare_decode_48"])
    assert shares[32, "decode alone, in memory, one thread"] == 1
    assert (32, "frames of 160 px: decode, crop, augment by sample, float32") in shares
