"""Synthetic people: pictures of the body in varied poses, shapes, clothes and places, with labels.

Every label is exact: the 2D joints are the projected 3D joints. Person `index` of a split is a
function of (seed, split, index) alone, whoever draws it and in whatever company. The splits have
their own seeds for shapes, clothes and backgrounds. numpy, OpenCV and numba; no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from hmr.body_arrays import BodyArrays, landmarks_numpy, lbs_numpy
from hmr.errors import ConfigError
from hmr.pose_prior import rodrigues, sample_pose
from hmr.raster import rasterize, shade, vertex_normals
from hmr.synthetic_look import (
    BackgroundBank,
    BodyRegions,
    NoiseBank,
    dressed,
    occlude,
    photographed,
    random_light,
)

SPLIT_NUMBERS = {"train": 0, "val": 1, "test": 2}
_BANK = 2**32 - 1
"""Stands where a person's number stands; no split has so many people."""
SUPERSAMPLING = 2
UPRIGHT = np.diag([1.0, -1.0, -1.0])
"""Body axes (y up, z forward) to camera axes, the person facing the camera."""


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How hard the pictures are. Angles: radians; focal: image sides; shift: box sides."""

    pose_noise: float
    yaw: float
    pitch_sd: float
    roll_sd: float
    focal: tuple[float, float]
    padding: tuple[float, float]
    shift: float
    occluder: float


PRESETS: dict[str, Preset] = {
    "easy": Preset(
        pose_noise=0.6, yaw=1.0, pitch_sd=0.1, roll_sd=0.05, focal=(1.8, 3.2),
        padding=(1.1, 1.25), shift=0.04, occluder=0.25,
    ),
    "medium": Preset(
        pose_noise=0.8, yaw=2.0, pitch_sd=0.13, roll_sd=0.08, focal=(1.6, 3.2),
        padding=(1.1, 1.3), shift=0.05, occluder=0.25,
    ),
    "hard": Preset(
        pose_noise=1.0, yaw=np.pi, pitch_sd=0.17, roll_sd=0.1, focal=(1.4, 3.2),
        padding=(1.08, 1.35), shift=0.06, occluder=0.25,
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SyntheticPerson:
    """One picture and its labels.

    image: (S, S, 3) uint8 RGB. mask: (S, S) share of each pixel that is body, before occluders.
    pose: (72,) axis-angle, joint 0 in the camera frame. betas: (10,). transl: (3,) metres: added to
    the body it places it before the camera. focal: pixels; the principal point is the middle.
    joints: (24, 3) SMPL joints, metres, camera axes, transl not added. keypoints_2d: (49, 3) pixels
    and confidence, 0 outside the picture. keypoints_3d: (49, 4) like joints, and confidence 1.
    Labels do not know about occluders.
    """

    image: np.ndarray
    mask: np.ndarray
    pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    focal: float
    joints: np.ndarray
    keypoints_2d: np.ndarray
    keypoints_3d: np.ndarray


def camera_rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """(3, 3) body axes to the camera's: the person turns by yaw, the camera tilts and rolls."""
    turns = rodrigues(np.array([[0, 0, roll], [pitch, 0, 0], [0, yaw, 0]], np.float64))
    rotation: np.ndarray = UPRIGHT @ turns[0] @ turns[1] @ turns[2]
    return rotation


