"""The settings of every job: one frozen class a job, checked before anything starts.

`rayhmr.command_line` reads them from YAML files and `key=value` overrides; `hmr.config` holds the
parts that concern the model alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from hmr.config import BodyConfig, ModelConfig, Section, TrainConfig


def differences(stored: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """What is not the same in two trees of plain settings, in words, by dotted path."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            below = f"{path}.{key}" if path else key
            yield from differences(stored.get(key), wanted.get(key), below)
    elif stored != wanted:
        yield f"{path} is {stored!r} there and {wanted!r} now"


def with_defaults(stored: Any, defaults: Any) -> Any:
    """A tree of plain settings written before some settings existed, with their defaults: what an
    older version did."""
    if not (isinstance(stored, dict) and isinstance(defaults, dict)):
        return stored
    filled = {key: with_defaults(value, defaults.get(key)) for key, value in stored.items()}
    return {key: value for key, value in defaults.items() if key not in stored} | filled


def _of_this_machine(value: str | None) -> str | None:
    """A path that is written with plain files: a URI would become a folder called `s3:`."""
    if value is not None and "://" in value:
        raise ValueError("must be a path of this machine; write there, and copy it to the URI")
    return value


class ClusterConfig(Section):
    """Which Ray cluster a job runs on."""

    address: str = "auto"
    """`auto`: the cluster of RAY_ADDRESS when that is set (a submitted job), else `local`;
    `local`: a cluster on this machine for the length of the job; or host:port."""
    num_cpus: int | None = Field(None, ge=1)
    """Logical CPUs of a local cluster; default: what the job needs, at least the machine's."""
    object_store_mb: int = Field(512, ge=80)
    """Object store of a local cluster, in MB."""
    start_timeout_s: float = Field(300, gt=0)
    """Longest wait for a run's resources before it fails with what is missing."""


class ScalingConfig(Section):
    """How many workers train, and what each of them holds."""

    num_workers: int = Field(2, ge=1)
    """Training processes (data parallel)."""
    use_gpu: bool = False
    """Train on GPUs (and nccl) instead of CPUs (and gloo)."""
    gpus_per_worker: float = Field(1.0, gt=0, le=1)
    """With use_gpu, the share of a GPU that each worker holds; 0.25 lets four trials of a search,
    of one worker each, share one. Ray counts shares; it does not divide the memory."""
    cpus_per_worker: int = Field(1, ge=1)
    """CPUs of each worker. One more whole CPU on each node must stay free for Ray Data."""
    min_workers: int | None = Field(None, ge=1)
    """Go on with as few as this many when the cluster has not more; none: wait for all."""

    @model_validator(mode="after")
    def _range(self) -> ScalingConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers ({self.min_workers}) must not be above num_workers "
                f"({self.num_workers})"
            )
        return self

    @model_validator(mode="after")
    def _shares_of_gpus(self) -> ScalingConfig:
        if self.gpus_per_worker == 1:
            return self
        if not self.use_gpu:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g} without use_gpu=true has no effect; set "
                "use_gpu=true or leave it out"
            )
        if self.num_workers > 1:
            raise ValueError(
                f"gpus_per_worker={self.gpus_per_worker:g} with num_workers={self.num_workers}: "
                "workers of one run cannot share a GPU (nccl refuses it); set num_workers=1 or "
                "gpus_per_worker=1"
            )
        return self

    @property
    def gpus(self) -> float:
        """GPUs of each worker."""
        return self.gpus_per_worker if self.use_gpu else 0.0


