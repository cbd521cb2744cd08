"""Linear blend skinning of a body in numpy, for data workers that must not import torch.

Shape letters: B batch, V vertices. The surface is kept planar inside (all x, then all y, then all
z), so that blending and skinning are matrix products over long rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from hmr.skeleton import JOINT49_SOURCE

if TYPE_CHECKING:
    from hmr.body_arrays import BodyArrays

_CHUNK = 32
"""Bodies skinned at a time: their planar surfaces fit into the cache."""


class PoseBlock(NamedTuple):
    """What one joint's rotation does to the surface: 9 features move some of the vertices."""

    features: slice
    vertices: slice | np.ndarray
    directions: np.ndarray  # (9, 3 n) float32, planar


class SkinningBasis(NamedTuple):
    """The arrays of a body as `lbs_numpy` wants them: float32, planar."""

    template: np.ndarray  # (3V,)
    shape_basis: np.ndarray  # (10, 3V)
    pose_blocks: list[PoseBlock]
    weights: np.ndarray  # (24, V)
    joints: np.ndarray  # (24, 3)
    joint_shapedirs: np.ndarray  # (10, 72)


def skinning_basis(arrays: BodyArrays) -> SkinningBasis:
    """Planar float32 copies of the arrays; joints that bend nothing are left out."""
    V = arrays.num_vertices
    planar_pose = np.ascontiguousarray(arrays.posedirs.transpose(2, 1, 0), np.float32)
    return SkinningBasis(
        template=np.ascontiguousarray(arrays.v_template.T, np.float32).reshape(3 * V),
        shape_basis=np.ascontiguousarray(arrays.shapedirs.transpose(2, 1, 0), np.float32).reshape(
            -1, 3 * V
        ),
        pose_blocks=_pose_blocks(planar_pose),
        weights=np.ascontiguousarray(arrays.lbs_weights.T, np.float32),
        joints=arrays.rest_joints.astype(np.float32),
        joint_shapedirs=arrays.joint_shapedirs.transpose(2, 0, 1)
        .reshape(-1, 72)
        .astype(np.float32),
    )


def _pose_blocks(planar: np.ndarray) -> list[PoseBlock]:
    """Split (207, 3, V) directions by joint, keeping only the vertices that the joint moves.

    A single body is limited by reading the directions from memory, and of a joint-local basis most
    are zero. A dense basis stays in one piece.
    """
    V = planar.shape[2]
    moved: np.ndarray = np.any(planar.reshape(23, 27, V) != 0, axis=1)
    if moved.mean() > 0.5:
        return [PoseBlock(slice(0, 207), slice(None), planar.reshape(207, 3 * V))]
    blocks = []
    for joint in np.flatnonzero(moved.any(1)):
        features = slice(9 * joint, 9 * joint + 9)
        vertices = np.flatnonzero(moved[joint])
        directions = np.ascontiguousarray(planar[features][:, :, vertices])
        blocks.append(PoseBlock(features, vertices, directions.reshape(9, -1)))
    return blocks


def lbs_numpy(
    arrays: BodyArrays, rotmats: np.ndarray, betas: np.ndarray, vertices: bool = True
) -> tuple[np.ndarray | None, np.ndarray]:
    """Posed vertices (B, V, 3) and joints (B, 24, 3), float32 metres, body axes.

    rotmats: (B, 24, 3, 3), joint 0 turns the whole body about its pelvis. betas: (B, 10).
    vertices=False skips the surface, which costs far more than the joints, and returns None for it.
    """
    basis = arrays.skinning_basis
    rotmats = np.asarray(rotmats, np.float32)
    betas = np.asarray(betas, np.float32)
    rest = basis.joints + (betas @ basis.joint_shapedirs).reshape(-1, 24, 3)
    turns, joints = _chain(rotmats, rest, arrays.parents)
    if not vertices:
        return None, joints
    offsets = joints - (turns @ rest[..., None])[..., 0]
    transforms = np.concatenate([turns, offsets[..., None]], axis=3)  # (B, 24, 3, 4)
    features = (rotmats[:, 1:] - np.eye(3, dtype=np.float32)).reshape(-1, 207)
    posed = np.empty((len(rotmats), arrays.num_vertices, 3), np.float32)
    for start in range(0, len(rotmats), _CHUNK):
        part = slice(start, start + _CHUNK)
        surface = _blend(basis, betas[part], features[part])
        posed[part] = _skin(basis.weights, transforms[part], surface).transpose(0, 2, 1)
    return posed, joints


def landmarks_numpy(arrays: BodyArrays, vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """The 49 joints of the training superset, (B, 49, 3), from a posed body.

    vertices: (B, V, 3). joints: (B, 24, 3). Same frame and unit as the input.
    """
    support = arrays.extra_support
    weights = arrays.J_regressor_extra[:, support].astype(vertices.dtype)
    all54 = np.concatenate(
        [joints, vertices[:, arrays.landmark_vertices], weights @ vertices[:, support]], axis=1
    )
    return all54[:, list(JOINT49_SOURCE)]


def _chain(
    rotmats: np.ndarray, rest: np.ndarray, parents: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (B, 24, 3, 3) and positions (B, 24, 3) of the joints in the root's frame."""
    turns, joints = rotmats.copy(), rest.copy()
    for joint, parent in enumerate(parents[1:], start=1):
        turn = turns[:, parent]
        turns[:, joint] = turn @ rotmats[:, joint]
        bone = (rest[:, joint] - rest[:, parent])[..., None]
        joints[:, joint] = joints[:, parent] + (turn @ bone)[..., 0]
    return turns, joints


def _blend(basis: SkinningBasis, betas: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Rest-pose surfaces with shape and pose offsets, (B, 3, V)."""
    surface = (betas @ basis.shape_basis).reshape(len(betas), 3, -1)
    surface += basis.template.reshape(3, -1)
    for block in basis.pose_blocks:
        offsets = features[:, block.features] @ block.directions
        surface[:, :, block.vertices] += offsets.reshape(len(betas), 3, -1)
    return surface


def _skin(weights: np.ndarray, transforms: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Every vertex moved by its blend of the joints' 3x4 transforms: (B, 3, V) -> (B, 3, V)."""
    B = len(transforms)
    rows = transforms.transpose(0, 3, 2, 1).reshape(B * 12, 24)  # column of the 3x4 first
    blended = (rows @ weights).reshape(B, 4, 3, -1)
    posed: np.ndarray = blended[:, 3]
    for axis in range(3):
        blended[:, axis] *= surface[:, axis, None]
        posed += blended[:, axis]
    return posed
