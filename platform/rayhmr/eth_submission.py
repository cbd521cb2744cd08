"""The ETH course's submission: its frames as pictures with known boxes, and results.csv.

The course's loader gives every frame's box and place; only pose and shape are asked for. Columns:
id (`S9/<action>.<camera>/<frame>.npz`), root_loc (3, metres, camera frame, as given), root_orient
(3), betas (10), pose_body (63), pose_hand (6), each vector as the text of a list of numbers.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hmr.errors import ConfigError, ImageError
from rayhmr.data.sources.eth import EthSource
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit
from rayhmr.pictures import Images
from rayhmr.prediction_files import PEOPLE
from rayhmr.telemetry import say

RESULTS = "results.csv"
COLUMNS = ("id", "root_loc", "root_orient", "betas", "pose_body", "pose_hand")


class EthFrames(Images):
    """paths: ids of all frames of the label folder, by subject, action, camera and number.

    images: the folder below which `S9/Images/...` lie. labels: the folder that holds `S9/...`.
    """

    def __init__(self, images: str, labels: str) -> None:
        super().__init__(images)
        self.labels = Path(labels).absolute()
        subjects = sorted(path.name for path in self.labels.glob("*") if path.is_dir())
        if not subjects:
            raise ConfigError(
                f"eth_labels={labels}: holds no folders of subjects; give the folder that holds "
                "S9/<action>.<camera>/<frame>.npz"
            )
        self.source = EthSource(
            labels=str(self.labels), body="embedded", subjects={"test": tuple(subjects)}
        )
        self.paths = [
            path.relative_to(self.labels).as_posix()
            for subject in subjects
            for path in self.source.frames(subject)
        ]

    def person(self, path: str) -> RawPerson:
        """What the course gives about a frame; ImageError when its file is damaged."""
        subject = path.partition("/")[0]
        row = self.source.frame(self.labels / path, Unit(split="test", file=subject, start=0,
                                                         stop=1))  # fmt: skip
        if isinstance(row, RejectedRow):
            raise ImageError(row.reason, row.detail)
        return row

    def read(self, path: str) -> bytes:
        """The frame's picture; ImageError when it or its labels cannot be read."""
        picture = self.person(path).image
        assert isinstance(picture, str)
        return super().read(picture)

    def known(self, path: str) -> list[float]:
        """Centre x, y and side of the course's square, and the camera's focal length."""
        person = self.person(path)
        assert person.intrinsics is not None
        return [*person.center.tolist(), 200 * person.scale, float(person.intrinsics[:2].mean())]


def write_submission(folder: Path, frames: EthFrames) -> None:
    """Write results.csv beside people.parquet, one line for each frame that was predicted."""
    wanted = ["image", "global_orient", "body_pose", "betas"]
    rows = {row["image"]: row for row in pq.read_table(folder / PEOPLE, columns=wanted).to_pylist()}
    with (folder / RESULTS).open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for path in frames.paths:
            if path not in rows:
                continue
            row, place = rows[path], frames.person(path).transl
            vectors = {
                "root_loc": place, "root_orient": row["global_orient"], "betas": row["betas"],
                "pose_body": row["body_pose"][:63], "pose_hand": row["body_pose"][63:],
            }  # fmt: skip
            texts = {name: str(np.asarray(v).tolist()) for name, v in vectors.items()}
            table.writerow({"id": path} | texts)
    if missing := len(frames.paths) - len(rows):
        say(f"{RESULTS} lacks {missing} of {len(frames.paths)} frames, see the rejected ones")
