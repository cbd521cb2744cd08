"""A folder of predictions for the browser: people.parquet as numbers, photos where they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hmr.body import Body
from hmr.crops import (
    apply_affine,
    box_to_affine,
    box_xyxy_to_square,
    crop_image,
    decode_image,
)
from hmr.errors import ConfigError, DataError, ImageError
from rayhmr.browse_drawn import UNSEEN_PX, Pictured, Placed, bodies
from rayhmr.browse_people import Gatherer, People, Progress
from rayhmr.browse_shards import READ_TOGETHER, matrix, printed, rows_at
from rayhmr.pictures import Images
from rayhmr.prediction_files import PEOPLE
from rayhmr.prediction_parts import MANIFEST
from rayhmr.storage import Folder

_NUMBERS = ("image", "person", "box_xyxy", "global_orient", "body_pose", "betas")
_PICTURED = (*_NUMBERS, "cam_t", "focal_length", "principal_point")


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """folder: with people.parquet. images: the pictures they were made of. model: which made
    them."""

    folder: Folder
    images: Images
    model: str


def open_predictions(location: str, images: str | None) -> Predictions:
    """What jobs/predict.py wrote. images: where its pictures are now; none: where they were.

    DataError for a damaged folder, ConfigError when the pictures are not there.
    """
    folder = Folder(location)
    try:
        facts = folder.read_json(MANIFEST)
        was = facts["settings"]["input"]
        model = str(facts.get("model", ""))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{location}/{MANIFEST}: is damaged ({error!r}); predict again") from error
    if not folder.exists(PEOPLE):
        raise DataError(f"{location}: has no {PEOPLE}; predict with output.format=parquet")
    place = images or was
    try:
        return Predictions(folder=folder, images=Images(place), model=model)
    except ConfigError as error:
        raise ConfigError(
            f"input={location}: the pictures that were predicted are not under {place} ({error}); "
            "set images= to the folder they are in now"
        ) from error


def read_people(predictions: Predictions) -> People:
    """Everybody in the order of the file; DataError when it holds nobody."""
    folder, gatherer = predictions.folder, Gatherer()
    last, number = None, -1
    with (
        folder.files.open_input_file(folder.path(PEOPLE)) as stream,
        pq.ParquetFile(stream) as file,
    ):
        progress = Progress("read", file.metadata.num_rows)
        for batch in file.iter_batches(READ_TOGETHER, columns=list(_NUMBERS)):
            table = pa.Table.from_batches([batch])
            names, places = table["image"].to_pylist(), []
            for name in names:
                if name != last:  # the people of one picture stand together
                    last, number = name, -1
                    if (found := printed(_content(predictions.images, name))) is not None:
                        number = len(gatherer.prints)
                        gatherer.prints.append(found)
                places.append(number)
            box = matrix(table, "box_xyxy", 4)
            pose = np.concatenate(
                [matrix(table, "global_orient", 3), matrix(table, "body_pose", 69)], axis=1
            )
            gatherer.add(
                ids=[f"{n}#{p}" for n, p in zip(names, table["person"].to_pylist(), strict=True)],
                sources=[name.rpartition("/")[0] or "." for name in names],
                splits=[""] * len(names), subjects=[""] * len(names),
                box_px=(box[:, 2:] - box[:, :2]).max(1), pose=pose,
                betas=matrix(table, "betas", 10), labelled=np.ones(len(names), bool),
                pictures=np.array(places),
            )  # fmt: skip
            progress.add(len(names))
    if gatherer.count == 0:
        raise DataError(
            f"{folder.location}: holds no people, only rejected pictures; see rejected/rejected.csv"
        )
    return gatherer.people()


def _content(images: Images, name: str) -> bytes | None:
    try:
        return images.read(name)
    except ImageError:
        return None


class PredictionPictures:
    """Pictures of chosen people of a prediction."""

    def __init__(self, predictions: Predictions, body: Body) -> None:
        self.predictions, self.body = predictions, body

    def of(self, rows: Sequence[int]) -> Iterator[tuple[int, Pictured]]:
        """Row of `read_people` and its pictures, in rising order."""
        held: tuple[str, np.ndarray | None] = ("", None)
        for numbers, table in rows_at(self.predictions.folder, [PEOPLE], rows, _PICTURED):
            pose = np.concatenate(
                [matrix(table, "global_orient", 3), matrix(table, "body_pose", 69)], axis=1
            )
            moved, boxes = matrix(table, "cam_t", 3), matrix(table, "box_xyxy", 4)
            figures = bodies(self.body, pose, matrix(table, "betas", 10), moved)
            focal, principal = matrix(table, "focal_length", 2), matrix(table, "principal_point", 2)
            for row, name in enumerate(table["image"].to_pylist()):
                if name != held[0]:
                    held = name, self._decoded(name)
                center, side = box_xyxy_to_square(boxes[row], 1.2)
                affine = box_to_affine(center, side, UNSEEN_PX)
                image = held[1]
                yield numbers[row], Pictured(
                    photo=None if image is None else crop_image(image, affine, UNSEEN_PX),
                    prediction=Placed(
                        body=figures[row], focal=focal[row] * (UNSEEN_PX / side),
                        principal=apply_affine(affine, principal[row].astype(np.float64)),
                    ),
                )  # fmt: skip

    def _decoded(self, name: str) -> np.ndarray | None:
        content = _content(self.predictions.images, name)
        try:
            return None if content is None else decode_image(content)
        except ImageError:
            return None
