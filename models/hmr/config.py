"""What can be set about a model and its training: frozen, checked, with units.

Every class refuses unknown keys and values out of range; the docstring under a field is its help
text. `rayhmr.config` adds the settings of the platform and reads the YAML files.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of every configuration class."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )


def _with_preset(
    section: type[Section], presets: dict[str, dict[str, Any]], value: Any, path: str
) -> Any:
    """The given settings over those of the preset they name. path: the section's, for errors."""
    given = {"preset": value} if isinstance(value, str) else value
    if not isinstance(given, dict) or "preset" not in given:
        return given
    if given.keys() >= section.model_fields.keys():
        raise ValueError(
            f"preset {given['preset']!r} changes nothing, every amount is given as well; leave one "
            f"of them out (to search over presets, search `{path}`, not its preset)"
        )
    return presets.get(str(given["preset"]), {}) | given


class BodyConfig(Section):
    """Which body mesh. `body: embedded` and `body: path/to/body.npz` are short forms."""

    path: str = "embedded"
    """`embedded` for the built-in body, or a plain .npz with SMPL arrays."""
    backend: Literal["native", "smplx"] = "native"
    """`native` is our layer; `smplx` runs the reference package (non-commercial licence)."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class ModelConfig(Section):
    """Encoder and iterative regressor."""

    encoder: str = "small"
    """`small` (keeps the spatial grid, for CPUs) or a torchvision classification model by name,
    such as resnet50."""
    encoder_width: int = Field(24, ge=4, le=512)
    """Channels of the first stage of the `small` encoder; torchvision encoders ignore it."""
    pretrained: bool = False
    """Start a torchvision encoder from its ImageNet weights (they must be on this machine)."""
    image_size: int = Field(64, ge=32, le=1024)
    """Side of the square input crop, in pixels."""
    n_iter: int = Field(3, ge=1, le=16)
    """Number of refinement steps T of the iterative regressor."""
    hidden: int = Field(512, ge=16, le=8192)
    """Width of the two hidden layers of the regressor."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout probability after each hidden layer."""
    activation: bool = False
    """ReLU after the hidden layers. SPIN has none; leave it off for SPIN's weights."""
    regressor: Literal["rot6d", "axis_angle"] = "rot6d"
    """`rot6d` is SPIN's; `axis_angle`, without a camera, is there to run the course's weights."""
    mean_params: str | None = None
    """A smpl_mean_params.npz as the regressor's start; default: upright rest pose."""


# The weights of published losses as far as our terms go: 49 joints in the crop's frame, 3D ones
# from the hips' mid-point, each term a mean over the people who carry its label, no adversary.
_SPIN_LOSS: dict[str, Any] = {
    "keypoints_2d": 5.0, "keypoints_3d": 5.0, "pose": 1.0, "pose_root": True, "betas": 0.001,
    "v2v_l1": 0.0, "v2v_l2": 0.0, "camera": 1.0, "keypoint_error": "l2",
    "iteration_weights": "final", "scale": 60.0,
}  # fmt: skip
_LOSS_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # Its 3D mean runs over the 24 ground-truth joints, ours over all 49: labels of those 24 alone
    # weigh 24/49 of SPIN's. Its 2D mean runs over the 49, but without OpenPose's by default.
    "spin": _SPIN_LOSS,
    # BEDLAM-HMR, whose 2D error is that of the crop (BEDLAM-CLIFF's is that of the full frame). Its
    # 3D joints are SMPL's 24, not centred; the origin of our labels means nothing, so ours are.
    "bedlam": _SPIN_LOSS | {"v2v_l1": 1.0, "pose_root": False},
    # The course's final model: the vertices alone, with the true translation given. That trains no
    # camera; with a camera to predict, add keypoints_2d and camera (as jobs/configs/final.yaml).
    "eth": _SPIN_LOSS | {
        "keypoints_2d": 0.0, "keypoints_3d": 0.0, "pose": 0.0, "betas": 0.0, "camera": 0.0,
        "v2v_l1": 1.0, "v2v_l2": 1.0, "scale": 1.0,
    },
    # HMR2 sums over people and numbers: 0.01 a 2D and 0.05 a 3D coordinate, 0.001 a matrix entry,
    # 0.0005 a shape coefficient. A person's sum is our mean times how many numbers it is over:
    # 0.05 x 49 x 3, 0.001 x 24 x 9, 0.0005 x 10, and 0.01 x 49 x 2 / 2, as its crop spans 1 and
    # ours 2. Left out: the sum over people, a factor which AdamW would not notice, the adversary
    # (0.0005), and betas of zero as labels of people without any. Its 3D origin is MPII's pelvis,
    # and it has no camera term.
    "hmr2-like": _SPIN_LOSS | {
        "keypoints_2d": 0.49, "keypoints_3d": 7.35, "pose": 0.216, "betas": 0.005, "camera": 0.0,
        "keypoint_error": "l1", "scale": 1.0,
    },
}  # fmt: skip


