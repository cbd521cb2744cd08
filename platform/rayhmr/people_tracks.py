"""Persons through a video or through ordered frames: tracks.parquet and AMASS-like files.

Boxes become tracks by overlap (`hmr.tracking`); a track's rotations and places are filled where it
has gaps and smoothed (`hmr.smoothing`), and its shape is the mean, since a person has one. The
acceleration of the joints is reported before and after: jitter is acceleration.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hmr.body import Body
from hmr.metric_extras import acceleration_errors
from hmr.rotations import axis_angle_to_matrix, matrix_to_axis_angle
from hmr.smoothing import fill_points, fill_rotations, smooth_points, smooth_rotations
from hmr.tracking import BoxTracker
from rayhmr.config import TrackConfig
from rayhmr.prediction_files import People

TRACKS = "tracks.parquet"
SHORTEST = 3
"""Frames of a track that has an acceleration."""
CAMERA_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
"""x right, y down, z forward to x right, y forward, z up: the world of AMASS and of Blender."""


def _field(name: str, kind: pa.DataType, meaning: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"description": meaning})


TRACKS_SCHEMA = pa.schema(
    [
        _field("sequence", pa.string(), "video, or folder below the input"),
        _field("track", pa.int32(), "number of the person in the sequence, from 0"),
        _field("frame", pa.int32(), "number in the sequence, from 0"),
        _field("sample_id", pa.string(), "row of people.parquet; empty where filled in"),
        _field("observed", pa.bool_(), "whether the person was found in this frame"),
        _field("pose", pa.list_(pa.float32(), 72), "smoothed axis-angle, joint 0 in camera axes"),
        _field("betas", pa.list_(pa.float32(), 10), "mean of the track"),
        _field("transl", pa.list_(pa.float32(), 3), "smoothed, metres, camera axes"),
    ]
)


@dataclass(frozen=True, kw_only=True)
class Track:
    """One person. frames: (N,) ascending; sample_ids of them. rotmats: (N, 24, 3, 3), transl:
    (N, 3), betas: (N, 10), as predicted; float64."""

    sequence: str
    number: int
    frames: np.ndarray
    sample_ids: list[str]
    rotmats: torch.Tensor
    transl: torch.Tensor
    betas: torch.Tensor

    def smoothed(self, fps: float, config: TrackConfig) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotations and places of every frame from the first to the last."""
        settings = (fps, config.min_cutoff, config.beta)
        rotmats = smooth_rotations(fill_rotations(self.rotmats, self.frames), *settings)
        places = smooth_points(fill_points(self.transl[:, None], self.frames), *settings)
        return rotmats, places[:, 0]


def tracks_of(folder: Path, listing: pa.Table, config: TrackConfig) -> Iterator[Track]:
    """The tracks of all sequences, by sequence and number. All people of one sequence are in memory
    together."""
    places = {
        path: (sequence, frame)
        for path, sequence, frame in zip(
            *(listing[name].to_pylist() for name in ("path", "sequence", "frame")), strict=True
        )
        if sequence is not None
    }
    sequences: dict[str, list[Any]] = defaultdict(list)
    for group in People(folder).groups("sample_id", "image", "box_xyxy"):
        for sample_id, image, box in zip(*group.values(), strict=True):
            sequence, frame = places[image]
            sequences[sequence].append((frame, sample_id, box))
    for sequence in sorted(sequences):
        yield from _tracks_of_one(folder, sequence, sequences[sequence], config)


def _tracks_of_one(
    folder: Path, sequence: str, people: list[Any], config: TrackConfig
) -> Iterator[Track]:
    frames: dict[int, list[Any]] = defaultdict(list)
    for frame, sample_id, box in people:
        frames[frame].append((sample_id, box))
    tracker = BoxTracker(config.min_iou, config.max_gap)
    members: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for frame in sorted(frames):
        found, boxes = zip(*frames[frame], strict=True)
        for sample_id, track in zip(found, tracker.update(frame, np.stack(boxes)), strict=True):
            members[int(track)].append((frame, sample_id))
    wanted = {sample_id for some in members.values() for _, sample_id in some}
    numbers: dict[str, tuple[Any, ...]] = {}
    names = ("pose", "transl", "betas")
    for group in People(folder).groups("sample_id", *names):
        for sample_id, *values in zip(*group.values(), strict=True):
            if sample_id in wanted:
                numbers[sample_id] = tuple(values)
    for number in sorted(members):
        ids = [sample_id for _, sample_id in members[number]]
        pose, transl, betas = (
            torch.tensor(np.stack(some), dtype=torch.float64)
            for some in zip(*(numbers[sample_id] for sample_id in ids), strict=True)
        )
        yield Track(
            sequence=sequence, number=number, sample_ids=ids,
            frames=np.array([frame for frame, _ in members[number]]),
            rotmats=axis_angle_to_matrix(pose.unflatten(1, (24, 3))), transl=transl, betas=betas,
        )  # fmt: skip


