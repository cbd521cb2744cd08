"""What generated people and their surroundings look like: clothes, backgrounds, light, the lens.

Everything random comes from the generator that is handed in. Colours are RGB in 0..1.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hmr.body_arrays import BodyArrays
from hmr.raster import Light
from hmr.skeleton import smpl_index

BANK_SIZE = 64
BANK_MARGIN = 64
"""Pixels by which a stored background exceeds the picture that is cut from it."""


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    pixel = np.array([[[hue * 360, saturation, value]]], np.float32)
    color: np.ndarray = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)
    return color


def _cloth(rng: np.random.Generator) -> np.ndarray:
    return _hsv(rng.random(), rng.uniform(0.1, 0.85), rng.uniform(0.12, 0.95))


class BodyRegions(NamedTuple):
    """Where clothes go on a body; masks (V,), and coordinates (V,) along leg and arm: 0 at hip or
    shoulder, 1 at ankle or wrist."""

    head: np.ndarray
    hands: np.ndarray
    feet: np.ndarray
    legs: np.ndarray
    arms: np.ndarray
    torso: np.ndarray
    along_leg: np.ndarray
    along_arm: np.ndarray
    points: np.ndarray
    spine1_y: float
    head_joint: np.ndarray

    @classmethod
    def of(cls, body: BodyArrays) -> BodyRegions:
        """From the rest pose and the skinning weights, so that clothes move with the body."""

        def part(*names: str) -> np.ndarray:
            columns = [smpl_index(name) for name in names]
            mask: np.ndarray = body.lbs_weights[:, columns].sum(1) > 0.5
            return mask

        def sides(*names: str) -> np.ndarray:
            return part(*(f"{side}_{name}" for side in ("left", "right") for name in names))

        J, points = body.rest_joints, body.v_template
        hip, ankle = J[smpl_index("left_hip"), 1], J[smpl_index("left_ankle"), 1]
        shoulder, wrist = J[smpl_index("left_shoulder"), 0], J[smpl_index("left_wrist"), 0]
        head, hands = part("head"), sides("wrist", "hand")
        feet, legs = sides("ankle", "foot"), sides("hip", "knee")
        arms = sides("shoulder", "elbow")
        return cls(
            head, hands, feet, legs, arms, ~(head | hands | feet | legs | arms | part("neck")),
            (hip - points[:, 1]) / (hip - ankle),
            (np.abs(points[:, 0]) - shoulder) / (wrist - shoulder),
            points, float(J[smpl_index("spine1"), 1]), J[smpl_index("head")],
        )  # fmt: skip


def dressed(regions: BodyRegions, rng: np.random.Generator) -> np.ndarray:
    """(V, 3) colours of a person with clothes, hair and shoes."""
    r = regions
    skin = np.array([0.96, 0.78, 0.66]) * rng.uniform(0.32, 1.05)
    skin = skin * [1, rng.uniform(0.92, 1.03), rng.uniform(0.85, 1.05)]
    top, bottom, shoes = (_cloth(rng) for _ in range(3))
    colors = np.tile(skin, (len(r.points), 1))
    belt = r.spine1_y - rng.uniform(0.04, 0.14)
    sleeve = rng.choice([0.0, 0.3, 0.5, 2.0], p=[0.1, 0.35, 0.15, 0.4])
    cover = rng.choice([0.35, 0.55, 2.0], p=[0.25, 0.1, 0.65])
    upper = (r.torso & (r.points[:, 1] > belt)) | (r.arms & (r.along_arm < sleeve))
    lower = (r.torso & (r.points[:, 1] <= belt)) | (r.legs & (r.along_leg < cover))
    colors[upper], colors[lower] = top, bottom
    if rng.random() < 0.25:
        stripes = np.sin(r.points[:, 1] * rng.uniform(40, 140)) > 0
        colors[upper & stripes] = _cloth(rng)
    if rng.random() < 0.85:
        colors[r.feet] = shoes * 0.7
    if rng.random() < 0.92:
        colors[_hair(r)] = np.array([0.35, 0.22, 0.12]) * rng.uniform(0.1, 2.2)
    colors *= 1 + rng.normal(0, 0.015, (len(colors), 1))
    return colors.clip(0, 1)


def _hair(r: BodyRegions) -> np.ndarray:
    y, z = r.points[:, 1], r.points[:, 2]
    line = r.head_joint[1] + 0.115 - 0.35 * np.clip(r.head_joint[2] + 0.02 - z, 0, 0.2)
    hair: np.ndarray = r.head & ((y > line) | (z < r.head_joint[2] - 0.045))
    return hair


def random_light(rng: np.random.Generator) -> Light:
    """From above and from the camera's side."""
    direction = rng.standard_normal(3) * [1, 0.6, 0.5] + [0, -0.8, -0.9]
    direction /= np.linalg.norm(direction)
    return Light(
        (float(direction[0]), float(direction[1]), float(direction[2])), rng.uniform(0.35, 0.7),
        rng.uniform(0.3, 0.8), 0.4, rng.uniform(0, 0.2),
    )  # fmt: skip


