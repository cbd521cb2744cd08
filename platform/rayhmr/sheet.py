"""A sheet of people for the eye: photo, the model's body, the true body, from good to bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa
import torch

from hmr.crops import decode_image
from hmr.predictor import Predictor
from hmr.render import grid, overlay
from rayhmr.data.batches import read_tables, smpl_labels
from rayhmr.data.schema import TRAINING_COLUMNS, DatasetInfo

TRUTH_COLOR = (0.72, 0.78, 0.70)


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One labelled person of a split. jpeg: the stored crop. vertices: (V, 3) of the true body,
    metres, before the camera. intrinsics: fx, fy, cx, cy in crop pixels."""

    sample_id: str
    jpeg: bytes
    vertices: np.ndarray
    intrinsics: np.ndarray


def spread(ranked: Sequence[int], count: int) -> list[int]:
    """`count` entries, evenly from the first to the last."""
    chosen = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [ranked[i] for i in chosen]


def held_out(
    info: DatasetInfo, split: str, rows: Sequence[int], predictor: Predictor
) -> list[HeldOut]:
    """The people at these places of a split, in this order."""
    columns = [*TRAINING_COLUMNS, "transl", "intrinsics"]
    table = pa.concat_tables(read_tables(info, split, 500, columns)).take(list(rows))
    rotmats, betas = smpl_labels(table)
    with torch.inference_mode():
        vertices = predictor.body(
            rotmats.to(predictor.device), betas.to(predictor.device)
        ).vertices.cpu()  # fmt: skip
    return [
        HeldOut(
            sample_id=row["sample_id"], jpeg=row["image"]["bytes"],
            vertices=body.numpy() + np.asarray(row["transl"], np.float32),
            intrinsics=np.asarray(row["intrinsics"]),
        )
        for row, body in zip(table.to_pylist(), vertices, strict=True)
    ]  # fmt: skip


def triptych(person: HeldOut, predictor: Predictor, side: int) -> list[np.ndarray]:
    """Photo, prediction, truth, each (side, side, 3) uint8."""
    photo = decode_image(person.jpeg)
    factor = side / photo.shape[0]
    large = cv2.resize(photo, (side, side), interpolation=cv2.INTER_CUBIC)
    (found,) = predictor.predict(photo)
    faces = predictor.body.arrays.faces
    predicted = overlay(
        large, [found.vertices + found.cam_t], faces, found.focal_length * factor,
        found.principal_point * factor,
    )  # fmt: skip
    fx, fy, cx, cy = person.intrinsics * factor
    true = overlay(large, [person.vertices], faces, (fx, fy), (cx, cy), colors=[TRUTH_COLOR])
    return [large, predicted, true]


def people_sheet(
    people: Sequence[HeldOut], predictor: Predictor, *, side: int = 144, across: int = 4
) -> np.ndarray:
    """(H, W, 3) uint8: `across` people in a row, three pictures each."""
    pictures = [triptych(person, predictor, side) for person in people]
    rows = [pictures[i : i + across] for i in range(0, len(pictures), across)]
    return grid([[picture for three in row for picture in three] for row in rows])


LEGEND = (
    "photo, prediction (blue), ground truth (green); "
    "evenly from the best to the worst of the split by PA-MPJPE"
)
