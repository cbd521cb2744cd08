"""COCO's person keypoints: 17 joints in 2D.

    {"images": [{"id", "file_name", "width", "height"}, …],
     "annotations": [{"id", "image_id", "bbox": [x, y, width, height],
                      "keypoints": [x, y, visibility, …] (51), "iscrowd", "category_id"}, …]}

Visibility 0 means no label; 1 (hidden) and 2 (visible) are labels. Keypoints are numbers of pixels,
the first being 0, so half a pixel is added to get to its centre; boxes are measured from the edge
and stay. A box is enlarged to the square of 1.2 times its longer side.

Crowds, and people with fewer labelled joints than a person needs, are no rows: COCO boxes many
people whose joints it never labelled.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from hmr.errors import DataError
from hmr.skeleton import JOINT49_NAMES, joint49_index
from rayhmr.data.person import MIN_VISIBLE_JOINTS
from rayhmr.data.sources.json_stream import list_elements
from rayhmr.data.sources.label_files import label_files
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, cut, square_box

NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
"""COCO's joints in its order."""
_PLACES = [joint49_index(f"op_{name}") for name in NAMES]
_PERSON = 1


class _Picture(NamedTuple):
    name: str
    size: tuple[int, int] | None


class _Annotation(NamedTuple):
    """A person in compact form. fault: reason and detail of what is wrong with it."""

    row_id: str
    picture: _Picture | None
    box: np.ndarray | None
    keypoints: np.ndarray | None
    fault: tuple[str, str] | None


@functools.lru_cache(maxsize=1)
def _people(labels: str, file: str) -> list[_Annotation]:
    """The rows of a file, those of one picture together; read once by each worker process. They
    take a kilobyte each, the file's text is never in memory as a whole."""
    folder, _ = label_files(labels, ".json")
    pictures: dict[Any, _Picture] = {}
    waiting: list[tuple[Any, _Annotation]] = []
    try:
        with folder.files.open_input_stream(folder.path(file), compression=None) as stream:
            for key, element in list_elements(stream.read):
                if key == "images":
                    pictures[_plain(element["id"])] = _picture(element)
                elif key == "annotations" and _is_row(element):
                    row = _annotation(element, len(waiting))
                    waiting.append((_plain(element.get("image_id")), row))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError,
            pa.ArrowException) as error:  # fmt: skip
        raise DataError(
            f"{folder.path(file)}: is no COCO keypoint file ({error!r}); give an annotation file "
            "such as person_keypoints_train2017.json"
        ) from error
    order = {number: place for place, number in enumerate(pictures)}
    waiting.sort(key=lambda item: order.get(item[0], len(order)))
    return [row._replace(picture=pictures.get(number)) for number, row in waiting]


def _plain(number: Any) -> Any:
    """An id that can be looked up, whatever a file holds there."""
    return number if isinstance(number, int | str) else repr(number)


def _picture(element: dict[str, Any]) -> _Picture:
    size = element.get("width"), element.get("height")
    known = all(isinstance(side, int) for side in size)
    return _Picture(str(element["file_name"]), size if known else None)  # type: ignore[arg-type]


def _is_row(element: dict[str, Any]) -> bool:
    """Whether an annotation is a person with labels, or one that is damaged."""
    if element.get("iscrowd", 0) or element.get("category_id", _PERSON) != _PERSON:
        return False
    keypoints = _numbers(element.get("keypoints"), 3 * len(NAMES))
    return keypoints is None or int((keypoints[2::3] > 0).sum()) >= MIN_VISIBLE_JOINTS


def _numbers(values: Any, count: int) -> np.ndarray | None:
    """(count,) numbers, or none."""
    try:
        array = np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.shape == (count,) else None


def _annotation(element: dict[str, Any], number: int) -> _Annotation:
    box = _numbers(element.get("bbox"), 4)
    keypoints = _numbers(element.get("keypoints"), 3 * len(NAMES))
    fault = None
    for key, count, found in (("bbox", 4, box), ("keypoints", 3 * len(NAMES), keypoints)):
        if element.get(key) is None:
            fault = "missing_field", f"the annotation has no {key}"
        elif found is None:
            fault = "label_shape", f"{key} are not {count} numbers"
    return _Annotation(str(element.get("id", f"row-{number}")), None, box, keypoints, fault)


@dataclass(frozen=True, kw_only=True)
class CocoSource:
    """labels: an annotation file, or a folder of them."""

    labels: str
    split: str
    name: str = "coco"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Pieces of each file. JSON has no header: the files are read through."""
        _, files = label_files(self.labels, ".json")
        return [
            unit for file in files
            for unit in cut(self.split, file, len(_people(self.labels, file)), rows_per_file)
        ]  # fmt: skip

    def people(self, unit: Unit) -> Iterator[RawPerson | RejectedRow]:
        """Reasons: missing_field, label_shape."""
        for row in _people(self.labels, unit.file)[unit.start : unit.stop]:
            yield self._person(row)

    def _person(self, row: _Annotation) -> RawPerson | RejectedRow:
        fault = row.fault
        if fault is None and row.picture is None:
            fault = "missing_field", "the annotation's image_id is not among the images"
        if fault is not None or row.picture is None or row.box is None or row.keypoints is None:
            reason, detail = fault or ("missing_field", "")
            name = row.picture.name if row.picture else "unknown"
            return RejectedRow(
                sample_id=f"{self.name}/{name}/{row.row_id}", reason=reason, detail=detail
            )
        x, y, width, height = row.box
        center, scale = square_box(np.array([x, y, x + width, y + height]))
        points = row.keypoints.reshape(-1, 3)
        keypoints = np.zeros((len(JOINT49_NAMES), 3))
        keypoints[_PLACES, :2] = points[:, :2] + 0.5
        keypoints[_PLACES, 2] = points[:, 2] > 0
        return RawPerson(
            sample_id=f"{self.name}/{row.picture.name}/{row.row_id}", image=row.picture.name,
            center=center, scale=scale, keypoints_2d=keypoints,
            keypoints_3d=np.zeros((len(JOINT49_NAMES), 4)), split=self.split,
            frame_size=row.picture.size,
        )  # fmt: skip