class DataConfig(Section):
    """Where training reads from."""

    path: str = "shards"
    """Folder (or URI) that `jobs/prepare.py` wrote; it holds dataset.json."""
    train_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training files that is read; a search needs less than the final run."""
    decode_in: Literal["worker", "tasks"] = "worker"
    """Where JPEG becomes pixels: `worker` sends encoded bytes and decodes in threads of the
    training process; `tasks` decodes in Ray Data, for nodes with few CPUs beside others."""
    lanes: int | None = Field(None, ge=1)
    """Streams whose rows take turns in a batch; part of the data order, and best a multiple of the
    number of workers. None: as many as the run had workers at its first start."""
    record_samples: bool = False
    """Write the sample ids of every step to samples/ in the run's folder, for audits."""
    decode_threads: int = Field(2, ge=1, le=64)
    """Threads of each training worker that decode JPEG."""
    prefetch_batches: int = Field(4, ge=1, le=64)
    """Decoded batches kept ready in each worker."""
    cache: Literal["none", "decoded", "features"] = "none"
    """What the first worker on a node makes once and all runs there share: `decoded` pixels, or
    `features` of a frozen encoder, so that a search over regressors never runs it again."""
    cache_folder: str | None = None
    """Folder on every node for such files; none: one in the folder for temporary files. /dev/shm
    keeps them in memory."""


class SyntheticConfig(Section):
    """Generated people with exact labels."""

    preset: Literal["easy", "medium", "hard"] = "easy"
    """Difficulty: camera range, pose noise, background and occluders."""
    image_size: int = Field(64, ge=32, le=1024)
    """Side of the rendered square crop, in pixels."""
    train: int = Field(16000, ge=1)
    """Images of the training split."""
    val: int = Field(400, ge=1)
    """Images of the validation split."""
    test: int = Field(400, ge=1)
    """Images of the test split."""
    seed: int = Field(0, ge=0)
    """Seed of the whole data set; splits never share a person."""


class FilesConfig(Section):
    """A data set on disk. The row of every person is a square crop around the person's box."""

    labels: str | None = None
    """Label file, or a folder of them; for the source `folder` a CSV of boxes (image, x1, y1, x2,
    y2), or none: then every picture shows one person."""
    images: str | None = None
    """Folder (or URI) below which the labels' picture names lie."""
    split: Literal["train", "val", "test"] = "train"
    """Split to which the people go; `threedpw` and `eth` bring splits of their own."""
    bodies: dict[Literal["female", "male"], str] = Field(default_factory=dict)
    """Body files of women and men, for labels of gendered bodies (`threedpw`, `humandata`)."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the data set in ids and in the column `source`; none: that of its format."""
    crop_size: int = Field(256, ge=32, le=1024)
    """Side of the stored crop, in pixels."""
    padding: float = Field(1.0, ge=1, le=4)
    """Side of the crop over that of the person's box. Models see whole crops: leave it at 1 unless
    what reads the shards cuts the box out again."""


class PrepareJob(Section):
    """jobs/prepare.py: turn a source into person shards."""

    source: Literal[
        "synthetic", "folder", "coco", "spin", "hmr2_eval", "hmr2_tar", "bedlam", "humandata",
        "threedpw", "eth",
    ] = "synthetic"  # fmt: skip
    """What to read: people made here, or data sets in the form of their publishers."""
    output: str = "shards"
    """Folder to write; it must not exist, or hold an unfinished or equal data set."""
    rows_per_file: int = Field(2000, ge=1)
    """Rows of one Parquet file."""
    jpeg_quality: int = Field(92, ge=50, le=100)
    """JPEG quality of the stored crops."""
    max_rejected_fraction: float = Field(0.05, ge=0, le=1)
    """Share of rejected rows above which the job fails, with a table by reason."""
    synthetic: SyntheticConfig = SyntheticConfig()
    files: FilesConfig = FilesConfig()
    body: BodyConfig = BodyConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def image_size(self) -> int:
        """Side of the stored crops."""
        return self.synthetic.image_size if self.source == "synthetic" else self.files.crop_size

    @model_validator(mode="after")
    def _files_are_given(self) -> PrepareJob:
        if self.source == "synthetic":
            return self
        # A folder may have no labels; tars hold their pictures.
        needed = {"folder": ("images",), "hmr2_tar": ("labels",)}
        for name in needed.get(self.source, ("labels", "images")):
            if getattr(self.files, name) is None:
                raise ValueError(f"source={self.source} reads files: set files.{name}")
        return self


