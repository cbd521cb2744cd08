"""Pages and tables: nothing from outside, nothing unescaped, and points where their values say."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hmr.crops import decode_image
from rayhmr.report import (
    format_cell,
    html_picture,
    html_table,
    line_chart,
    text_table,
    write_page,
)

HOSTILE = """<script>alert("1 & 2")</script>'"""


class Page(HTMLParser):
    """Elements with their attributes, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if not self.inside or self.inside[-1] != "style":
            self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def points(text):
    """Pixels of each line of a chart."""
    lines = re.findall(r'<polyline points="([^"]*)"', text)
    return [
        np.array([[float(n) for n in pair.split(",")] for pair in line.split()]) for line in lines
    ]


def chart(series, **sizes):
    return line_chart(series, x_label="step", y_label="loss", **sizes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (1234567.0, "1.235e+06"),
        (0.123456, "0.1235"),
        (12.0, "12"),
        (1234567, "1234567"),
        (True, "True"),
        ("a", "a"),
        (np.float64(2) / 3, "0.6667"),
    ],
)
def test_a_cell_has_four_digits_for_floats_and_all_of_everything_else(value, text):
    assert format_cell(value) == text


def test_a_text_table_is_aligned_by_column():
    table = text_table([{"name": "a", "mm": 1.5}, {"name": "longer", "mm": None}, {"name": "b"}])
    assert table.splitlines() == [
        "name     mm",
        "------  ---",
        "a       1.5",
        "longer    –",
        "b         –",
    ]
    assert text_table([]) == "(empty)"


def test_an_html_table_holds_the_same_cells():
    page = Page(html_table([{"name": "a", "mm": 1.5}, {"name": HOSTILE, "mm": None}]))
    assert page.texts == ["name", "mm", "a", "1.5", HOSTILE, "–"]
    assert len(page.of("tr")) == 3
    assert "empty" in html_table([])


def test_a_picture_lies_in_the_page():
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, :12, 0] = 200
    page = Page(html_picture(image, HOSTILE, quality=95))
    (attributes,) = page.of("img")
    assert attributes["alt"] == HOSTILE
    assert page.texts == [HOSTILE]
    data = attributes["src"].removeprefix("data:image/jpeg;base64,")
    stored = decode_image(base64.b64decode(data, validate=True)).astype(int)
    assert np.abs(stored - image).max() < 20


def test_points_of_a_chart_are_where_their_values_say():
    values = [(0, 5.0), (10, 1.0), (20, 3.0), (40, 9.0)]
    (line,) = points(chart({"a": values}, width=560, height=300))
    xs, ys = np.array(values).T
    # One scale and one shift for each axis; larger values stand higher.
    across = np.polyfit(xs, line[:, 0], 1)
    up = np.polyfit(ys, line[:, 1], 1)
    np.testing.assert_allclose(np.polyval(across, xs), line[:, 0], atol=0.1)
    np.testing.assert_allclose(np.polyval(up, ys), line[:, 1], atol=0.1)
    assert across[0] > 0 > up[0]
    assert ((line > 0) & (line < [560, 300])).all()


def test_ticks_are_labelled_with_the_values_of_their_places():
    text = chart({"a": [(0, 0.0), (100, 8.0)]})
    (line,) = points(text)
    found = re.findall(r'y1="([\d.]+)" y2="\1"/><text [^>]*>([-\d.e]+)</text>', text)
    assert len(found) >= 3
    for pixel, label in found:
        share = (float(pixel) - line[0, 1]) / (line[1, 1] - line[0, 1])
        assert 8 * share == pytest.approx(float(label), abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, ["0", "0.25", "0.5", "0.75", "1"]),
        (60, 160, ["75", "100", "125", "150"]),
        # Steps added up would miss zero by 1e-16 and show that.
        (-0.5, 0, ["-0.5", "-0.4", "-0.3", "-0.2", "-0.1", "0"]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    text = chart({"a": [(0, low), (1, high)]})
    assert re.findall(r'text-anchor="end">(.*?)</text>', text) == expected


def test_lines_share_their_axes_and_carry_their_names():
    text = chart({"low": [(0, 1.0), (1, 1.0)], HOSTILE: [(0, 2.0), (1, 1.0)], "none": []})
    low, other = points(text)
    assert other[0, 1] < low[0, 1]
    assert other[1].tolist() == low[1].tolist()
    texts = Page(text).texts
    assert {"low", HOSTILE, "step", "loss"} <= set(texts)
    assert "none" not in texts
    colours = re.findall(r'<polyline [^>]*stroke="([^"]+)"', text)
    assert len(set(colours)) == 2


def test_points_without_a_value_are_left_out():
    (line,) = points(chart({"a": [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]}))
    assert len(line) == 2
    assert points(chart({"a": [(0, float("nan"))]})) == []
    assert "no points" in chart({})


@pytest.mark.parametrize("values", [[(3, 7.0)], [(0, 7.0), (5, 7.0)], [(3, 0.0)]])
def test_one_point_or_a_level_line_is_drawn(values):
    (line,) = points(chart({"a": values}))
    assert np.isfinite(line).all()
    assert len(np.unique(line[:, 1])) == 1


def test_a_page_needs_nothing_from_outside_and_says_what_was_given(tmp_path):
    target = tmp_path / "report.html"
    target.write_text("an older report")
    picture = html_picture(np.zeros((16, 16, 3), np.uint8), "black")
    sections = [(HOSTILE, html_table([{"a": HOSTILE}])), ("Curve", chart({HOSTILE: [(0, 1.0)]})),
                ("Sheet", picture)]  # fmt: skip
    write_page(target, f"title {HOSTILE}", f"lead {HOSTILE}", sections)
    text = target.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert not page.of("script")
    assert not page.of("link")
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
        assert not any(name.startswith("on") for name in attributes), tag
    assert "url(" not in text
    assert "@import" not in text
    assert page.texts.count(f"title {HOSTILE}") == 2, "title and heading"
    assert f"lead {HOSTILE}" in page.texts
    assert page.texts.count(HOSTILE) == 3
    headings = [t for t in page.texts if t in (HOSTILE, "Curve", "Sheet")]
    assert headings[-2:] == ["Curve", "Sheet"] or headings.index("Curve") < headings.index("Sheet")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
