"""A small prior over body poses: archetypes, mixtures of two, noise, limits, mirroring.

Poses are (72,) axis-angle in radians, 24 SMPL joints x 3, in SMPL's body axes (x to the person's
left, y up, z forward). The T-pose is all zero and the root never turns: whoever films the person
turns the camera instead. The prior knows neither floor contact nor self-intersection.

numpy only: data workers import it without torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hmr.skeleton import SMPL_FLIP, SMPL_JOINT_NAMES

_MIRROR_SIGN = np.array([1.0, -1.0, -1.0])


class _Joint(NamedTuple):
    """Spread and range of one joint's axis-angle components (x, y, z), radians."""

    noise_sd: tuple[float, float, float]
    low: tuple[float, float, float] = (-2.6, -2.6, -2.6)
    high: tuple[float, float, float] = (2.6, 2.6, 2.6)


# The person's left side and the middle; the right side is the mirror image.
_JOINTS: dict[str, _Joint] = {
    "pelvis": _Joint((0.0, 0.0, 0.0)),
    "left_hip": _Joint((0.22, 0.12, 0.1), low=(-2.2, -2.6, -2.6), high=(0.9, 2.6, 2.6)),
    "spine1": _Joint((0.1, 0.1, 0.06)),
    "left_knee": _Joint((0.15, 0.02, 0.02), low=(-0.05, -0.1, -0.1), high=(2.4, 0.1, 0.1)),
    "spine2": _Joint((0.08, 0.1, 0.06)),
    "left_ankle": _Joint((0.12, 0.08, 0.06)),
    "spine3": _Joint((0.06, 0.08, 0.05)),
    "left_foot": _Joint((0.08, 0.02, 0.02)),
    "neck": _Joint((0.12, 0.18, 0.1)),
    "left_collar": _Joint((0.04, 0.06, 0.08)),
    "head": _Joint((0.12, 0.2, 0.1)),
    "left_shoulder": _Joint((0.3, 0.35, 0.3)),
    "left_elbow": _Joint((0.1, 0.4, 0.15), low=(-0.6, -2.4, -0.6), high=(0.6, 0.15, 1.6)),
    "left_wrist": _Joint((0.2, 0.15, 0.2)),
    "left_hand": _Joint((0.05, 0.05, 0.15)),
}

_Rotations = dict[str, tuple[float, float, float]]


def _both(**left: tuple[float, float, float]) -> _Rotations:
    """A symmetric pose, given by its left side: `_both(hip=...)` sets left_hip and right_hip."""
    rotations: _Rotations = {}
    for name, (x, y, z) in left.items():
        rotations[f"left_{name}"] = (x, y, z)
        rotations[f"right_{name}"] = (x, -y, -z)
    return rotations


# name -> (probability, rotations of the joints that are not at rest)
_ARCHETYPES: dict[str, tuple[float, _Rotations]] = {
    "stand": (0.20, _both(shoulder=(0, 0, -1.2), elbow=(0, -0.25, 0))),
    "apose": (0.07, _both(shoulder=(0, 0, -0.8))),
    "tpose": (0.04, {}),
    "walk": (
        0.16,
        {
            "left_hip": (-0.5, 0, 0.03),
            "right_hip": (0.35, 0, -0.03),
            "spine1": (0.05, 0, 0),
            "left_knee": (0.25, 0, 0),
            "right_knee": (0.7, 0, 0),
            "left_shoulder": (0.45, 0.1, -1.2),
            "right_shoulder": (-0.45, -0.1, 1.2),
            "left_elbow": (0, -0.5, 0),
            "right_elbow": (0, 0.7, 0),
        },
    ),
    "run": (
        0.08,
        {
            "left_hip": (-1, 0, 0.03),
            "right_hip": (0.5, 0, -0.03),
            "spine1": (0.2, 0, 0),
            "left_knee": (1.1, 0, 0),
            "right_knee": (1.3, 0, 0),
            "left_shoulder": (0.8, 0.2, -1.1),
            "right_shoulder": (-0.8, -0.2, 1.1),
            "left_elbow": (0, -1.5, 0),
            "right_elbow": (0, 1.5, 0),
        },
    ),
    "sit": (
        0.10,
        _both(hip=(-1.5, 0, 0.15), knee=(1.5, 0, 0), shoulder=(0, -0.6, -1), elbow=(0, -0.8, 0)),
    ),
    "squat": (
        0.06,
        _both(hip=(-1.8, 0, 0.35), knee=(2, 0, 0), ankle=(-0.35, 0, 0), shoulder=(0, -1.2, -0.3))
        | {"spine1": (0.4, 0, 0)},
    ),
    "up": (0.06, _both(collar=(0, 0, 0.2), shoulder=(0, 0, 0.9), elbow=(0, 0, 0.4))),
    "wave": (
        0.06,
        {
            "left_collar": (0, 0, 0.15),
            "left_shoulder": (0, 0, 0.5),
            "right_shoulder": (0, 0, 1.2),
            "left_elbow": (0, -0.3, 1.1),
        },
    ),
    "reach": (0.05, _both(shoulder=(0, -1.4, -0.1)) | {"spine1": (0.15, 0, 0)}),
    "lunge": (
        0.05,
        {
            "left_hip": (-1.3, 0, 0.1),
            "right_hip": (0.6, 0, -0.1),
            "left_knee": (1.3, 0, 0),
            "right_knee": (0.4, 0, 0),
            "left_shoulder": (0, 0, -1.1),
            "right_shoulder": (0, 0, 1.1),
        },
    ),
    "bend": (
        0.04,
        _both(hip=(-0.6, 0, 0), shoulder=(0, -0.9, -0.9))
        | {"spine1": (0.5, 0, 0), "spine2": (0.4, 0, 0), "spine3": (0.2, 0, 0)},
    ),
    "hips": (0.03, _both(shoulder=(0, 0.5, -0.9), elbow=(0, -1.4, -0.6))),
}


