"""One recovery, four forms: JSON, GLB, npz, and the overlay as PNG."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from hmr.body_arrays import BodyArrays
from hmr.camera import default_focal
from hmr.mesh_files import glb_bytes
from hmr.predictor import Predictor
from hmr.render import PERSON_COLORS, overlay
from hmr.skeleton import SMPL_JOINT_NAMES, SMPL_PARENTS
from rayhmr.serve.inference import Camera, Recovered, Recovery, Step, Work
from rayhmr.serve.problems import Problem
from rayhmr.serve.schema import Options

JSON, GLB, NPZ, PNG = "application/json", "model/gltf-binary", "application/x-npz", "image/png"
MEDIA_TYPES = (JSON, GLB, NPZ, PNG)


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
    """A request and what came of it. timing_ms: decode, queue, model, post."""

    request_id: str
    info: ModelInfo
    options: Options
    work: Work
    exif_rotated: bool
    recovery: Recovery
    timing_ms: dict[str, float]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        height, width = self.work.image.shape[:2]
        return width, height

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


def negotiate(accept: str | None) -> str:
    """The form that an Accept header prefers; Problem 406 when it allows none of ours."""
    best, best_quality = "", 0.0
    for part in (accept or "*/*").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = _quality(parameters)
        offered = next((media for media in MEDIA_TYPES if _matches(kind, media)), None)
        if offered is not None and quality > best_quality:
            best, best_quality = offered, quality
    if not best:
        raise Problem(
            406, "not_acceptable", f"accept {accept:.80}: ask for one of {', '.join(MEDIA_TYPES)}"
        )
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _matches(pattern: str, media: str) -> bool:
    family = media.partition("/")[0]
    return pattern in (media, f"{family}/*", "*/*")


def write(answered: Answered, media: str) -> bytes:
    """The body of the answer in one of MEDIA_TYPES."""
    writers: dict[str, Callable[[Answered], bytes]] = {
        JSON: _json, GLB: _glb, NPZ: _npz, PNG: _png,
    }  # fmt: skip
    return writers[media](answered)


def _glb(answered: Answered) -> bytes:
    return glb_bytes(answered.meshes, answered.info.body.faces)


def _png(answered: Answered) -> bytes:
    camera = answered.camera
    picture = overlay(
        answered.work.image, answered.meshes, answered.info.body.faces,
        (camera.fx, camera.fy), (camera.cx, camera.cy),
    )  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _npz(answered: Answered) -> bytes:
    """The names of the JSON form, and poses and trans as AMASS has them; N people a row."""
    people = [recovered.person for recovered in answered.recovery.people]
    arrays = answered.info.body
    shapes = {
        "box_xyxy": (4,), "global_orient": (3,), "body_pose": (69,), "betas": (10,),
        "cam_t": (3,), "joints_3d": (24, 3), "joints_2d": (24, 2),
    }  # fmt: skip
    columns = {
        name: np.array([getattr(person, name) for person in people], np.float32).reshape(-1, *shape)
        for name, shape in shapes.items()
    }
    columns["weak_cam"] = np.array([p.pred_cam for p in people], np.float32).reshape(-1, 3)
    columns["vertices"] = np.array(answered.meshes, np.float32).reshape(
        -1, *arrays.v_template.shape
    )
    columns["poses"] = np.concatenate([columns["global_orient"], columns["body_pose"]], axis=1)
    columns["trans"] = columns["cam_t"]
    camera = answered.camera
    facts = {
        "faces": arrays.faces.astype(np.int32),
        "camera": np.array([camera.fx, camera.fy, camera.cx, camera.cy]),
        "image_size": np.array(answered.size),
        "joint_names": np.array(SMPL_JOINT_NAMES),
        "body_model": np.array(answered.info.body_model),
        "axes": np.array("opencv"),
        "units": np.array("m"),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **columns, **facts)  # type: ignore[arg-type]  # stub lacks **kwargs
    return buffer.getvalue()


def _json(answered: Answered) -> bytes:
    width, height = answered.size
    camera = answered.camera
    source = "assumed" if answered.work.camera is None else "request"
    content = {
        "request_id": answered.request_id,
        "model": {"name": answered.info.name, "version": answered.info.version},
        "timing_ms": {name: round(value, 3) for name, value in answered.timing_ms.items()},
        "image": {"width": width, "height": height, "exif_rotated": answered.exif_rotated},
        "camera": {"model": "pinhole", "fx": camera.fx, "fy": camera.fy, "cx": camera.cx,
                   "cy": camera.cy, "source": source},
        "units": "m",
        "axes": "opencv",
        "people": [
            _person(answered, number, recovered)
            for number, recovered in enumerate(answered.recovery.people)
        ],
        "warnings": _warnings(answered),
    }  # fmt: skip
    try:
        return json.dumps(content, allow_nan=False).encode()
    except ValueError as error:
        raise Problem(
            500, "model_nonfinite", "the model's numbers are not finite; try another picture"
        ) from error


def _warnings(answered: Answered) -> list[str]:
    warnings = []
    if answered.work.boxes is None:
        warnings.append("no box given: the whole image was used as one person's square")
    elif not answered.recovery.people:
        warnings.append("boxes is empty: nobody was looked for")
    if answered.work.camera is None:
        warnings.append("no camera given: the focal length is assumed, so depth is a convention")
    return warnings


def _person(answered: Answered, number: int, recovered: Recovered) -> dict[str, Any]:
    person = recovered.person
    parameters = {
        "global_orient": person.global_orient, "body_pose": person.body_pose, "betas": person.betas,
    }  # fmt: skip
    content: dict[str, Any] = {
        "id": number,
        "box_xyxy": _plain(person.box_xyxy),
        "box_source": "full_image" if answered.work.boxes is None else "request",
        "smpl": _smpl(answered.info, parameters),
        "cam_t": _plain(person.cam_t),
        "weak_cam": _plain(person.pred_cam),
        "joint_set": "smpl24",
        "joint_names": list(SMPL_JOINT_NAMES),
        "joints_3d": _plain(person.joints_3d),
        "joints_2d": _plain(person.joints_2d),
    }
    if "vertices" in answered.options.include:
        content["vertices"] = _encoded(recovered.vertices)
    if "iterations" in answered.options.include:
        content["iterations"] = [
            _step(answered.info, step, entry) for step, entry in enumerate(recovered.steps)
        ]
    return content


def _step(info: ModelInfo, number: int, step: Step) -> dict[str, Any]:
    content = {
        "step": number,
        "smpl": _smpl(info, step.parameters),
        "cam_t": _plain(step.cam_t),
        "weak_cam": _plain(step.parameters["pred_cam"]),
    }
    return content if step.vertices is None else content | {"vertices": _encoded(step.vertices)}


def _smpl(info: ModelInfo, parameters: dict[str, np.ndarray]) -> dict[str, Any]:
    names = ("global_orient", "body_pose", "betas")
    numbers = {name: _plain(parameters[name]) for name in names}
    return {"body_model": info.body_model, "rotation": "axis_angle"} | numbers


def _plain(array: np.ndarray) -> Any:
    """Nested lists with the shortest decimals that give the float32 numbers back."""
    if array.ndim > 1:
        return [_plain(row) for row in array]
    return [float(str(value)) for value in array.astype(np.float32)]


def _encoded(array: np.ndarray) -> dict[str, Any]:
    if not np.isfinite(array).all():
        raise Problem(
            500, "model_nonfinite", "the model's vertices are not finite; try another picture"
        )
    data = base64.b64encode(array.astype("<f4").tobytes()).decode()
    return {"dtype": "f4", "shape": list(array.shape), "encoding": "base64", "data": data}
