"""The settings of every job: one frozen class a job, checked before anything starts.

`rayhmr.command_line` reads them from YAML files and `key=value` overrides; `hmr.config` holds the
parts that concern the model alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, model_validator

from hmr.config import BodyConfig, ModelConfig, Section, TrainConfig


def differences(stored: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """What is not the same in two trees of plain settings, in words, by dotted path."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in sorted(stored.keys() | wanted.keys()):
            below = f"{path}.{key}" if path else key
            yield from differences(stored.get(key), wanted.get(key), below)
    elif stored != wanted:
        yield f"{path} is {stored!r} there and {wanted!r} now"


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
    """One GPU (and nccl) for each worker instead of CPUs (and gloo)."""
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
    data: DataConfig = DataConfig()
    body: BodyConfig = BodyConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    scaling: ScalingConfig = ScalingConfig()
    cluster: ClusterConfig = ClusterConfig()


class Dimension(Section):
    """One searched setting: either `choice` or `low`/`high`."""

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
    trials: int = Field(6, ge=1)
    """Number of trials."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; default: what the cluster carries without a deadlock."""
    searcher: Literal["random", "optuna"] = "optuna"
    """How the next trial's settings are chosen."""
    seed: int = Field(0, ge=0)
    """Seed of the search."""
    grace_epochs: int = Field(1, ge=1)
    """No trial is stopped before this many epochs (ASHA)."""
    reduction_factor: int = Field(2, ge=2)
    """ASHA goes on with one trial in this many at each rung."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Searched settings by dotted path inside `trial`, such as model.n_iter."""
    trial: TrainJob = TrainJob()
    """Settings of one trial; `space` overrides them."""
    cluster: ClusterConfig = ClusterConfig()


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
    """Folder for the table as JSON and CSV; none: only printed."""
    batch_size: int = Field(128, ge=1)
    """Images of one forward pass."""
    body: BodyConfig = BodyConfig()


class PredictOutput(Section):
    """Where predictions go; `output: folder` is a short form of `output: {path: folder}`."""

    path: str = "predictions"
    """Folder for people.parquet, overlays/ and rejected/."""
    format: Literal["parquet", "eth_csv"] = "parquet"
    """`eth_csv` predicts the frames of `eth_labels` and adds results.csv, the submission of the ETH
    course project."""

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class PredictJob(Section):
    """jobs/predict.py: a folder of images to Parquet and overlays."""

    model: str = "registry/hmr@best"
    """A bundle folder, or registry/name@version, or registry/name@alias."""
    input: str = "images"
    """Folder of images, or one image."""
    output: PredictOutput = PredictOutput()
    eth_labels: str | None = None
    """For output.format=eth_csv: folder with the course's S9/<action>.<camera>/<frame>.npz, which
    give each person's box and place; `input` is then the folder of its pictures."""
    overlays: bool = True
    """Also write a JPEG with the mesh over each image."""
    n_iter: int | None = Field(None, ge=1, le=16)
    """Refinement steps; none: the model's own."""
    batch_size: int = Field(32, ge=1)
    """Images of one forward pass."""
    num_actors: int = Field(1, ge=1)
    """Processes that hold the model."""
    use_gpu: bool = False
    """One GPU for each of them."""
    body: BodyConfig = BodyConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _labels_are_given(self) -> PredictJob:
        if (self.output.format == "eth_csv") != (self.eth_labels is not None):
            raise ValueError("output.format=eth_csv and eth_labels go together: set both or none")
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
    num_cpus: float = Field(1, gt=0)
    """CPUs of each replica; also its number of torch threads, at least 1."""
    num_gpus: float = Field(0, ge=0)
    """GPUs of each replica."""
    max_batch_size: int = Field(16, ge=1)
    """Most requests in one forward pass."""
    batch_wait_s: float = Field(0.002, ge=0)
    """Longest wait for a fuller batch, in seconds."""
    max_queued_requests: int = Field(64, ge=1)
    """Waiting requests beyond which the answer is 429."""
    request_timeout_s: float = Field(30, gt=0)
    """Deadline of a request."""
    max_body_mb: float = Field(20, gt=0)
    """Largest request body."""
    api_key_file: str | None = None
    """File with the bearer key; RAYHMR_API_KEY works as well. Needed unless host is loopback."""
    body: BodyConfig = BodyConfig()
    cluster: ClusterConfig = ClusterConfig()


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


class BenchmarkJob(Section):
    """jobs/benchmark.py: speed as ratios, measured in one run."""

    what: tuple[Literal["body", "synthetic", "data", "train", "chaos"], ...] = (
        "body", "synthetic",
    )  # fmt: skip
    """Measurements to run."""
    rounds: int = Field(7, ge=1)
    """Turns of each candidate; the median counts."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
    kill_for_s: float = Field(60, gt=0)
    """For `chaos`: how long its last scenario kills a worker every 20 s."""


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