class LossConfig(Section):
    """Weights of the loss terms. Every term is a mean over the people who carry its label.
    `losses: spin` is a short form of `losses: {preset: spin}`."""

    # Not written out, as in AugmentConfig.
    preset: Literal["default", "spin", "bedlam", "eth", "hmr2-like"] = Field(
        "default", exclude=True
    )
    """Where the numbers below start: `default` as written here, or a published loss (SPIN's,
    BEDLAM-HMR's, the ETH course's, HMR2's without its adversary); numbers that are given win."""
    keypoints_2d: float = Field(5.0, ge=0)
    """Weight of the reprojection error of the 49 joints, crop in [-1, 1]."""
    keypoints_3d: float = Field(5.0, ge=0)
    """Weight of the error of the 49 joints in metres, hips' mid-point at the origin."""
    pose: float = Field(1.0, ge=0)
    """Weight of the squared error of the 24 rotation matrices."""
    pose_root: bool = True
    """Whether `pose` counts the root's rotation; without it, the mean is over 23 matrices and only
    joints and vertices tell which way a person faces."""
    betas: float = Field(0.001, ge=0)
    """Weight of the squared error of the shape coefficients."""
    v2v_l1: float = Field(0.0, ge=0)
    """Weight of the L1 error of the vertices' coordinates, in metres; above 0 every vertex of the
    last step is computed."""
    v2v_l2: float = Field(0.0, ge=0)
    """Weight of the squared error of the vertices' coordinates, in square metres; as above."""
    camera: float = Field(1.0, ge=0)
    """Weight of exp(-10 s)^2, which keeps the camera's scale s positive."""
    keypoint_error: Literal["l1", "l2"] = "l2"
    """Error of the keypoint terms: `l2` is SPIN's squared error, `l1` the absolute one."""
    iteration_weights: Literal["final", "all"] = "final"
    """`final` supervises the last step only (SPIN); `all` every step, vertices excepted."""
    discount: float = Field(0.5, gt=0, le=1)
    """With `all`, step t of T weighs discount^(T - t): the last one 1, the one before it this."""
    scale: float = Field(60.0, gt=0)
    """Factor on the sum of all terms (60 in SPIN)."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        return _with_preset(cls, _LOSS_PRESETS, value, "train.losses")


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(5.0e-5, gt=0, le=1)
    """Peak learning rate."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Literal["constant", "cosine", "step"] = "constant"
    """`cosine` falls to 2 % of the peak at the last step; `step` falls at the `milestones`."""
    milestones: tuple[float, ...] = (0.7, 0.9)
    """Shares of the run after which the rate of the `step` schedule falls."""
    milestone_factor: float = Field(0.1, gt=0, lt=1)
    """What the rate is multiplied by at each milestone."""
    encoder_lr_factor: float = Field(1.0, gt=0, le=100)
    """Learning rate of the encoder over that of the regressor."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises linearly from zero."""
    grad_clip: float | None = Field(None, gt=0)
    """Largest allowed norm of the gradient; none: no clipping."""


