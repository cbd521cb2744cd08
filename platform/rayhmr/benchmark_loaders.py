"""The loaders whose speed `jobs/benchmark.py data` compares, ours and those that others write.

Every loader gives pictures batch after batch: (B, S, S, 3) uint8 RGB from shards; the ones that
augment give (B, 3, S, S) float32, normalised.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info

from hmr.augment import augment
from hmr.config import AugmentConfig
from hmr.crops import apply_affine, box_to_affine
from hmr.model import IMAGE_MEAN, IMAGE_STD
from hmr.skeleton import JOINT49_FLIP
from hmr.structures import Batch
from rayhmr.benchmark_people import read_frame
from rayhmr.data.batches import read_batches, to_batch
from rayhmr.data.decode import decode_square
from rayhmr.data.schema import TRAINING_COLUMNS, DatasetInfo
from rayhmr.data.sources.record import RawPerson


class Loader(Protocol):
    """What is measured."""

    def __iter__(self) -> Iterator[Any]: ...

    def worker_cpu_s(self) -> float:
        """CPU time that other processes have spent for it so far."""
        ...


class InProcess:
    """A loader that works in this process."""

    def __init__(self, batches: Callable[[], Iterator[Any]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self._batches()

    def worker_cpu_s(self) -> float:
        """Nobody else works."""
        return 0.0


class InProcesses:
    """A torch DataLoader; its processes live as long as it does, so they start only once."""

    def __init__(
        self, dataset: Dataset[Any], *, batch_size: int | None, processes: int,
        collate: Callable[[Any], Any],
    ) -> None:  # fmt: skip
        self._loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=batch_size, num_workers=processes, persistent_workers=True,
            shuffle=batch_size is not None, collate_fn=functools.partial(_stamped, collate),
        )  # fmt: skip
        self._cpu_s: dict[int, float] = {}

    def __iter__(self) -> Iterator[Any]:
        for images, process, cpu_s in self._loader:
            self._cpu_s[process] = cpu_s
            yield images

    def worker_cpu_s(self) -> float:
        """As its processes said with their newest batches."""
        return sum(self._cpu_s.values())


def _stamped(collate: Callable[[Any], Any], samples: Any) -> tuple[Any, int, float]:
    """A batch and what this process has spent when it is ready."""
    return collate(samples), os.getpid(), time.process_time()


# In this process


def decode_alone(
    contents: Sequence[bytes], image_size: int, decode: Callable[[bytes, np.ndarray], Any],
    batch_size: int,
) -> InProcess:  # fmt: skip
    """A loop of one thread over JPEG in memory, always into the same array."""
    out = np.empty((batch_size, image_size, image_size, 3), np.uint8)

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(contents), batch_size):
            part = contents[start : start + batch_size]
            for content, image in zip(part, out, strict=False):
                decode(content, image)
            yield out[: len(part)]

    return InProcess(batches)


def opencv(content: bytes, out: np.ndarray) -> None:
    """The usual decoder, for comparison; `out` has the side of the picture."""
    out[:] = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)


def contents_of(info: DatasetInfo) -> list[bytes]:
    """The JPEG of every row, in order."""
    tables = [pq.read_table(path, columns=["image"]) for path in info.paths("train")]
    return [image["bytes"] for table in tables for image in table["image"].to_pylist()]


def _batches(info: DatasetInfo, batch_size: int, threads: int) -> Iterator[Batch]:
    return read_batches(
        info, "train", batch_size=batch_size, image_size=info.image_size, threads=threads
    )


def ours(info: DatasetInfo, *, batch_size: int, threads: int) -> InProcess:
    """What a training worker does with rows: they become batches in a pool of threads."""
    return InProcess(lambda: map(_interleaved, _batches(info, batch_size, threads)))


def _interleaved(batch: Batch) -> Tensor:
    return batch.images.permute(0, 2, 3, 1)


def ours_augmented(
    info: DatasetInfo, config: AugmentConfig, *, batch_size: int, threads: int
) -> InProcess:
    """The same, and then what a training step does with a batch: random changes, normalisation."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGE_MEAN, IMAGE_STD))

    def batches() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(0)
        for batch in _batches(info, batch_size, threads):
            yield (augment(batch, config, generator).images.float() - mean) / std

    return InProcess(batches)


# A plain torch DataLoader over the same shards


