"""The training loss: SPIN's terms (Kolotouros et al., ICCV 2019) and those of the vertices.

Each term is a mean over the people who carry its label, never a sum: the weights keep their meaning
whatever the batch. A step may be cut into parts, over ranks and over micro-batches. Then every part
divides by the people of the whole step, so that the terms, and their gradients, add up to those of
the whole batch however the labels are spread.

Where there is no label of a kind, the term is zero, and whatever stands in its place does not
matter. It stays on the graph, as distributed training waits for the gradient of every parameter.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import LossConfig
from hmr.skeleton import joint49_index
from hmr.structures import Batch, Parameters, Prediction

HIPS = (joint49_index("gt_right_hip"), joint49_index("gt_left_hip"))
"""Their mid-point is the origin of the 3D keypoint term, for all 49 joints (as in SPIN)."""

Number = TypeVar("Number", float, Tensor)


def _hips(joints: Tensor) -> tuple[Tensor, Tensor]:
    """The right and the left one, (B, 1, ...). An index list would make the host wait for a GPU."""
    right, left = HIPS
    return joints[:, right : right + 1], joints[:, left : left + 1]


def _weights_2d(batch: Batch) -> Tensor:
    """(B, 49, 1) confidence."""
    return batch.keypoints_2d[..., 2:]


def _weights_3d(batch: Batch) -> Tensor:
    """(B, 49, 1) confidence; without both hips a person has no origin to compare from."""
    confidence = batch.keypoints_3d[..., 3:]
    right, left = _hips(confidence)
    return confidence * ((right > 0) & (left > 0))


def label_counts(batch: Batch) -> Tensor:
    """(4,) float32 on the batch's device: how many people carry 2D keypoints, 3D keypoints and SMPL
    labels, and how many there are. The counts of a step's parts add up to those of the step."""
    weights_2d, weights_3d = _weights_2d(batch), _weights_3d(batch)
    labelled = [(w > 0).flatten(1).any(1).sum() for w in (weights_2d, weights_3d)]
    people = torch.full_like(labelled[0], len(batch))
    return torch.stack([*labelled, batch.has_smpl.sum(), people]).float()


def _share(difference: Tensor, weights: Tensor, kind: str, count: Tensor) -> Tensor:
    """Sum over the people of the mean of weights x error (B, ...), over `count` people.

    weights: bool, or confidence, of which 0 and less (BEDLAM's -2) mean no label. A person counts
    as a whole, so one doubtful joint adds little, whoever else is in the batch.
    """
    difference = difference.masked_fill(~(weights > 0), 0)  # not even NaN may leave the padding
    error = difference.abs() if kind == "l1" else difference.square()
    if weights.dtype != torch.bool:
        error = error * weights
    return error.flatten(1).mean(1).sum() / count


def _centred(joints: Tensor) -> Tensor:
    right, left = _hips(joints)
    return joints - (right + left) / 2


def _step_terms(
    estimate: Parameters, joints: Tensor, batch: Batch, config: LossConfig, counts: Tensor
) -> dict[str, Tensor]:
    """This part's share of the terms of one step. joints: (B, 49, 3) metres. counts: (4,)."""
    count_2d, count_3d, count_smpl, people = counts.unbind()
    projected = project_weak(joints, estimate.pred_cam, batch.side)
    difference_2d = projected - batch.keypoints_2d[..., :2]
    difference_3d = _centred(joints) - _centred(batch.keypoints_3d[..., :3])
    first = 0 if config.pose_root else 1
    rotations = (estimate.rotmats - batch.rotmats)[:, first:].flatten(1)
    has_smpl = batch.has_smpl[:, None]
    kind = config.keypoint_error
    return {
        "keypoints_2d": _share(difference_2d, _weights_2d(batch), kind, count_2d),
        "keypoints_3d": _share(difference_3d, _weights_3d(batch), kind, count_3d),
        "pose": _share(rotations, has_smpl, "l2", count_smpl),
        "betas": _share(estimate.betas - batch.betas, has_smpl, "l2", count_smpl),
        "camera": torch.exp(-10 * estimate.pred_cam[:, 0]).square().sum() / people,
    }