# SPIN's published settings, and HMR2's without its crops to single body parts.
_AUGMENT_PRESETS: dict[str, dict[str, float]] = {
    "default": {},
    "none": {"flip": 0.0, "channel_noise": 0.0},
    "spin": {
        "flip": 0.5, "channel_noise": 0.4, "rotation": 30.0, "rotation_probability": 0.4,
        "scale": 0.25, "translation": 0.0,
    },
    "hmr2": {
        "flip": 0.5, "channel_noise": 0.2, "rotation": 30.0, "rotation_probability": 0.6,
        "scale": 0.3, "translation": 0.02,
    },
}  # fmt: skip


class AugmentConfig(Section):
    """Random changes of training batches, made on the training device. `augment: spin` is a short
    form of `augment: {preset: spin}`."""

    # Not written out: the numbers stand in its place, so a stored run says what it did.
    preset: Literal["default", "none", "spin", "hmr2"] = Field("default", exclude=True)
    """Where the amounts below start: `default` as written here, `none` no change at all, `spin`
    and `hmr2` those papers' training; amounts that are given win."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    channel_noise: float = Field(0.4, ge=0, le=1)
    """Each colour channel is multiplied by a number in 1 +- this (SPIN: 0.4)."""
    rotation: float = Field(0.0, ge=0, le=90)
    """Turn in the picture's plane: standard deviation in degrees, cut at twice this."""
    rotation_probability: float = Field(1.0, ge=0, le=1)
    """Share of people that are turned at all."""
    scale: float = Field(0.0, ge=0, le=0.5)
    """Zoom: the crop's side times 1 +- this, normal with this deviation and cut there."""
    translation: float = Field(0.0, ge=0, le=0.5)
    """Shift to the sides, and up or down, as a share of the crop's side, normal and cut alike."""
    colour: float = Field(0.0, ge=0, le=1)
    """Brightness, contrast and saturation are each multiplied by a number in 1 +- this."""
    occlusion: float = Field(0.0, ge=0, le=1)
    """Probability of a box of one colour before the person."""
    occlusion_size: float = Field(0.4, gt=0, le=1)
    """Largest side of that box as a share of the crop's side."""

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, value: Any) -> Any:
        return _with_preset(cls, _AUGMENT_PRESETS, value, "train.augment")


class TrainConfig(Section):
    """The training loop; an epoch is one pass over the training split."""

    epochs: int = Field(10, ge=1)
    """Passes over the training split."""
    batch_size: int = Field(64, ge=1)
    """Most samples of one optimizer step, over all workers together. An epoch's samples are dealt
    out evenly over its steps, so that none is left out and no step is much smaller."""
    seed: int = Field(0, ge=0)
    """Seed of initial weights, data order and augmentation."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """`bfloat16` runs encoder and regressor under autocast; losses stay in float32. `auto`:
    bfloat16 where the device computes in it, else float32."""
    accumulate: int = Field(1, ge=1)
    """Parts in which a worker computes its share of a batch, one after the other, to save memory;
    the result is that of the whole batch (batch norm sees the parts)."""
    freeze_encoder: bool = False
    """Leave the encoder as it is, its batch norms' statistics included."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Validate and keep an exponential moving average of the weights with this decay a step."""
    compile: bool = False
    """Compile encoder and regressor with torch.compile; the first steps take longer."""
    deterministic: bool = False
    """On GPUs, only algorithms that give the same bits every time, some of which are slower. CPUs
    always do."""
    save_every: int | None = Field(None, ge=1)
    """Optimizer steps between two checkpoints inside an epoch; none: only at the ends of epochs.
    The step does not wait for the writing."""
    max_skipped: int = Field(10, ge=1)
    """Steps in a row without a finite gradient before the run stops and names their samples."""
    hang_timeout_s: float = Field(600.0, gt=0)
    """A worker that makes no step for this long is ended, and the run restarts."""
    pictures_every: int | None = Field(None, ge=1)
    """Optimizer steps between two pictures of the same validation people, with the true and the
    predicted mesh; none: no pictures."""
    log_every: int = Field(20, ge=1)
    """Optimizer steps between two progress lines."""
    threads: int = Field(1, ge=1)
    """CPU threads of one worker."""
    optimizer: OptimizerConfig = OptimizerConfig()
    losses: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
