"""Speed of loaders alone: ours against decoding in a bare loop, and against other loaders.

All take turns in one run, over the same people, with as many worker processes as ours has threads.
Rates are pictures over CPU seconds of all processes that work for a loader, and over wall seconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2

from hmr.config import AugmentConfig
from rayhmr.benchmark_loaders import (
    Loader,
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
from rayhmr.data.decode import decode_square
from rayhmr.data.schema import DatasetInfo
from rayhmr.data.sources.record import RawPerson

SIZES = (224, 256)
"""Sides of the stored crops, which are also the models'."""
_NAMES = {
    "bare_decode": "decode alone, in memory, one thread",
    "opencv_decode": "decode alone with OpenCV",
    "loader": "shards: ours",
    "torch_map": "shards: torch DataLoader, map style",
    "torch_iterable": "shards: torch DataLoader, iterable",
    "augmented": "shards: ours, augmented, float32",
    "classic": "frames of {} px: decode, crop, augment by sample, float32",
}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """people: different persons, each in a frame of frame_side pixels. copies: rows of each person
    in the shards. batch_size: of the loaders of shards; the classic one makes quarters."""

    people: int = 64
    frame_side: int = 1000
    copies: int = 16
    batch_size: int = 64


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One pass of a loader."""

    images: int
    wall_s: float
    cpu_s: float
    first_batch_s: float


def take_turn(loader: Loader) -> Turn:
    """Read a loader from beginning to end."""
    images, first = 0, 0.0
    cpu, start = time.process_time() + loader.worker_cpu_s(), time.perf_counter()
    for batch in loader:
        images += len(batch)
        first = first or time.perf_counter() - start
    return Turn(
        images=images, wall_s=time.perf_counter() - start, first_batch_s=first,
        cpu_s=time.process_time() + loader.worker_cpu_s() - cpu,
    )  # fmt: skip


def loaders_of(
    people: Sequence[RawPerson], info: DatasetInfo, *, batch_size: int, threads: int
) -> dict[str, Loader]:
    """Every loader that is compared, by name; the frames lie beside the shards. Those that start
    processes come first, while this process has no threads."""
    contents, size = contents_of(info), info.image_size
    augmentation = AugmentConfig.model_validate("spin")
    return {
        "torch_map": torch_map(info, batch_size=batch_size, processes=threads),
        "torch_iterable": torch_iterable(info, batch_size=batch_size, processes=threads),
        "classic": classic(
            Path(info.location), people, size, augmentation,
            batch_size=max(batch_size // 4, 1), processes=threads,
        ),
        "bare_decode": decode_alone(contents, size, decode_square, batch_size),
        "opencv_decode": decode_alone(contents, size, opencv, batch_size),
        "loader": ours(info, batch_size=batch_size, threads=threads),
        "augmented": ours_augmented(info, augmentation, batch_size=batch_size, threads=threads),
    }  # fmt: skip


def measured(loaders: dict[str, Loader], rounds: int) -> dict[str, dict[str, float]]:
    """For each loader medians of `images_per_core_s` and `images_per_s`, and `first_batch_s` of its
    very first pass, which starts processes and is not counted otherwise."""
    first = {name: take_turn(loader).first_batch_s for name, loader in loaders.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, loader in loaders.items():
            turns[name].append(take_turn(loader))
    return {
        name: {
            "images_per_core_s": median(turn.images / turn.cpu_s for turn in those),
            "images_per_s": median(turn.images / turn.wall_s for turn in those),
            "first_batch_s": first[name],
        }
        for name, those in turns.items()
    }


def ratios(rates: dict[str, dict[str, float]]) -> dict[str, float]:
    """Quotients of images per core-second, and of images per second against the better of the torch
    loaders with as many processes."""
    cpu = {name: rate["images_per_core_s"] for name, rate in rates.items()}
    wall = {name: rate["images_per_s"] for name, rate in rates.items()}
    return {
        "loader_over_bare_decode": cpu["loader"] / cpu["bare_decode"],
        "bare_decode_over_opencv": cpu["bare_decode"] / cpu["opencv_decode"],
        "loader_over_torch_map": cpu["loader"] / cpu["torch_map"],
        "loader_over_torch_iterable": cpu["loader"] / cpu["torch_iterable"],
        "loader_over_torch_wall": wall["loader"] / max(wall["torch_map"], wall["torch_iterable"]),
        "shards_over_classic_loader": cpu["loader"] / cpu["classic"],
        "augmented_shards_over_classic_loader": cpu["augmented"] / cpu["classic"],
    }


def data_rates(
    rounds: int, threads: int, *, sizes: Sequence[int] = SIZES, work: Workload | None = None
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Table and figures. Each figure stands with its size; a ratio also without, as the least over
    the sizes."""
    cv2.setNumThreads(1)
    work = work or Workload()
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rayhmr-benchmark-") as temporary:
        people = make_frames(Path(temporary), people=work.people, side=work.frame_side)
        for size in sizes:
            info = make_shards(
                Path(temporary), people, image_size=size, copies=work.copies, files=max(4, threads)
            )
            rates = measured(
                loaders_of(people, info, batch_size=work.batch_size, threads=threads), rounds
            )
            for name, title in _NAMES.items():
                rate = rates[name]
                figures[f"{name}_images_per_core_s_{size}"] = rate["images_per_core_s"]
                title = title.format(work.frame_side)
                rows.append(_row(size, title, rate, rates["bare_decode"]))
            figures |= {f"{name}_{size}": value for name, value in ratios(rates).items()}
    for name in ratios(rates):
        figures[name] = min(figures[f"{name}_{size}"] for size in sizes)
    return rows, figures


def _row(
    size: int, title: str, rate: dict[str, float], bare: dict[str, float]
) -> dict[str, float | str]:
    return {
        "loader": title,
        "side": size,
        "images per core-second": rate["images_per_core_s"],
        "share of decode": rate["images_per_core_s"] / bare["images_per_core_s"],
        "images/s": rate["images_per_s"],
        "first batch s": rate["first_batch_s"],
    }