class ShardRows(Dataset[dict[str, Any]]):
    """Map style: the encoded rows are held in memory, each sample is decoded by itself."""

    def __init__(self, info: DatasetInfo) -> None:
        self._size = info.image_size
        self._contents = contents_of(info)
        tables = [pq.read_table(path, columns=list(TRAINING_COLUMNS)) for path in
                  info.paths("train")]  # fmt: skip
        self._labels = {
            name: np.array([row for table in tables for row in table[name].to_pylist()], np.float32)
            for name in ("keypoints_2d", "keypoints_3d", "pose", "betas", "has_smpl")
        }

    def __len__(self) -> int:
        return len(self._contents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = np.empty((self._size, self._size, 3), np.uint8)
        decode_square(self._contents[index], image)
        return {"image": image} | {name: rows[index] for name, rows in self._labels.items()}


class ShardBatches(IterableDataset[Batch]):
    """Iterable: each process reads every n-th file and makes whole batches as we do, the fastest
    form that a DataLoader allows."""

    def __init__(self, info: DatasetInfo, batch_size: int) -> None:
        self._paths, self._size, self._batch_size = info.paths("train"), info.image_size, batch_size

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        for path in self._paths[first::step]:
            table = pq.read_table(path, columns=list(TRAINING_COLUMNS))
            for start in range(0, len(table), self._batch_size):
                yield to_batch(table.slice(start, self._batch_size), self._size)


def _collated_images(samples: list[dict[str, Any]]) -> Tensor:
    images: Tensor = default_collate(samples)["image"]
    return images


def torch_map(info: DatasetInfo, *, batch_size: int, processes: int) -> InProcesses:
    """`ShardRows`, shuffled."""
    return InProcesses(
        ShardRows(info), batch_size=batch_size, processes=processes, collate=_collated_images
    )


def torch_iterable(info: DatasetInfo, *, batch_size: int, processes: int) -> InProcesses:
    """`ShardBatches`, in order."""
    return InProcesses(
        ShardBatches(info, batch_size), batch_size=None, processes=processes, collate=_interleaved
    )


# The classic loader


class FrameCrops(Dataset[dict[str, Any]]):
    """What most code of the field does for a sample: decode the whole frame, draw random numbers,
    cut the turned and zoomed box out with one interpolation, mirror it, scale its channels, and
    normalise it as float32 in planes; the 2D keypoints follow.

    Written for speed within that style: OpenCV throughout, bilinear without a smoothing before.
    """

    def __init__(
        self, folder: Path, people: Sequence[RawPerson], image_size: int, config: AugmentConfig
    ) -> None:
        self._folder, self._people, self._size, self._config = folder, people, image_size, config
        self._mean = np.array(IMAGE_MEAN, np.float32)[:, None, None]
        self._std = np.array(IMAGE_STD, np.float32)[:, None, None]

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, index: int) -> dict[str, Any]:
        cv2.setNumThreads(1)  # the processes are the parallelism
        person, config, size = self._people[index], self._config, self._size
        rng = np.random.default_rng()
        angle, zoom = np.clip(rng.standard_normal(2), [-2, -1], [2, 1])
        angle *= config.rotation * (rng.random() < config.rotation_probability)
        side = 200 * person.scale * (1 + config.scale * zoom)
        affine = box_to_affine(person.center, side, size, angle)
        image = _warped(read_frame(self._folder, person), affine, size)
        keypoints = person.keypoints_2d.copy()
        keypoints[:, :2] = 2 * apply_affine(affine, keypoints[:, :2]) / size - 1
        if rng.random() < config.flip:
            image, keypoints = image[:, ::-1], keypoints[list(JOINT49_FLIP)]
            keypoints[:, 0] *= -1
        noise = 1 + config.channel_noise * rng.uniform(-1, 1, 3).astype(np.float32)
        planes = np.clip(image.transpose(2, 0, 1) * noise[:, None, None], 0, 255) / 255
        return {
            "image": (planes - self._mean) / self._std, "keypoints_2d": keypoints,
            "pose": person.pose, "betas": person.betas,
        }  # fmt: skip


def _warped(frame: np.ndarray, affine: np.ndarray, size: int) -> np.ndarray:
    to_crop = affine.copy()
    to_crop[:, 2] += to_crop[:, :2] @ np.array([0.5, 0.5]) - 0.5  # OpenCV counts from centres
    crop: np.ndarray = cv2.warpAffine(frame, to_crop, (size, size), flags=cv2.INTER_LINEAR)
    return crop


def classic(
    folder: Path, people: Sequence[RawPerson], image_size: int, config: AugmentConfig, *,
    batch_size: int, processes: int,
) -> InProcesses:  # fmt: skip
    """`FrameCrops`, shuffled."""
    return InProcesses(
        FrameCrops(folder, people, image_size, config), batch_size=batch_size,
        processes=processes, collate=_collated_images,
    )  # fmt: skip
