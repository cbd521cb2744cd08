"""The shapes of requests and answers: checks what comes in and describes the API in OpenAPI.

Answers are plain dictionaries (`answers` builds them): validating 7000 vertices as lists of numbers
costs more than a forward pass. The tests hold them against these classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from hmr.predictor import MAX_ITERATIONS

MAX_PEOPLE = 32
"""Boxes of one request."""
INCLUDABLE = ("vertices", "iterations")

Vector3 = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
Box = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class CameraOption(_Section):
    """Pinhole camera, in pixels of the full upright image."""

    fx: float = Field(gt=0, allow_inf_nan=False)
    """Horizontal focal length."""
    fy: float = Field(gt=0, allow_inf_nan=False)
    """Vertical focal length."""
    cx: FiniteFloat
    """Principal point, horizontal."""
    cy: FiniteFloat
    """Principal point, vertical."""


class Options(_Section):
    """What may be asked for besides the image, as query, form fields or JSON keys."""

    boxes: list[Box] | None = Field(None, max_length=MAX_PEOPLE)
    """One x1, y1, x2, y2 for each person, in pixels of the upright image; none: the whole image is
    one person."""
    camera: CameraOption | None = None
    """The camera; without it a focal length is assumed."""
    n_iter: int | None = Field(None, ge=1, le=MAX_ITERATIONS)
    """Refinement steps instead of the model's own number."""
    include: list[Literal["vertices", "iterations"]] = Field(default_factory=list)
    """More to answer with: `vertices`, `iterations`, or both, with a comma between."""
    model: str | None = None
    """The model that must answer: name, name@version or name@alias."""


class Base64Image(_Section):
    """An encoded image inside JSON."""

    b64: str
    """The file's content in base64."""


class PredictBody(Options):
    """The JSON form of a request."""

    image: Base64Image


class EncodedArray(_Section):
    """A little-endian array in base64."""

    dtype: Literal["f4"]
    shape: list[int]
    encoding: Literal["base64"]
    data: str


class ModelName(_Section):
    name: str
    version: str


class Timing(_Section):
    """Milliseconds."""

    decode: float
    queue: float
    model: float
    post: float


class ImageFacts(_Section):
    width: int
    height: int
    exif_rotated: bool
    """The picture was turned upright; all pixels refer to the upright one."""


class CameraAnswer(_Section):
    """With an assumed focal length, depth is a convention and not a measurement."""

    model: Literal["pinhole"]
    fx: float
    fy: float
    cx: float
    cy: float
    source: Literal["request", "assumed"]


class SmplParameters(_Section):
    """Axis-angle rotations, joint 0 in the camera frame, and shape."""

    body_model: str
    """Name and hash of the body that the parameters belong to."""
    rotation: Literal["axis_angle"]
    global_orient: Vector3
    body_pose: Annotated[list[float], Field(min_length=69, max_length=69)]
    betas: Annotated[list[float], Field(min_length=10, max_length=10)]


class IterationAnswer(_Section):
    """The estimate after `step` refinement steps; step 0 is the start."""

    step: int
    smpl: SmplParameters
    cam_t: Vector3
    weak_cam: Vector3
    vertices: EncodedArray | None = None


class PersonAnswer(_Section):
    """One person; lengths in metres, axes OpenCV's."""

    id: int
    box_xyxy: Box
    box_source: Literal["request", "full_image"]
    smpl: SmplParameters
    cam_t: Vector3
    """Add it to joints_3d to place them before the camera."""
    weak_cam: Vector3
    """s, tx, ty of the square crop."""
    joint_set: Literal["smpl24"]
    joint_names: list[str]
    joints_3d: list[Vector3]
    joints_2d: list[Annotated[list[float], Field(min_length=2, max_length=2)]]
    """Pixels of the full upright image."""
    vertices: EncodedArray | None = None
    """With include=vertices: camera frame, cam_t added."""
    iterations: list[IterationAnswer] | None = None
    """With include=iterations."""


class PredictAnswer(_Section):
    """The people of one image, in the order of the boxes."""

    request_id: str
    model: ModelName
    timing_ms: Timing
    image: ImageFacts
    camera: CameraAnswer
    units: Literal["m"]
    axes: Literal["opencv"]
    people: list[PersonAnswer]
    warnings: list[str]


class FieldError(_Section):
    loc: list[str | int]
    msg: str


class ProblemAnswer(_Section):
    """Every error: value, rule and cure stand in `detail`."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError]
    request_id: str


class BodyFacts(_Section):
    name: str
    hash: str
    vertices: int
    faces: int


class ModelAnswer(_Section):
    """The served model."""

    name: str
    version: str
    aliases: list[str]
    body: BodyFacts
    input_size: int
    n_iter: int
    joint_set: Literal["smpl24"]
    joint_names: list[str]
    parents: list[int]
    person_colors: list[Vector3]
    metrics: dict[str, Any]
    faces_url: str


class ModelsAnswer(_Section):
    models: list[ModelAnswer]


class HealthAnswer(_Section):
    status: Literal["live", "ready", "not ready"]
