"""People and pictures of every kind to crops: what is repaired, what is rejected, and where
everything lies afterwards."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmr.crops import MAX_PIXELS
from hmr.errors import DataError
from rayhmr.data import cropping
from rayhmr.data.cropping import CroppedSource, Pictures, by_picture, crop_person
from rayhmr.data.person import LabelledPerson
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit

WIDTH, HEIGHT = 120, 90
UNIT = Unit(split="train", file="", start=0, stop=1)


@dataclass(frozen=True)
class Given:
    """A source of the people it is given."""

    rows: list = field(default_factory=list)
    name: str = "given"

    def units(self, rows_per_file):
        return [UNIT]

    def people(self, unit):
        return iter(self.rows)


def gradient(width=WIDTH, height=HEIGHT):
    """Red grows to the right, green downwards, blue is 200: every pixel says where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 2 * y, np.full_like(x, 200)], axis=-1).astype(np.uint8)


def person(**changes):
    keypoints = np.column_stack([np.linspace(40, 80, 49), np.linspace(30, 60, 49), np.ones(49)])
    values = {
        "sample_id": "given/0", "image": "a.png", "center": np.array([60.0, 45.0]), "scale": 0.3,
        "keypoints_2d": keypoints, "keypoints_3d": np.zeros((49, 4)),
    }  # fmt: skip
    return RawPerson(**(values | changes))


def cropped(raw, frame=None, size=64, padding=1.0):
    frame = gradient() if frame is None else frame
    return crop_person(raw, frame, size=size, padding=padding, source="given")


def png(array, kind="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def read_one(content_or_name, root, **changes):
    source = CroppedSource(
        Given([person(image=content_or_name, **changes)]), str(root), 64, 1.0, "embedded"
    )
    (outcome,) = source.read(UNIT)
    return outcome


def rejected(outcome, reason):
    assert isinstance(outcome, RejectedRow), outcome
    assert (outcome.sample_id, outcome.reason) == ("given/0", reason), outcome
    return outcome.detail


# Where things lie


@pytest.mark.parametrize("padding", [1.0, 1.5])
def test_the_crop_shows_the_box_and_2d_joints_move_with_the_pixels(padding):
    found = cropped(person(), padding=padding)
    assert isinstance(found, LabelledPerson)
    affine = found.crop_to_frame.reshape(2, 3)
    side = 60 * padding
    np.testing.assert_allclose(affine, [[side / 64, 0, 60 - side / 2],
                                        [0, side / 64, 45 - side / 2]], atol=1e-5)  # fmt: skip
    back = found.keypoints_2d[:, :2] @ affine[:, :2].T + affine[:, 2]
    np.testing.assert_allclose(back, person().keypoints_2d[:, :2], atol=1e-4)
    # The colours of the gradient are positions: red = 2 (x - 0.5).
    middle = found.image[32, 32].astype(float) / 2 + 0.5
    np.testing.assert_allclose(middle[:2], affine[:, :2] @ [32.5, 32.5] + affine[:, 2], atol=0.8)
    assert (found.center.tolist(), found.scale) == ([60, 45], pytest.approx(0.3))
    assert found.image_size == (WIDTH, HEIGHT)


def test_joints_without_a_label_are_zeros_whatever_the_file_holds_there():
    keypoints = person().keypoints_2d.copy()
    keypoints[3] = [np.nan, np.nan, 0]
    keypoints[4] = [-1, -1, -2]
    joints = np.full((49, 4), np.nan)
    joints[:, 3] = 0
    joints[7] = [0.1, -0.2, 0.3, 0.5]
    found = cropped(person(keypoints_2d=keypoints, keypoints_3d=joints))
    assert isinstance(found, LabelledPerson)
    assert not found.keypoints_2d[3:5].any()
    assert found.keypoints_2d[5, 2] == 1
    np.testing.assert_allclose(found.keypoints_3d[7], [0.1, -0.2, 0.3, 0.5])
    assert np.count_nonzero(found.keypoints_3d) == 4


def test_a_person_without_a_box_is_the_square_around_the_whole_picture():
    found = cropped(person(whole_frame=True, scale=0.0), size=120)
    assert isinstance(found, LabelledPerson)
    assert (found.center.tolist(), found.scale) == ([60, 45], 0.6)
    np.testing.assert_array_equal(found.image[15:105], gradient())
    assert not found.image[:15].any()


def test_the_rows_say_what_the_person_says():
    raw = person(
        pose=np.arange(72.0), betas=np.arange(10.0), transl=np.array([1.0, 2, 3]),
        intrinsics=np.array([500.0, 510, 60, 45]), gender="female", subject="S1", split="val",
    )  # fmt: skip
    found = cropped(raw)
    assert isinstance(found, LabelledPerson)
    for name in ("pose", "betas", "transl", "intrinsics"):
        np.testing.assert_array_equal(getattr(found, name), getattr(raw, name))
    assert (found.gender, found.subject, found.split) == ("female", "S1", "val")
    assert (found.source, found.sample_id) == ("given", "given/0")


# Labels and boxes that cannot be used


@pytest.mark.parametrize(("name", "size"), [("keypoints_2d", (49, 3)), ("keypoints_3d", (49, 4)),
                                            ("pose", 72), ("betas", 10), ("transl", 3),
                                            ("intrinsics", 4)])  # fmt: skip
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_labels_that_are_no_numbers(name, size, value):
    damaged = np.ones(size)
    damaged.flat[0] = value
    both = {"pose": np.zeros(72), "betas": np.zeros(10)}
    assert name in rejected(cropped(person(**(both | {name: damaged}))), "label_nonfinite")


@pytest.mark.parametrize("box", [{"center": np.array([np.nan, 3.0])}, {"scale": np.nan}])
def test_boxes_that_are_no_numbers(box):
    rejected(cropped(person(**box)), "label_nonfinite")


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.004])
def test_boxes_without_an_inside(scale):
    rejected(cropped(person(scale=scale)), "box_empty")


