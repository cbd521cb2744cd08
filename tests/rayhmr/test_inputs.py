"""What a prediction may read: patterns, lists with boxes, shards, videos, and what is refused."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from hmr.body_arrays import body_from_path
from hmr.crops import decode_image, encode_jpeg
from hmr.errors import ConfigError, ImageError
from hmr.synthetic import Generator
from rayhmr.config import PredictJob
from rayhmr.inputs import open_pictures
from rayhmr.pictures import natural_key, pattern_of, table_of
from rayhmr.predict import checked
from rayhmr.video_frames import upright


def rows_of(source):
    return source.listing().to_pylist()


def open_input(**settings):
    return open_pictures(PredictJob(**settings))


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.jpg", "frame-9.jpg", "frame-10.jpg", "deep/er/b.png", "deep/c.jpg", ".x/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.jpg", ["a.jpg", "frame-10.jpg", "frame-9.jpg"]),
        ("**/*.jpg", ["a.jpg", "deep/c.jpg", "frame-10.jpg", "frame-9.jpg"]),
        ("deep/**/*", ["c.jpg", "er/b.png"]),
        ("frame-?.jpg", ["frame-9.jpg"]),
        ("[!f]*.jpg", ["a.jpg"]),
    ],
)
def test_a_pattern_names_files(tree, pattern, found):
    source = open_input(input=f"{tree}/{pattern}")
    rows = rows_of(source)
    assert [row["path"] for row in rows] == found
    contents = list(source.reader().contents(rows))
    for content, name in zip(contents, found, strict=True):
        assert content.decode().endswith(name)


def test_a_pattern_is_no_regular_expression(tree):
    assert pattern_of("a.b+(c)/**/x?[!a]*") == r"a\.b\+\(c\)/(?:.*/)?x[^/][^a][^/]*"
    with pytest.raises(ConfigError, match="the pattern fits no file"):
        open_input(input=f"{tree}/*.tif")


def test_frames_of_a_folder_are_numbered_as_people_count(tree):
    frames = {
        row["path"]: (row["sequence"], row["frame"]) for row in rows_of(open_input(input=str(tree)))
    }
    assert frames["frame-9.jpg"] == (".", 1)
    assert frames["frame-10.jpg"] == (".", 2)
    assert frames["deep/er/b.png"] == ("deep/er", 0)
    assert natural_key("f-9") < natural_key("f-10")


CSV = """image,x1,y1,x2,y2,focal
a.jpg,0,0,10,20,900
deep/c.jpg,1,2,3,4,
a.jpg,5,5,15,30,900
frame-9.jpg,,,,,
a.jpg,5,5,15,30,900
a.jpg,nan,0,10,20,900
,0,0,1,1,
a.jpg,0,zero,1,1,900
deep/c.jpg,0,0,10,,
../secret.jpg,0,0,1,1,
a.jpg,9,9,3,3,900
gone.jpg,0,0,5,5,
"""


def test_a_csv_of_boxes_keeps_every_good_line_and_says_what_is_wrong_with_the_rest(tree):
    (tree / "people.csv").write_text(CSV)
    source = open_input(input=str(tree / "people.csv"))
    rows = rows_of(source)
    assert [row["number"] for row in rows] == list(range(len(rows)))
    good = [row for row in rows if row["reason"] is None]
    assert [(row["path"], row["boxes"], row["focal"]) for row in good] == [
        ("a.jpg", [[0, 0, 10, 20], [5, 5, 15, 30]], 900),
        ("deep/c.jpg", [[1, 2, 3, 4]], None),
        ("frame-9.jpg", None, None),
        ("gone.jpg", [[0, 0, 5, 5]], None),
    ]
    assert {row["path"]: row["reason"] for row in rows if row["reason"]} == {
        "a.jpg/line-6": "duplicate_id", "a.jpg/line-7": "label_nonfinite",
        "/line-8": "missing_field", "a.jpg/line-9": "label_not_a_number",
        "deep/c.jpg/line-10": "missing_field", "../secret.jpg/line-11": "path_escape",
        "a.jpg/line-12": "bad_box",
    }  # fmt: skip
    *_, gone = source.reader().contents(good)
    assert isinstance(gone, ImageError)
    assert gone.reason == "unreadable"


def test_json_lines_of_boxes(tree):
    lines = [
        json.dumps({"image": "a.jpg", "boxes": [[0, 0, 10, 20], [1, 1, 5, 5]], "focal": 700}),
        "", json.dumps({"image": "deep/c.jpg"}), "{broken", "[1]",
        json.dumps({"image": "a.jpg", "boxes": []}),
        json.dumps({"image": "frame-9.jpg", "boxes": []}),
        json.dumps({"image": "x.jpg", "boxes": [[1, 2, 3]]}),
        json.dumps({"image": "x.jpg", "focal": -1}), json.dumps({"image": "x.jpg", "boxes": 3}),
    ]  # fmt: skip
    (tree.parent / "list.jsonl").write_text("\n".join(lines))
    rows = rows_of(open_input(input=str(tree), boxes=str(tree.parent / "list.jsonl")))
    assert [(r["path"], r["boxes"], r["focal"]) for r in rows if r["reason"] is None] == [
        ("a.jpg", [[0, 0, 10, 20], [1, 1, 5, 5]], 700), ("deep/c.jpg", None, None),
        ("frame-9.jpg", [], None),
    ]  # fmt: skip
    assert [(r["path"], r["reason"]) for r in rows if r["reason"] is not None] == [
        ("/line-4", "missing_field"), ("/line-5", "missing_field"),
        ("a.jpg/line-6", "duplicate_id"), ("x.jpg/line-8", "label_shape"),
        ("x.jpg/line-9", "label_out_of_range"), ("x.jpg/line-10", "label_shape"),
    ]  # fmt: skip


def test_a_list_that_is_none_is_refused(tree):
    (tree / "empty.csv").write_text("")
    (tree / "blank.jsonl").write_text("\n")
    for name, why in (("empty.csv", "lacks the column image"), ("blank.jsonl", "list is empty"),
                      ("none.csv", "no readable list")):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            open_input(input=str(tree / name))


def test_names_that_come_twice_or_point_elsewhere_are_refused():
    rows = checked(table_of([{"path": p} for p in ("a", "b", "a", "../c", "/d", "a")])).to_pylist()
    assert [(row["path"], row["reason"]) for row in rows] == [
        ("a", None), ("b", None), ("a/duplicate-2", "duplicate_id"), ("../c", "path_escape"),
        ("/d", "path_escape"), ("a/duplicate-5", "duplicate_id"),
    ]  # fmt: skip


def test_shards_are_pictures_of_their_people(write_shards, tmp_path):
    people = {"image_size": 32, "train": 12, "val": 5, "test": 3, "seed": 3}
    shards = write_shards(tmp_path / "shards", rows_per_file=5, **people)
    source = open_input(input=shards, split="train")
    rows = rows_of(source)
    assert len(rows) == 12
    assert len({row["path"] for row in rows}) == 12
    some = [rows[0], rows[7], rows[11]]
    pictures = [decode_image(content) for content in source.reader().contents(some)]
    assert [picture.shape for picture in pictures] == [(32, 32, 3)] * 3
    assert not np.array_equal(pictures[0], pictures[1])
    assert len(rows_of(open_input(input=shards))) == 20


FRAMES, KEY = 23, 5


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Each frame is grey of another brightness; a key frame every five, frames in between."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "mpeg4", rate=Fraction(25), options={"g": str(KEY), "bf": "2", "qmin": "1", "qmax": "2"}
        )
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(FRAMES):
            picture = np.full((48, 64, 3), 10 + 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def brightness(content):
    return decode_image(content).mean()


def test_every_frame_of_a_video_is_found_again_wherever_one_begins(video):
    source = open_input(input=str(video))
    rows = rows_of(source)
    assert source.fps == 25
    assert [row["path"] for row in rows] == [f"clip.mp4#{n:06d}" for n in range(FRAMES)]
    expected = 10 + 10 * np.arange(FRAMES)
    for chosen in (
        range(FRAMES),
        range(7, 12),
        [3, 9, 22],
        [9, 2, 20, 1],
        *([n] for n in range(FRAMES)),
    ):
        found = source.reader().contents([rows[n] for n in chosen])
        np.testing.assert_allclose(
            [brightness(content) for content in found], expected[list(chosen)], atol=4
        )


def test_frames_with_boxes(video, tmp_path):
    (tmp_path / "boxes.csv").write_text(
        "image,x1,y1,x2,y2\nclip.mp4#000004,0,0,30,40\nclip.mp4#000099,0,0,30,40\n"
    )
    rows = rows_of(open_input(input=str(video), boxes=str(tmp_path / "boxes.csv")))
    assert [(r["path"], r["frame"], r["reason"]) for r in rows] == [
        ("clip.mp4#000004", 4, None), ("clip.mp4#000099", None, "unreadable")
    ]  # fmt: skip


def test_a_damaged_video_loses_its_damaged_frames_and_no_video_is_refused(video, tmp_path):
    content = video.read_bytes()
    middle = content.index(b"mdat") + len(content) // 3
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content[:middle] + bytes(200) + content[middle + 200 :])
    source = open_input(input=str(damaged))
    rows = rows_of(source)
    found = list(source.contents(rows))
    assert len(found) == len(rows) == FRAMES
    assert brightness(found[0]) == pytest.approx(10, abs=4)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ConfigError, match="no readable video"):
        open_input(input=str(tmp_path / "text.mp4"))


def test_a_frame_is_turned_as_the_video_says():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert upright(picture, 0).tolist() == picture.tolist()
    # A quarter turn counter-clockwise: what was at the right is now on top.
    assert upright(picture, 90)[0].tolist() == picture[:, -1].tolist()
    assert upright(picture, -90)[0].tolist() == picture[::-1, 0].tolist()
    assert upright(picture, 180).tolist() == picture[::-1, ::-1].tolist()


def test_people_of_the_synthetic_generator_are_seen_in_a_list(tmp_path):
    """The list's pictures are read as bytes and stay what they are."""
    person = Generator(body_from_path("embedded"), "easy", 64, 5, "test").samples([0])[0]
    (tmp_path / "p.jpg").write_bytes(encode_jpeg(person.image))
    (tmp_path / "l.csv").write_text("image\np.jpg\n")
    source = open_input(input=str(tmp_path / "l.csv"))
    (content,) = source.reader().contents(rows_of(source))
    assert content == (tmp_path / "p.jpg").read_bytes()