class BackgroundBank:
    """Procedural pictures made once; each image shows a piece of one, changed in colour."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.pictures = [_background(size + BANK_MARGIN, rng) for _ in range(BANK_SIZE)]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(S, S, 3) float32."""
        picture = self.pictures[rng.integers(BANK_SIZE)]
        y, x = rng.integers(0, BANK_MARGIN + 1, 2)
        piece = picture[y : y + self.size, x : x + self.size]
        if rng.random() < 0.5:
            piece = piece[:, ::-1]
        if rng.random() < 0.3:
            piece = piece.transpose(1, 0, 2)
        colorful = rng.uniform(0.15, 1)
        mixing = colorful * np.eye(3) + (1 - colorful) / 3
        changed: np.ndarray = piece @ (mixing * rng.uniform(0.6, 1.15)).astype(np.float32)
        return changed.clip(0, 1)


def _background(side: int, rng: np.random.Generator) -> np.ndarray:
    """A colour, smooth and fine noise, often a floor, some shapes; (side, side, 3) float32."""
    picture = np.tile(
        _hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.15, 0.95)), (side, side, 1)
    )
    cells = int(rng.integers(3, 9))
    smooth = rng.standard_normal((cells, cells, 3)) * 0.5 + rng.standard_normal((cells, cells, 1))
    smooth = cv2.resize(smooth, (side, side), interpolation=cv2.INTER_CUBIC)
    picture += 0.18 * rng.uniform(0.1, 0.9) * smooth
    fine = rng.standard_normal((side // 4, side // 4))
    fine = cv2.resize(fine, (side, side), interpolation=cv2.INTER_LINEAR)
    picture += 0.3 * rng.uniform(0, 0.35) * fine[..., None]
    if rng.random() < 0.6:
        line = int(side * rng.uniform(0.45, 0.9))
        floor = _hsv(rng.random(), rng.uniform(0, 0.5), rng.uniform(0.15, 0.95))
        picture[line:] = picture[line:] * rng.uniform(0.3, 0.8) + 0.4 * floor
    picture = np.ascontiguousarray(picture.clip(0, 1), np.float32)
    for _ in range(rng.integers(0, 9)):
        color = [float(c) for c in _hsv(rng.random(), rng.uniform(0, 0.6), rng.uniform(0.1, 0.95))]
        a, b = (tuple(int(v) for v in rng.integers(0, side, 2)) for _ in range(2))
        kind = rng.random()
        if kind < 0.5:
            cv2.rectangle(picture, a, b, color, -1)
        elif kind < 0.8:
            cv2.circle(picture, a, int(rng.integers(side // 20, side // 5)), color, -1)
        else:
            cv2.line(picture, a, b, color, int(rng.integers(1, 6)))
    return picture


def occlude(picture: np.ndarray, rng: np.random.Generator) -> None:
    """A rectangle of one colour somewhere, in place."""
    side = picture.shape[0]
    width, height = rng.integers(side // 12, side // 3 + 1, 2)
    y, x = rng.integers(0, side, 2)
    picture[y : y + height, x : x + width] = _cloth(rng)


class NoiseBank:
    """Normal noise of unit strength, cut at a random place."""

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.size = size
        self.field = rng.standard_normal((size + 128, size + 128, 3)).astype(np.float32)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """(S, S, 3) float32."""
        y, x = rng.integers(0, 129, 2)
        return self.field[y : y + self.size, x : x + self.size]


def photographed(picture: np.ndarray, noise: NoiseBank, rng: np.random.Generator) -> np.ndarray:
    """A supersampled picture in 0..1 as a camera would store it: blur, tone, noise; uint8."""
    size = noise.size
    if rng.random() < 0.3:
        sigma = rng.uniform(0.4, 1.1) * picture.shape[0] / size
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    small = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    toned = np.power(small.clip(0, 1), rng.uniform(0.75, 1.35)) * rng.uniform(0.8, 1.15)
    toned += rng.uniform(0, 0.03) * noise.draw(rng)
    return (255 * toned.clip(0, 1)).round().astype(np.uint8)
