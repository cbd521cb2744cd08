"""MPJPE, PA-MPJPE and PVE, their mergeable accumulator, and the mean-pose baseline.

Functions work in metres on whatever joints they get; the accumulator scores SMPL's 24 joints with
both pelvises moved to the origin and reports millimetres. Sums and counts are kept, so the result
does not depend on how the people were spread over batches and workers.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hmr.body import Body
from hmr.errors import DataError
from hmr.structures import Parameters

METRICS = ("mpjpe_mm", "pa_mpjpe_mm", "pve_mm")
MM = 1000.0


def mpjpe(pred: Tensor, gt: Tensor, root: int | tuple[int, ...] = 0) -> Tensor:
    """Mean per-joint position error, (B, J, 3) twice to (B,), in the unit of the input.

    root: the joint (or joints, whose mean counts) moved to the origin on both sides.
    """
    roots = (root,) if isinstance(root, int) else root
    difference = pred - gt
    difference = difference - difference[:, roots].mean(1, keepdim=True)
    return torch.linalg.vector_norm(difference, dim=-1).mean(-1)


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """`source` (B, J, 3) moved onto `target` by the best scale, rotation and translation.

    Least squares, Procrustes (Gower 1975; the reflection-free form of Umeyama 1991): K = X1^T X2,
    R from its singular vectors with a positive determinant, scale = trace(Z S) / |X1|^2. Computed
    in float64; a source whose points coincide is only translated.
    """
    x1, x2 = source.double(), target.double()
    mean1, mean2 = x1.mean(1, keepdim=True), x2.mean(1, keepdim=True)
    x1, x2 = x1 - mean1, x2 - mean2
    u, s, vh = torch.linalg.svd(x1.mT @ x2)
    z = torch.ones_like(s)
    z[:, -1] = torch.linalg.det(u @ vh).sign()
    rotation = (u * z[:, None]) @ vh
    spread = x1.square().sum((1, 2))
    scale = (s * z).sum(-1) / spread.clamp_min(1e-18)
    return (scale[:, None, None] * (x1 @ rotation) + mean2).to(source.dtype)


def pa_mpjpe(pred: Tensor, gt: Tensor) -> Tensor:
    """MPJPE after the best similarity transform, (B, J, 3) twice to (B,)."""
    aligned = similarity_transform(pred, gt)
    return torch.linalg.vector_norm(aligned - gt, dim=-1).mean(-1)


def pve(pred_vertices: Tensor, gt_vertices: Tensor, pred_root: Tensor, gt_root: Tensor) -> Tensor:
    """Per-vertex error, (B, V, 3) twice with roots (B, 3) moved to the origin, to (B,)."""
    difference = (pred_vertices - pred_root[:, None]) - (gt_vertices - gt_root[:, None])
    return torch.linalg.vector_norm(difference, dim=-1).mean(-1)


def person_errors(
    pred: Parameters, gt_rotmats: Tensor, gt_betas: Tensor, body: Body
) -> dict[str, Tensor]:
    """Errors of each person in millimetres, (B,) each, over the 24 SMPL joints and all vertices."""
    with torch.no_grad():
        ours = body(pred.rotmats.float(), pred.betas.float())
        truth = body(gt_rotmats.float(), gt_betas.float())
    return {
        "mpjpe_mm": MM * mpjpe(ours.joints, truth.joints),
        "pa_mpjpe_mm": MM * pa_mpjpe(ours.joints, truth.joints),
        "pve_mm": MM * pve(ours.vertices, truth.vertices, ours.joints[:, 0], truth.joints[:, 0]),
    }


class MetricAccumulator:
    """Sums of per-person errors and their count; merging is exact whatever the order."""

    def __init__(self) -> None:
        self.sums = torch.zeros(len(METRICS), dtype=torch.float64)
        self.count = 0

    def update(self, errors: dict[str, Tensor]) -> None:
        """Add people; `errors` as `person_errors` gives them, of people with SMPL labels only."""
        stacked = torch.stack([errors[name].double().cpu() for name in METRICS])
        self.sums += stacked.sum(1)
        self.count += stacked.shape[1]

    def merge(self, other: MetricAccumulator) -> None:
        """Add the people of another accumulator."""
        self.sums += other.sums
        self.count += other.count

    def to_vector(self) -> Tensor:
        """(4,) float64: three sums and the count, for one all-reduce."""
        return torch.cat([self.sums, torch.tensor([float(self.count)], dtype=torch.float64)])

    @classmethod
    def from_vector(cls, vector: Tensor) -> MetricAccumulator:
        """The accumulator with these sums and this count."""
        made = cls()
        made.sums, made.count = vector[:-1].cpu().clone(), round(float(vector[-1]))
        return made

    def compute(self) -> dict[str, float]:
        """Means over people in millimetres and `count`; DataError when there was nobody."""
        if self.count == 0:
            raise DataError(
                "no person with SMPL labels was seen, so no error can be averaged; "
                "check that the split holds rows with has_smpl = true"
            )
        means = (self.sums / self.count).tolist()
        return dict(zip(METRICS, means, strict=True)) | {"count": float(self.count)}


class MeanPoseBaseline:
    """What a constant answer achieves: the mean joints of the training people.

    Without this number beside it an error says nothing: the mean pose alone, aligned, is near
    140 mm on varied poses.
    """

    def __init__(self, joints: Iterable[Tensor]) -> None:
        """joints: batches (B, 24, 3) in metres of the training split, root-centred here."""
        total, count = torch.zeros(24, 3, dtype=torch.float64), 0
        for batch in joints:
            total += (batch - batch[:, :1]).double().cpu().sum(0)
            count += len(batch)
        if count == 0:
            raise DataError("the mean pose needs at least one training person with SMPL labels")
        self.mean_joints = (total / count).float()

    def errors(self, gt_joints: Tensor) -> dict[str, Tensor]:
        """(B, 24, 3) held-out joints to `mpjpe_mm` and `pa_mpjpe_mm`, (B,) each."""
        constant = self.mean_joints.to(gt_joints).expand_as(gt_joints)
        return {
            "mpjpe_mm": MM * mpjpe(constant, gt_joints),
            "pa_mpjpe_mm": MM * pa_mpjpe(constant, gt_joints),
        }
