"""The training loss: SPIN's terms (Kolotouros et al., ICCV 2019), each a mean over labelled people.

A mean, never a sum: the weights keep their meaning whatever the batch and the number of workers.
Where a batch carries no label of a kind, that term is zero and stays on the graph, so that every
parameter has a gradient in distributed training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hmr.body import Body
from hmr.camera import project_weak
from hmr.config import LossConfig
from hmr.skeleton import joint49_index
from hmr.structures import Batch, Parameters, Prediction

EARLIER_STEP = 0.25
"""Weight of each step before the last when all are supervised."""

HIPS = (joint49_index("gt_right_hip"), joint49_index("gt_left_hip"))
"""Their mid-point is the origin of the 3D keypoint term, for all 49 joints (as in SPIN)."""


def _labelled_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of weights x values (B, ...) over the people with any weight above zero.

    A person counts as a whole, so one doubtful joint adds little, whoever else is in the batch.
    """
    weighted = (values * weights).flatten(1).mean(1)
    labelled = (weights > 0).flatten(1).any(1)
    return weighted.sum() / labelled.sum().clamp_min(1)


def _error(difference: Tensor, kind: str) -> Tensor:
    return difference.abs() if kind == "l1" else difference.square()


def _centred(joints: Tensor) -> Tensor:
    return joints - joints[:, HIPS].mean(1, keepdim=True)


def _step_terms(
    estimate: Parameters, joints: Tensor, batch: Batch, crop_size: int, kind: str
) -> dict[str, Tensor]:
    keypoints_3d = batch.keypoints_3d
    projected = project_weak(joints, estimate.pred_cam, crop_size)
    difference_2d = projected - batch.keypoints_2d[..., :2]
    difference_3d = _centred(joints) - _centred(keypoints_3d[..., :3])
    # Without both hips a person has no origin to compare from.
    has_hips = (keypoints_3d[:, HIPS, 3] > 0).all(1)[:, None, None]
    has_smpl = batch.has_smpl.float()
    rotation_error = (estimate.rotmats - batch.rotmats).square().flatten(1)
    shape_error = (estimate.betas - batch.betas).square()
    return {
        "keypoints_2d": _labelled_mean(_error(difference_2d, kind), batch.keypoints_2d[..., 2:]),
        "keypoints_3d": _labelled_mean(
            _error(difference_3d, kind), keypoints_3d[..., 3:] * has_hips
        ),
        "pose": _labelled_mean(rotation_error, has_smpl[:, None]),
        "betas": _labelled_mean(shape_error, has_smpl[:, None]),
        "camera": torch.exp(-10 * estimate.pred_cam[:, 0]).square().mean(),
    }


def _weighted_sum(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Each term times the setting of the same name."""
    return torch.stack([getattr(config, name) * value for name, value in terms.items()]).sum()


def _all_landmarks(steps: list[Parameters], body: Body) -> list[Tensor]:
    """(B, 49, 3) of every step, from one call of the body layer."""
    rotmats = torch.cat([step.rotmats for step in steps])
    betas = torch.cat([step.betas for step in steps])
    return list(body.landmarks(rotmats, betas).chunk(len(steps)))


def _vertex_terms(
    vertices: Tensor, batch: Batch, body: Body, config: LossConfig
) -> dict[str, Tensor]:
    """Those of the two terms that have a weight."""
    with torch.no_grad():
        target = body(batch.rotmats, batch.betas).vertices
    difference, labelled = (vertices - target).flatten(1), batch.has_smpl.float()[:, None]
    terms = {}
    if config.vertices > 0:
        terms["vertices"] = _labelled_mean(difference.abs(), labelled)
    if config.vertices_l2 > 0:
        terms["vertices_l2"] = _labelled_mean(difference.square(), labelled)
    return terms


def hmr_losses(
    prediction: Prediction, batch: Batch, body: Body, config: LossConfig
) -> dict[str, Tensor]:
    """The unweighted terms of the last step, and their weighted total under `loss`.

    prediction: of a batch of B people. batch: labels on the same device. Vertices are computed only
    when their weight is above zero; otherwise the body's landmark path is used, once for all steps.
    Terms: `keypoints_2d`, `keypoints_3d`, `pose`, `betas`, `camera`; `vertices` and `vertices_l2`
    where they have a weight.
    """
    crop_size = batch.images.shape[-1]
    final = prediction.final.float()
    earlier: list[Parameters] = []
    if config.iteration_weights == "all":
        earlier = [step.float() for step in prediction.iterations[1:-1]]
    all_vertices = config.vertices > 0 or config.vertices_l2 > 0
    if all_vertices:
        output = body(final.rotmats, final.betas)
        landmarks = _all_landmarks(earlier, body) if earlier else []
        landmarks.append(body.landmarks_from(output))
    else:
        landmarks = _all_landmarks([*earlier, final], body)

    terms = _step_terms(final, landmarks[-1], batch, crop_size, config.keypoint_error)
    if all_vertices:
        terms |= _vertex_terms(output.vertices, batch, body, config)
    total = _weighted_sum(terms, config)
    for step, joints in zip(earlier, landmarks, strict=False):
        step_terms = _step_terms(step, joints, batch, crop_size, config.keypoint_error)
        total = total + EARLIER_STEP * _weighted_sum(step_terms, config)
    return terms | {"loss": config.scale * total}
