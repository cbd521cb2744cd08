"""A prediction that is killed goes on: nothing twice, nothing lost, every bad picture with why."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import struct
import time
import zlib
from contextlib import suppress

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hmr.body_arrays import body_from_path
from hmr.crops import encode_jpeg
from hmr.synthetic import Generator
from rayhmr.chaos.cluster import ChaosCluster
from rayhmr.chaos.run import JobProcess

ACTOR = "ray::MapWorker(MapBatches(Recoverer))"


def bomb(side):
    """A PNG that claims to be huge."""

    def chunk(kind, content):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def as_file(kind, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, kind, **options)
    return buffer.getvalue()


def zoo(photo):
    """Name and content of a bad picture, and the reason for which it must be refused."""
    frames = [Image.new("RGB", (40, 40), color) for color in ("blue", "green")]
    moving = as_file("PNG", save_all=True, append_images=frames)
    return [
        ("empty.jpg", b"", "zero_byte"), ("text.jpg", b"not a picture" * 9, "not_an_image"),
        ("cut.jpg", photo[: len(photo) // 2], "truncated"),
        ("bomb.png", bomb(60_000), "too_many_pixels"),
        ("dot.jpg", encode_jpeg(np.zeros((1, 1, 3), np.uint8)), "too_small"),
        ("moving.png", moving, "animated"), ("old.bmp", as_file("BMP"), "format_not_allowed"),
        ("film.mp4", b"\0\0\0\x18ftypisom" + bytes(60), "format_not_allowed"),
    ]  # fmt: skip


LINES = [
    ("{0},nan,0,40,40", "label_nonfinite"), ("{0},zero,0,40,40", "label_not_a_number"),
    ("{0},0,0,40,", "missing_field"), (",0,0,40,40", "missing_field"),
    ("{0},30,30,10,10", "bad_box"), ("{0},,,,", "duplicate_id"),
    ("../{0},0,0,40,40", "path_escape"), ("gone.jpg,0,0,40,40", "unreadable"),
]  # fmt: skip
"""Bad lines of a list, and the reasons for which they must be refused."""


@pytest.fixture(scope="module")
def photos():
    people = Generator(body_from_path("embedded"), "easy", 64, 5, "test").samples(range(8))
    return [encode_jpeg(person.image) for person in people]


def pictures(folder, photos, count, bad):
    """A folder and a list of `count` pictures of which `bad` are bad in all ways there are. Returns
    the list's path and the wanted reasons by id."""
    folder.mkdir()
    lines, wanted = [], {}
    good = count - bad
    for number in range(good):
        name = f"good-{number:04d}.jpg"
        (folder / name).write_bytes(photos[number % len(photos)])
        lines.append(f"{name},,,,")
    animals = zoo(photos[0])
    for number in range(bad):
        kind = number % (len(animals) + len(LINES))
        if kind < len(animals):
            name, content, reason = animals[kind]
            name = f"{number:03d}-{name}"
            (folder / name).write_bytes(content)
            lines.append(f"{name},,,,")
            wanted[name] = reason
        else:
            line, reason = LINES[kind - len(animals)]
            line = line.format("good-0000.jpg")
            if reason == "unreadable":
                line = f"{number}-{line}"
            lines.append(line)
            name = line.split(",", maxsplit=1)[0]
            # Header and counting from 1: the line's number is two above its place.
            wanted[name if reason == "unreadable" else f"{name}/line-{len(lines) + 1}"] = reason
    (folder / "people.csv").write_text("\n".join(["image,x1,y1,x2,y2", *lines]) + "\n")
    return folder / "people.csv", wanted


def settings(bundle, source, output):
    return {
        "model": str(bundle), "input": str(source), "output.path": str(output), "batch_size": 8,
        "num_actors": 1,
    }  # fmt: skip


def parts_done(output):
    return len(list(output.with_name(f".{output.name}.unfinished").glob("parts/*.parquet")))


