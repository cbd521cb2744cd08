"""What moves the embedded body: skinning weights, shape directions, joint regressor, landmarks.

Shape letters: V vertices. Metres, SMPL's axes (x to the person's left, y up, z forward).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hmr.embedded_field import Primitives, distances
from hmr.skeleton import SMPL_JOINT_NAMES, SMPL_PARENTS, SMPL_VERTEX_IDS

_WEIGHT_FALLOFF = 0.022
"""Metres by which another bone's primitive may be farther until its weight falls to 1/e."""


class _Direction(NamedTuple):
    """One shape direction: relative growth along and across the bones per unit of beta.

    Names without a side mean both sides.
    """

    length: dict[str, float]
    girth: dict[str, float]


def _gains(gain: float, *bones: str) -> dict[str, float]:
    return dict.fromkeys(bones, gain)


_ALL = tuple(dict.fromkeys(name.removeprefix("left_").removeprefix("right_")
                           for name in SMPL_JOINT_NAMES))  # fmt: skip
_TRUNK = ("pelvis", "spine1", "spine2", "spine3")
_LEG = ("hip", "knee")
_LEG_AND_FOOT = ("hip", "knee", "ankle")

_HIPS, _BELLY = 6, 7
SHAPE_DIRECTIONS: dict[str, _Direction] = {
    "height": _Direction(_gains(0.055, *_ALL), _gains(0.03, *_ALL)),
    "weight": _Direction(
        {},
        _gains(0.11, *_TRUNK)
        | _gains(0.09, *_LEG, "shoulder", "elbow")
        | {"neck": 0.05, "head": 0.02},
    ),
    "legs": _Direction(_gains(0.05, *_LEG), {}),
    "arms": _Direction(_gains(0.05, "shoulder", "elbow", "wrist"), {}),
    "torso": _Direction(_gains(0.06, *_TRUNK), {}),
    "shoulders": _Direction({"collar": 0.12}, {"spine3": 0.035}),
    "hips": _Direction({}, {"pelvis": 0.09, "hip": 0.05}),
    "belly": _Direction({}, {"spine1": 0.10, "spine2": 0.06}),
    "muscle": _Direction(
        {},
        {"shoulder": 0.10, "elbow": 0.08, "spine3": 0.04, "hip": 0.05, "knee": 0.06},
    ),
    "head": _Direction({"head": 0.05, "neck": 0.03}, {"head": 0.05}),
}
"""Name -> gains, in the order of the ten betas."""

_HIP_SHIFT = 0.09

_FINGER_CANDIDATES = 10

# The child a bone points to; other bones continue the direction from their parent.
_TOWARDS = {0: 3, 3: 6, 6: 9, 9: 12, 12: 15} | {
    bone: child
    for pair in ("hip knee", "knee ankle", "ankle foot", "collar shoulder", "shoulder elbow",
                 "elbow wrist", "wrist hand")
    for side in ("left", "right")
    for bone, child in [[SMPL_JOINT_NAMES.index(f"{side}_{name}") for name in pair.split()]]
}  # fmt: skip


def skinning_weights(parts: Primitives, vertices: np.ndarray) -> np.ndarray:
    """(V, 24): a bone weighs the more, the nearer its nearest primitive; the 4 largest."""
    d = distances(parts, vertices)
    nearness = np.exp(-(d - d.min(1, keepdims=True)) / _WEIGHT_FALLOFF)
    weights = np.zeros((len(vertices), len(SMPL_PARENTS)))
    for bone in range(len(SMPL_PARENTS)):
        weights[:, bone] = nearness[:, parts.bones == bone].max(1)
    # Rounded: on the midline left and right bones tie, and noise must not pick one of them.
    weights = np.round(weights, 9)
    fourth = np.sort(weights, axis=1)[:, -4, None]
    weights[(weights < fourth) | (weights < 0.01)] = 0
    return weights / weights.sum(1, keepdims=True)


