"""HMR2's training data: webdataset tars, one picture and its people a sample.

    <key>.jpg, .jpeg or .png   the picture
    <key>.data.pyd             pickled list of people: {keypoints_2d (44, 3), keypoints_3d (44, 4),
                               center (2), scale (1 or 2), body_pose (72), betas (10),
                               has_body_pose, has_betas}

The 44 joints are the first of our 49. scale is width and height of the box / 200; as in
`hmr2_eval`, the crop is the square of the longer side after the box has grown to 192 : 256, and the
labels ignore EXIF orientation.
A row of a unit is a sample: how many people it shows is only known by unpickling it.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from hmr.errors import DataError
from hmr.safe_pickle import read_pickle
from rayhmr.data.sources.hmr2_eval import box_side
from rayhmr.data.sources.label_files import label_files
from rayhmr.data.sources.record import RawPerson, RejectedRow, Unit, cut
from rayhmr.data.sources.smpl_labels import Row, checked, no_joints

MAX_BYTES = 100_000_000
"""Of a member; a larger one is not read."""
NUM_JOINTS = 44
PICTURES = ("jpg", "jpeg", "png")
LABELS = "data.pyd"

_SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "keypoints_2d": ((NUM_JOINTS, 3),), "keypoints_3d": ((NUM_JOINTS, 4),), "center": ((2,),),
    "scale": ((2,), (1,), ()), "body_pose": ((72,), (24, 3)), "betas": ((10,),),
    "has_body_pose": ((), (1,)), "has_betas": ((), (1,)),
}  # fmt: skip

_DAMAGED = (OSError, EOFError, ValueError, tarfile.TarError, pa.ArrowException)

Sample = dict[str, tarfile.TarInfo]
"""The members of a sample by what follows the key."""


@dataclass(frozen=True, kw_only=True)
class Hmr2TarSource:
    """labels: a .tar, or a folder of them. read: the value of a pickle's bytes."""

    labels: str
    split: str
    read: Callable[[bytes], Any] = read_pickle
    name: str = "hmr2_tar"

    def units(self, rows_per_file: int) -> list[Unit]:
        """Samples of each file; reads the headers of its members."""
        units = []
        for file in label_files(self.labels, ".tar")[1]:
            with self._opened(file) as (_, samples):
                units += cut(self.split, file, len(samples), rows_per_file)
        return units

    def people(self, unit: Unit) -> Iterator[Row]:
        """Sample by sample, its people in order; a sample that cannot be read is one rejection.

        Reasons: label_missing, label_unreadable, unreadable (no picture), and those of
        `smpl_labels.checked`.
        """
        with self._opened(unit.file) as (archive, samples):
            for key in list(samples)[unit.start : unit.stop]:
                sample_id = f"{self.name}/{unit.file.removesuffix('.tar')}/{key}"
                yield from map(checked, self._sample(archive, samples[key], sample_id))

    def _sample(self, archive: tarfile.TarFile, members: Sample, sample_id: str) -> Iterator[Row]:
        picture = next((members[kind] for kind in PICTURES if kind in members), None)
        try:
            if LABELS not in members:
                raise DataError(f"there is no {LABELS}")
            people = self.read(_content(archive, members[LABELS]))
            if not isinstance(people, list):
                raise DataError(f"{LABELS} is a {type(people).__name__}, not a list of people")
        except DataError as error:
            reason = "label_unreadable" if LABELS in members else "label_missing"
            yield RejectedRow(sample_id=sample_id, reason=reason, detail=str(error))
            return
        try:
            if picture is None:
                raise DataError(f"there is no picture {' or '.join(PICTURES)}")
            image = _content(archive, picture)
        except DataError as error:
            yield RejectedRow(sample_id=sample_id, reason="unreadable", detail=str(error))
            return
        for number, person in enumerate(people):
            yield self._person(person, image, f"{sample_id}/{number}")

    def _person(self, labels: Any, image: bytes, sample_id: str) -> Row:
        try:
            values = {key: _numbers(labels, key) for key in _SHAPES}
        except DataError as error:
            return RejectedRow(sample_id=sample_id, reason="label_missing", detail=str(error))
        joints_2d, joints_3d = no_joints(2), no_joints(3)
        joints_2d[:NUM_JOINTS] = _labelled(values["keypoints_2d"])
        joints_3d[:NUM_JOINTS] = _labelled(values["keypoints_3d"])
        has_smpl = bool((values["has_body_pose"] > 0).all() and (values["has_betas"] > 0).all())
        return RawPerson(
            sample_id=sample_id, image=image, center=values["center"],
            scale=box_side(np.atleast_1d(values["scale"])),
            keypoints_2d=joints_2d, keypoints_3d=joints_3d,
            pose=values["body_pose"].reshape(72) if has_smpl else None,
            betas=values["betas"] if has_smpl else None, split=self.split,
            exif_ignored=True,
        )  # fmt: skip

    @contextmanager
    def _opened(self, file: str) -> Iterator[tuple[tarfile.TarFile, dict[str, Sample]]]:
        """A tar and its samples by key, in the order of the file."""
        folder, _ = label_files(self.labels, ".tar")
        path = folder.path(file)
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(folder.files.open_input_file(path))
                archive = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
                samples = _samples(archive)
            except _DAMAGED as error:
                raise DataError(
                    f"{path}: is no readable tar ({error}); get the file again"
                ) from error
            yield archive, samples


def _samples(archive: tarfile.TarFile) -> dict[str, Sample]:
    """Members by key: the name up to the first dot after the last slash."""
    samples: dict[str, Sample] = {}
    for member in archive:
        if member.isfile():
            folder, slash, name = member.name.rpartition("/")
            key, _, kind = name.partition(".")
            samples.setdefault(f"{folder}{slash}{key}", {})[kind.lower()] = member
    return samples


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > MAX_BYTES:
        raise DataError(f"{member.name} has {member.size} bytes, at most {MAX_BYTES} are read")
    file = archive.extractfile(member)
    assert file is not None  # only regular files are members of samples
    try:
        return file.read()
    except _DAMAGED as error:
        raise DataError(f"{member.name} cannot be read ({error})") from error


def _numbers(labels: Any, key: str) -> np.ndarray:
    """float64 of one of the shapes that the key may have."""
    if not isinstance(labels, dict) or key not in labels:
        raise DataError(f"the person has no {key}")
    try:
        values = np.asarray(labels[key], np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{key} does not hold numbers ({error})") from error
    if values.shape not in _SHAPES[key]:
        raise DataError(f"{key} has the shape {values.shape}, it must be {_SHAPES[key][0]}")
    return values


def _labelled(joints: np.ndarray) -> np.ndarray:
    """The joints, with zeros for those without confidence."""
    return np.where(joints[:, -1:] <= 0, 0.0, joints)
