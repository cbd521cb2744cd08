"""The output of a batch prediction: people.parquet, rejected.csv, and other programs' forms.

    people.npz        field's keys: imgname, center, scale, pose, shape (SPIN, EFT), trans_cam and
                      cam_int (BEDLAM), camera (SPIN), bbox, joints2d, joints3d
    coco.json         COCO's keypoints: images, annotations with 17 keypoints, box and score
    glb/<image>.glb   the people of an image, y up;  obj/<image>/person_0.obj  camera axes, y down

All of them are written from people.parquet, a row group at a time, so that what they hold is what
it holds, and memory does not grow with the number of people.
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hmr.body import Body
from hmr.mesh_files import glb_bytes, obj_text
from hmr.rotations import axis_angle_to_matrix
from hmr.skeleton import joint49_index
from rayhmr.data.sources.coco import NAMES
from rayhmr.people_table import file_names
from rayhmr.prediction_parts import PredictionParts, pictured

PEOPLE = "people.parquet"
REJECTED = "rejected/rejected.csv"
ROW_GROUP = 500
_COCO_PLACES = [joint49_index(f"op_{name}") for name in NAMES]


def write_people(parts: PredictionParts, folder: Path, schema: pa.Schema) -> None:
    """people.parquet, and rejected.csv with id, reason and detail, in the order of the listing; a
    refused box beside good ones has the id <picture>/box-<its place>."""
    (folder / REJECTED).parent.mkdir(parents=True, exist_ok=True)
    with (
        (folder / REJECTED).open("w", newline="", encoding="utf-8") as file,
        pq.ParquetWriter(folder / PEOPLE, schema, compression="zstd") as writer,
    ):
        rejected = csv.writer(file)
        rejected.writerow(["id", "reason", "detail"])
        waiting: list[pa.Table] = []
        for table in parts.tables():
            for row in table.select(["path", "reason", "detail", "refused"]).to_pylist():
                if row["reason"] is not None:
                    rejected.writerow([row["path"], row["reason"], row["detail"]])
                for box in row["refused"] or ():
                    name = f"{row['path']}/box-{box['person']}"
                    rejected.writerow([name, "bad_box", box["detail"]])
            waiting += [
                pa.Table.from_struct_array(chunk.flatten()).cast(schema)
                for chunk in table["people"].chunks
            ]
            if sum(map(len, waiting)) >= ROW_GROUP:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


class People:
    """people.parquet of a folder, a row group at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PEOPLE
        self.rows = pq.read_metadata(self.path).num_rows

    def groups(self, *columns: str) -> Iterator[dict[str, np.ndarray | list[Any]]]:
        """Columns by name: vectors as (N, size) arrays, the rest as lists."""
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=list(columns))
                yield {name: _values(table[name].combine_chunks()) for name in columns}


def _values(column: Any) -> np.ndarray | list[Any]:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_pylist()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


def posed(pose: np.ndarray, betas: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 72), (N, 10) to what a body takes."""
    rotmats = axis_angle_to_matrix(torch.tensor(pose).reshape(-1, 24, 3))
    return rotmats, torch.tensor(betas)


def _write_arrays(
    path: Path, rows: int, arrays: dict[str, tuple[tuple[int, ...], Any, Iterator[np.ndarray]]]
) -> None:
    """An .npz whose arrays are never whole in memory: shape of a row, type, and pieces of each."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, (shape, kind, pieces) in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
                          "fortran_order": False, "shape": (rows, *shape)}  # fmt: skip
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces:
                    file.write(np.ascontiguousarray(piece, kind).tobytes())


def write_npz(folder: Path, body: Body, listing: pa.Table) -> None:
    """people.npz."""
    people = People(folder)

    def column(name: str, shape: tuple[int, ...] | None = None) -> Iterator[np.ndarray]:
        for group in people.groups(name):
            values = np.asarray(group[name])
            yield values if shape is None else values.reshape(-1, *shape)

    def matrices() -> Iterator[np.ndarray]:
        for group in people.groups("intrinsics"):
            fx, fy, cx, cy = np.asarray(group["intrinsics"]).T
            matrix = np.zeros((len(fx), 3, 3), np.float32)
            matrix[:, 0, 0], matrix[:, 1, 1], matrix[:, 2, 2] = fx, fy, 1
            matrix[:, 0, 2], matrix[:, 1, 2] = cx, cy
            yield matrix

    longest = max((len(path) for path in listing["path"].to_pylist()), default=1)
    number = np.float32
    _write_arrays(
        folder / "people.npz", people.rows,
        {
            "imgname": ((), f"<U{max(longest, 1)}", column("image")),
            "center": ((2,), number, column("center")),
            "scale": ((), number, column("scale")),
            "pose": ((72,), number, column("pose")),
            "shape": ((10,), number, column("betas")),
            "trans_cam": ((3,), number, column("transl")),
            "cam_int": ((3, 3), number, matrices()),
            "camera": ((3,), number, column("pred_cam")),
            "bbox": ((4,), number, column("box_xyxy")),
            "joints2d": ((24, 2), number, column("joints_2d", (24, 2))),
            "joints3d": ((24, 3), number, column("joints_3d", (24, 3))),
        },
    )  # fmt: skip


