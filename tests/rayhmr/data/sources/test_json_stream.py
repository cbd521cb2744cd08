"""A JSON object read in pieces says the same as read at once."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayhmr.data.sources import json_stream
from rayhmr.data.sources.json_stream import list_elements

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(
    LEAVES, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=6
)


def elements(content: bytes, chunk: int):
    stream = io.BytesIO(content)
    return list(list_elements(lambda size: stream.read(min(size, chunk))))


@given(
    st.dictionaries(st.text(), VALUES, max_size=4), st.integers(1, 9), st.booleans(),
    st.sampled_from([None, 2]),
)  # fmt: skip
def test_every_element_of_every_list_once_and_in_order(content, chunk, ascii_only, indent):
    text = json.dumps(content, ensure_ascii=ascii_only, indent=indent)
    wanted = [(k, e) for k, value in content.items() if isinstance(value, list) for e in value]
    assert elements(text.encode(), chunk) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "[1]", '{"a": [1, 2', '{"a": [1 2]}', '{"a" [1]}', '{"a": [1]', '{1: []}', '{"a": tru}',
     '{"a": [1], ', '{"a": "\xff"}'],
)  # fmt: skip
def test_what_is_no_object_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        elements(text.encode("latin-1"), 4)


def test_a_value_without_an_end_does_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(json_stream, "MAX_VALUE", 1000)
    read = []

    def endless(size):
        read.append(size)
        return b'{"a": ["' if len(read) == 1 else b"x" * 600

    with pytest.raises(ValueError, match="Unterminated string"):
        list(list_elements(endless))
    assert len(read) == 3
