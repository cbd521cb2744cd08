"""Searches run to their end on every shape of cluster, those included on which Ray alone hangs.

A search is a job of its own on nodes that are processes of this machine, with 2 logical CPUs each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rayhmr.chaos.cluster import ChaosCluster
from rayhmr.chaos.run import JobProcess, Outcome

PATIENCE_S = 900.0
"""A search that takes longer hangs; it needs one or two minutes on two free cores."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder for the data of all these searches; the first one that needs them makes them."""
    return tmp_path_factory.mktemp("shards")


class Study:
    """A search of three short trials on a cluster."""

    def __init__(
        self, folder: Path, cluster: ChaosCluster, shards: Path, people: int = 320,
        **changes: object,
    ) -> None:  # fmt: skip
        """people: to train on. changes: settings, with `__` for the dot."""
        data = shards / str(people)
        self.folder = folder / "runs" / "study"
        settings = {
            "name": "study", "storage": str(folder / "runs"), "register_as": None, "trials": 3,
            "searcher": "random", "scheduler": "none",
            "space": {"train.losses.pose": {"low": 0.1, "high": 10.0, "log": True}},
            "trial.data.path": str(data), "trial.data.decode_threads": 1,
            "trial.model.encoder_width": 4, "trial.model.image_size": 32,
            "trial.model.hidden": 32, "trial.train.epochs": 2, "trial.train.batch_size": 32,
            "trial.train.save_every": 5, "trial.scaling.num_workers": 1, "trial.max_failures": 2,
        } | {key.replace("__", "."): value for key, value in changes.items()}  # fmt: skip
        made = {
            "output": str(data), "rows_per_file": people // 4, "synthetic.image_size": 32,
            "synthetic.train": people, "synthetic.val": people // 8,
            "synthetic.test": people // 16,
        }  # fmt: skip
        if not (data / "dataset.json").exists():
            prepared = self._ended(JobProcess("prepare", made, cluster))
            assert prepared.code == 0, prepared.stderr
        self._settings, self._cluster = settings, cluster
        self.start()

    def start(self) -> None:
        """The command, once more after an end."""
        self.job = JobProcess("tune", self._settings, self._cluster)

    @staticmethod
    def _ended(job: JobProcess) -> Outcome:
        try:
            return job.wait(PATIENCE_S)
        finally:
            job.close()

    def records(self) -> list[dict]:
        """What the study's ledger says of each trial that was begun."""
        files = sorted(self.folder.glob("trials/*/trial.json"))
        return [json.loads(file.read_text()) for file in files]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.job.running, self.job.words()
            assert time.monotonic() < deadline, self.job.words()
            time.sleep(0.2)

    def trains(self, trial: int) -> bool:
        """Whether a trial has kept a checkpoint."""
        return any((self.folder / "trials" / f"t{trial:04d}").glob("step-*"))

    def ends(self) -> Outcome:
        """Wait for its end."""
        return self._ended(self.job)

    def finishes(self) -> Outcome:
        """Wait for its end; all trials must have been trained to theirs."""
        outcome = self.ends()
        assert outcome.code == 0, outcome.stderr
        assert [(r["status"], r["reason"]) for r in self.records()] == [("finished", "")] * 3
        return outcome


def asha(**more: object) -> dict[str, object]:
    """Three trials one at a time. All after the first learn next to nothing, so they are stopped
    after an epoch, with most of their steps before them."""
    return {
        "max_concurrent": 1, "scheduler": "asha", "compare_default": True,
        "trial__train__epochs": 12, "trial__train__optimizer__lr": 2e-3,
        "space": {"train.optimizer.lr": {"low": 1e-9, "high": 1e-8, "log": True}},
    } | more  # fmt: skip


def goes_through(study: Study) -> None:
    """The search ends; the first trial finished, the others were stopped and not begun again."""
    outcome = study.ends()
    assert outcome.code == 0, outcome.stderr
    found = [(record["status"], len(record["history"])) for record in study.records()]
    assert found == [("finished", 12), ("stopped", 1), ("stopped", 1)]
    assert "the controller of the run has died" not in outcome.stderr
    for trial in (1, 2):
        assert outcome.stderr.count(f"trial t{trial:04d}: worker 0 runs on") == 1


@pytest.mark.ray
def test_two_trials_on_two_nodes_of_two_cpus(tmp_path, shards):
    """Where a share of a CPU for each driver would leave no whole CPU for the data."""
    with ChaosCluster(2, resources={"drv": 1}) as cluster:
        cluster.add(2)
        outcome = Study(
            tmp_path, cluster, shards, people=64, trials=2, trial__train__epochs=1
        ).ends()
        assert outcome.code == 0, outcome.stderr
        assert outcome.results["finished"] == 2
        assert "2 trials side by side: each 1 worker × 1 CPU" in outcome.stderr


@pytest.mark.ray
@pytest.mark.chaos
class TestShapes:
    def test_two_nodes_whose_head_knows_no_driver_resource(self, tmp_path, shards):
        with ChaosCluster(2, dashboard=True) as cluster:
            cluster.add(2)
            assert "2 trials side by side" in Study(tmp_path, cluster, shards).finishes().stderr

    def test_two_nodes_one_trial_at_a_time(self, tmp_path, shards):
        with ChaosCluster(2, dashboard=True, resources={"drv": 1}) as cluster:
            cluster.add(2)
            goes_through(Study(tmp_path, cluster, shards, **asha()))

    def test_one_node_without_a_dashboard(self, tmp_path, shards):
        """Ray's own clean-up never frees what a stopped trial held, and the next one hangs."""
        with ChaosCluster(2) as cluster:
            goes_through(Study(tmp_path, cluster, shards, **asha()))

    def test_one_node_and_another_cluster_on_the_machine(self, tmp_path, shards):
        """Ray's own clean-up asks the newest cluster of the machine when it has no address."""
        with ChaosCluster(2, dashboard=True) as cluster, ChaosCluster(1, dashboard=True):
            goes_through(Study(tmp_path, cluster, shards, **asha()))

    def test_one_node_with_a_dashboard(self, tmp_path, shards):
        with ChaosCluster(2, dashboard=True, resources={"drv": 1}) as cluster:
            goes_through(Study(tmp_path, cluster, shards, **asha()))

    def test_a_node_dies_and_its_trial_waits_for_room_on_the_other(self, tmp_path, shards):
        with ChaosCluster(2) as cluster:
            node = cluster.add(2)
            study = Study(tmp_path, cluster, shards, trial__train__epochs=8)
            study.until(lambda: study.trains(0) and study.trains(1))
            node.tell("kill-raylet")
            study.finishes()

    def test_the_last_node_that_could_carry_a_trial_dies(self, tmp_path, shards):
        with ChaosCluster(1) as cluster:
            node = cluster.add(2)
            study = Study(
                tmp_path, cluster, shards, trial__train__epochs=8, cluster__start_timeout_s=30
            )
            study.until(lambda: study.trains(0))
            node.tell("kill-raylet")
            outcome = study.ends()
            assert outcome.code != 0
            assert "no trial fits: each needs 1 worker × 1 CPU" in outcome.stderr
            assert "has 1 whole CPU free" in outcome.stderr
            assert "The same command goes on with this study" in outcome.stderr
            assert {record["status"] for record in study.records()} == {"running"}
            cluster.add(2)
            study.start()
            study.finishes()
