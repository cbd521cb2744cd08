"""The elements of the lists in a large JSON object, one at a time."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any

CHUNK = 1 << 20
MAX_VALUE = 1 << 26
"""Characters of the largest single value, so that a damaged file does not fill the memory."""
_SPACE = " \t\r\n"


def list_elements(read: Callable[[int], bytes]) -> Iterator[tuple[str, Any]]:
    """(key, element) for every element of every list directly in an object; other values are
    passed over.

    read: gives at most so many of the next bytes, none at the end. ValueError where the content is
    no JSON object.
    """
    text = _Text(read)
    text.expect("{")
    if text.peek() == "}":
        return
    while True:
        key = text.value()
        if not isinstance(key, str):
            raise ValueError(f"the key {key!r} is no text")
        text.expect(":")
        if text.peek() == "[":
            text.expect("[")
            while text.peek() != "]":
                yield key, text.value()
                if text.peek() != "]":
                    text.expect(",")
            text.expect("]")
        else:
            text.value()
        if text.peek() == "}":
            return
        text.expect(",")


class _Text:
    """A window of the text that is read on when it ends too early."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._bytes, self._text, self._at, self._ended = read, "", 0, False
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._json = json.JSONDecoder()

    def _more(self) -> bool:
        if self._ended:
            return False
        content = self._bytes(CHUNK)
        self._ended = not content
        self._text = self._text[self._at :] + self._utf8.decode(content, final=self._ended)
        self._at = 0
        return True

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Step over this character."""
        if (found := self.peek()) != character:
            raise ValueError(f"{character!r} expected, found {found!r}")
        self._at += 1

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > MAX_VALUE or not self._more():
                    raise
                continue
            # A number may go on behind the window; the start of its rest ("e+5") is decisive.
            if isinstance(value, int | float) and len(self._text) - end < 3 and self._more():
                continue
            self._at = end
            return value