def write_meshes(folder: Path, body: Body, listing: pa.Table, kind: str) -> None:
    """glb/: a scene for each image that has people. obj/: a file for each person."""
    names = file_names(pictured(listing), ".glb" if kind == "glb" else "")
    faces = body.arrays.faces
    waiting: list[np.ndarray] = []
    of: str | None = None

    def finish() -> None:
        if of is None:
            return
        target = folder / kind / names[of]
        if kind == "glb":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(glb_bytes(waiting, faces))
            return
        target.mkdir(parents=True, exist_ok=True)
        for number, mesh in enumerate(waiting):
            (target / f"person_{number}.obj").write_text(obj_text(mesh, faces))

    for group in People(folder).groups("image", "pose", "betas", "transl"):
        vertices = []
        for start in range(0, len(group["image"]), 64):
            some = slice(start, start + 64)
            with torch.inference_mode():
                output = body(*posed(*(np.asarray(group[k])[some] for k in ("pose", "betas"))))
            vertices += list(output.vertices.numpy() + np.asarray(group["transl"])[some, None])
        for image, mesh in zip(group["image"], vertices, strict=True):
            if image != of:
                finish()
                waiting, of = [], image
            waiting.append(mesh)
    finish()


def write_coco(folder: Path, body: Body, listing: pa.Table) -> None:
    """coco.json: numbers of images are those of the listing, keypoints count pixels from 0."""
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(NAMES)}
    numbers = {path: number for number, path in enumerate(listing["path"].to_pylist())}
    people = People(folder)
    with (folder / "coco.json").open("w", encoding="utf-8") as file:
        file.write('{"categories": ' + json.dumps([category]) + ',\n"images": [\n')
        _join(file.write, _coco_images(people, numbers))
        file.write('\n],\n"annotations": [\n')
        _join(file.write, _coco_people(people, body, numbers))
        file.write("\n]}\n")


def _join(write: Callable[[str], Any], values: Iterator[Any]) -> None:
    for number, value in enumerate(values):
        write((",\n" if number else "") + json.dumps(value))


def _coco_images(people: People, numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    last = None
    for group in people.groups("image", "image_size"):
        for image, size in zip(group["image"], group["image_size"], strict=True):
            if image != last:
                last = image
                yield {"id": numbers[image], "file_name": image, "width": int(size[0]),
                       "height": int(size[1])}  # fmt: skip


def _coco_people(people: People, body: Body, numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    count = 0
    columns = ("image", "image_size", "pose", "betas", "transl", "intrinsics", "box_xyxy")
    for group in people.groups(*columns):
        a = {name: np.asarray(group[name]) for name in columns[1:]}
        with torch.inference_mode():
            joints = body.landmarks(*posed(a["pose"], a["betas"])).numpy()[:, _COCO_PLACES]
        placed = joints + a["transl"][:, None]
        focal, center = a["intrinsics"][:, None, :2], a["intrinsics"][:, None, 2:]
        pixels = focal * placed[..., :2] / placed[..., 2:] + center
        inside = ((pixels >= 0) & (pixels < a["image_size"][:, None])).all(-1)
        for row, image in enumerate(group["image"]):
            x1, y1, x2, y2 = a["box_xyxy"][row].tolist()
            # 2 is visible; a joint outside the picture is no label there.
            marks = np.concatenate([pixels[row] - 0.5, 2.0 * inside[row][:, None]], 1)
            marks[~inside[row]] = 0
            yield {
                "id": count, "image_id": numbers[image], "category_id": 1, "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "score": 1.0,
                "num_keypoints": int(inside[row].sum()),
                "keypoints": [round(v, 3) for v in marks.reshape(-1).tolist()],
            }  # fmt: skip
            count += 1
