"""A folder of shards for the browser: all of its people as numbers, some of them as pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hmr.body import Body
from hmr.camera import FOCAL_LENGTH, weak_to_translation
from hmr.camera_fit import fit_weak_camera
from hmr.crops import decode_image
from hmr.errors import DataError, HmrError, ImageError
from hmr.pose_prior import rodrigues
from hmr.predictor import Predictor
from rayhmr.browse_drawn import Pictured, Placed, bodies
from rayhmr.browse_people import Gatherer, People, Progress
from rayhmr.data.batches import read_tables
from rayhmr.data.schema import REJECTED, SPLITS, DatasetInfo, J
from rayhmr.figure_subject import Figure3D
from rayhmr.picture_hash import picture_print
from rayhmr.storage import Folder

THREADS = 4
READ_TOGETHER = 500
_NUMBERS = ("sample_id", "image", "scale", "pose", "betas", "has_smpl", "source", "split",
            "subject")  # fmt: skip
_PICTURED = ("sample_id", "image", "crop_to_frame", "keypoints_2d", "pose", "betas", "has_smpl",
             "transl", "intrinsics")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One row of rejected.csv."""

    id: str
    reason: str
    detail: str


def read_rejected(folder: Folder) -> list[Rejected]:
    """Every row of a folder's rejected/rejected.csv; DataError when the file is damaged."""
    if not folder.exists(REJECTED):
        return []
    try:
        rows = list(csv.DictReader(io.StringIO(folder.read(REJECTED).decode("utf-8"), newline="")))
        return [Rejected(id=r["id"], reason=r["reason"], detail=r["detail"]) for r in rows]
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        raise DataError(
            f"{folder.at(REJECTED)}: is no table of id, reason, detail ({error!r}); make "
            "the folder again"
        ) from error


def matrix(table: pa.Table, name: str, width: int) -> np.ndarray:
    """(n, width) of a column of fixed-size lists; missing ones become NaN."""
    column = table[name].combine_chunks()
    numbers = np.full((len(table), width), np.nan, np.float32)
    present = column.drop_null().flatten().to_numpy(zero_copy_only=False)
    numbers[column.is_valid().to_numpy(zero_copy_only=False)] = present.reshape(-1, width)
    return numbers


def printed(content: bytes | None) -> tuple[np.ndarray, np.ndarray] | None:
    """What `picture_print` gives; none for what is no picture."""
    try:
        return None if content is None else picture_print(content)
    except ImageError:
        return None


def splits_of(info: DatasetInfo) -> list[str]:
    """The splits that hold files."""
    return [split for split in SPLITS if info.files.get(split)]


def read_people(info: DatasetInfo) -> People:
    """Everybody, split after split; DataError for a folder without a single person."""
    gatherer = Gatherer()
    progress = Progress("read", sum(info.rows(split) for split in splits_of(info)))
    with ThreadPoolExecutor(THREADS, thread_name_prefix="hash") as pool:
        for split in splits_of(info):
            for table in read_tables(info, split, READ_TOGETHER, _NUMBERS):
                contents = _contents(table)
                pictures = np.full(len(table), -1)
                for row, found in enumerate(pool.map(printed, contents)):
                    if found is not None:
                        pictures[row] = len(gatherer.prints)
                        gatherer.prints.append(found)
                gatherer.add(
                    ids=table["sample_id"].to_pylist(), sources=table["source"].to_pylist(),
                    splits=table["split"].to_pylist(), subjects=table["subject"].to_pylist(),
                    box_px=200 * table["scale"].to_numpy(), pose=matrix(table, "pose", 72),
                    betas=matrix(table, "betas", 10),
                    labelled=np.array(table["has_smpl"].to_pylist()), pictures=pictures,
                )  # fmt: skip
                progress.add(len(table))
    if gatherer.count == 0:
        raise DataError(f"{info.location}: holds no people; prepare a data set with some")
    return gatherer.people()


def rows_at(
    folder: Folder, files: Sequence[str], rows: Sequence[int], columns: Sequence[str]
) -> Iterator[tuple[list[int], pa.Table]]:
    """Rows by number over all files in order: numbers, and the table with these rows, a row group
    at a time. Row groups without a wanted row are not read."""
    wanted, before = np.unique(rows), 0
    for name in files:
        with (
            folder.files.open_input_file(folder.path(name)) as stream,
            pq.ParquetFile(stream) as shard,
        ):
            for group in range(shard.num_row_groups):
                count = shard.metadata.row_group(group).num_rows
                here = wanted[(wanted >= before) & (wanted < before + count)]
                if len(here):
                    table = shard.read_row_group(group, columns=list(columns))
                    yield here.tolist(), table.take(pa.array(here - before))
                before += count


