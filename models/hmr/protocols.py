"""Evaluation protocols: which rows, which joints, aligned where, and which errors.

    protocol = PROTOCOLS["3dpw"]
    rows = protocol.takes_part(sample_ids)

`hmr.protocol_errors` measures by them. Sources: SPIN's evaluation for Human3.6M, 3DPW and
MPI-INF-3DHP; the latter's own thresholds; the ETH course's v2v_l2. Papers differ in what they call
the pelvis, which moves MPJPE and PVE by some millimetres: a result therefore says which joints and
which root it used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hmr.errors import DataError
from hmr.skeleton import H36M17_NAMES, H36M_TO_J17, J14_NAMES, SMPL_JOINT_NAMES

METRIC_UNITS: dict[str, tuple[str, str]] = {
    "mpjpe_mm": ("MPJPE", "mm"),
    "pa_mpjpe_mm": ("PA-MPJPE", "mm"),
    "pve_mm": ("PVE", "mm"),
    "pa_pve_mm": ("PA-PVE", "mm"),
    "pck_150": ("PCK@150mm", "%"),
    "auc_150": ("AUC", "%"),
    "accel_mm": ("Accel", "mm/frame²"),
    "v2v_l2": ("v2v_l2", "m²"),
}
"""Name of each metric -> what papers call it, its unit."""
HIGHER_IS_BETTER = ("pck_150", "auc_150")

JOINT_SETS: dict[str, tuple[str, ...]] = {
    "smpl24": SMPL_JOINT_NAMES,
    "h36m14": J14_NAMES,
    "h36m17": tuple(H36M17_NAMES[row] for row in H36M_TO_J17),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one benchmark is scored.

    joints: a key of JOINT_SETS. truth: `body` computes it from SMPL labels as the prediction is
    computed, `keypoints` takes the measured 3D joints. metrics: names of METRIC_UNITS; `accel_mm`
    is the only one that needs more than one row. subjects, cameras: a row takes part when its
    sample_id names one of them; empty: all do. every: of the frames of a video, the first and each
    `every`-th after it take part. video: rows are frames of videos, not independent people.
    """

    name: str
    joints: Literal["smpl24", "h36m14", "h36m17"]
    truth: Literal["body", "keypoints"]
    metrics: tuple[str, ...]
    subjects: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    every: int = 1
    video: bool = True

    def takes_part(self, sample_ids: Sequence[str]) -> np.ndarray:
        """(N,) bool: which rows of a whole split are scored.

        sample_ids: `source/sequence/frame/person`. DataError when no row is left, or a frame has
        no number to count by.
        """
        kept = np.ones(len(sample_ids), bool)
        for words in (self.subjects, self.cameras):
            if words:
                named = _word_pattern(words)
                kept &= np.array([named.search(text) is not None for text in sample_ids], bool)
        if self.every > 1 and kept.any():
            rows = np.flatnonzero(kept)
            kept[rows] = self._in_step([sample_ids[row] for row in rows.tolist()])
        if not kept.any():
            raise DataError(
                f"no row takes part in protocol {self.name!r}: no sample_id names "
                f"{self._wanted()}, as in {(list(sample_ids) or ['an empty split'])[0]!r}; "
                "choose another split or protocol"
            )
        return kept

    def _in_step(self, sample_ids: Sequence[str]) -> np.ndarray:
        sequences, _, frames = places(sample_ids)
        if (frames < 0).any():
            raise DataError(
                f"protocol {self.name!r} takes every {self.every}th frame, but "
                f"{sample_ids[int((frames < 0).argmax())]!r} has no frame number; "
                "name samples source/sequence/frame/person"
            )
        first = np.full(sequences.max() + 1, frames.max())
        np.minimum.at(first, sequences, frames)
        in_step: np.ndarray = (frames - first[sequences]) % self.every == 0
        return in_step

    def _wanted(self) -> str:
        wishes = [" or ".join(words) for words in (self.subjects, self.cameras) if words]
        return " with ".join(wishes) or "anything"

    def joints_used(self, *, with_regressor: bool) -> tuple[str, str]:
        """What the joints and the root of a result are, in words that belong beside its numbers.

        with_regressor: whether the body has the Human3.6M regressor.
        """
        if self.joints == "smpl24":
            return "smpl24", "SMPL joint 0 (pelvis)"
        if with_regressor:
            return self.joints, "row 0 (pelvis) of J_regressor_h36m"
        return f"{self.joints}-standin", "gt_pelvis of the 49 landmark joints"


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="synthetic", joints="smpl24", truth="body", video=False,
            metrics=("mpjpe_mm", "pa_mpjpe_mm", "pve_mm"),
        ),
        Protocol(
            name="3dpw", joints="h36m14", truth="body",
            metrics=("mpjpe_mm", "pa_mpjpe_mm", "pve_mm", "pa_pve_mm", "accel_mm"),
        ),
        Protocol(
            name="h36m_p1", joints="h36m14", truth="keypoints",
            metrics=("mpjpe_mm", "pa_mpjpe_mm"), subjects=("S9", "S11"), every=5,
        ),
        Protocol(
            name="h36m_p2", joints="h36m14", truth="keypoints",
            metrics=("mpjpe_mm", "pa_mpjpe_mm"),
            subjects=("S9", "S11"), cameras=("60457274",), every=5,
        ),
        Protocol(
            name="mpi_inf_3dhp", joints="h36m17", truth="keypoints",
            metrics=("mpjpe_mm", "pa_mpjpe_mm", "pck_150", "auc_150"),
        ),
        Protocol(
            name="eth", joints="smpl24", truth="body",
            metrics=("v2v_l2", "mpjpe_mm", "pa_mpjpe_mm", "pve_mm"),
        ),
    )
}  # fmt: skip


def places(sample_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where `source/sequence/frame/person` rows belong: (N,) int64 numbers each.

    Returns the video, the track (a person of a video) and the frame; a frame is the last number in
    its part of the name, -1 without one. What stands before it counts to the name of the video.
    A box between frame and person, as in source/picture/x_y_side/person, is passed over.
    """
    videos, tracks, frames = [], [], []
    for text in sample_ids:
        *sequence, frame, person = ("", *text.split("/"))
        if _BOX.fullmatch(frame):
            frame = sequence.pop()
        number = re.search(r"(\d+)\D*$", frame)
        video = "/".join((*sequence, frame[: number.start()] if number else frame))
        videos.append(video)
        tracks.append(f"{video}\n{person}")
        frames.append(int(number[1]) if number else -1)
    video_of = np.unique(videos, return_inverse=True)[1]
    track_of = np.unique(tracks, return_inverse=True)[1]
    return video_of, track_of, np.array(frames, np.int64)


_BOX = re.compile(r"-?\d+\.\d\d_-?\d+\.\d\d_-?\d+\.\d\d")


def _word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Any of the words, not inside a longer one: S1 is not in S11."""
    return re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(map(re.escape, words))})(?![A-Za-z0-9])")