class Generator:
    """Draws the people of one split.

    preset: a name in PRESETS. image_size: side S in pixels. ConfigError for an unknown preset or
    split.
    """

    def __init__(
        self, arrays: BodyArrays, preset: str, image_size: int, seed: int, split: str
    ) -> None:
        if preset not in PRESETS or split not in SPLIT_NUMBERS:
            raise ConfigError(
                f"preset={preset!r}, split={split!r}: choose a preset of {', '.join(PRESETS)} and "
                f"a split of {', '.join(SPLIT_NUMBERS)}"
            )
        self.arrays, self.preset, self.size = arrays, PRESETS[preset], image_size
        self._entropy = [seed, SPLIT_NUMBERS[split]]
        rng = self._rng(_BANK)
        self._regions = BodyRegions.of(arrays)
        self._backgrounds = BackgroundBank(image_size, rng)
        self._noise = NoiseBank(image_size, rng)

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([*self._entropy, index]))

    def samples(self, indices: Sequence[int]) -> list[SyntheticPerson]:
        """The people with these numbers; they are posed together, which is cheaper."""
        generators = [self._rng(index) for index in indices]
        people = [self._describe(rng) for rng in generators]
        rotmats = np.stack([rotation for rotation, _ in people])
        betas = np.stack([shape for _, shape in people])
        vertices, joints = lbs_numpy(self.arrays, rotmats, betas)
        assert vertices is not None
        landmarks = landmarks_numpy(self.arrays, vertices, joints)
        return [
            self._photograph(*person)
            for person in zip(generators, rotmats, betas, vertices, joints, landmarks, strict=True)
        ]

    def _describe(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rotations (24, 3, 3), joint 0 in the camera frame, and betas (10,)."""
        p = self.preset
        betas = rng.standard_normal(10).clip(-2.5, 2.5)
        rotmats = rodrigues(sample_pose(rng, p.pose_noise).reshape(24, 3))
        rotmats[0] = camera_rotation(
            rng.uniform(-p.yaw, p.yaw), rng.normal(0, p.pitch_sd), rng.normal(0, p.roll_sd)
        )
        return rotmats, betas

    def _photograph(
        self, rng: np.random.Generator, rotmats: np.ndarray, betas: np.ndarray,
        vertices: np.ndarray, joints: np.ndarray, landmarks: np.ndarray,
    ) -> SyntheticPerson:  # fmt: skip
        size = self.size
        focal, transl = self._place(rng, vertices)
        image, mask = self._draw(rng, vertices + transl, focal)
        placed = landmarks.astype(np.float64) + transl
        pixels = focal * placed[:, :2] / placed[:, 2:] + size / 2
        inside = ((pixels >= 0) & (pixels < size)).all(1)
        pose = np.concatenate([cv2.Rodrigues(rotation)[0][:, 0] for rotation in rotmats])
        return SyntheticPerson(
            image=image, mask=mask, pose=pose.astype(np.float32),
            betas=betas.astype(np.float32), transl=transl.astype(np.float32), focal=float(focal),
            joints=joints,
            keypoints_2d=np.column_stack([pixels, inside]).astype(np.float32),
            keypoints_3d=np.column_stack([landmarks, np.ones(len(landmarks))]).astype(np.float32),
        )  # fmt: skip

    def _place(self, rng: np.random.Generator, vertices: np.ndarray) -> tuple[float, np.ndarray]:
        """Focal length and the translation that makes the body fill the picture."""
        p = self.preset
        low, high = vertices.min(0).astype(np.float64), vertices.max(0).astype(np.float64)
        # As labels are stored in float32: a reader projects with the same numbers.
        focal = float(np.float32(self.size * rng.uniform(*p.focal)))
        shown = rng.uniform(*p.padding) * (high - low)[:2].max()
        shift = rng.uniform(-p.shift, p.shift, 2) * shown
        transl = np.array([*shift, focal * shown / self.size]) - (low + high) / 2
        return focal, transl.astype(np.float32).astype(np.float64)

    def _draw(
        self, rng: np.random.Generator, vertices: np.ndarray, focal: float
    ) -> tuple[np.ndarray, np.ndarray]:
        side = self.size * SUPERSAMPLING
        ground = cv2.resize(self._backgrounds.draw(rng), (side, side))
        palette = dressed(self._regions, rng)
        faces = self.arrays.faces
        colors = shade(vertex_normals(vertices, faces), palette, random_light(rng)).clip(0, 1)
        scaled = focal * SUPERSAMPLING
        buffers = rasterize(
            vertices, faces, colors, focal=(scaled, scaled), center=(side / 2, side / 2),
            background=ground,
        )  # fmt: skip
        covered = (buffers.face >= 0).astype(np.float32)
        mask = cv2.resize(covered, (self.size, self.size), interpolation=cv2.INTER_AREA)
        if rng.random() < self.preset.occluder:
            occlude(buffers.color, rng)
        return photographed(buffers.color, self._noise, rng), mask
