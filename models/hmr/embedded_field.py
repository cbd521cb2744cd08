"""The shape of the embedded body: a signed distance field of capsules and ellipsoids.

Metres, SMPL's axes (x to the person's left, y up, z forward), pelvis joint at the origin, T-pose.
Joints and primitives are listed for the person's left side and the middle; the right side is
their mirror image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hmr.skeleton import SMPL_FLIP, SMPL_JOINT_NAMES

Vector = tuple[float, float, float]

_LEFT_JOINTS: dict[str, Vector] = {
    "pelvis": (0, 0, 0),
    "left_hip": (0.085, -0.085, -0.005),
    "spine1": (0, 0.11, -0.025),
    "left_knee": (0.1, -0.475, 0),
    "spine2": (0, 0.235, -0.02),
    "left_ankle": (0.095, -0.885, -0.035),
    "spine3": (0, 0.3, -0.01),
    "left_foot": (0.12, -0.945, 0.085),
    "neck": (0, 0.505, -0.035),
    "left_collar": (0.075, 0.425, -0.025),
    "head": (0, 0.59, 0),
    "left_shoulder": (0.175, 0.445, -0.035),
    "left_elbow": (0.43, 0.44, -0.045),
    "left_wrist": (0.675, 0.44, -0.04),
    "left_hand": (0.765, 0.435, -0.045),
}


class Ellipsoid(NamedTuple):
    """`mirrored` asks for a twin on the right although the bone lies in the middle."""

    bone: str
    center: Vector
    radii: Vector
    mirrored: bool = False


class Capsule(NamedTuple):
    """A rod from a to b whose radius changes linearly."""

    bone: str
    a: Vector
    b: Vector
    radius_a: float
    radius_b: float


# The bone is the joint whose rotation moves the primitive.
_ELLIPSOIDS = (
    Ellipsoid("pelvis", (0, -0.025, -0.01), (0.155, 0.115, 0.105)),
    Ellipsoid("pelvis", (0, 0.05, -0.005), (0.14, 0.11, 0.1)),
    Ellipsoid("pelvis", (0.075, -0.085, -0.062), (0.082, 0.088, 0.07), mirrored=True),  # buttock
    Ellipsoid("spine1", (0, 0.13, -0.005), (0.135, 0.12, 0.098)),
    Ellipsoid("spine2", (0, 0.23, -0.012), (0.138, 0.12, 0.102)),
    Ellipsoid("spine3", (0, 0.345, -0.022), (0.158, 0.135, 0.112)),
    Ellipsoid("spine3", (0, 0.42, -0.035), (0.135, 0.08, 0.085)),
    Ellipsoid("spine3", (0.078, 0.365, 0.052), (0.078, 0.062, 0.042), mirrored=True),  # chest
    Ellipsoid("spine3", (0.09, 0.3, -0.045), (0.075, 0.12, 0.07), mirrored=True),  # side of back
    Ellipsoid("head", (0, 0.7, 0.012), (0.074, 0.092, 0.094)),
    Ellipsoid("head", (0, 0.735, -0.03), (0.07, 0.07, 0.075)),
    Ellipsoid("head", (0, 0.645, 0.04), (0.058, 0.075, 0.062)),  # face
    Ellipsoid("head", (0, 0.605, 0.065), (0.036, 0.028, 0.036)),  # jaw
    Ellipsoid("head", (0, 0.635, 0.093), (0.026, 0.014, 0.014)),  # lips
    Ellipsoid("head", (0.075, 0.668, -0.005), (0.012, 0.032, 0.02), mirrored=True),  # ear
    Ellipsoid("left_collar", (0.13, 0.43, -0.02), (0.07, 0.055, 0.06)),
    Ellipsoid("left_shoulder", (0.19, 0.443, -0.035), (0.07, 0.058, 0.058)),
    Ellipsoid("left_shoulder", (0.3, 0.448, -0.03), (0.09, 0.042, 0.046)),  # biceps
    Ellipsoid("left_elbow", (0.5, 0.44, -0.04), (0.085, 0.04, 0.043)),
    Ellipsoid("left_wrist", (0.725, 0.437, -0.042), (0.055, 0.02, 0.042)),  # palm
    Ellipsoid("left_hip", (0.1, -0.2, 0.01), (0.082, 0.17, 0.088)),
    Ellipsoid("left_knee", (0.105, -0.6, -0.03), (0.047, 0.12, 0.05)),  # calf
    Ellipsoid("left_ankle", (0.115, -0.935, 0.045), (0.043, 0.035, 0.085)),  # instep
    Ellipsoid("left_foot", (0.122, -0.952, 0.115), (0.047, 0.024, 0.055)),  # toes
)
_CAPSULES = (
    Capsule("neck", (0, 0.46, -0.04), (0, 0.6, -0.008), 0.056, 0.052),
    Capsule("head", (0, 0.7, 0.1), (0, 0.667, 0.122), 0.009, 0.014),  # nose
    Capsule("left_collar", (0.02, 0.475, -0.045), (0.15, 0.462, -0.04), 0.05, 0.05),
    Capsule("left_shoulder", (0.175, 0.445, -0.035), (0.43, 0.44, -0.045), 0.05, 0.038),
    Capsule("left_elbow", (0.43, 0.44, -0.045), (0.675, 0.44, -0.04), 0.037, 0.026),
    Capsule("left_wrist", (0.705, 0.432, -0.005), (0.765, 0.425, 0.028), 0.015, 0.011),  # thumb
    Capsule("left_hand", (0.765, 0.434, -0.012), (0.845, 0.428, -0.008), 0.0105, 0.0085),
    Capsule("left_hand", (0.765, 0.434, -0.034), (0.853, 0.428, -0.034), 0.0105, 0.0085),
    Capsule("left_hand", (0.765, 0.434, -0.056), (0.847, 0.428, -0.06), 0.0105, 0.0085),
    Capsule("left_hand", (0.765, 0.434, -0.076), (0.829, 0.428, -0.084), 0.0105, 0.0085),
    Capsule("left_hip", (0.085, -0.105, -0.005), (0.1, -0.445, 0), 0.086, 0.054),
    Capsule("left_knee", (0.1, -0.475, 0), (0.095, -0.855, -0.035), 0.05, 0.036),
    Capsule("left_ankle", (0.095, -0.885, -0.035), (0.1, -0.935, -0.055), 0.036, 0.033),  # heel
    Capsule("left_ankle", (0.1, -0.935, -0.05), (0.118, -0.948, 0.07), 0.036, 0.028),
)

SOLE_HEIGHT = -0.972
"""Everything below is cut off: the soles are flat."""

_MIRROR = np.array([-1.0, 1.0, 1.0])
_GRADIENT_STEP = 2e-4
_CHUNK = 200_000


def rest_joints() -> np.ndarray:
    """(24, 3) the SMPL joints of the embedded body in its T-pose."""
    joints = np.zeros((24, 3))
    for name, position in _LEFT_JOINTS.items():
        index = SMPL_JOINT_NAMES.index(name)
        joints[index] = position
        if name.startswith("left_"):
            joints[SMPL_FLIP[index]] = joints[index] * _MIRROR
    return joints


class Primitives(NamedTuple):
    """Both sides' primitives as arrays: E ellipsoids, then C capsules."""

    centers: np.ndarray  # (E, 3)
    radii: np.ndarray  # (E, 3)
    a: np.ndarray  # (C, 3)
    b: np.ndarray  # (C, 3)
    radius_a: np.ndarray  # (C,)
    radius_b: np.ndarray  # (C,)
    bones: np.ndarray  # (E + C,) joint number that moves the primitive

    def boxes(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corners of the primitives' bounding boxes, each (E + C, 3)."""
        ends = np.stack([self.a, self.b])
        thick = np.stack([self.radius_a, self.radius_b])[..., None]
        low = np.concatenate([self.centers - self.radii, (ends - thick).min(0)])
        high = np.concatenate([self.centers + self.radii, (ends + thick).max(0)])
        return low, high


def primitives() -> Primitives:
    """The listed primitives and their mirror images."""
    rows: dict[str, list[list[float]]] = {key: [] for key in ("ellipsoids", "capsules")}
    bones: dict[str, list[int]] = {key: [] for key in rows}
    for ellipsoid in _ELLIPSOIDS:
        bone = SMPL_JOINT_NAMES.index(ellipsoid.bone)
        for index, sign in _sides(bone, ellipsoid.mirrored):
            x, y, z = ellipsoid.center
            rows["ellipsoids"].append([sign * x, y, z, *ellipsoid.radii])
            bones["ellipsoids"].append(index)
    for capsule in _CAPSULES:
        bone = SMPL_JOINT_NAMES.index(capsule.bone)
        for index, sign in _sides(bone, mirrored=False):
            (ax, ay, az), (bx, by, bz) = capsule.a, capsule.b
            rows["capsules"].append(
                [sign * ax, ay, az, sign * bx, by, bz, capsule.radius_a, capsule.radius_b]
            )
            bones["capsules"].append(index)
    e, c = np.array(rows["ellipsoids"]), np.array(rows["capsules"])
    all_bones = np.array(bones["ellipsoids"] + bones["capsules"])
    return Primitives(e[:, :3], e[:, 3:], c[:, :3], c[:, 3:6], c[:, 6], c[:, 7], all_bones)


def _sides(bone: int, mirrored: bool) -> list[tuple[int, float]]:
    """(bone, sign of x) of a primitive and of its mirror image, if it has one."""
    twin = SMPL_FLIP[bone]
    return [(bone, 1.0), (twin, -1.0)] if mirrored or twin != bone else [(bone, 1.0)]


def distances(parts: Primitives, points: np.ndarray) -> np.ndarray:
    """Signed distance of (N, 3) points to every primitive, (N, E + C), negative inside.

    Exact up to the taper for capsules. For ellipsoids the usual first-order bound
    k0 (k0 - 1) / k1 with k0 = |p / r| and k1 = |p / r^2|: exact zero set, scaled elsewhere.
    """
    p = points[:, None] - parts.centers
    k0 = np.linalg.norm(p / parts.radii, axis=2)
    k1 = np.linalg.norm(p / parts.radii**2, axis=2)
    ellipsoids = k0 * (k0 - 1) / np.maximum(k1, 1e-9)
    along = parts.b - parts.a
    p = points[:, None] - parts.a
    t = np.clip((p * along).sum(2) / (along**2).sum(1), 0, 1)
    radius = parts.radius_a + (parts.radius_b - parts.radius_a) * t
    capsules = np.linalg.norm(p - t[..., None] * along, axis=2) - radius
    return np.concatenate([ellipsoids, capsules], axis=1)


def signed_distance(parts: Primitives, points: np.ndarray) -> np.ndarray:
    """The field at (N, 3) points: a soft union of the primitives over flat soles, (N,)."""
    result = np.empty(len(points))
    for start in range(0, len(points), _CHUNK):
        part = points[start : start + _CHUNK]
        d = distances(parts, part)
        # Fingers and face need a tighter blend, or they melt into their neighbours.
        softness = np.where(part[:, 1] > 0.56, 0.006, 0.011)
        softness = np.where(np.abs(part[:, 0]) > 0.69, 0.0035, softness)
        nearest = d.min(1)
        total = np.exp((nearest[:, None] - d) / softness[:, None]).sum(1)
        union = nearest - softness * np.log(total)
        result[start : start + _CHUNK] = np.maximum(union, SOLE_HEIGHT - part[:, 1])
    return result


def gradient(parts: Primitives, points: np.ndarray) -> np.ndarray:
    """Gradient of the field at (N, 3) points by central differences, (N, 3)."""
    steps = _GRADIENT_STEP * np.eye(3)
    columns = [
        (signed_distance(parts, points + step) - signed_distance(parts, points - step))
        / (2 * _GRADIENT_STEP)
        for step in steps
    ]
    return np.stack(columns, axis=1)
