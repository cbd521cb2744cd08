"""Data sets small enough to write in a test, and shards of them without Ray."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hmr.body import Body
from hmr.crops import decode_image
from hmr.pose_prior import rodrigues
from hmr.protocol_errors import Yardstick
from hmr.protocols import PROTOCOLS
from hmr.structures import Parameters, Prediction
from rayhmr.config import PrepareJob
from rayhmr.data.parts import WritePart, parts_of
from rayhmr.data.prepare import _check_rejected, _finish, _settings
from rayhmr.data.schema import read_info
from rayhmr.data.sources.kinds import source_of
from rayhmr.evaluate import measure
from rayhmr.storage import Folder


@dataclass(frozen=True)
class Prepared:
    """rows: of the shards at `location`, in order. rejected: [id, reason, detail] of each."""

    location: str
    rows: list[dict[str, Any]]
    rejected: list[list[str]]
    facts: dict[str, Any]

    @property
    def reasons(self) -> list[str]:
        return [reason for _, reason, _ in self.rejected]


def dots(size: tuple[int, int], points: Sequence[Sequence[float]]) -> np.ndarray:
    """(H, W, 3) black picture with a white dot of known centre at each point (pixels)."""
    width, height = size
    y, x = np.mgrid[:height, :width] + 0.5
    picture = np.zeros((height, width))
    for px, py in points:
        picture += np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.5**2))
    return np.repeat((255 * picture.clip(0, 1)).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(scope="session")
def draw() -> Callable[..., None]:
    """Write a picture with dots to a path."""

    def write(path: Path, size: tuple[int, int], points: Sequence[Sequence[float]]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dots(size, points)).save(path)

    return write


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Prepared]:
    """What `jobs/prepare.py` makes of settings (as on its command line), without its cluster; a
    test split, whose rows stay in the order of the labels."""

    def prepare(source: str, files: dict[str, Any], **settings: Any) -> Prepared:
        files = {"split": "test"} | files
        tree = {"source": source, "output": str(tmp_path / "shards"), "files": files, **settings}
        job = PrepareJob.model_validate({"max_rejected_fraction": 1.0} | tree)
        folder = Folder(job.output)
        reader = source_of(job)
        writer = WritePart(reader, job.output, job.jpeg_quality)
        parts = parts_of(reader.units(job.rows_per_file), job.rows_per_file, mixed=True)
        notes = [writer.write(part, folder) for part in parts]
        _check_rejected(job, folder, notes)
        facts = _finish(job, folder, _settings(job), notes)
        rows = [
            row for part in parts
            for row in pq.read_table(Path(job.output, part.file)).to_pylist()
        ]  # fmt: skip
        table = list(csv.reader(io.StringIO(folder.read("rejected/rejected.csv").decode())))
        assert len(rows) + len(table) - 1 == sum(p.rows for p in parts), "each row once"
        assert json.loads(folder.read("dataset.json"))["fingerprint"] == facts["fingerprint"]
        return Prepared(job.output, rows, table[1:], facts)

    return prepare


@pytest.fixture(scope="session")
def crop_of() -> Callable[[dict[str, Any]], np.ndarray]:
    """(S, S, 3) picture of a row."""

    def decoded(row: dict[str, Any]) -> np.ndarray:
        return decode_image(row["image"]["bytes"])

    return decoded


@pytest.fixture(scope="session")
def in_frame() -> Callable[[dict[str, Any]], np.ndarray]:
    """(49, 3) 2D joints of a row in pixels of its frame, confidence."""

    def moved(row: dict[str, Any]) -> np.ndarray:
        joints = np.reshape(row["keypoints_2d"], (49, 3))
        affine = np.reshape(row["crop_to_frame"], (2, 3))
        return np.column_stack([joints[:, :2] @ affine[:, :2].T + affine[:, 2], joints[:, 2]])

    return moved


@pytest.fixture(scope="session")
def brightness_at() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """How bright a picture is within a pixel of (N, 2) points, 0 to 255."""

    def measure(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        found = []
        for x, y in points:
            column, row = int(np.floor(x)), int(np.floor(y))
            part = picture[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            found.append(part.max())
        return np.array(found)

    return measure


class Knows:
    """A predictor that has the SMPL labels of rows, in order; `change` alters rotations."""

    def __init__(
        self, rows: list[dict[str, Any]], change: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        self.body, self.image_size, self.device = Body.embedded(), 32, torch.device("cpu")
        self._rows, self._change = iter(rows), change

    def predict_crops(self, images: torch.Tensor) -> Prediction:
        rows = [next(self._rows) for _ in images]
        pose = np.array([row["pose"] for row in rows], np.float32).reshape(-1, 24, 3)
        rotmats = torch.from_numpy(rodrigues(pose))
        betas = torch.tensor([row["betas"] for row in rows])
        start = Parameters(rotmats=rotmats, betas=betas, pred_cam=torch.zeros(len(rows), 3))
        return Prediction(iterations=(start, replace(start, rotmats=self._change(rotmats))))


@pytest.fixture(scope="session")
def mpjpe() -> Callable[..., np.ndarray]:
    """(N,) mm of prepared people when the answers are their labels, changed or not."""

    def measured(
        prepared: Prepared, protocol: str,
        change: Callable[[torch.Tensor], torch.Tensor] = lambda rotmats: rotmats,
    ) -> np.ndarray:  # fmt: skip
        knows: Any = Knows(prepared.rows, change)
        errors = measure(
            knows, read_info(prepared.location), "test", batch_size=4,
            yardstick=Yardstick(body=knows.body, protocol=PROTOCOLS[protocol]),
        )  # fmt: skip
        return errors.by_iteration["mpjpe_mm"][-1].numpy()

    return measured