def write_tracks(
    folder: Path, body: Body, listing: pa.Table, config: TrackConfig, fps: float, *, amass: bool
) -> dict[str, Any]:
    """tracks.parquet, and amass/<sequence>/track_0.npz where wanted. Returns how many tracks there
    are, and their acceleration before and after, in mm/frame², as the field measures it."""
    count, before, after = 0, [], []
    with pq.ParquetWriter(folder / TRACKS, TRACKS_SCHEMA, compression="zstd") as writer:
        for track in tracks_of(folder, listing, config):
            count += 1
            rotmats, transl = track.smoothed(fps, config)
            writer.write_table(_table(track, rotmats, transl))
            betas = track.betas.mean(0)
            if amass:
                target = folder / "amass" / track.sequence / f"track_{track.number}.npz"
                target.parent.mkdir(parents=True, exist_ok=True)
                write_amass(target, track, rotmats, transl, rest_pelvis(body, betas), fps)
            dense = fill_rotations(track.rotmats, track.frames)
            if len(dense) >= SHORTEST:
                before.append(accelerations(body, dense, betas))
                after.append(accelerations(body, rotmats, betas))
    mean = {
        name: round(1000 * float(torch.cat(some).mean()), 3) if some else None
        for name, some in (("before", before), ("after", after))
    }
    return {
        "tracks": count, "acceleration_mm_before": mean["before"],
        "acceleration_mm_after": mean["after"],
    }  # fmt: skip


def accelerations(body: Body, rotmats: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
    """(T, 24, 3, 3) to (T - 2,): mean over joints of |x[t-1] - 2 x[t] + x[t+1]|, the body at its
    place, in metres/frame²."""
    with torch.inference_mode():
        joints = body.joints_only(rotmats.float(), betas.float().expand(len(rotmats), 10))
    frames = np.arange(len(joints))
    return acceleration_errors(joints, torch.zeros_like(joints), 0 * frames, frames)[1]


def rest_pelvis(body: Body, betas: torch.Tensor) -> np.ndarray:
    """(3,) about which a body of this shape turns, metres."""
    with torch.inference_mode():
        joints = body.joints_only(torch.eye(3).expand(1, 24, 3, 3), betas.float()[None])
    pelvis: np.ndarray = joints[0, 0].double().numpy()
    return pelvis


def _table(track: Track, rotmats: torch.Tensor, transl: torch.Tensor) -> pa.Table:
    first, length = int(track.frames[0]), len(rotmats)
    ids = [""] * length
    for frame, sample_id in zip(track.frames, track.sample_ids, strict=True):
        ids[frame - first] = sample_id
    vectors = {
        "pose": matrix_to_axis_angle(rotmats).flatten(1), "transl": transl,
        "betas": track.betas.mean(0).expand(length, 10),
    }  # fmt: skip
    columns: dict[str, Any] = {
        "sequence": [track.sequence] * length, "track": [track.number] * length,
        "frame": list(range(first, first + length)), "sample_id": ids,
        "observed": [bool(sample_id) for sample_id in ids],
    }  # fmt: skip
    for name, values in vectors.items():
        flat = pa.array(values.float().numpy().reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns).select(TRACKS_SCHEMA.names).cast(TRACKS_SCHEMA)


def write_amass(
    path: Path, track: Track, rotmats: torch.Tensor, transl: torch.Tensor, pelvis: np.ndarray,
    fps: float,
) -> None:  # fmt: skip
    """A motion as AMASS has it, which Blender's SMPL add-ons read: z up, SMPL-H's 52 joints (SMPL's
    first 22, hands at rest), and the frame rate under both of its names.

    pelvis: (3,) about which the body turns: the root turns the body there, not at the origin.
    """
    turn = torch.from_numpy(CAMERA_TO_Z_UP)
    rotmats = torch.cat([(turn @ rotmats[:, 0])[:, None], rotmats[:, 1:22]], 1)
    poses = np.zeros((len(rotmats), 156))
    poses[:, :66] = matrix_to_axis_angle(rotmats).flatten(1).numpy()
    np.savez(
        path,
        poses=poses,
        trans=(transl.numpy() + pelvis) @ CAMERA_TO_Z_UP.T - pelvis,
        betas=track.betas.mean(0).numpy(),
        gender=np.array("neutral"),
        mocap_framerate=np.array(float(fps)),
        mocap_frame_rate=np.array(float(fps)),
        frames=np.arange(track.frames[0], track.frames[-1] + 1),
    )
