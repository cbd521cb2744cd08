"""HumanData's 190 joints, and how ours are found among them.

The 190 are the union of what mmhuman3d's data sets label. The same name means the same joint in
every file; joints that a data set lacks are zeros whose mask is 0.
"""

from __future__ import annotations

import numpy as np

from hmr.skeleton import JOINT49_NAMES

JOINT_SETS: dict[str, tuple[str, ...]] = {
    "original": ("_original", ""), "smpl": ("_smpl",), "smplx": ("_smplx",),
}  # fmt: skip
"""Endings of the keys that hold a set of joints; older files have no ending."""
NUM_JOINTS = 190

# Where the 190 have each of our joints: SMPL's and its surface's, those of the extra regressor,
# then OpenPose's 25.
_SMPL = {
    "pelvis": 0, "left_hip": 1, "right_hip": 2, "left_knee": 4, "right_knee": 5, "left_ankle": 7,
    "right_ankle": 8, "neck": 12, "left_shoulder": 16, "right_shoulder": 17, "left_elbow": 18,
    "right_elbow": 19, "left_wrist": 20, "right_wrist": 21, "nose": 55, "right_eye": 56,
    "left_eye": 57, "right_ear": 58, "left_ear": 59, "left_big_toe": 60, "left_small_toe": 61,
    "left_heel": 62, "right_big_toe": 63, "right_small_toe": 64, "right_heel": 65,
}  # fmt: skip
_EXTRA = {
    "right_hip": 144, "left_hip": 145, "neck": 146, "head_top": 147, "pelvis": 148, "thorax": 149,
    "spine": 150, "jaw": 151, "head": 152,
}  # fmt: skip
_FIRST_OPENPOSE = 153


def _places() -> np.ndarray:
    """(49, 2) where a joint is, and where else if it is not there.

    OpenPose's joints stand for SMPL joints of the same name, which is how our body computes them.
    """
    places = []
    for number, name in enumerate(JOINT49_NAMES):
        group, _, joint = name.partition("_")
        if group == "op":
            same = _SMPL["pelvis" if joint == "mid_hip" else joint]
            places.append((_FIRST_OPENPOSE + number, same))
        else:
            place = _EXTRA[joint] if joint in _EXTRA else _SMPL[joint]
            places.append((place, place))
    return np.array(places)


PLACES = _places()
"""Both places of each of the 49, see `_places`."""


def joints49(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N, 190, C) labels, or those of the joints in the mask (190,) bool, to (N, 49, C).

    The last of the C numbers is the confidence; joints without it become zeros. ValueError for
    other shapes.
    """
    if mask.shape != (NUM_JOINTS,) or values.shape[1] not in (NUM_JOINTS, mask.sum()):
        raise ValueError(
            f"{values.shape[1]} joints and a mask of {mask.size}; it must hold {NUM_JOINTS} "
            "joints, or those of its mask"
        )
    everything = np.zeros((len(values), NUM_JOINTS, values.shape[2]))
    everything[:, mask] = values if values.shape[1] == mask.sum() else values[:, mask]
    picked: np.ndarray = everything[:, PLACES[:, 0]]
    elsewhere = picked[..., -1] <= 0
    picked[elsewhere] = everything[:, PLACES[:, 1]][elsewhere]
    picked[picked[..., -1] <= 0] = 0  # whatever stands there is no label
    return picked