def finish(job):
    try:
        outcome = job.wait(240)
        assert outcome.code == 0, outcome.stderr[-2000:]
        return outcome.results
    finally:
        job.close()


def judge(output, results, count, wanted):
    """Everything once; every reason right; nothing half-written stays."""
    with (output / "rejected/rejected.csv").open(newline="", encoding="utf-8") as file:
        rejected = [(row["id"], row["reason"]) for row in csv.DictReader(file)]
    assert len(rejected) == len(dict(rejected))
    assert dict(rejected) == wanted
    people = pq.read_table(output / "people.parquet")
    names = people["image"].to_pylist()
    assert names == [f"good-{number:04d}.jpg" for number in range(count - len(wanted))]
    assert (results["predicted"], results["rejected"]) == (count - len(wanted), len(wanted))
    overlays = {path.stem for path in (output / "overlays").iterdir()}
    assert overlays == {name.removesuffix(".jpg") for name in names}
    assert json.loads((output / "predictions.json").read_text())["predicted"] == len(names)
    assert not output.with_name(f".{output.name}.unfinished").exists()
    return people


def same(first, second):
    assert first.schema.equals(second.schema)
    for name in ("pose", "betas", "transl", "joints_2d"):
        one, other = (np.array(table[name].to_pylist()) for table in (first, second))
        np.testing.assert_allclose(one, other, atol=2e-3, err_msg=name)


@pytest.mark.ray
def test_a_killed_prediction_goes_on(bundle, photos, tmp_path):
    source, wanted = pictures(tmp_path / "photos", photos, 192, 18)
    output = tmp_path / "out"
    with ChaosCluster(3) as cluster:
        job = JobProcess("predict", settings(bundle, source, output), cluster)
        try:
            deadline = time.monotonic() + 120
            while parts_done(output) == 0 and job.running and time.monotonic() < deadline:
                time.sleep(0.002)
            job.send(signal.SIGKILL)
            assert job.wait(60).code == -signal.SIGKILL
        finally:
            job.close()
        assert not output.exists(), "nobody sees half a prediction"
        done = 64 * parts_done(output)
        results = finish(JobProcess("predict", settings(bundle, source, output), cluster))
    assert results["done_before"] == done > 0
    judge(output, results, 192, wanted)


@pytest.mark.ray
@pytest.mark.chaos
def test_a_thousand_pictures_and_ten_kills(bundle, photos, tmp_path):
    source, wanted = pictures(tmp_path / "photos", photos, 1000, 40)
    calm, output, kills = tmp_path / "calm", tmp_path / "out", []
    with ChaosCluster(3) as cluster:
        results = finish(JobProcess("predict", settings(bundle, source, calm), cluster))
        undisturbed = judge(calm, results, 1000, wanted)
        draw, job = random.Random(0), None
        try:
            while len(kills) < 10:
                if job is None or not job.running:
                    if job is not None:
                        job.close()
                    shutil.rmtree(output, ignore_errors=True)  # finished before ten kills: again
                    job = JobProcess("predict", settings(bundle, source, output), cluster)
                before, deadline = parts_done(output), time.monotonic() + 120
                while parts_done(output) <= before and job.running and time.monotonic() < deadline:
                    time.sleep(0.005)
                time.sleep(draw.uniform(0, 0.5))
                if not job.running:
                    continue
                if draw.random() < 0.3 and (actors := cluster.workers(ACTOR)):
                    with suppress(ProcessLookupError):
                        os.kill(actors[0], signal.SIGKILL)
                        kills.append("actor")
                    continue
                job.send(signal.SIGKILL)
                job.wait(60)
                kills.append("job")
        except BaseException:
            if job is not None:
                job.close()
            raise
        if not job.running:
            job.close()
            job = JobProcess("predict", settings(bundle, source, output), cluster)
        results = finish(job)
        print(kills, results["done_before"])  # noqa: T201
        same(undisturbed, judge(output, results, 1000, wanted))
