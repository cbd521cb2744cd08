"""Pictures without labels: one person in each, or those of a CSV of boxes.

    images/a.jpg, images/deeper/b.png …     JPEG, PNG, WebP; hidden files are left out
    boxes.csv     image,x1,y1,x2,y2         a header, then a person a line; pixels of the upright
                                            picture, names as below the folder

Other columns of the CSV are not read. A box is enlarged to the square of 1.2 times its longer side,
as everywhere in the field; without boxes the person's box is the square around the picture.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from hmr.errors import ConfigError, DataError
from hmr.skeleton import JOINT49_NAMES
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, box_id, cut, square_box
from rayhmr.storage import Folder
from rayhmr.storage import split as split_address

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
CORNERS = ("x1", "y1", "x2", "y2")


@functools.lru_cache(maxsize=2)
def _pictures(images: str) -> tuple[str, ...]:
    """Names below the folder, sorted; listed once by each worker process."""
    folder = Folder(images)
    try:
        infos = folder.files.get_file_info(pafs.FileSelector(folder.root, recursive=True))
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"files.images={images}: cannot be listed ({error})") from error
    names = (info.path[len(folder.root) + 1 :] for info in infos if info.type == pafs.FileType.File)
    pictures = tuple(sorted(name for name in names if _is_picture(name)))
    if not pictures:
        raise DataError(
            f"files.images={images}: no {', '.join(ENDINGS)} below the folder; correct the path"
        )
    return pictures


def _is_picture(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return name.lower().endswith(ENDINGS) and not hidden


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """images: the folder. boxes: the CSV, or none."""

    images: str
    boxes: str | None
    split: str
    name: str = "folder"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Pieces of the list of pictures, or of the CSV."""
        rows = _pictures(self.images) if self.boxes is None else self._lines()
        return cut(self.split, "", sum(1 for _ in rows), rows_per_file)

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """One person a picture, or one a line of the CSV."""
        if self.boxes is None:
            for image in _pictures(self.images)[unit.start : unit.stop]:
                yield self._person(f"{self.name}/{image}/0", image, np.zeros(2), 0.0, whole=True)
            return
        for number, line in enumerate(itertools.islice(self._lines(), unit.start, unit.stop)):
            yield self._boxed(line, unit.start + number)

    def _lines(self) -> Iterator[dict[str, str | None]]:
        """Lines of the CSV by column; DataError when it is none."""
        assert self.boxes is not None
        parent, name = split_address(self.boxes)
        folder = Folder(parent)
        try:
            with (
                folder.files.open_input_stream(folder.path(name), compression=None) as stream,
                io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text,
            ):
                lines = csv.DictReader(text)
                missing = {"image", *CORNERS} - set(lines.fieldnames or ())
                if missing:
                    raise DataError(
                        f"{self.boxes}: lacks the columns {', '.join(sorted(missing))}; its first "
                        "line must be image,x1,y1,x2,y2"
                    )
                yield from lines
        except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.boxes}: is no readable CSV ({error})") from error

    def _boxed(self, line: dict[str, str | None], number: int) -> RawPerson | RejectedRow:
        image = line["image"]
        row_id = f"{self.name}/{image or ''}/line-{number + 2}"
        absent = [column for column in ("image", *CORNERS) if not line[column]]
        if image is None or absent:
            return RejectedRow(
                sample_id=row_id, reason="missing_field",
                detail=f"line {number + 2} of {self.boxes} lacks {', '.join(absent)}",
            )  # fmt: skip
        try:
            box = np.array([float(line[column] or "") for column in CORNERS])
        except ValueError as error:
            return RejectedRow(
                sample_id=row_id, reason="label_not_a_number",
                detail=f"line {number + 2} of {self.boxes}: {error}",
            )  # fmt: skip
        center, scale = square_box(box)
        return self._person(box_id(self.name, image, center, scale), image, center, scale)

    def _person(
        self, sample_id: str, image: str, center: np.ndarray, scale: float, *, whole: bool = False
    ) -> RawPerson:
        joints = len(JOINT49_NAMES)
        return RawPerson(
            sample_id=sample_id, image=image, center=center, scale=scale,
            keypoints_2d=np.zeros((joints, 3)), keypoints_3d=np.zeros((joints, 4)),
            split=self.split, unlabelled=True, whole_frame=whole,
        )  # fmt: skip
