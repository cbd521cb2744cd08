"""The two forms of a figure: pixels of the PNG, elements of the SVG, and that they agree."""

from __future__ import annotations

import base64
import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from rayhmr.drawing import Drawing, text_width

SVG = "{http://www.w3.org/2000/svg}"
RED, BLUE = (255, 0, 0), (0, 0, 255)


def elements(drawing):
    return list(ElementTree.fromstring(drawing.svg()))[2:]  # after the title and the ground


def ink(drawing):
    """Rows and columns of everything that is not white."""
    return np.nonzero((drawing.pixels() != 255).any(-1))


def test_a_box_fills_its_pixels_and_later_things_lie_above():
    drawing = Drawing(30, 20, "boxes")
    drawing.box(4, 5, 20, 10, fill="#ff0000", stroke="none")
    drawing.box(10, 8, 5, 4, fill="#0000ff", stroke="none")
    pixels = drawing.pixels()
    assert pixels.shape == (20, 30, 3)
    expected = np.full((20, 30, 3), 255)
    expected[5:15, 4:24] = RED
    expected[8:12, 10:15] = BLUE
    inner = np.ones((20, 30), bool)
    # Pillow's polygons reach one sample beyond their right and lower side.
    inner[[15, 12], :] = inner[:, [24, 15]] = False
    np.testing.assert_array_equal(pixels[inner], expected[inner])
    first, second = elements(drawing)
    assert first.attrib["points"] == "4,5 24,5 24,15 4,15"
    assert second.attrib["fill"] == "#0000ff"


@pytest.mark.parametrize(("anchor", "share"), [("start", 0.0), ("middle", 0.5), ("end", 1.0)])
def test_text_takes_the_width_that_is_measured(anchor, share):
    drawing = Drawing(500, 60, "text")
    drawing.text(250, 40, "MPJPE 92 mm", 30, anchor=anchor)
    width = text_width("MPJPE 92 mm", 30)
    rows, columns = ink(drawing)
    left = 250 - share * width
    assert left - 1 <= columns.min() <= left + 4
    assert left + width - 4 <= columns.max() <= left + width + 1
    assert 38 <= rows.max() <= 40, "the letters stand on the baseline"
    (text,) = elements(drawing)
    assert text.text == "MPJPE 92 mm"
    assert float(text.attrib["textLength"]) == pytest.approx(width, abs=0.05)
    assert text.attrib["text-anchor"] == anchor


def test_text_shrinks_to_the_room_it_has():
    drawing = Drawing(300, 60, "text")
    drawing.text(150, 40, "efficientnet_v2", 30, within=100)
    drawing.text(150, 40, "small", 30, within=100)
    long, short = elements(drawing)
    assert float(long.attrib["textLength"]) == pytest.approx(100, abs=0.1)
    assert float(short.attrib["font-size"]) == 30


def test_text_cannot_become_markup():
    drawing = Drawing(100, 50, "<&>")
    drawing.text(50, 30, "a < b & c", 12)
    assert elements(drawing)[0].text == "a < b & c"


def test_an_arrow_ends_in_a_head_at_its_last_point():
    drawing = Drawing(60, 40, "arrow")
    drawing.arrow([(5, 20), (50, 20)])
    rows, columns = ink(drawing)
    assert columns.min() == 5
    assert 48 <= columns.max() <= 50
    head = rows[columns == 40]
    assert head.max() - head.min() > 8
    shaft = rows[columns == 20]
    assert shaft.max() - shaft.min() <= 3
    line, polygon = elements(drawing)
    assert polygon.attrib["points"].startswith("50,20 ")
    assert line.tag == f"{SVG}polyline"


def test_a_picture_is_inside_both_forms():
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(40, 220, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    drawing = Drawing(80, 60, "picture")
    drawing.picture(10, 12, 48, picture, framed=False)
    shown = drawing.pixels()[12:44, 10:58].astype(int)
    assert np.abs(shown - picture)[2::8, 2::8].max() < 6
    (image,) = elements(drawing)
    assert (image.attrib["width"], image.attrib["height"]) == ("48", "32")
    data = base64.b64decode(image.attrib["href"].partition(",")[2])
    stored = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert stored.shape == picture.shape
    assert np.abs(stored - picture).mean() < 8


def test_a_large_picture_is_stored_at_twice_its_shown_size():
    drawing = Drawing(80, 60, "picture")
    drawing.picture(0, 0, 40, np.full((300, 600, 3), 77, np.uint8), framed=False)
    data = base64.b64decode(elements(drawing)[0].attrib["href"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (80, 40)


def test_the_same_drawing_gives_the_same_files():
    def drawn():
        drawing = Drawing(90, 40, "again")
        drawing.text(45, 30, "again", 20)
        drawing.arrow([(5, 5), (40, 5), (40, 20)])
        return drawing

    assert drawn().png() == drawn().png()
    assert drawn().svg() == drawn().svg()
    stored = np.asarray(Image.open(io.BytesIO(drawn().png())))
    np.testing.assert_array_equal(stored, drawn().pixels())
