"""What is known when an answer is written: the model's facts, the request, what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hmr.body_arrays import BodyArrays
from hmr.camera import default_focal
from hmr.crops import decode_image
from hmr.predictor import Predictor
from hmr.render import PERSON_COLORS
from hmr.skeleton import SMPL_JOINT_NAMES, SMPL_PARENTS
from rayhmr.serve.inference import Camera, Recovery, Work
from rayhmr.serve.schema import Options


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """The served model, as answers and `/v1/models` show it."""

    name: str
    version: str
    aliases: tuple[str, ...]
    body: BodyArrays
    body_hash: str
    input_size: int
    n_iter: int
    metrics: dict[str, Any]

    @classmethod
    def of(
        cls, predictor: Predictor, *, name: str, version: str, aliases: tuple[str, ...] = ()
    ) -> ModelInfo:
        """What there is to say about a loaded model."""
        arrays = predictor.body.arrays
        return cls(
            name=name, version=version, aliases=aliases, body=arrays,
            body_hash=arrays.content_hash(), input_size=predictor.image_size,
            n_iter=predictor.n_iter, metrics=predictor.info.get("metrics", {}),
        )  # fmt: skip

    @property
    def body_model(self) -> str:
        """Name and short hash of the body that the parameters belong to."""
        return f"{self.body.name}@{self.body_hash[:12]}"

    @property
    def references(self) -> tuple[str, ...]:
        """What requests may call it: name, name@version, name@alias."""
        if "@" in self.name:  # one of several versions of a name
            return (self.name,)
        ends = ("", f"@{self.version}", *(f"@{alias}" for alias in self.aliases))
        return tuple(self.name + end for end in ends)

    @property
    def faces(self) -> bytes:
        """Triangles as little-endian u32."""
        return self.body.faces.astype("<u4").tobytes()

    def as_json(self) -> dict[str, Any]:
        """The answer of `/v1/models/{name}`."""
        return {
            "name": self.name,
            "version": self.version,
            "aliases": list(self.aliases),
            "body": {
                "name": self.body.name,
                "hash": self.body_hash,
                "vertices": len(self.body.v_template),
                "faces": len(self.body.faces),
            },
            "input_size": self.input_size,
            "n_iter": self.n_iter,
            "joint_set": "smpl24",
            "joint_names": list(SMPL_JOINT_NAMES),
            "parents": list(SMPL_PARENTS),
            "person_colors": np.asarray(PERSON_COLORS, np.float64).tolist(),
            "metrics": self.metrics,
            # The hash lets caches keep the triangles for ever.
            "faces_url": f"v1/models/{self.name}/faces?body={self.body_hash[:12]}",
        }


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A request and what came of it.

    timing_ms: decode, queue, model, post. content: the picture as it was sent, where `work` holds
    fewer than all of its pixels.
    """

    request_id: str
    info: ModelInfo
    options: Options
    work: Work
    exif_rotated: bool
    recovery: Recovery
    timing_ms: dict[str, float]
    content: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return self.work.frame.size

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: all pixels of the upright image; decodes it when need be."""
        return self.work.frame.pixels if self.content is None else decode_image(self.content)

    @property
    def camera(self) -> Camera:
        """The request's, or the assumed one."""
        width, height = self.size
        focal = default_focal(width, height)
        assumed = Camera(fx=focal, fy=focal, cx=width / 2, cy=height / 2)
        return self.work.camera or assumed

    @property
    def meshes(self) -> list[np.ndarray]:
        """(V, 3) of every person, metres, camera frame."""
        return [recovered.vertices for recovered in self.recovery.people]
