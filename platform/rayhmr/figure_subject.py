"""The person whom the figures show: a synthetic one whose truth is known, or one of a photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hmr.camera import crop_to_full
from hmr.crops import (
    apply_affine,
    box_to_affine,
    box_xyxy_to_square,
    centre_box,
    crop_image,
    read_image,
)
from hmr.errors import HmrError
from hmr.metric_extras import joint_distances
from hmr.metrics import MM, mpjpe, pa_mpjpe
from hmr.predictor import Predictor
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Person
from hmr.synthetic import Generator, SyntheticPerson
from rayhmr.config import FiguresJob

SHOWN_PX = 512
"""Side of the pictures, more than a figure shows of them: they stay sharp when it is enlarged."""
CANDIDATES = 32
"""Synthetic people of whom the one with the median error is shown."""


@dataclass(frozen=True, kw_only=True)
class Figure3D:
    """A body before the camera. vertices: (V, 3), joints: (24, 3), metres, camera axes, placed."""

    vertices: np.ndarray
    joints: np.ndarray

    @property
    def centred(self) -> Figure3D:
        """With the pelvis at the origin, as errors are measured."""
        root = self.joints[:1]
        return Figure3D(vertices=self.vertices - root, joints=self.joints - root)

    def joint_errors(self, truth: Figure3D) -> dict[str, float]:
        """MPJPE and PA-MPJPE in millimetres."""
        ours, theirs = (torch.tensor(f.joints, dtype=torch.float64)[None] for f in (self, truth))
        return {"MPJPE": MM * float(mpjpe(ours, theirs)),
                "PA-MPJPE": MM * float(pa_mpjpe(ours, theirs))}  # fmt: skip

    def vertex_errors(self, truth: Figure3D) -> np.ndarray:
        """(V,) millimetres after the pelvises were moved together; their mean is the PVE."""
        ours, theirs = (torch.tensor(f.vertices, dtype=torch.float64)[None] for f in (self, truth))
        roots = (torch.tensor(f.joints[:1], dtype=torch.float64) for f in (self, truth))
        errors: np.ndarray = MM * joint_distances(ours, theirs, *roots)[0].numpy()
        return errors


@dataclass(frozen=True, kw_only=True)
class Subject:
    """photo: (P, P, 3) uint8 the square around the person. focal, principal: (2,) its pixels.
    crop: (S, S, 3) what the model sees. features: (C,) what the encoder makes of it. steps: the
    start and every later estimate. truth: none for a photo."""

    photo: np.ndarray
    focal: np.ndarray
    principal: np.ndarray
    crop: np.ndarray
    features: np.ndarray
    steps: Sequence[Figure3D]
    truth: Figure3D | None


def _steps(
    person: Person, predictor: Predictor, center: np.ndarray, side: float, size: tuple[int, int]
) -> list[Figure3D]:
    """The body of every iteration, where its own camera places it."""

    def stacked(name: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([step[name] for step in person.iterations])).float()

    pose = torch.cat([stacked("global_orient"), stacked("body_pose")], 1).unflatten(1, (24, 3))
    count = len(pose)
    with torch.inference_mode():
        device = predictor.device
        output = predictor.body(axis_angle_to_matrix(pose).to(device), stacked("betas").to(device))
        translation = crop_to_full(
            stacked("pred_cam"), torch.tensor(center).expand(count, 2).float(),
            torch.full((count,), side), torch.tensor(size).expand(count, 2).float(),
            torch.full((count,), float(person.focal_length[0])),
        )[:, None].numpy()  # fmt: skip
    vertices, joints = output.vertices.cpu().numpy(), output.joints.cpu().numpy()
    return [
        Figure3D(vertices=v, joints=j)
        for v, j in zip(vertices + translation, joints + translation, strict=True)
    ]


def _features(predictor: Predictor, crop: np.ndarray) -> np.ndarray:
    """(C,) the encoder's answer to a crop."""
    model = predictor.model
    image = torch.from_numpy(crop).permute(2, 0, 1)[None].to(predictor.device)
    with torch.inference_mode():
        features = model.encoder(image * model.image_scale + model.image_shift)[0]
    array: np.ndarray = features.cpu().numpy()
    return array


def subject_of(
    image: np.ndarray, predictor: Predictor, *, box: Sequence[float] | None = None,
    n_iter: int | None = None, focal: float | None = None, truth: Figure3D | None = None,
) -> Subject:  # fmt: skip
    """What the model makes of one person of an image; arguments as in `Predictor.predict`."""
    (person,) = predictor.predict(image, None if box is None else [box], n_iter, focal)
    height, width = image.shape[:2]
    if box is None:
        center, side = centre_box(width, height)
    else:
        center, side = box_xyxy_to_square(np.asarray(box, float), predictor.box_padding)
    to_photo = box_to_affine(center, side, SHOWN_PX)
    size = predictor.image_size
    crop = crop_image(image, box_to_affine(center, side, size), size)
    return Subject(
        photo=crop_image(image, to_photo, SHOWN_PX),
        focal=person.focal_length * (SHOWN_PX / side),
        principal=apply_affine(to_photo, person.principal_point.astype(float)),
        crop=crop, features=_features(predictor, crop),
        steps=_steps(person, predictor, center, side, (width, height)), truth=truth,
    )  # fmt: skip


def _truth(person: SyntheticPerson, predictor: Predictor) -> Figure3D:
    pose = torch.from_numpy(person.pose.reshape(1, 24, 3)).to(predictor.device)
    betas = torch.from_numpy(person.betas[None]).to(predictor.device)
    with torch.inference_mode():
        output = predictor.body(axis_angle_to_matrix(pose), betas)
    return Figure3D(
        vertices=output.vertices[0].cpu().numpy() + person.transl,
        joints=output.joints[0].cpu().numpy() + person.transl,
    )  # fmt: skip


def synthetic_subject(job: FiguresJob, predictor: Predictor) -> tuple[Subject, int]:
    """A person of the synthetic test split and its number: the wanted one, or of the first
    CANDIDATES the one whose PA-MPJPE is the median."""
    generator = Generator(predictor.body.arrays, job.preset, SHOWN_PX, job.seed, "test")
    numbers = range(CANDIDATES) if job.person is None else [job.person]
    people = generator.samples(numbers)
    truths = [_truth(person, predictor) for person in people]
    chosen = 0
    if len(people) > 1:
        found = predictor.predict_many(
            [p.image for p in people], n_iter=job.n_iter, focals=[p.focal for p in people]
        )
        errors = []
        for answer, truth in zip(found, truths, strict=True):
            if isinstance(answer, HmrError):
                raise answer
            estimate = Figure3D(vertices=answer[0].vertices, joints=answer[0].joints_3d)
            errors.append(estimate.joint_errors(truth)["PA-MPJPE"])
        chosen = int(np.argsort(errors, kind="stable")[len(errors) // 2])
    person = people[chosen]
    subject = subject_of(
        person.image, predictor, n_iter=job.n_iter, focal=person.focal, truth=truths[chosen]
    )
    return subject, numbers[chosen]


def photo_subject(job: FiguresJob, predictor: Predictor) -> Subject:
    """The person of `job.image`, in `job.box` or in the middle."""
    assert job.image is not None
    return subject_of(read_image(job.image), predictor, box=job.box, n_iter=job.n_iter)
