"""Pictures for people who have none at hand: made-up people that no training has seen."""

from __future__ import annotations

from functools import cached_property

from hmr.body_arrays import BodyArrays
from hmr.crops import encode_jpeg
from hmr.synthetic import Generator
from rayhmr.serve.problems import Problem

COUNT = 12
SIZE = 480
_SEED = 20


class Examples:
    """COUNT pictures of SIZE pixels, drawn when first asked for and then kept."""

    def __init__(self, body: BodyArrays) -> None:
        self._body = body
        self._drawn: dict[int, bytes] = {}

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self._body, "easy", SIZE, _SEED, "test")

    def jpeg(self, number: str) -> bytes:
        """A picture by number, from 0 on; Problem 404 when there is none."""
        if not (number.isascii() and number.isdecimal() and int(number[:4]) < COUNT):
            raise Problem(404, "not_found", f"example {number:.20}: they are 0 to {COUNT - 1}")
        index = int(number)
        if index not in self._drawn:
            (person,) = self._generator.samples([index])
            self._drawn[index] = encode_jpeg(person.image)
        return self._drawn[index]
