"""A person of a data set on disk, and its picture, to the labelled crop that enters a shard.

Whatever is wrong with one person becomes a RejectedRow with a stable reason. Of the picture:
path_outside_root, unreadable, too_many_bytes, exif_conflict, and those of
`hmr.crops.decode_image`. Of the frame and the box: frame_size_differs, box_empty,
box_outside_frame. Of the labels: label_nonfinite, label_missing. Colour modes and EXIF orientation
are repaired.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import pyarrow as pa

from hmr.body_arrays import BodyArrays
from hmr.crops import (
    apply_affine,
    box_to_affine,
    centre_box,
    crop_image,
    decode_image,
    invert_affine,
    is_turned,
)
from hmr.errors import DataError, ImageError
from rayhmr.data.person import MIN_VISIBLE_JOINTS, LabelledPerson
from rayhmr.data.sources.bodies import shared_body
from rayhmr.data.sources.record import RawPerson, RejectedRow, Source, Unit
from rayhmr.storage import Folder

MAX_BYTES = 100_000_000
"""Of an encoded picture; a larger file is not read to its end."""
MIN_BOX = 1.0
"""Smallest side of a box, in pixels of the frame."""


class Pictures:
    """Upright pictures, (H, W, 3) uint8 RGB, of an image root. The last one is remembered, so that
    people who follow each other in one picture cost one decoding."""

    def __init__(self, root: str | None) -> None:
        self._folder = None if root is None else Folder(root)
        self._key: tuple[str | bytes, int, bool] | None = None
        self._last: np.ndarray | ImageError

    def get(
        self, image: str | bytes, quarter_turns: int = 0, *, exif_ignored: bool = False
    ) -> np.ndarray:
        """The picture at a path below the root, or of encoded bytes; ImageError says why not."""
        key = image, quarter_turns, exif_ignored
        if self._key != key:
            try:
                content = image if isinstance(image, bytes) else self._read(image)
                if content and exif_ignored and is_turned(content):
                    raise ImageError(
                        "exif_conflict",
                        "the picture's EXIF orientation turns it, and its labels were made on the "
                        "picture as it is stored; save it upright and correct its labels",
                    )
                turned = np.rot90(decode_image(content), -quarter_turns)
                self._last = np.ascontiguousarray(turned)
            except ImageError as error:
                self._last = error
            self._key = key
        if isinstance(self._last, ImageError):
            raise self._last
        return self._last

    def _read(self, name: str) -> bytes:
        if self._folder is None:
            raise ImageError("unreadable", f"{name}: no image root was given; set files.images")
        path = self._inside(self._folder, name)
        try:
            with self._folder.files.open_input_file(path) as file:
                content: bytes = file.read(MAX_BYTES + 1)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise ImageError("unreadable", f"{name}: cannot be read ({error})") from error
        if len(content) > MAX_BYTES:
            raise ImageError("too_many_bytes", f"{name}: has more than {MAX_BYTES:,} bytes")
        return content

    @staticmethod
    def _inside(folder: Folder, name: str) -> str:
        """The path of a name that stays below the folder. Label files come from strangers: a name
        such as ../../secret.png must not carry a picture of this machine into a data set. Links
        below the root are its owner's and are followed."""
        root = posixpath.normpath(folder.root or "/")
        path = posixpath.normpath(posixpath.join(root, name))
        if not path.startswith(f"{root.rstrip('/')}/"):
            raise ImageError(
                "path_outside_root", f"{name!r} lies outside of the image root {folder.location}"
            )
        return path


def _box_fault(center: np.ndarray, side: float, width: int, height: int) -> tuple[str, str] | None:
    if not (np.isfinite(center).all() and np.isfinite(side)):
        return "label_nonfinite", "center or scale holds NaN or infinite numbers"
    if side < MIN_BOX:
        return "box_empty", f"the box has a side of {side:.3g} pixels, the least is {MIN_BOX:g}"
    low, high = center - side / 2, center + side / 2
    if (high <= 0).any() or low[0] >= width or low[1] >= height:
        return "box_outside_frame", (
            f"the box of side {side:.5g} around ({center[0]:.5g}, {center[1]:.5g}) shows nothing "
            f"of the {width} x {height} frame"
        )
    return None


def _joints(points: np.ndarray) -> np.ndarray:
    """(J, C) float32 with zeros for joints without a label: what a file holds there, often NaN or
    a mark such as -1, means nothing."""
    with np.errstate(over="ignore"):  # becomes infinite, and is found as such
        joints = np.array(points, np.float64).astype(np.float32)
    joints[joints[:, -1] <= 0] = 0
    return joints