class TrainJob(Section):
    """jobs/train.py: train one model with Ray Train over Ray Data."""

    name: str = Field("hmr", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run. The same name with the same settings goes on where it stopped."""
    storage: str = "runs"
    """Folder (or URI) for checkpoints and logs; every node must see it."""
    registry: str = "registry"
    """Folder (or URI) of the model registry."""
    register_as: str | None = None
    """Model name under which the finished run enters the registry; none: it does not."""
    max_failures: int = Field(3, ge=0)
    """How often the run restarts from its last checkpoint after a worker is lost."""
    keep_checkpoints: int = Field(2, ge=1)
    """Epochs kept: so many of the best, and the newest; inside epochs, so many of the newest."""
    select_by: Literal["pa_mpjpe_mm", "mpjpe_mm", "pve_mm"] = "pa_mpjpe_mm"
    """Validation error by which the best epoch is chosen."""
    validate_in: Literal["workers", "task"] = "workers"
    """Where an epoch is validated: `workers` stop training for it; `task` leaves it to a Ray task
    (Ray Train's asynchronous validation) while training goes on."""
    mlflow: str | None = None
    """Tracking URI of MLflow, which then gets settings and metrics; none: no MLflow."""
    encoder_from: str | None = None
    """A trained model whose encoder this one starts from: a bundle folder, or
    registry/name@version, or registry/name@alias; none: a new encoder."""
    data: DataConfig = DataConfig()
    body: BodyConfig = BodyConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    scaling: ScalingConfig = ScalingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _features_stay_as_they_are(self) -> TrainJob:
        if self.data.cache != "features":
            return self
        augment = self.train.augment.model_dump(exclude={"rotation_probability", "occlusion_size"})
        moving = [f"train.augment.{name}={value}" for name, value in augment.items() if value]
        if self.train.pictures_every is not None:
            moving.append(f"train.pictures_every={self.train.pictures_every}")
        if not self.train.freeze_encoder:
            moving.insert(0, "train.freeze_encoder=false")
        if moving:
            raise ValueError(
                f"data.cache=features with {', '.join(moving)}: features are computed once, which "
                "needs a frozen encoder and pictures that do not change, and leaves none to show; "
                "set train.freeze_encoder=true train.augment=none train.pictures_every=null, or "
                "data.cache=decoded"
            )
        return self


class Dimension(Section):
    """One searched setting: either `choice` or `low`/`high`. A range of a setting that takes whole
    numbers alone holds whole numbers; any other value is rounded to four digits."""

    choice: list[float | int | str | bool] | None = Field(None, min_length=1)
    """Values to choose from."""
    low: float | None = None
    """Smallest value of a range."""
    high: float | None = None
    """Largest value of a range."""
    log: bool = False
    """Sample the range's logarithm evenly."""

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        is_range = self.low is not None and self.high is not None
        if (self.choice is None) == (not is_range):
            raise ValueError("give either `choice`, or both `low` and `high`")
        if is_range and not self.low < self.high:  # type: ignore[operator]
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and (self.low is None or self.low <= 0):
            raise ValueError(f"a logarithmic range needs low > 0 (got {self.low})")
        return self


class FinalConfig(Section):
    """What becomes of a study's best trial."""

    retrain: bool = False
    """Train the best settings anew with the full budget; else the trial's own model is kept."""
    epochs: int | None = Field(None, ge=1)
    """Epochs of that training; none: as the trials."""
    train_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training files that it reads."""


class TuneJob(Section):
    """jobs/tune.py: search settings by validation PA-MPJPE."""

    name: str = Field("search", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the study."""
    storage: str = "runs"
    """Folder (or URI) for the study; every node must see it."""
    registry: str = "registry"
    """Folder (or URI) of the model registry."""
    register_as: str | None = "hmr"
    """Model name under which the best trial enters the registry; none: it does not."""
    trials: int | None = Field(6, ge=1)
    """Number of trials, that of the default settings included; more than before extend a study.
    None: the whole grid, for searcher=grid."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; default: what the cluster carries without a deadlock."""
    searcher: Literal["random", "optuna", "grid"] = "optuna"
    """How the next trial's settings are chosen: Optuna's TPE, at random, or all combinations of the
    choices."""
    seed: int = Field(0, ge=0)
    """Seed of the search."""
    scheduler: Literal["asha", "none"] = "asha"
    """`asha` stops weak trials early (asynchronous successive halving); `none` trains all to their
    end."""
    grace_epochs: int = Field(1, ge=1)
    """No trial is stopped before this many epochs (ASHA)."""
    reduction_factor: int = Field(2, ge=2)
    """ASHA goes on with one trial in this many at each rung."""
    compare_default: bool = False
    """The first trial has the settings of `trial` as they are and is trained to its end, to compare
    the best one with."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Searched settings by dotted path inside `trial`, such as model.n_iter."""
    evaluate_iterations: tuple[Annotated[int, Field(ge=1, le=16)], ...] = ()
    """Numbers of steps with which every finished model is also measured, whatever T it was trained
    with."""
    final: FinalConfig = FinalConfig()
    trial: TrainJob = TrainJob()
    """Settings of one trial; `space` overrides them."""
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _grid_is_finite(self) -> TuneJob:
        if self.searcher != "grid":
            if self.trials is None:
                raise ValueError(
                    f"trials: none means the whole grid, but searcher={self.searcher} has no end; "
                    "give a number, or searcher=grid"
                )
            return self
        if ranges := [path for path, dimension in self.space.items() if dimension.choice is None]:
            raise ValueError(
                f"searcher=grid needs a `choice` for every setting, {', '.join(ranges)} has a "
                "range; list its values, or use searcher=optuna or random"
            )
        return self


class EvaluateJob(Section):
    """jobs/evaluate.py: measure a model on held-out people."""

    model: str = "registry/hmr@best"
    """A bundle folder, or registry/name@version, or registry/name@alias."""
    data: str = "shards"
    """Folder that `jobs/prepare.py` wrote."""
    split: Literal["train", "val", "test"] = "test"
    """Split to measure on."""
    protocol: Literal["synthetic", "3dpw", "h36m_p1", "h36m_p2", "mpi_inf_3dhp", "eth"] = (
        "synthetic"
    )
    """Joints, alignment, errors and rows that count, see `hmr.protocols`."""
    truth_bodies: dict[Literal["female", "male"], str] = Field(default_factory=dict)
    """Body file of the labels of women and men, as 3DPW's are; else they use the model's body."""
    output: str | None = None
    """Folder or URI for the table as JSON and CSV; none: only printed."""
    batch_size: int = Field(128, ge=1)
    """Images of one forward pass."""
    body: BodyConfig = BodyConfig()


class PredictOutput(Section):
    """Where predictions go; `output: folder` is a short form of `output: {path: folder}`."""

    path: str = "predictions"
    """Folder or URI for people.parquet, overlays/ and rejected/."""
    format: tuple[
        Literal["parquet", "npz", "amass", "obj", "glb", "coco", "eth_csv"], ...
    ] = ("parquet",)  # fmt: skip
    """What is written beside people.parquet, one or several: `npz` with the field's keys; `amass`,
    a motion for each track, for Blender; `obj` and `glb` meshes; `coco` keypoints; `eth_csv`, which
    predicts the frames of `eth_labels`, the submission of the ETH course project."""
    iterations: bool = False
    """Also the pose, shape and camera of every iteration, as columns of people.parquet."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("format", mode="before")
    @classmethod
    def _one_format(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class TrackConfig(Section):
    """Persons through a video or ordered frames."""

    min_iou: float = Field(0.3, gt=0, lt=1)
    """Least overlap of a box with where its track is expected."""
    max_gap: int = Field(10, ge=0)
    """Frames for which a person may be missing."""
    min_cutoff: float = Field(1.5, gt=0)
    """One-euro filter: cutoff at rest, in Hz; lower is smoother."""
    beta: float = Field(1.0, ge=0)
    """One-euro filter: Hz for each rad/s or m/s; higher follows fast motion more closely."""


class PredictJob(Section):
    """jobs/predict.py: pictures to Parquet and overlays."""

    model: str = "registry/hmr@best"
    """A bundle folder, or registry/name@version, or registry/name@alias."""
    input: str = "images"
    """Folder of images, one image, a pattern such as photos/**/*.jpg, person shards, a video, or a
    list of images with boxes: CSV (image,x1,y1,x2,y2) or JSON lines ({"image", "boxes"})."""
    boxes: str | None = None
    """Such a list for the images, shards or video frames (`<video>#000012`) of `input`; only those
    in the list are predicted. None: every picture shows one person."""
    split: Literal["train", "val", "test"] | None = None
    """For shards: the split; none: all."""
    output: PredictOutput = PredictOutput()
    eth_labels: str | None = None
    """For output.format=eth_csv: folder with the course's S9/<action>.<camera>/<frame>.npz, which
    give each person's box and place; `input` is then the folder of its pictures."""
    overlays: bool = True
    """Also write a JPEG with the mesh over each image."""
    track: bool = False
    """Also follow the people through the frames and smooth their motion: tracks.parquet."""
    tracking: TrackConfig = TrackConfig()
    fps: float | None = Field(None, gt=0)
    """Frames a second, for tracks; none: a video's own, 30 for images."""
    n_iter: int | None = Field(None, ge=1, le=16)
    """Refinement steps; none: the model's own."""
    batch_size: int = Field(32, ge=1)
    """Images of one forward pass."""
    num_actors: int | None = Field(None, ge=1)
    """Processes that hold the model; none: one for each GPU, or for each CPU but one."""
    use_gpu: bool = False
    """One GPU for each of them."""
    body: BodyConfig = BodyConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _labels_are_given(self) -> PredictJob:
        if ("eth_csv" in self.output.format) != (self.eth_labels is not None):
            raise ValueError("output.format=eth_csv and eth_labels go together: set both or none")
        if self.eth_labels is not None and self.boxes is not None:
            raise ValueError("eth_labels give the boxes: leave boxes out")
        return self


class ServeJob(Section):
    """jobs/serve.py: host a model behind HTTP."""

    model: str = "registry/hmr@best"
    """A bundle folder, or registry/name@version, or registry/name@alias."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    num_replicas: int = Field(1, ge=1)
    """Processes that hold the model."""
    max_replicas: int | None = Field(None, ge=1)
    """Up to so many of them while pictures wait; none: always `num_replicas`."""
    scale_up_after_s: float = Field(5, ge=0)
    """Seconds that pictures wait before another process starts."""
    scale_down_after_s: float = Field(60, ge=0)
    """Seconds that fewer would do before one ends."""
    ingress: Literal["direct", "proxy"] = "direct"
    """How requests reach them: `direct` through a process of ours beside them on one node, which
    decodes and batches; `proxy` through Ray Serve's own proxies, on any number of nodes, slower."""
    front_cpus: float = Field(1, ge=0)
    """CPUs of that process; as many pictures, at least 2, are decoded or written at once."""
    num_cpus: float = Field(1, gt=0)
    """CPUs of each replica; also its number of torch threads, at least 1."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of each replica."""
    backend: Literal["torch", "compiled", "onnx"] = "torch"
    """What runs the encoder on CPUs: `onnx` (ONNX Runtime) gives the same numbers faster;
    `compiled` (torch.compile) is faster still with large encoders, in bfloat16 where the CPU has
    it, which costs accuracy, and takes minutes to start."""
    max_batch_size: int = Field(16, ge=1)
    """Most people in one forward pass."""
    max_queued_requests: int = Field(64, ge=1)
    """Waiting requests beyond which the answer is 429."""
    request_timeout_s: float = Field(30, gt=0)
    """Deadline of a request."""
    max_body_mb: float = Field(20, gt=0)
    """Largest request body."""
    api_key_file: str | None = None
    """File with the bearer keys, one a line; RAYHMR_API_KEY works as well. Needed unless host is
    loopback."""
    tls_cert_file: str | None = None
    """PEM file with the certificate's chain, to answer by HTTPS; none: HTTP."""
    tls_key_file: str | None = None
    """PEM file with its private key, without a password."""
    rate_per_s: float | None = Field(None, gt=0)
    """Most requests a second of one key, in each replica; none: any number."""
    max_requests_per_key: int | None = Field(None, ge=1)
    """Most requests of one key under way at once, in each replica; none: as many as of all."""
    inference_protocol: bool = False
    """Also answer under /v2, as the Open Inference Protocol (KServe) has it."""
    models: tuple[str, ...] = ()
    """More models beside `model`, each chosen by a request's `model`: its name, or name@version or
    name@alias, as given here, where several have one name."""
    follow_every_s: float | None = Field(2.0, gt=0)
    """Seconds between two looks at the registry: where an alias has moved, the new version takes
    over once it has proved itself; none: what was found at the start stays."""
    body: BodyConfig = BodyConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> ServeJob:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than num_replicas={self.num_replicas}, "
                "the fewest: raise it, or leave it out"
            )
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file go together: set both or none")
        return self


class PromoteJob(Section):
    """jobs/promote.py: move an alias of the registry; services that follow it change over."""

    model: str = "registry/hmr"
    """Registry and name of the model."""
    version: str = "latest"
    """What the alias moves to: a number, `latest`, another alias, or `previous` for the version
    before the present one."""
    alias: str = "best"
    """The alias."""
    check: bool = True
    """First verify the files' hashes and the model's answer to the golden picture."""
    body: BodyConfig = BodyConfig()

    @field_validator("version", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class DemoJob(Section):
    """jobs/demo.py: the whole platform in a row on synthetic people, on this machine."""

    output: str = "demo"
    """Folder for everything the demo makes; an earlier demo there is replaced."""
    prepare: PrepareJob = PrepareJob()
    """The data; its `output` is a folder inside the demo's."""
    tune: TuneJob = TuneJob()
    """The search over the number of iterations and the loss weights."""
    train: TrainJob = TrainJob()
    """The final training, with the best settings of the search."""
    submit_epochs: int = Field(1, ge=1)
    """Epochs of the same training sent through `ray job submit`."""
    submit_fraction: float = Field(0.25, gt=0, le=1)
    """Share of the training files that the submitted training reads."""
    sheet_people: int = Field(24, ge=1, le=200)
    """People of the test split on the overlay sheet."""
    serve_requests: int = Field(60, ge=1)
    """Requests timed against the service, one at a time."""
    serve_port: int = Field(0, ge=0, le=65535)
    """Port of the service; 0 takes a free one."""
    keep_serving: bool = False
    """Leave the service up after the report, until Ctrl-C."""
    num_cpus: int = Field(4, ge=4)
    """Logical CPUs of the local cluster: two workers, and whole CPUs left for Ray Data."""

    _local = field_validator("output")(_of_this_machine)


class BenchmarkJob(Section):
    """jobs/benchmark.py: speed as ratios, measured in one run."""

    what: tuple[
        Literal["body", "synthetic", "data", "train", "tune", "predict", "serve", "chaos", "scale"],
        ...,
    ] = ("body", "synthetic")  # fmt: skip
    """Measurements to run."""
    rounds: int = Field(7, ge=1)
    """Turns of each candidate; the median counts."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
    chaos_of: Literal["train", "serve"] = "train"
    """For `chaos`: what it happens to, a training or the service; `--serve` is short for the
    latter."""
    kill_for_s: float = Field(60, gt=0)
    """For `chaos` of a training: how long its last scenario kills a worker every 20 s."""
    load_s: float = Field(20, gt=0)
    """For `chaos` of the service: how long each of its scenarios sends requests."""
    encoder: Literal["small", "resnet50"] = "small"
    """For `serve` and `predict`: the model's encoder; small sees 64 pixels, resnet50 224."""
    backend: Literal["torch", "compiled", "onnx"] = "torch"
    """For `serve`: what runs it in our service; the peers run torch."""
    scale_workers: tuple[int, ...] = (1, 8, 64)
    """For `scale`: sizes of the training; each worker is a process of about 100 MB."""
    scale_trials: int = Field(200, ge=1)
    """For `scale`: trials of the search."""


class ClusterCheckJob(Section):
    """jobs/cluster_check.py: ask every node whether it can train."""

    storage: str = "runs"
    """Folder or URI that jobs will write to."""
    scaling: ScalingConfig = ScalingConfig()
    """The workers that training would use, as in jobs/train.py."""
    allreduce_mb: float = Field(64, gt=0)
    """What those workers add up once."""
    timeout_s: float = Field(20, gt=0)
    """Seconds for each answer of a node."""
    cluster: ClusterConfig = ClusterConfig()


class FiguresJob(Section):
    """jobs/figures.py: pipeline, regressor and mesh as PNG and SVG, made with a model."""

    model: str = "registry/hmr@best"
    """A bundle folder, or registry/name@version, or registry/name@alias."""
    image: str | None = None
    """A photo; none: a synthetic person of the test split, whose truth is known."""
    box: tuple[float, float, float, float] | None = None
    """The person in the photo as x1, y1, x2, y2 in pixels; none: the whole photo."""
    output: str = "figures"
    """Folder for pipeline, regressor and mesh, each as .png and .svg."""
    n_iter: int | None = Field(None, ge=1, le=16)
    """Refinement steps; none: the model's own."""
    preset: Literal["easy", "medium", "hard"] = "easy"
    """Difficulty of the synthetic picture."""
    seed: int = Field(0, ge=0)
    """Seed of the synthetic data set."""
    person: int | None = Field(None, ge=0)
    """Number of the synthetic person in the test split; none: of the first 32 the one whose
    PA-MPJPE is the median."""
    body: BodyConfig = BodyConfig()

    @model_validator(mode="after")
    def _box_of_a_photo(self) -> FiguresJob:
        if self.box is not None and self.image is None:
            raise ValueError("box names a person in a photo: set image, or leave box out")
        return self

    _local = field_validator("output")(_of_this_machine)


class BrowseJob(Section):
    """jobs/browse.py: one page to look at a data set, predictions or an evaluation."""

    input: str = "shards"
    """Folder that jobs/prepare.py, jobs/predict.py or jobs/evaluate.py wrote."""
    output: str = "browse.html"
    """The page, one file that needs nothing else."""
    model: str | None = None
    """A model to draw and measure beside the labels of shards, as in EvaluateJob; none: labels
    alone, and for an evaluation the model it measured."""
    measure: tuple[Literal["train", "val", "test"], ...] = ("test",)
    """Splits whose people the model is measured on."""
    data: str | None = None
    """For an evaluation: where its shards are now; none: where they were."""
    images: str | None = None
    """For predictions: where their pictures are now; none: where they were."""
    sheet: int = Field(200, ge=1, le=5000)
    """People drawn as a sample; findings add their own."""
    worst: int = Field(50, ge=0, le=500)
    """People with the largest errors who are shown with all views."""
    side: int = Field(176, ge=64, le=512)
    """Side of the pictures, in pixels."""
    seed: int = Field(0, ge=0)
    """Seed of the sample."""
    batch_size: int = Field(128, ge=1)
    """Images of one forward pass."""
    body: BodyConfig = BodyConfig()

    _local = field_validator("output")(_of_this_machine)
