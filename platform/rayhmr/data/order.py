"""In which order an epoch's rows are seen, and by whom. Arithmetic alone: nothing is read here.

The order is a function of the data set, the seed and the epoch. The number of workers does not
enter, so that a run may go on with more or fewer of them in the middle of an epoch, and still every
row is seen exactly once:

1. The rows of the files are cut into chunks, and the chunks are put into a random order.
2. That row of chunks is cut into `lanes` stretches of equal length (within one row).
3. Each lane is cut into windows, and the rows inside a window are put into a random order. What a
   window holds comes from many places of the data set.
4. Every step takes the next rows of every lane, and an epoch's steps are equal within one row a
   lane.
5. Rank r of W takes lanes [r L / W, (r + 1) L / W). Where W does not divide L, a lane on a border
   is shared: both ranks read it and each takes its part of every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hmr.errors import ConfigError

CHUNK_ROWS = 250
"""Neighbouring rows of a file that stay in one window: a row group of the shards."""
WINDOW_ROWS = 2000
"""Rows that are read, and put into a random order, together."""


@dataclass(frozen=True)
class Chunk:
    """Rows [start, stop) of a file."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """Rows of a lane that are read together. `seed`: of the order of the rows inside; none: as they
    are. `first`: number of its first row in the lane."""

    lane: int
    first: int
    chunks: tuple[Chunk, ...]
    seed: tuple[int, ...] | None

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return sum(chunk.stop - chunk.start for chunk in self.chunks)

    def permutation(self) -> np.ndarray:
        """(rows,) Which of its rows, as read, comes first, second, …"""
        if self.seed is None:
            return np.arange(self.rows)
        return np.random.default_rng(self.seed).permutation(self.rows)


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of a lane, by number."""

    lane: int
    start: int
    stop: int


@dataclass(frozen=True)
class EpochOrder:
    """The order of one epoch.

    files: names and rows of the files. batch_size: most rows of a step; a multiple of `lanes`.
    """

    files: tuple[tuple[str, int], ...]
    seed: int
    epoch: int
    lanes: int
    batch_size: int
    window_rows: int = WINDOW_ROWS

    @property
    def rows(self) -> int:
        """Rows of the epoch."""
        return sum(count for _, count in self.files)

    @property
    def steps(self) -> int:
        """Steps of the epoch."""
        return math.ceil(self.rows / self.batch_size)

    def _border(self, lane: int) -> int:
        return self.rows * lane // self.lanes

    def lane_rows(self, lane: int) -> int:
        """Rows of a lane."""
        return self._border(lane + 1) - self._border(lane)

    @cached_property
    def _chunks(self) -> tuple[tuple[Chunk, ...], np.ndarray]:
        """All chunks in their random order, and the number of rows before each, and in all."""
        chunks = [
            Chunk(name, start, min(start + CHUNK_ROWS, rows))
            for name, rows in self.files
            for start in range(0, rows, CHUNK_ROWS)
        ]
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(chunks))
        drawn = tuple(chunks[number] for number in order)
        return drawn, np.cumsum([0, *(chunk.stop - chunk.start for chunk in drawn)])

    def _between(self, start: int, stop: int) -> Iterator[Chunk]:
        """Rows [start, stop) of the row of chunks."""
        chunks, before = self._chunks
        number = int(np.searchsorted(before, start, "right")) - 1
        while start < stop:
            chunk, offset = chunks[number], start - int(before[number])
            taken = min(stop - start, chunk.stop - chunk.start - offset)
            yield Chunk(chunk.file, chunk.start + offset, chunk.start + offset + taken)
            start, number = start + taken, number + 1

    def windows(self, lane: int) -> int:
        """Number of windows of a lane; the last one may hold up to half as many rows again."""
        return max(1, round(self.lane_rows(lane) / self.window_rows))

    def window(self, lane: int, number: int) -> Window:
        """Window `number` of a lane."""
        first = number * self.window_rows
        is_last = number == self.windows(lane) - 1
        stop = self.lane_rows(lane) if is_last else first + self.window_rows
        border = self._border(lane)
        return Window(
            lane, first, tuple(self._between(border + first, border + stop)),
            (self.seed, self.epoch, lane, number),
        )  # fmt: skip

    def part(self, step: int, rank: int, world_size: int) -> list[Slice]:
        """What a rank takes from each lane at a step; some may be empty."""
        first = rank * self.lanes // world_size
        last = -(-(rank + 1) * self.lanes // world_size)
        return [self._share(step, lane, rank, world_size) for lane in range(first, last)]

    def _share(self, step: int, lane: int, rank: int, world_size: int) -> Slice:
        """Row j of the c that a step takes from a lane lies at lane + (j + 1/2) / c on a line of
        length `lanes`, of which every rank has an equal stretch."""
        rows, steps = self.lane_rows(lane), self.steps
        start, stop = rows * step // steps, rows * (step + 1) // steps
        count = stop - start

        def cut(border: int) -> int:
            # The smallest j at or beyond border * lanes / world_size, in whole numbers.
            beyond = 2 * count * (border * self.lanes - lane * world_size) - world_size
            return min(max(-(-beyond // (2 * world_size)), 0), count)

        return Slice(lane, start + cut(rank), start + cut(rank + 1))


def check_order(order: EpochOrder, world_size: int) -> None:
    """ConfigError when not every worker has a row at every step."""
    if order.batch_size % order.lanes:
        raise ConfigError(
            f"train.batch_size={order.batch_size}: must be a multiple of data.lanes="
            f"{order.lanes} (by default scaling.num_workers), since every lane gives an equal part"
        )
    # Neighbouring rows of a step lie at most 1 / fewest apart on the line of `lanes` (`_share`), of
    # which each rank has a stretch of lanes / world_size.
    fewest = min(map(order.lane_rows, range(order.lanes))) // order.steps if order.rows else 0
    if fewest * order.lanes < world_size:
        raise ConfigError(
            f"train.batch_size={order.batch_size}: the {order.rows} training rows do not give "
            f"each of {world_size} workers a row at every step; raise it, take fewer workers "
            "(scaling.num_workers), or raise data.train_fraction"
        )


def reading_order(
    order: EpochOrder, first_step: int, rank: int, world_size: int
) -> Iterator[Window]:
    """The windows a rank needs from a step on, in the order in which it first needs them."""
    reached: dict[int, int] = {}
    for step in range(first_step, order.steps):
        for part in order.part(step, rank, world_size):
            if part.start == part.stop:
                continue
            last = order.windows(part.lane) - 1
            wanted = min((part.stop - 1) // order.window_rows, last)
            begun = min(part.start // order.window_rows, last)
            for number in range(max(reached.get(part.lane, -1) + 1, begun), wanted + 1):
                yield order.window(part.lane, number)
                reached[part.lane] = number


def in_order(files: Sequence[tuple[str, int]], rank: int, world_size: int) -> list[Window]:
    """This rank's equal share of these files' rows, as they are: for validation."""
    total = sum(rows for _, rows in files)
    start, stop = total * rank // world_size, total * (rank + 1) // world_size
    windows, before = [], 0
    for name, rows in files:
        first, last = max(start - before, 0), min(stop - before, rows)
        for begin in range(first, last, CHUNK_ROWS):
            chunk = Chunk(name, begin, min(begin + CHUNK_ROWS, last))
            windows.append(Window(0, 0, (chunk,), None))
        before += rows
    return windows
