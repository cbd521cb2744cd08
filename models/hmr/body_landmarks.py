"""Stand-ins for two regressors of further joints, for bodies that come without them.

The field reads right hip, left hip, neck, head top, pelvis, thorax, spine, jaw and head, and the
17 joints of Human3.6M, from the surface with regressors learned from marker data, which this
package does not have. A stand-in puts each joint at a place defined by the 24 SMPL joints of the
rest pose and writes it as a convex combination of a few surface vertices around that place, so
that it follows shape and pose.
"""

from __future__ import annotations

import itertools

import numpy as np

from hmr.skeleton import EXTRA_JOINT_NAMES, H36M17_NAMES, smpl_index

_CROWN_VERTICES = 8

# 26 directions: the axes, the face diagonals and the corners of a cube.
_DIRECTIONS = np.array([d for d in itertools.product((-1.0, 0.0, 1.0), repeat=3) if any(d)])
_DIRECTIONS /= np.linalg.norm(_DIRECTIONS, axis=1, keepdims=True)


def extra_joint_regressor(v_template: np.ndarray, rest_joints: np.ndarray) -> np.ndarray:
    """The stand-in, (9, V): rows right hip, left hip, neck, head top, pelvis, thorax, spine, jaw,
    head; each is non-negative, sums to 1 and has at most 20 non-zero numbers.

    v_template: (V, 3). rest_joints: (24, 3) SMPL joints of it. Places: the hip joints; the neck
    joint; the crown (mean of the 8 highest vertices); between the hips; between the shoulders;
    the joint spine2; the joint head, where skull and spine meet; 60 % of the way from there to
    the crown.
    """
    J = rest_joints
    crown = np.argsort(-np.round(v_template[:, 1], 9), kind="stable")[:_CROWN_VERTICES]
    top = v_template[crown].mean(0)
    places = {
        0: J[2],
        1: J[1],
        2: J[12],
        4: (J[1] + J[2]) / 2,
        5: (J[16] + J[17]) / 2,
        6: J[6],
        7: J[15],
        8: J[15] + 0.6 * (top - J[15]),
    }
    regressor = np.zeros((9, len(v_template)))
    regressor[3, crown] = 1 / _CROWN_VERTICES
    for row, place in places.items():
        regressor[row] = _row(v_template, place)
    return regressor


def h36m_joint_regressor(
    v_template: np.ndarray, rest_joints: np.ndarray, extra: np.ndarray
) -> np.ndarray:
    """The stand-in for Human3.6M's joints, (17, V), rows in the order of `H36M17_NAMES`.

    v_template: (V, 3). rest_joints: (24, 3) SMPL joints of it. extra: (9, V) the regressor of
    extra joints. Pelvis, spine, neck, jaw and head are those of `extra`; hips, knees, ankles,
    shoulders, elbows and wrists lie at the SMPL joints of these names.
    """
    regressor = np.zeros((len(H36M17_NAMES), len(v_template)))
    for row, name in enumerate(H36M17_NAMES):
        if f"extra_{name}" in EXTRA_JOINT_NAMES and "hip" not in name:
            regressor[row] = extra[EXTRA_JOINT_NAMES.index(f"extra_{name}")]
        else:
            regressor[row] = _row(v_template, rest_joints[smpl_index(name)])
    return regressor


def _row(v_template: np.ndarray, place: np.ndarray) -> np.ndarray:
    """(V,) weights of the vertices around a place, whose mean is the place."""
    vertices = _around(v_template, place)
    row = np.zeros(len(v_template))
    row[vertices] = _convex_weights(v_template[vertices], place)
    return row


def _around(points: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Numbers of at most 20 points that surround the place, the near ones first."""
    offsets = points - place
    distances = np.linalg.norm(offsets, axis=1)
    cosines = offsets @ _DIRECTIONS.T / np.maximum(distances, 1e-9)[:, None]
    # Nearest in its direction, where a point 25 degrees off counts as about 1.5 times as far.
    costs = distances[:, None] * np.exp(4.3 * (1 - cosines))
    # Rounded: on a symmetric body left and right tie, and noise must not pick one of them.
    nearest = np.unique(np.round(costs, 9).argmin(0))
    return nearest[np.argsort(np.round(distances[nearest], 9), kind="stable")][:20]


def _convex_weights(points: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Weights >= 0 with sum 1, as equal as possible, whose mean of the points is the place.

    Equal weights plus the smallest correction; points that would need a negative weight drop out.
    Should no such weights exist, the mean is as near as the remaining points allow.
    """
    used = np.arange(len(points))
    while True:
        system = np.vstack([points[used].T, np.ones(len(used))])
        equal = np.full(len(used), 1 / len(used))
        target = np.append(place, 1.0)
        weights = equal + np.linalg.pinv(system) @ (target - system @ equal)
        if len(used) <= 4 or (weights > 0).all():
            break
        used = np.delete(used, weights.argmin())
    result = np.zeros(len(points))
    result[used] = np.maximum(weights, 0)
    return result / result.sum()
