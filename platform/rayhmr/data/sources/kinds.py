"""From the settings of a job to the reader of its source."""

from __future__ import annotations

from collections.abc import Callable

from rayhmr.config import PrepareJob
from rayhmr.data.cropping import CroppedSource
from rayhmr.data.parts import PeopleSource
from rayhmr.data.sources.bedlam import BedlamSource
from rayhmr.data.sources.coco import CocoSource
from rayhmr.data.sources.eth import EthSource
from rayhmr.data.sources.folder import FolderSource
from rayhmr.data.sources.hmr2_eval import Hmr2EvalSource
from rayhmr.data.sources.hmr2_tar import Hmr2TarSource
from rayhmr.data.sources.humandata import HumanDataSource
from rayhmr.data.sources.record import Source
from rayhmr.data.sources.spin import SpinSource
from rayhmr.data.sources.synthetic import SyntheticSource
from rayhmr.data.sources.threedpw import ThreeDPWSource
from rayhmr.storage import absolute

LABELLED: dict[str, Callable[..., Source]] = {
    "coco": CocoSource, "spin": SpinSource, "hmr2_eval": Hmr2EvalSource, "hmr2_tar": Hmr2TarSource,
}  # fmt: skip
"""Readers of label files, by kind; each takes labels, split and name."""


def source_of(job: PrepareJob) -> PeopleSource:
    """What `job.source` names, with paths that hold in every process."""
    body = job.body.path if job.body.path == "embedded" else absolute(job.body.path)
    if job.source == "synthetic":
        return SyntheticSource(job.synthetic, body)
    files = job.files
    images = None if files.images is None else absolute(files.images)
    return CroppedSource(_reader(job, body), images, files.crop_size, files.padding, body)


def _reader(job: PrepareJob, body: str) -> Source:
    files = job.files
    name = files.name or job.source
    labels = None if files.labels is None else absolute(files.labels)
    if job.source == "folder":
        assert files.images is not None
        return FolderSource(
            images=absolute(files.images), boxes=labels, split=files.split, name=name
        )
    assert labels is not None  # the job's settings were checked
    bodies: dict[str, str] = {gender: absolute(path) for gender, path in files.bodies.items()}
    if job.source == "bedlam":
        return BedlamSource(labels=labels, split=files.split, body=body, name=name)
    if job.source == "humandata":
        return HumanDataSource(labels=labels, split=files.split, bodies=bodies, name=name)
    if job.source == "threedpw":
        return ThreeDPWSource(labels=labels, bodies=bodies, name=name)
    if job.source == "eth":
        return EthSource(labels=labels, body=body, name=name)
    return LABELLED[job.source](labels=labels, split=files.split, name=name)