def mirror_pose(pose: np.ndarray) -> np.ndarray:
    """The pose seen in a mirror: left and right joints swap, y and z components change sign.

    pose: (..., 72) axis-angle. A mirror image of a mirror image is the pose itself.
    """
    joints = pose.reshape(*pose.shape[:-1], 24, 3)[..., list(SMPL_FLIP), :]
    return (joints * _MIRROR_SIGN.astype(pose.dtype)).reshape(pose.shape)


def _assemble(rotations: _Rotations) -> np.ndarray:
    pose = np.zeros((24, 3))
    for name, rotation in rotations.items():
        pose[SMPL_JOINT_NAMES.index(name)] = rotation
    return pose.reshape(72)


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noise sd, lower and upper limits of all 24 joints, each (72,)."""
    sd, low, high = np.zeros((24, 3)), np.zeros((24, 3)), np.zeros((24, 3))
    for name, joint in _JOINTS.items():
        index = SMPL_JOINT_NAMES.index(name)
        sd[index], low[index], high[index] = joint
        if name.startswith("left_"):
            mirrored = np.array([joint.low, joint.high]) * _MIRROR_SIGN
            sd[SMPL_FLIP[index]] = joint.noise_sd
            low[SMPL_FLIP[index]], high[SMPL_FLIP[index]] = mirrored.min(0), mirrored.max(0)
    return sd.reshape(72), low.reshape(72), high.reshape(72)


ARCHETYPES: dict[str, np.ndarray] = {
    name: _assemble(rotations) for name, (_, rotations) in _ARCHETYPES.items()
}
"""Name -> (72,) axis-angle."""

ARCHETYPE_PROBABILITIES: dict[str, float] = {name: p for name, (p, _) in _ARCHETYPES.items()}
"""Name -> how often the archetype is drawn; the values sum to 1."""

POSE_NOISE_SD, POSE_LOW, POSE_HIGH = _tables()
"""(72,) each: standard deviation of the noise, and the range poses are clipped to (radians)."""

_POSES = np.stack(list(ARCHETYPES.values()))
_PROBABILITIES = np.array(list(ARCHETYPE_PROBABILITIES.values()))


def sample_pose(rng: np.random.Generator, noise_factor: float = 1.0) -> np.ndarray:
    """Draw one pose: (72,) float64 axis-angle, the root at zero, within the limits.

    noise_factor scales the Gaussian noise of every joint; 0 leaves pure archetypes and mixtures.
    """
    first, second = rng.choice(len(_POSES), size=2, p=_PROBABILITIES)
    # Half of the poses are an archetype, half lie between two of them, nearer to the first.
    mix = 0.0 if rng.random() < 0.5 else rng.beta(1.5, 3.0)
    pose = (1.0 - mix) * _POSES[first] + mix * _POSES[second]
    pose = pose + noise_factor * POSE_NOISE_SD * rng.standard_normal(72)
    pose = np.clip(pose, POSE_LOW, POSE_HIGH)
    return mirror_pose(pose) if rng.random() < 0.5 else pose


def rodrigues(axis_angle: np.ndarray) -> np.ndarray:
    """Rotation matrices of axis-angle vectors: (..., 3) -> (..., 3, 3), in the input's dtype.

    Rodrigues' formula R = I + sin(t)/t K + (1 - cos t)/t^2 K^2 with both factors as sinc
    functions, which are exact at t = 0.
    """
    vectors = np.asarray(axis_angle)
    if not np.issubdtype(vectors.dtype, np.floating):
        vectors = vectors.astype(np.float64)
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*x.shape, 3, 3)
    angle = np.sqrt(x * x + y * y + z * z)[..., None, None]
    first = np.sinc(angle / np.pi)
    second = 0.5 * np.sinc(angle / (2 * np.pi)) ** 2
    matrices: np.ndarray = np.eye(3) + first * cross + second * (cross @ cross)
    return matrices.astype(vectors.dtype, copy=False)
