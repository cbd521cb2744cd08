"""What the scenarios have in common: data, settings, the undisturbed run to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from hmr.errors import HmrError
from rayhmr.chaos.cluster import ChaosCluster
from rayhmr.chaos.run import JobProcess, Outcome, TrainRun, weights_hash

ROWS, BATCH = 640, 16
STEPS_PER_EPOCH = ROWS // BATCH
SAVE_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one scenario.

    survived: everything that had to hold did. kills: faults that were followed by a restart.
    steps_lost: steps done again, over all of them. seconds: from each to the next step.
    """

    scenario: str
    survived: bool
    note: str
    kills: int = 0
    steps_lost: int = 0
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run to which nothing happened. weights: sha256 of the final ones. nodes: of the ranks."""

    weights: str
    nodes: tuple[str, ...]


@dataclass
class Lab:
    """A folder for everything, and how long the runs are.

    epochs: of each run. kill_for_s: how long the last scenario kills. cpus: of one worker; it
    leaves the head's single CPU to Ray Data wherever the nodes have two.
    """

    folder: Path
    epochs: int = 4
    kill_for_s: float = 60.0
    cpus: int = 2
    _undisturbed: Undisturbed | None = field(default=None, init=False)
    _shared: tuple[ChaosCluster, ExitStack] | None = field(default=None, init=False)

    @property
    def shards(self) -> Path:
        """The data set."""
        return self.folder / "shards"

    @property
    def total(self) -> int:
        """Steps of a run."""
        return self.epochs * STEPS_PER_EPOCH

    def prepare(self, cluster: ChaosCluster, prefix: Sequence[str] = ()) -> None:
        """Make the data set, unless it is there. prefix: see `JobProcess`."""
        if (self.shards / "dataset.json").exists():
            return
        job = JobProcess(
            "prepare",
            {
                "output": str(self.shards), "rows_per_file": ROWS // 4,
                "synthetic.image_size": 64, "synthetic.train": ROWS, "synthetic.val": 32,
                "synthetic.test": 16,
            },
            cluster, prefix=prefix,
        )  # fmt: skip
        try:
            if (outcome := job.wait()).code != 0:
                raise HmrError(f"no data set: {outcome.stderr[-600:]}")
        finally:
            job.close()

    def ids(self) -> set[str]:
        """The samples of the training split."""
        files = self.shards.glob("train-*.parquet")
        tables = (pq.read_table(path, columns=["sample_id"]) for path in files)
        return {name for table in tables for name in table["sample_id"].to_pylist()}

    def run(self, name: str, **changes: Any) -> TrainRun:
        """A training that is large enough to be hit inside an epoch and small enough to wait for.
        changes: dotted settings with `__` for the dot."""
        settings = {
            "name": name, "storage": str(self.folder / "runs"), "steps_per_epoch": STEPS_PER_EPOCH,
            "registry": str(self.folder / "registry"), "data.path": str(self.shards),
            "data.decode_threads": 1, "model.encoder_width": 24, "model.image_size": 64,
            "model.hidden": 64, "train.epochs": self.epochs, "train.batch_size": BATCH,
            "train.log_every": 1, "train.save_every": SAVE_EVERY, "train.hang_timeout_s": 60,
            "max_failures": 5, "scaling.num_workers": 2, "scaling.cpus_per_worker": self.cpus,
        }  # fmt: skip
        return TrainRun(settings | {key.replace("__", "."): v for key, v in changes.items()})

    @contextmanager
    def cluster(self, nodes: int = 2, *, durable: bool = False) -> Iterator[ChaosCluster]:
        """A head with one CPU for Ray Data, and so many nodes that carry one worker each."""
        with ChaosCluster(1, durable=durable) as cluster:
            for _ in range(nodes):
                cluster.add(self.cpus)
            self.prepare(cluster)
            yield cluster

    @contextmanager
    def shared(self) -> Iterator[ChaosCluster]:
        """A cluster of two nodes that stays for the next scenario, unless this one fails; for
        scenarios that kill no node."""
        if self._shared is None:
            stack = ExitStack()
            self._shared = stack.enter_context(self.cluster()), stack
        try:
            yield self._shared[0]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the shared cluster."""
        if self._shared is not None:
            self._shared[1].close()
            self._shared = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def undisturbed(self) -> Undisturbed:
        """The run to compare with; made once."""
        if self._undisturbed is None:
            with self.shared() as cluster, self.run("undisturbed") as run:
                run.start(cluster)
                run.until_step(1)
                nodes = tuple(cluster.node_of(run.worker(rank)).node_id for rank in (0, 1))
                outcome = run.job.wait()
                self._undisturbed = Undisturbed(weights=weights_hash(outcome), nodes=nodes)
        return self._undisturbed

    def same_weights(self, outcome: Outcome) -> bool:
        """Whether a run ended as if nothing had happened."""
        return weights_hash(outcome) == self.undisturbed().weights