@pytest.mark.parametrize(
    ("center", "inside"),
    [((-29, 45), True), ((-31, 45), False), ((149, 45), True), ((151, 45), False),
     ((60, -31), False), ((60, 119), True), ((60, 121), False), ((-29, -29), True)],
)  # fmt: skip
def test_a_box_must_show_something_of_the_frame(center, inside):
    outcome = cropped(person(center=np.array(center, float)))
    if inside:
        assert isinstance(outcome, LabelledPerson)
    else:
        assert "120 x 90" in rejected(outcome, "box_outside_frame")


def test_five_2d_joints_are_enough_only_beside_other_labels():
    few = person().keypoints_2d.copy()
    few[5:, 2] = 0
    assert rejected(cropped(person(keypoints_2d=few)), "label_missing").startswith("5 joints")
    joints_3d = np.ones((49, 4))
    smpl = {"pose": np.zeros(72), "betas": np.zeros(10)}
    for other in ({"keypoints_3d": joints_3d}, smpl, {"unlabelled": True}):
        assert isinstance(cropped(person(keypoints_2d=few, **other)), LabelledPerson)
    rejected(cropped(person(keypoints_2d=few, pose=np.zeros(72))), "label_missing")


def test_labels_of_another_frame_size_are_not_taken_for_those_of_this_picture():
    assert isinstance(cropped(person(frame_size=(WIDTH, HEIGHT))), LabelledPerson)
    detail = rejected(cropped(person(frame_size=(HEIGHT, WIDTH))), "frame_size_differs")
    assert detail == "the picture has 120 x 90 pixels, the labels were made in 90 x 120"


# Pictures that are repaired


def expected():
    return read_one(png(gradient()), ".")


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "I;16"])
def test_colour_modes_become_rgb(tmp_path, mode):
    picture = gradient()
    if mode == "I;16":
        gray = picture[..., 0]
        image = Image.fromarray(gray.astype(np.uint16) * 256)
        wanted = np.repeat(gray[..., None], 3, axis=2)
    else:
        image = Image.fromarray(picture).convert(mode)
        wanted = np.array(image.convert("RGB"))
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path, **({"quality": 100} if mode == "CMYK" else {}))
    found = read_one(path.name, tmp_path)
    reference = cropped(person(), wanted)
    assert isinstance(found, LabelledPerson)
    assert isinstance(reference, LabelledPerson)
    difference = np.abs(found.image.astype(int) - reference.image)
    assert difference.max() <= (12 if mode == "CMYK" else 0)


def test_a_picture_that_a_camera_held_sideways_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    stored = np.rot90(gradient())
    (tmp_path / "a.png").write_bytes(png(stored, exif=exif))
    found, wanted = read_one("a.png", tmp_path), expected()
    np.testing.assert_array_equal(found.image, wanted.image)
    assert found.image_size == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_labels_of_pictures_as_stored_do_not_go_with_a_turned_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.png").write_bytes(png(gradient(), exif=exif))
    outcome = read_one("a.png", tmp_path, exif_ignored=True)
    if orientation == 1:
        assert isinstance(outcome, LabelledPerson)
    else:
        rejected(outcome, "exif_conflict")


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_pictures_that_their_source_stores_turned(turns):
    stored = np.ascontiguousarray(np.rot90(gradient(), turns))  # counter-clockwise
    found = read_one(png(stored), ".", quarter_turns=turns)
    np.testing.assert_array_equal(found.image, expected().image)


