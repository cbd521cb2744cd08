"""Joint names, order, parents, mirror partners and data-set tables; joints are found by name.

Sources: SMPL's kinematic tree; the 21 vertices that smplx appends to it; the 49-joint superset of
SPIN (25 of OpenPose's BODY_25, then 24 ground-truth joints) and its evaluation subsets.
"""

from __future__ import annotations

SMPL_JOINT_NAMES: tuple[str, ...] = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2",
    "left_ankle", "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar",
    "right_collar", "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip
"""SMPL's 24 joints, in the order of its rotations."""

SMPL_PARENTS: tuple[int, ...] = (
    -1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21,
)  # fmt: skip
"""Parent of each joint; every parent stands before its children."""


def mirrored_name(name: str) -> str:
    """The same joint on the other side: `left` and `right` swap."""
    if "left" in name:
        return name.replace("left", "right")
    return name.replace("right", "left")


def _flip_table(names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(names.index(mirrored_name(name)) for name in names)


SMPL_FLIP: tuple[int, ...] = _flip_table(SMPL_JOINT_NAMES)
"""Index of each joint's mirror partner."""

SMPL_VERTEX_IDS: dict[str, int] = {
    "nose": 332, "right_eye": 6260, "left_eye": 2800, "right_ear": 4071, "left_ear": 583,
    "left_big_toe": 3216, "left_small_toe": 3226, "left_heel": 3387,
    "right_big_toe": 6617, "right_small_toe": 6624, "right_heel": 6787,
    "left_thumb": 2746, "left_index": 2319, "left_middle": 2445, "left_ring": 2556,
    "left_pinky": 2673, "right_thumb": 6191, "right_index": 5782, "right_middle": 5905,
    "right_ring": 6016, "right_pinky": 6133,
}  # fmt: skip
"""Vertices that stand for joints in SMPL's topology, in the order smplx appends them."""

EXTRA_JOINT_NAMES: tuple[str, ...] = (
    "extra_right_hip", "extra_left_hip", "extra_neck", "extra_head_top", "extra_pelvis",
    "extra_thorax", "extra_spine", "extra_jaw", "extra_head",
)  # fmt: skip
"""Joints of SPIN's extra regressor, in its order."""

SMPL45_NAMES: tuple[str, ...] = SMPL_JOINT_NAMES + tuple(SMPL_VERTEX_IDS)
SMPL54_NAMES: tuple[str, ...] = SMPL45_NAMES + EXTRA_JOINT_NAMES
"""The pool from which the 49 joints are taken."""

# Name of each of the 49 joints and the name of its source among the 54.
_JOINTS_49: tuple[tuple[str, str], ...] = (
    ("op_nose", "nose"),
    ("op_neck", "neck"),
    ("op_right_shoulder", "right_shoulder"),
    ("op_right_elbow", "right_elbow"),
    ("op_right_wrist", "right_wrist"),
    ("op_left_shoulder", "left_shoulder"),
    ("op_left_elbow", "left_elbow"),
    ("op_left_wrist", "left_wrist"),
    ("op_mid_hip", "pelvis"),
    ("op_right_hip", "right_hip"),
    ("op_right_knee", "right_knee"),
    ("op_right_ankle", "right_ankle"),
    ("op_left_hip", "left_hip"),
    ("op_left_knee", "left_knee"),
    ("op_left_ankle", "left_ankle"),
    ("op_right_eye", "right_eye"),
    ("op_left_eye", "left_eye"),
    ("op_right_ear", "right_ear"),
    ("op_left_ear", "left_ear"),
    ("op_left_big_toe", "left_big_toe"),
    ("op_left_small_toe", "left_small_toe"),
    ("op_left_heel", "left_heel"),
    ("op_right_big_toe", "right_big_toe"),
    ("op_right_small_toe", "right_small_toe"),
    ("op_right_heel", "right_heel"),
    ("gt_right_ankle", "right_ankle"),
    ("gt_right_knee", "right_knee"),
    ("gt_right_hip", "extra_right_hip"),
    ("gt_left_hip", "extra_left_hip"),
    ("gt_left_knee", "left_knee"),
    ("gt_left_ankle", "left_ankle"),
    ("gt_right_wrist", "right_wrist"),
    ("gt_right_elbow", "right_elbow"),
    ("gt_right_shoulder", "right_shoulder"),
    ("gt_left_shoulder", "left_shoulder"),
    ("gt_left_elbow", "left_elbow"),
    ("gt_left_wrist", "left_wrist"),
    ("gt_neck", "extra_neck"),
    ("gt_head_top", "extra_head_top"),
    ("gt_pelvis", "extra_pelvis"),
    ("gt_thorax", "extra_thorax"),
    ("gt_spine", "extra_spine"),
    ("gt_jaw", "extra_jaw"),
    ("gt_head", "extra_head"),
    ("gt_nose", "nose"),
    ("gt_left_eye", "left_eye"),
    ("gt_right_eye", "right_eye"),
    ("gt_left_ear", "left_ear"),
    ("gt_right_ear", "right_ear"),
)

JOINT49_NAMES: tuple[str, ...] = tuple(name for name, _ in _JOINTS_49)
JOINT49_SOURCE: tuple[int, ...] = tuple(SMPL54_NAMES.index(source) for _, source in _JOINTS_49)
"""Index among the 54 joints from which each of the 49 is copied."""
JOINT49_FLIP: tuple[int, ...] = _flip_table(JOINT49_NAMES)

H36M17_NAMES: tuple[str, ...] = (
    "pelvis", "left_hip", "left_knee", "left_ankle", "right_hip", "right_knee", "right_ankle",
    "spine", "neck", "jaw", "head", "left_shoulder", "left_elbow", "left_wrist",
    "right_shoulder", "right_elbow", "right_wrist",
)  # fmt: skip
"""Order of the Human3.6M joint regressor."""

H36M_TO_J17: tuple[int, ...] = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10, 0, 7, 9)
"""From the regressor's order to the evaluation order."""
H36M_TO_J14: tuple[int, ...] = H36M_TO_J17[:14]

J14_NAMES: tuple[str, ...] = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    "neck", "head",
)  # fmt: skip
"""The 14 joints on which Human3.6M and 3DPW are scored."""

_J24_TO_J17 = (*range(13), 18, 14, 16, 17)
J17_FROM_49: tuple[int, ...] = tuple(25 + i for i in _J24_TO_J17)
J14_FROM_49: tuple[int, ...] = J17_FROM_49[:14]
"""The same joints among the 49."""


def smpl_index(name: str) -> int:
    """Position of an SMPL joint by name."""
    return SMPL_JOINT_NAMES.index(name)


def joint49_index(name: str) -> int:
    """Position of one of the 49 joints by name."""
    return JOINT49_NAMES.index(name)