def crop_camera(intrinsics: np.ndarray, crop_to_frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Focal length and principal point, (2,) each, in pixels of the upright crop."""
    scale = crop_to_frame[[0, 4]]
    return intrinsics[:2] / scale, (intrinsics[2:] - crop_to_frame[[2, 5]]) / scale


def _contents(table: pa.Table) -> list[bytes | None]:
    contents: list[bytes | None] = table["image"].combine_chunks().field("bytes").to_pylist()
    return contents


def _photo(content: bytes | None) -> np.ndarray | None:
    try:
        return None if content is None else decode_image(content)
    except ImageError:
        return None


class ShardPictures:
    """Pictures of chosen people of a data set, with what a model makes of them."""

    def __init__(self, info: DatasetInfo, body: Body, predictor: Predictor | None) -> None:
        self.info, self.body, self.predictor = info, body, predictor

    def of(self, rows: Sequence[int]) -> Iterator[tuple[int, Pictured]]:
        """Row of `read_people` and its pictures, in rising order."""
        folder = Folder(self.info.location)
        names = [f["name"] for split in splits_of(self.info) for f in self.info.files[split]]
        for numbers, table in rows_at(folder, names, rows, _PICTURED):
            photos = [_photo(content) for content in _contents(table)]
            truths = self._truths(table, photos)
            found = self._predictions(photos)
            keypoints = matrix(table, "keypoints_2d", 3 * J).reshape(-1, J, 3)
            for place, number in enumerate(numbers):
                yield number, Pictured(
                    photo=photos[place], truth=truths[place], prediction=found[place],
                    keypoints=keypoints[place],
                )  # fmt: skip

    def _truths(self, table: pa.Table, photos: Sequence[np.ndarray | None]) -> list[Placed | None]:
        transl, intrinsics = matrix(table, "transl", 3), matrix(table, "intrinsics", 4)
        affines = matrix(table, "crop_to_frame", 6).astype(np.float64)
        pose, betas = matrix(table, "pose", 72), matrix(table, "betas", 10)
        keypoints = matrix(table, "keypoints_2d", 3 * J).reshape(-1, J, 3)
        labelled = np.array(table["has_smpl"].to_pylist())
        truths: list[Placed | None] = []
        for row, photo in enumerate(photos):
            if photo is None or not labelled[row]:
                truths.append(None)
                continue
            moved = transl[row]
            focal, principal = crop_camera(intrinsics[row], affines[row])
            if not (np.isfinite(moved).all() and np.isfinite(focal).all()):
                fitted = self._fitted(pose[row], betas[row], keypoints[row], photo.shape[0])
                if fitted is None:
                    truths.append(None)
                    continue
                moved, focal, principal = fitted
            (figure,) = bodies(self.body, pose[row : row + 1], betas[row : row + 1], moved[None])
            truths.append(Placed(body=figure, focal=focal, principal=principal))
        return truths

    def _fitted(
        self, pose: np.ndarray, betas: np.ndarray, keypoints: np.ndarray, side: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Translation and camera under which the body falls on its keypoints, where no labels of
        them came with it; none where too few keypoints are known."""
        device = self.body.faces.device
        rotmats = torch.from_numpy(rodrigues(pose.reshape(1, 24, 3).astype(np.float32)))
        shape = torch.from_numpy(betas[None].astype(np.float32))
        with torch.inference_mode():
            points = self.body.landmarks(rotmats.to(device), shape.to(device)).cpu()
        seen = torch.from_numpy(keypoints[None].astype(np.float32))
        camera = fit_weak_camera(points, 2 * seen[..., :2] / side - 1, seen[..., 2], side)
        if not torch.isfinite(camera).all():
            return None
        moved = weak_to_translation(camera, side)[0].numpy()
        return moved, np.full(2, FOCAL_LENGTH), np.full(2, side / 2)

    def _predictions(self, photos: Sequence[np.ndarray | None]) -> list[Placed | None]:
        if self.predictor is None:
            return [None] * len(photos)
        good = [photo for photo in photos if photo is not None]
        answers = iter(self.predictor.predict_many(good))
        placed: list[Placed | None] = []
        for photo in photos:
            answer = None if photo is None else next(answers)
            if answer is None or isinstance(answer, HmrError) or not answer:
                placed.append(None)
                continue
            (person,) = answer
            figure = Figure3D(
                vertices=person.vertices + person.cam_t, joints=person.joints_3d + person.cam_t
            )
            placed.append(
                Placed(body=figure, focal=person.focal_length, principal=person.principal_point)
            )
        return placed
