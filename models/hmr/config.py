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


class LossConfig(Section):
    """Weights of the loss terms. Every term is a mean over the samples that carry its label."""

    keypoints_2d: float = Field(5.0, ge=0)
    """Weight of the reprojection error of the 49 joints, crop in [-1, 1]."""
    keypoints_3d: float = Field(5.0, ge=0)
    """Weight of the error of the 49 joints in metres, hips' mid-point at the origin."""
    pose: float = Field(1.0, ge=0)
    """Weight of the squared error of the 24 rotation matrices."""
    betas: float = Field(0.001, ge=0)
    """Weight of the squared error of the shape coefficients."""
    vertices: float = Field(0.0, ge=0)
    """Weight of the L1 error of the vertices in metres; above 0 every vertex is computed."""
    vertices_l2: float = Field(0.0, ge=0)
    """Weight of the squared error of the vertices' coordinates, in square metres."""
    camera: float = Field(1.0, ge=0)
    """Weight of exp(-10 s)^2, which keeps the camera's scale s positive."""
    keypoint_error: Literal["l1", "l2"] = "l2"
    """Error of the keypoint terms: `l2` is SPIN's squared error, `l1` the absolute one."""
    iteration_weights: Literal["final", "all"] = "final"
    """`final` supervises the last step only (SPIN); `all` adds the earlier steps at 1/4 each."""
    scale: float = Field(60.0, gt=0)
    """Factor on the sum of all terms (60 in SPIN)."""


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
        given = {"preset": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or "preset" not in given:
            return given
        if given.keys() >= cls.model_fields.keys():
            raise ValueError(
                f"preset {given['preset']!r} changes nothing, every amount is given as well; leave "
                "one of them out (to search over presets, search `train.augment`, not its preset)"
            )
        return _AUGMENT_PRESETS.get(str(given["preset"]), {}) | given


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
