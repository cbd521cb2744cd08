"""Sums over people that merge exactly, and the means they give.

The means serve three purposes: the regressor starts from the mean pose of the training people, an
evaluation compares with what that mean pose would score, and a reader sees the colours' statistics.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hmr.body_arrays import BodyArrays, lbs_numpy
from hmr.pose_prior import rodrigues
from rayhmr.data.person import LabelledPerson

Sums = dict[str, Any]


def sums_of(people: list[LabelledPerson], body: BodyArrays) -> Sums:
    """Plain numbers and lists: `people`, `labelled`, sums of pixels, rotations, betas, joints."""
    pixels = np.zeros((2, 3))
    for person in people:
        colours = person.image.reshape(-1, 3) / 255.0
        pixels += [colours.mean(0), (colours**2).mean(0)]
    labelled = [p for p in people if p.pose is not None and p.betas is not None]
    sums: Sums = {
        "people": len(people), "labelled": len(labelled), "pixels": pixels.tolist(),
        "rotmats": np.zeros((24, 3, 3)).tolist(), "betas": np.zeros(10).tolist(),
        "joints": np.zeros((24, 3)).tolist(),
    }  # fmt: skip
    if labelled:
        poses = np.stack([p.pose for p in labelled if p.pose is not None]).reshape(-1, 24, 3)
        betas = np.stack([p.betas for p in labelled if p.betas is not None])
        rotmats = rodrigues(poses.astype(np.float64))
        joints = lbs_numpy(body, rotmats, betas, vertices=False)[1].astype(np.float64)
        sums["rotmats"] = rotmats.sum(0).tolist()
        sums["betas"] = betas.astype(np.float64).sum(0).tolist()
        sums["joints"] = (joints - joints[:, :1]).sum(0).tolist()
    return sums


def merged(parts: Iterable[Sums]) -> Sums:
    """The sums over all people of several parts."""
    total: Sums = {}
    for part in parts:
        for key, value in part.items():
            added = np.asarray(value, np.float64) + np.asarray(total.get(key, 0.0))
            total[key] = added.tolist()
    return total


def means(sums: Sums) -> dict[str, Any]:
    """What dataset.json holds under `statistics`.

    image_mean, image_std: (3,) of RGB in [0, 1]. labelled: people with SMPL labels. mean_rotmats:
    (24, 3, 3), the arithmetic mean of matrices; mean_betas: (10,); mean_joints: (24, 3) metres,
    pelvis at the origin.
    """
    people, labelled = max(sums["people"], 1), max(sums["labelled"], 1)
    mean, square = np.asarray(sums["pixels"]) / people
    return {
        "people": int(sums["people"]),
        "labelled": int(sums["labelled"]),
        "image_mean": mean.round(6).tolist(),
        "image_std": np.sqrt(np.maximum(square - mean**2, 0)).round(6).tolist(),
        "mean_rotmats": (np.asarray(sums["rotmats"]) / labelled).tolist(),
        "mean_betas": (np.asarray(sums["betas"]) / labelled).tolist(),
        "mean_joints": (np.asarray(sums["joints"]) / labelled).tolist(),
    }
