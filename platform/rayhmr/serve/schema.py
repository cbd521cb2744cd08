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
MAX_PIXEL = 1e6
"""Of a camera's numbers; larger ones leave what float32 can hold once they are multiplied."""
MAX_IMAGES = 32
"""Pictures of one batch request."""
MAX_BATCH_PEOPLE = 128
"""Boxes of all its pictures together."""
INCLUDABLE = ("vertices", "iterations", "overlay")
Includable = Literal["vertices", "iterations", "overlay"]

Vector3 = Annotated[list[FiniteFloat], Field(min_length=3, max_length=3)]
Box = Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class CameraOption(_Section):
    """Pinhole camera, in pixels of the full upright image."""

    fx: float = Field(ge=1, le=MAX_PIXEL)
    """Horizontal focal length."""
    fy: float = Field(ge=1, le=MAX_PIXEL)
    """Vertical focal length."""
    cx: float = Field(ge=-MAX_PIXEL, le=MAX_PIXEL)
    """Principal point, horizontal."""
    cy: float = Field(ge=-MAX_PIXEL, le=MAX_PIXEL)
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
    include: list[Includable] = Field(default_factory=list)
    """More to answer with, with a comma between: `vertices`, `iterations` (every step of the
    refinement), `overlay` (the picture with the meshes over it, as PNG)."""
    model: str | None = None
    """The model that must answer: name, name@version or name@alias."""


class BatchOptions(_Section):
    """What may be asked for besides the images. Lists have one entry for each image."""

    boxes: list[Annotated[list[Box], Field(max_length=MAX_PEOPLE)] | None] | None = Field(
        None, max_length=MAX_IMAGES
    )
    """For each image the boxes of its people, x1, y1, x2, y2 in pixels of the upright image; null:
    the whole image is one person."""
    camera: CameraOption | list[CameraOption | None] | None = None
    """The camera of all images, or one for each; null: a focal length is assumed."""
    n_iter: int | None = Field(None, ge=1, le=MAX_ITERATIONS)
    """Refinement steps instead of the model's own number."""
    include: list[Includable] = Field(default_factory=list)
    """More to answer with; `vertices` and `iterations` together only image by image, at
    /v1/predict."""
    model: str | None = None
    """The model that must answer: name, name@version or name@alias."""
    files: Literal["json", "glb", "npz", "png"] = "npz"
    """With Accept: application/zip, the form of the file for each image."""


class Base64Image(_Section):
    """An encoded image inside JSON."""

    b64: str = Field(json_schema_extra={"format": "byte"})
    """The file's content in base64."""


class PredictBody(Options):
    """The JSON form of a request."""

    image: Base64Image


class PredictBatchBody(BatchOptions):
    """The JSON form of a batch request."""

    images: list[Base64Image] = Field(min_length=1, max_length=MAX_IMAGES)


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


class EncodedFile(_Section):
    media_type: Literal["image/png"]
    encoding: Literal["base64"]
    data: str


class Conventions(_Section):
    """How to read the numbers."""

    axes: str
    joints_3d: str
    pixels: str


class PredictAnswer(_Section):
    """The people of one image, in the order of the boxes."""

    request_id: str
    model: ModelName
    timing_ms: Timing
    image: ImageFacts
    camera: CameraAnswer
    units: Literal["m"]
    axes: Literal["opencv"]
    conventions: Conventions
    people: list[PersonAnswer]
    warnings: list[str]
    overlay: EncodedFile | None = None
    """With include=overlay."""


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


class BatchItem(_Section):
    """What one image came to: `result` when status is 200, else `problem`."""

    index: int
    status: int
    result: PredictAnswer | None = None
    problem: ProblemAnswer | None = None


class BatchAnswer(_Section):
    """The images in the order they were sent. The answer's own status is 207 when one failed."""

    request_id: str
    model: ModelName
    failed: int
    """Images that have a problem instead of a result."""
    items: list[BatchItem]


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


class RolloutAnswer(_Section):
    """A version that an alias points at and that does not answer: it starts, or was refused."""

    model: str
    serving: str
    """The version that answers meanwhile."""
    wanted: str
    state: Literal["starting", "refused"]
    reason: str | None = None
    """Why it was refused."""


class ModelsAnswer(_Section):
    models: list[ModelAnswer]
    rollouts: list[RolloutAnswer]


class HealthAnswer(_Section):
    status: Literal["live", "ready", "not ready"]
