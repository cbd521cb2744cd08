"""Pose corrective directions of the embedded body.

Linear blend skinning shrinks bent joints; dual-quaternion skinning does not. The directions are a
ridge regression, from rotation matrices to offsets in rest space, of the difference between the
two over poses of the pose prior, so that skinning with them keeps the volume.
"""

from __future__ import annotations

import numpy as np

from hmr.pose_prior import rodrigues, sample_pose
from hmr.skeleton import SMPL_PARENTS

_NUM_POSES = 160
_NOISE_FACTOR = 0.8
_RIDGE = 0.3
_LARGEST_OFFSET = 0.05


def pose_directions(vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """(V, 3, 207) offsets per unit of vec(R_1..23 - I); zero away from the bending joints."""
    rng = np.random.default_rng(0)
    poses = np.stack([sample_pose(rng, _NOISE_FACTOR) for _ in range(_NUM_POSES)])
    rotmats = rodrigues(poses.reshape(-1, 24, 3))
    features = (rotmats[:, 1:] - np.eye(3)).reshape(_NUM_POSES, 207)
    acting = _acting_joints(weights)
    bending = np.flatnonzero(acting.any(1))
    targets = rest_space_offsets(vertices[bending], weights[bending], joints, rotmats)
    directions = np.zeros((len(vertices), 3, 207))
    groups, group_of = np.unique(acting[bending], axis=0, return_inverse=True)
    group_of = group_of.reshape(-1)
    for number, group in enumerate(groups):
        # Vertices bent by the same joints share one regression.
        rows = np.flatnonzero(group_of == number)
        columns = np.flatnonzero(np.repeat(group[1:], 9))
        X = features[:, columns]
        Y = targets[:, rows].reshape(_NUM_POSES, -1)
        solved = np.linalg.solve(X.T @ X + _RIDGE * np.eye(len(columns)), X.T @ Y)
        block = solved.reshape(len(columns), len(rows), 3).transpose(1, 2, 0)
        directions[bending[rows][:, None], :, columns] = block.transpose(0, 2, 1)
    return directions


def _acting_joints(weights: np.ndarray) -> np.ndarray:
    """(V, 24) whether a joint may correct a vertex: where it, or its parent, is blended."""
    blended = (weights > 0.02) & (weights < 0.98)
    parents = list(SMPL_PARENTS[1:])
    acting = blended.copy()
    acting[:, 1:] |= blended[:, parents] & (weights[:, 1:] > 0)
    acting[:, 0] = False
    return acting


def rest_space_offsets(
    vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray, rotmats: np.ndarray
) -> np.ndarray:
    """(B, V, 3) what must be added to the rest pose so that linear equals dual-quaternion skinning.

    rotmats: (B, 24, 3, 3). Offsets are cut at 5 cm per component.
    """
    turns, moves = _bone_transforms(rotmats, joints)
    blended = np.einsum("vj,bjrc->bvrc", weights, turns, optimize=True)
    shift = np.einsum("vj,bjr->bvr", weights, moves, optimize=True)
    linear = np.einsum("bvrc,vc->bvr", blended, vertices, optimize=True) + shift
    gap = dual_quaternion_skinning(vertices, weights, turns, moves) - linear
    offsets = np.linalg.solve(blended + 1e-6 * np.eye(3), gap[..., None])[..., 0]
    return np.clip(offsets, -_LARGEST_OFFSET, _LARGEST_OFFSET)


def _bone_transforms(rotmats: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (B, 24, 3, 3) and translations (B, 24, 3) that carry rest points of each bone."""
    turns = rotmats.copy()
    posed = np.broadcast_to(joints, (len(rotmats), *joints.shape)).copy()
    for j, parent in enumerate(SMPL_PARENTS[1:], start=1):
        turns[:, j] = turns[:, parent] @ rotmats[:, j]
        posed[:, j] = posed[:, parent] + turns[:, parent] @ (joints[j] - joints[parent])
    return turns, posed - np.einsum("bjrc,jc->bjr", turns, joints)


def dual_quaternion_skinning(
    vertices: np.ndarray, weights: np.ndarray, turns: np.ndarray, moves: np.ndarray
) -> np.ndarray:
    """Rigid blending of bone transforms (Kavan et al. 2007): (B, V, 3).

    turns: (B, 24, 3, 3) and moves: (B, 24, 3), as applied to rest points.
    """
    real = _quaternions(turns)  # (B, 24, 4), real part first
    dual = 0.5 * _multiply(np.insert(moves, 0, 0.0, axis=-1), real)
    # q and -q are one rotation: take the sign of the vertex's strongest bone.
    strongest = real[:, weights.argmax(1)]
    sign = np.where(np.einsum("bvq,bjq->bvj", strongest, real) < 0, -1.0, 1.0)
    signed = sign * weights
    blended, blended_dual = signed @ real, signed @ dual
    norm = np.linalg.norm(blended, axis=-1, keepdims=True)
    blended, blended_dual = blended / norm, blended_dual / norm
    w, axis = blended[..., :1], blended[..., 1:]
    rotated = vertices + 2 * np.cross(axis, np.cross(axis, vertices) + w * vertices)
    shift = 2 * (
        w * blended_dual[..., 1:]
        - blended_dual[..., :1] * axis
        + np.cross(axis, blended_dual[..., 1:])
    )
    result: np.ndarray = rotated + shift
    return result


def _quaternions(matrices: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4), real part first, of rotation matrices (..., 3, 3).

    The eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix: no case split.
    """
    m = matrices
    K = np.empty((*m.shape[:-2], 4, 4))
    K[..., 0, 0] = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    vector = [m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]]
    K[..., 0, 1:] = K[..., 1:, 0] = np.stack(vector, -1)
    K[..., 1:, 1:] = m + np.swapaxes(m, -1, -2)
    trace = K[..., 0, 0].copy()
    for k in range(3):
        K[..., k + 1, k + 1] -= trace
    return np.linalg.eigh(K)[1][..., -1]


def _multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Hamilton product of quaternions (..., 4), real part first."""
    real = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdims=True)
    vector = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])
    return np.concatenate([real, vector], axis=-1)