def _float32(values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return None
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float64).astype(np.float32)


def _min_joints(person: RawPerson, keypoints_3d: np.ndarray) -> int:
    """Fewest 2D joints: they are the only label of many people, and some need none of them."""
    has_smpl = person.pose is not None and person.betas is not None
    has_3d = (keypoints_3d[:, 3] > 0).sum() >= MIN_VISIBLE_JOINTS
    return 0 if person.unlabelled or has_smpl or has_3d else MIN_VISIBLE_JOINTS


def crop_person(
    person: RawPerson, frame: np.ndarray, *, size: int, padding: float, source: str
) -> LabelledPerson | RejectedRow:
    """The person's crop of size x size pixels, with labels in its pixels.

    frame: (H, W, 3) upright. padding: side of the crop over the side of the person's box.
    """
    height, width = frame.shape[:2]
    if person.frame_size is not None and tuple(person.frame_size) != (width, height):
        return RejectedRow(
            sample_id=person.sample_id, reason="frame_size_differs",
            detail=f"the picture has {width} x {height} pixels, the labels were made in "
                   "{} x {}".format(*person.frame_size),
        )  # fmt: skip
    if person.whole_frame:
        center, side = centre_box(width, height)
    else:
        center, side = np.asarray(person.center, np.float64), 200.0 * float(person.scale)
    if fault := _box_fault(center, side, width, height):
        return RejectedRow(sample_id=person.sample_id, reason=fault[0], detail=fault[1])
    affine = box_to_affine(center, padding * side, size)
    keypoints_2d = np.array(person.keypoints_2d, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # found below
        keypoints_2d[:, :2] = apply_affine(affine, keypoints_2d[:, :2])
    keypoints_3d = _joints(person.keypoints_3d)
    labelled = LabelledPerson(
        sample_id=person.sample_id, image=crop_image(frame, affine, size),
        image_size=(width, height),
        crop_to_frame=invert_affine(affine).reshape(6).astype(np.float32),
        center=center, scale=side / 200,
        keypoints_2d=_joints(keypoints_2d), keypoints_3d=keypoints_3d,
        pose=_float32(person.pose), betas=_float32(person.betas), transl=_float32(person.transl),
        intrinsics=_float32(person.intrinsics), gender=person.gender, source=source,
        split=person.split, subject=person.subject,
    )  # fmt: skip
    if fault := labelled.rejection(_min_joints(person, keypoints_3d)):
        return RejectedRow(sample_id=person.sample_id, reason=fault[0], detail=fault[1])
    return labelled


def by_picture(rows: Iterable[RawPerson | RejectedRow]) -> Iterator[RawPerson | RejectedRow]:
    """The same rows with people of one picture after each other, in the order in which the
    pictures appear first. Rows that carry their picture are not held back."""
    groups: dict[str, list[RawPerson]] = {}
    for row in rows:
        if isinstance(row, RawPerson) and isinstance(row.image, str):
            groups.setdefault(row.image, []).append(row)
        else:
            yield row
    for group in groups.values():
        yield from group


@dataclass(frozen=True)
class CroppedSource:
    """The people of a source as they enter a shard.

    images: root of the picture paths. size, padding: see `crop_person`. body: `embedded` or the
    path of the body that SMPL labels belong to.
    """

    source: Source
    images: str | None
    size: int
    padding: float
    body: str

    def units(self, rows_per_file: int) -> list[Unit]:
        """All pieces of the source; DataError when it holds nobody."""
        if units := self.source.units(rows_per_file):
            return units
        raise DataError(f"{self.source.name}: the labels hold nobody; correct files.labels")

    def body_arrays(self) -> BodyArrays:
        """The body that the labels belong to."""
        return shared_body(self.body)

    def read(self, unit: Unit) -> Iterator[LabelledPerson | RejectedRow]:
        """Every row of a piece once, as a person or as a rejection."""
        cv2.setNumThreads(1)  # the worker owns one core
        pictures = Pictures(self.images)
        for row in by_picture(self.source.people(unit)):
            if isinstance(row, RejectedRow):
                yield row
                continue
            try:
                frame = pictures.get(row.image, row.quarter_turns, exif_ignored=row.exif_ignored)
            except ImageError as error:
                yield RejectedRow(sample_id=row.sample_id, reason=error.reason, detail=str(error))
                continue
            yield crop_person(
                row, frame, size=self.size, padding=self.padding, source=self.source.name
            )