def _vertex_terms(
    vertices: Tensor, batch: Batch, body: Body, config: LossConfig, counts: Tensor
) -> dict[str, Tensor]:
    """Those of the two terms that have a weight. vertices: (B, V, 3) metres."""
    with torch.no_grad():
        target = body(batch.rotmats, batch.betas).vertices
    difference, labelled = (vertices - target).flatten(1), batch.has_smpl[:, None]
    kinds = {"v2v_l1": "l1", "v2v_l2": "l2"}
    return {
        name: _share(difference, labelled, kind, counts[2])
        for name, kind in kinds.items()
        if getattr(config, name) > 0
    }


def weighted_terms(terms: dict[str, Number], config: LossConfig) -> dict[str, Number]:
    """What each term adds to the loss: it times its weight and `scale`. For tensors or numbers.

    `loss` is left out. The rest adds up to it, but for what earlier steps add where
    `iteration_weights` is `all`.
    """
    return {
        name: config.scale * getattr(config, name) * value
        for name, value in terms.items()
        if name != "loss"
    }


def _weighted_sum(terms: dict[str, Tensor], step: Parameters, config: LossConfig) -> Tensor:
    """Each term times the setting of the same name. A term without weight stays out: even an
    infinite one then does no harm, and the step's outputs have a gradient, if only zero."""
    outputs = (step.rotmats, step.betas, step.pred_cam)
    values = [torch.stack([output.sum() for output in outputs]).sum() * 0]
    for name, value in terms.items():
        if (weight := getattr(config, name)) > 0:
            values.append(weight * value)
    return torch.stack(values).sum()


def _all_landmarks(steps: list[Parameters], body: Body) -> list[Tensor]:
    """(B, 49, 3) of every step, from one call of the body layer."""
    rotmats = torch.cat([step.rotmats for step in steps])
    betas = torch.cat([step.betas for step in steps])
    return list(body.landmarks(rotmats, betas).chunk(len(steps)))


def hmr_losses(
    prediction: Prediction,
    batch: Batch,
    body: Body,
    config: LossConfig,
    counts: Tensor | None = None,
) -> dict[str, Tensor]:
    """The unweighted terms of the last step, and their weighted total under `loss`.

    prediction: of a batch of B people, which may be 0. batch: labels on the same device. counts:
    (4,) `label_counts` of the whole optimizer step where the batch is a part of it; the values are
    then the part's shares, which add up to the step's. None: the batch is the whole step.

    Vertices are computed for the last step, and only when they have a weight; otherwise the body's
    landmark path is used, once for all steps. Terms: `keypoints_2d`, `keypoints_3d`, `pose`,
    `betas`, `camera`; `v2v_l1` and `v2v_l2` where they have a weight.
    """
    # People without any label have shares of zero; the divisor only has to be a number.
    counts = (label_counts(batch) if counts is None else counts).clamp_min(1)
    final = prediction.final.float()
    earlier: list[Parameters] = []
    if config.iteration_weights == "all":
        earlier = [step.float() for step in prediction.iterations[1:-1]]
    all_vertices = config.v2v_l1 > 0 or config.v2v_l2 > 0
    if all_vertices:
        output = body(final.rotmats, final.betas)
        landmarks = _all_landmarks(earlier, body) if earlier else []
        landmarks.append(body.landmarks_from(output))
    else:
        landmarks = _all_landmarks([*earlier, final], body)

    terms = _step_terms(final, landmarks[-1], batch, config, counts)
    if all_vertices:
        terms |= _vertex_terms(output.vertices, batch, body, config, counts)
    total = _weighted_sum(terms, final, config)
    for number, (step, joints) in enumerate(zip(earlier, landmarks, strict=False), start=1):
        step_terms = _step_terms(step, joints, batch, config, counts)
        weight = config.discount ** (prediction.n_iter - number)
        total = total + weight * _weighted_sum(step_terms, step, config)
    return terms | {"loss": config.scale * total}