def shape_directions(vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """(V, 3, 10): every bone grows along and across itself, blended by the skinning weights."""
    columns = []
    axes = _bone_axes(joints)
    for k, direction in enumerate(SHAPE_DIRECTIONS.values()):
        length, girth = _per_joint(direction.length), _per_joint(direction.girth)
        joint_motion = np.zeros_like(joints)
        for j, parent in enumerate(SMPL_PARENTS[1:], start=1):
            joint_motion[j] = joint_motion[parent] + length[parent] * (joints[j] - joints[parent])
            if k == _HIPS and j in (1, 2):
                joint_motion[j, 0] += _HIP_SHIFT * joints[j, 0]
        offset = vertices[:, None] - joints
        along = (offset * axes).sum(2, keepdims=True) * axes
        growth = joint_motion + length[:, None] * along + girth[:, None] * (offset - along)
        motion = np.einsum("vj,vjc->vc", weights, growth)
        if k == _BELLY:
            motion[:, 2] += _belly_bump(vertices)
        columns.append(motion)
    return np.stack(columns, axis=2)


def _per_joint(gains: dict[str, float]) -> np.ndarray:
    names = (name.removeprefix("left_").removeprefix("right_") for name in SMPL_JOINT_NAMES)
    return np.array([gains.get(name, 0.0) for name in names])


def _bone_axes(joints: np.ndarray) -> np.ndarray:
    """(24, 3) unit vectors along the bones."""
    axes = np.empty_like(joints)
    for j, parent in enumerate(SMPL_PARENTS):
        if j in _TOWARDS:
            axes[j] = joints[_TOWARDS[j]] - joints[j]
        else:
            axes[j] = joints[j] - joints[parent]
    axes[SMPL_JOINT_NAMES.index("head")] = (0, 1, 0)
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def _belly_bump(vertices: np.ndarray) -> np.ndarray:
    x, y, z = vertices.T
    bump = 0.035 * np.exp(-((x / 0.10) ** 2 + ((y - 0.12) / 0.11) ** 2))
    return bump * np.clip(z / 0.08, 0, 1)


def joint_regressor(vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """(24, V) rows that sum to 1 and give the joints exactly from the vertices around them."""
    regressor = np.zeros((len(joints), len(vertices)))
    for j, place in enumerate(joints):
        partner = SMPL_PARENTS[j] if j else 3
        balance = np.abs(weights[:, j] - weights[:, partner])
        score = np.linalg.norm(vertices - place, axis=1) + 0.15 * balance
        order = np.argsort(np.round(score, 9), kind="stable")
        target = np.append(place, 1.0)
        for count in (40, 80, 160, 320):
            chosen = order[:count]
            system = np.vstack([vertices[chosen].T, np.ones(count)])
            equal = np.full(count, 1 / count)
            row = equal + np.linalg.pinv(system) @ (target - system @ equal)
            if (row > 0).all():
                break
        regressor[j, chosen] = row
    return regressor


def landmark_order(vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """(V,) old vertex number at every new place, so that SMPL's landmark numbers fit this body.

    New array = old array[order]. Landmarks swap places with whatever vertex has their number.
    """
    order = np.arange(len(vertices))
    where = np.arange(len(vertices))
    for name, found in _find_landmarks(vertices, weights, joints).items():
        number = SMPL_VERTEX_IDS[name]
        here, other = where[found], order[number]
        order[number], order[here] = found, other
        where[found], where[other] = number, here
    return order


def _find_landmarks(
    vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray
) -> dict[str, int]:
    """Name in `SMPL_VERTEX_IDS` -> vertex of this body; no vertex twice."""
    x, y, z = vertices.T
    used: set[int] = set()
    found: dict[str, int] = {}

    def take(name: str, score: np.ndarray, candidates: np.ndarray) -> None:
        """The candidate with the highest score, or the nearest unused one to it."""
        best = candidates[score[candidates].argmax()]
        if best in used:
            gap = np.linalg.norm(vertices - vertices[best], axis=1)
            gap[list(used)] = np.inf
            best = gap.argmin()
        used.add(int(best))
        found[name] = int(best)

    def part(bone: str, least: float) -> np.ndarray:
        return np.flatnonzero(weights[:, SMPL_JOINT_NAMES.index(bone)] > least)

    head = part("head", 0.6)
    take("nose", z, head)
    nose = vertices[found["nose"]]
    for side, s in (("left", 1.0), ("right", -1.0)):
        eye = nose + np.array([s * 0.032, 0.035, -0.03])
        take(f"{side}_eye", -np.linalg.norm(vertices - eye, axis=1), head)
        take(f"{side}_ear", s * x, head)
        take(f"{side}_big_toe", z - 0.6 * s * x, part(f"{side}_foot", 0.4))
        take(f"{side}_small_toe", 0.6 * z + s * x, part(f"{side}_foot", 0.4))
        ankle = part(f"{side}_ankle", 0.4)
        below = ankle[y[ankle] < joints[SMPL_JOINT_NAMES.index(f"{side}_ankle"), 1]]
        take(f"{side}_heel", -(z + 0.5 * y), below)
        take(f"{side}_thumb", z + 0.3 * s * x, part(f"{side}_wrist", 0.5))
        hand = part(f"{side}_hand", 0.5)
        rows = np.linspace(z[hand].max() - 0.006, z[hand].min() + 0.006, 4)
        for finger, row in zip(("index", "middle", "ring", "pinky"), rows, strict=True):
            nearest = hand[np.argsort(np.abs(z[hand] - row), kind="stable")[:_FINGER_CANDIDATES]]
            take(f"{side}_{finger}", s * x, nearest)
    return found
