"""Joint tables: names, mirror partners and the field's published index lists agree."""

from __future__ import annotations

import pytest

from hmr import skeleton as sk

FLIPS = {
    "smpl": (sk.SMPL_JOINT_NAMES, sk.SMPL_FLIP),
    "joint49": (sk.JOINT49_NAMES, sk.JOINT49_FLIP),
}
# SPIN's lists of numbers, as published; the module derives them from names.
OPENPOSE_SOURCE = (
    24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
)  # fmt: skip
GROUND_TRUTH_SOURCE = (
    8, 5, 45, 46, 4, 7, 21, 19, 17, 16, 18, 20, 47, 48, 49, 50, 51, 52, 53, 24, 26, 25, 28, 27,
)  # fmt: skip
SMPL_FLIP = (
    0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22,
)  # fmt: skip
OPENPOSE_FLIP = (
    0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20, 21,
)  # fmt: skip
GROUND_TRUTH_FLIP = (
    5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18, 19, 21, 20, 23, 22,
)  # fmt: skip


def side(name: str) -> str:
    return "left" if "left" in name else "right" if "right" in name else "middle"


def without_side(name: str) -> str:
    return name.replace("left", "").replace("right", "")


@pytest.mark.parametrize("table", FLIPS)
def test_flipping_twice_changes_nothing(table: str) -> None:
    names, flip = FLIPS[table]
    assert sorted(flip) == list(range(len(names)))
    assert [flip[flip[joint]] for joint in range(len(names))] == list(range(len(names)))


@pytest.mark.parametrize("table", FLIPS)
def test_a_flip_swaps_left_and_right_and_nothing_else(table: str) -> None:
    names, flip = FLIPS[table]
    opposite = {"left": "right", "right": "left", "middle": "middle"}
    for name, partner in zip(names, (names[joint] for joint in flip), strict=True):
        assert side(partner) == opposite[side(name)]
        assert without_side(partner) == without_side(name)


def test_names_are_unique() -> None:
    for names in (sk.SMPL_JOINT_NAMES, sk.SMPL54_NAMES, sk.JOINT49_NAMES, sk.J14_NAMES,
                  sk.H36M17_NAMES):  # fmt: skip
        assert len(set(names)) == len(names)
    counts = {24: sk.SMPL_JOINT_NAMES, 45: sk.SMPL45_NAMES, 54: sk.SMPL54_NAMES,
              49: sk.JOINT49_NAMES, 14: sk.J14_NAMES, 17: sk.H36M17_NAMES}  # fmt: skip
    assert {count: len(names) for count, names in counts.items()} == {c: c for c in counts}


def test_parents_come_first_and_mirrored_bones_join_mirrored_joints() -> None:
    assert sk.SMPL_PARENTS[0] == -1
    for joint, parent in enumerate(sk.SMPL_PARENTS[1:], start=1):
        assert 0 <= parent < joint
        assert sk.SMPL_PARENTS[sk.SMPL_FLIP[joint]] == sk.SMPL_FLIP[parent]


def test_a_limb_is_a_chain() -> None:
    chain = ["left_hand"]
    while (parent := sk.SMPL_PARENTS[sk.smpl_index(chain[-1])]) >= 0:
        chain.append(sk.SMPL_JOINT_NAMES[parent])
    assert chain == [
        "left_hand", "left_wrist", "left_elbow", "left_shoulder", "left_collar", "spine3",
        "spine2", "spine1", "pelvis",
    ]  # fmt: skip


def test_tables_derived_from_names_are_the_published_numbers() -> None:
    assert sk.JOINT49_SOURCE == OPENPOSE_SOURCE + GROUND_TRUTH_SOURCE
    assert sk.SMPL_FLIP == SMPL_FLIP
    assert OPENPOSE_FLIP + tuple(25 + joint for joint in GROUND_TRUTH_FLIP) == sk.JOINT49_FLIP


def test_every_joint_is_copied_from_its_own_side() -> None:
    for name, source in zip(sk.JOINT49_NAMES, sk.JOINT49_SOURCE, strict=True):
        assert side(sk.SMPL54_NAMES[source]) == side(name), name
    mirrored = {name: sk.mirrored_name(name) for name in sk.SMPL54_NAMES}
    for joint, partner in enumerate(sk.JOINT49_FLIP):
        source = sk.SMPL54_NAMES[sk.JOINT49_SOURCE[joint]]
        assert sk.SMPL54_NAMES[sk.JOINT49_SOURCE[partner]] == mirrored[source]


def test_the_appended_vertices_continue_after_the_joints() -> None:
    assert sk.SMPL54_NAMES[24:30] == (
        "nose", "right_eye", "left_eye", "right_ear", "left_ear", "left_big_toe",
    )  # fmt: skip
    assert sk.SMPL54_NAMES.index("right_pinky") == 44
    assert sk.SMPL54_NAMES.index("extra_right_hip") == 45
    assert sk.SMPL_VERTEX_IDS["nose"] == 332
    assert len(set(sk.SMPL_VERTEX_IDS.values())) == 21
    assert all(0 <= vertex < 6890 for vertex in sk.SMPL_VERTEX_IDS.values())


def test_evaluation_joints_have_the_same_names_in_every_table() -> None:
    from_49 = [sk.JOINT49_NAMES[joint].removeprefix("gt_") for joint in sk.J14_FROM_49]
    from_h36m = [sk.H36M17_NAMES[joint] for joint in sk.H36M_TO_J14]
    assert from_49 == list(sk.J14_NAMES)
    assert from_h36m[:13] == list(sk.J14_NAMES[:13])
    assert from_h36m[13] == "head"
    assert sorted(sk.H36M_TO_J17) == list(range(17))
    assert sk.J17_FROM_49[:14] == sk.J14_FROM_49
    from_49 = [sk.JOINT49_NAMES[joint].removeprefix("gt_") for joint in sk.J17_FROM_49]
    assert from_49 == [sk.H36M17_NAMES[joint] for joint in sk.H36M_TO_J17]


def test_joints_are_found_by_name() -> None:
    assert [sk.smpl_index(name) for name in ("pelvis", "head", "right_hand")] == [0, 15, 23]
    assert sk.joint49_index("op_nose") == 0
    assert sk.joint49_index("gt_right_ankle") == 25
    assert sk.joint49_index("gt_right_ear") == 48
    with pytest.raises(ValueError, match="not in tuple"):
        sk.joint49_index("right_tail")