# Pictures that are not


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content)
    )  # fmt: skip


def bomb():
    side = int(MAX_PIXELS**0.5) + 1000
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "zero_byte"),
        (b"no picture at all", "not_an_image"),
        (png(gradient())[:-200], "truncated"),
        (bomb(), "too_many_pixels"),
        (png(gradient(8, 8)), "too_small"),
        (png(gradient(), kind="GIF"), "format_not_allowed"),
    ],
    ids=["empty", "text", "cut", "bomb", "tiny", "gif"],
)
def test_pictures_that_cannot_be_used(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    rejected(read_one("a.png", tmp_path), reason)


def test_pictures_that_are_not_there_or_too_large(tmp_path, monkeypatch):
    assert "b.png" in rejected(read_one("b.png", tmp_path), "unreadable")
    (tmp_path / "folder.png").mkdir()
    rejected(read_one("folder.png", tmp_path), "unreadable")
    rejected(read_one("a\0.png", tmp_path), "unreadable")
    (tmp_path / "a.png").write_bytes(png(gradient()))
    monkeypatch.setattr(cropping, "MAX_BYTES", 100)
    rejected(read_one("a.png", tmp_path), "too_many_bytes")


@pytest.mark.parametrize("name", ["../secret.png", "x/../../secret.png", "{absolute}", "", "."])
def test_names_that_leave_the_root(tmp_path, name):
    (tmp_path / "secret.png").write_bytes(png(gradient()))
    root = tmp_path / "root"
    root.mkdir()
    name = name.format(absolute=tmp_path / "secret.png")
    rejected(read_one(name, root), "path_outside_root")


def test_names_that_only_look_as_if_they_left_the_root(tmp_path):
    root = tmp_path / "root"
    (root / "x").mkdir(parents=True)
    (root / "..a.png").write_bytes(png(gradient()))
    for name in ("..a.png", "x/../..a.png", "./..a.png", str(root / "..a.png")):
        assert isinstance(read_one(name, root), LabelledPerson), name
    # A root with the same beginning is another one.
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/a.png").write_bytes(png(gradient()))
    rejected(read_one("../root2/a.png", root), "path_outside_root")


# Many people


def test_people_of_one_picture_come_together_and_every_row_comes_once():
    rows = [person(sample_id=f"{n}", image=name) for n, name in enumerate("abacba")]
    bad = RejectedRow(sample_id="x", reason="missing_field", detail="")
    loaded = person(sample_id="y", image=b"bytes")
    order = [row.sample_id for row in by_picture([*rows[:3], bad, loaded, *rows[3:]])]
    assert order == ["x", "y", "0", "2", "5", "1", "4", "3"]


def test_a_picture_is_decoded_once_for_all_its_people(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png(gradient()))
    (tmp_path / "b.png").write_bytes(b"no picture")
    decoded = []
    real = cropping.decode_image
    monkeypatch.setattr(cropping, "decode_image", lambda data: decoded.append(1) or real(data))
    rows = [person(sample_id=str(n), image=f"{'ab'[n % 2]}.png") for n in range(6)]
    outcomes = list(CroppedSource(Given(rows), str(tmp_path), 64, 1.0, "embedded").read(UNIT))
    assert len(decoded) == 2
    assert [o.sample_id for o in outcomes] == ["0", "2", "4", "1", "3", "5"]
    assert [getattr(o, "reason", None) for o in outcomes] == [None] * 3 + ["not_an_image"] * 3


def test_a_turned_picture_is_not_taken_for_the_same_picture_upright(tmp_path):
    content = png(gradient())
    pictures = Pictures(str(Path(tmp_path)))
    assert pictures.get(content, 0).shape == (HEIGHT, WIDTH, 3)
    assert pictures.get(content, 1).shape == (WIDTH, HEIGHT, 3)


def test_a_source_of_nobody_is_refused():
    @dataclass(frozen=True)
    class Nobody(Given):
        def units(self, rows_per_file):
            return []

    with pytest.raises(DataError, match="given: the labels hold nobody"):
        CroppedSource(Nobody(), None, 64, 1.0, "embedded").units(10)
