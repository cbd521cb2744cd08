"""Which rows a protocol scores and what its joints are called."""

from __future__ import annotations

import numpy as np
import pytest

from hmr.errors import DataError
from hmr.protocols import HIGHER_IS_BETTER, JOINT_SETS, METRIC_UNITS, PROTOCOLS, Protocol, places


def test_the_joints_have_the_order_of_the_published_evaluations():
    legs = ("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle")
    arms = ("right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
            "left_wrist")  # fmt: skip
    assert JOINT_SETS["h36m14"] == (*legs, *arms, "neck", "head")
    assert JOINT_SETS["h36m17"] == (*legs, *arms, "neck", "head", "pelvis", "spine", "jaw")
    assert len(JOINT_SETS["smpl24"]) == 24


def test_each_protocol_is_complete():
    assert set(PROTOCOLS) == {"3dpw", "h36m_p1", "h36m_p2", "mpi_inf_3dhp", "synthetic", "eth"}
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        assert set(protocol.metrics) <= set(METRIC_UNITS)
        vertices = {"pve_mm", "pa_pve_mm", "v2v_l2"} & set(protocol.metrics)
        assert not (vertices and protocol.truth == "keypoints"), "keypoints have no surface"
    assert set(HIGHER_IS_BETTER) < set(METRIC_UNITS)


NAMES = [
    "eth/S9/Walking.60457274/0/0", "eth/S9/Walking.60457274/4/0", "eth/S9/Walking.60457274/5/0",
    "eth/S9/Walking.54138969/10/0", "eth/S1/Walking.60457274/0/0",
    "eth/S11/Eating 1.60457274/12/0", "eth/S11/Eating 1.60457274/17/0",
    "eth/S11/Eating 1.60457274/18/0", "eth/S11/Eating 1.54138969/0/0",
]  # fmt: skip


def test_protocol_1_takes_every_fifth_frame_of_two_people_from_all_cameras():
    kept = PROTOCOLS["h36m_p1"].takes_part(NAMES)
    assert np.flatnonzero(kept).tolist() == [0, 2, 3, 5, 6, 8]


def test_protocol_2_takes_the_frontal_camera_alone():
    kept = PROTOCOLS["h36m_p2"].takes_part(NAMES)
    assert np.flatnonzero(kept).tolist() == [0, 2, 5, 6]


def test_files_that_hold_every_fifth_frame_already_keep_them_all():
    names = [
        f"h36m/{subject}_Directions_1.{camera}_{number:06d}.jpg/0"
        for subject in ("S9", "S11")
        for camera in ("54138969", "60457274")
        for number in range(1, 100, 5)
    ]
    assert PROTOCOLS["h36m_p1"].takes_part(names).all()
    assert PROTOCOLS["h36m_p2"].takes_part(names).sum() == 40


def test_a_subject_is_a_word_of_its_own():
    one = Protocol(name="x", joints="smpl24", truth="body", metrics=(), subjects=("S1",))
    names = ["a/S1/0/0", "a/S11/0/0", "a/XS1/0/0", "a/S1_Walk.1/0/0", "S1/w/0/0"]
    assert one.takes_part(names).tolist() == [True, False, False, True, True]


@pytest.mark.parametrize("name", ["synthetic", "3dpw", "mpi_inf_3dhp", "eth"])
def test_the_other_protocols_take_all_rows(name):
    assert PROTOCOLS[name].takes_part(NAMES).all()


def test_a_split_without_the_people_of_the_protocol_is_refused():
    with pytest.raises(DataError, match=r"'h36m_p2': no sample_id names S9 or S11 with 60457274"):
        PROTOCOLS["h36m_p2"].takes_part(["eth/S9/Walking.54138969/0/0"])
    with pytest.raises(DataError, match="an empty split"):
        PROTOCOLS["synthetic"].takes_part([])
    with pytest.raises(DataError, match="'a/S9/last/0' has no frame number"):
        PROTOCOLS["h36m_p1"].takes_part(["a/S9/1/0", "a/S9/last/0"])


def test_names_say_video_track_and_frame():
    videos, tracks, frames = places(
        ["a/v/image_00007.jpg/0", "a/v/image_00008.jpg/1", "a/w/image_00007.jpg/0", "a/v/x/0",
         "lonely"]
    )  # fmt: skip
    assert frames.tolist() == [7, 8, 7, -1, -1]
    assert videos[0] == videos[1]
    assert len(set(videos.tolist())) == 4
    assert len(set(tracks.tolist())) == 5


def test_a_box_in_the_name_is_neither_frame_nor_video():
    videos, tracks, frames = places(
        [f"x/walk/image_{n:05d}.jpg/{n}.25_-3.00_{n + 90}.75/{n % 2}" for n in range(4)]
    )
    assert frames.tolist() == [0, 1, 2, 3]
    assert len(set(videos.tolist())) == 1
    assert tracks[0] == tracks[2] != tracks[1] == tracks[3]
    videos, tracks, frames = places([f"x/image_{n}.jpg/{n}.25_3.00_9.75" for n in range(4)])
    assert frames.tolist() == [0, 1, 2, 3]
    assert len(set(videos.tolist())) == 1
    assert len(set(tracks.tolist())) == 4, "who it is in each frame is not known"


def test_a_result_says_whose_joints_it_used():
    assert PROTOCOLS["synthetic"].joints_used(with_regressor=True)[0] == "smpl24"
    used = PROTOCOLS["3dpw"].joints_used(with_regressor=True)
    assert used == ("h36m14", "row 0 (pelvis) of J_regressor_h36m")
    assert PROTOCOLS["3dpw"].joints_used(with_regressor=False)[0] == "h36m14-standin"
