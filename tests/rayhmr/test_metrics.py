"""What Prometheus is told: the declared names, from the facts, at a node's metrics port."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rayhmr.halving import rungs
from rayhmr.metric_series import DATA, JOBS, SEARCH, SERVICE, TRAINING
from rayhmr.metrics import DataMetrics, Metrics, SearchMetrics, TrainingMetrics, Waited
from rayhmr.search import Search, SearchPlan
from rayhmr.serve.metrics import Metrics as ServiceMetrics
from rayhmr.storage import Folder
from rayhmr.study import Ledger

STEP = {
    "kind": "step", "epoch": 1, "epochs": 2, "step": 20, "steps": 80, "step_s": 0.5,
    "losses": {"loss": 1.5, "pose": 0.25}, "images_per_s": 400.0, "data_wait": 0.25,
    "first_batch_s": 3.0, "skipped_steps": 2,
}  # fmt: skip
EPOCH = {
    "kind": "epoch", "epoch": 1.0, "step": 40.0, "val/pa_mpjpe_mm": 61.25, "val/count": 9.0,
    "train/data_wait": 0.25, "train/step_s": 0.5, "train/first_batch_s": 3.0,
}  # fmt: skip
OF_RAY = [
    f"ray_{name}" for name in
    ("object_store_used_memory", "node_cpu_utilization", "node_mem_used", "cluster_active_nodes")
]  # fmt: skip
"""Some of what the dashboard asks of nodes; the rest needs GPUs, or failures."""
NOTE = {
    "file": {"name": "train-0.parquet", "rows": 7}, "split": "train",
    "rejected": [["a", "unreadable", "…"], ["b", "unreadable", "…"], ["c", "no_labels", "…"]],
}  # fmt: skip


@pytest.fixture
def recorded(monkeypatch):
    """{(name, labels in order): value} of everything that would go to Ray."""
    found: dict = defaultdict(float)

    def record(self, name, how, value, labels):
        series, given = JOBS[name], self._labels | labels
        assert {"inc": "counter", "set": "gauge"}[how] == series.kind
        assert given.keys() <= {*series.labels, "trial", "run"}, "a label that nobody declared"
        key = (name, *(given.get(label, "") for label in series.labels))
        found[key] = value + (found[key] if how == "inc" else 0)

    monkeypatch.setattr(Metrics, "_record", record)
    return found


def test_names_are_of_one_prefix_unlike_and_as_prometheus_wants_them():
    every = [*DATA, *TRAINING, *SEARCH, *SERVICE]
    names = [series.name for series in every]
    assert len(set(names)) == len(names)
    for series in every:
        assert series.name.startswith("rayhmr_")
        assert series.name.endswith("_total") == (series.kind == "counter"), series.name
        assert series.help


def test_the_services_series_are_the_declared_ones():
    service = ServiceMetrics()
    service.begin()
    service.end("/v1/predict", 200, 0.1)
    service.reject("overloaded")
    service.batch("hmr", 4, 0.02)
    service.people("hmr", 3)
    text = service.text({}).decode()
    found = {f.name: f for f in text_string_to_metric_families(text)}
    shown = {name: f for name, f in found.items() if "process" not in name}
    declared = {s.name.removesuffix("_total"): s for s in SERVICE}
    assert shown.keys() == declared.keys()
    for name, family in shown.items():
        assert family.type == declared[name].kind
        for sample in family.samples:
            assert sample.labels.keys() - {"le"} == set(declared[name].labels), name


def test_facts_of_a_run_become_its_numbers(recorded):
    metrics = TrainingMetrics("spin")
    worker = {"kind": "worker", "rank": 0}
    for facts in (worker, {"kind": "worker", "rank": 1}, STEP, EPOCH, worker,
                  {"kind": "resume", "step": 40, "epoch": 2, "checkpoint": "epoch-0001"},
                  {"kind": "checkpoint", "checkpoint": "epoch-0001", "seconds": 1.5},
                  STEP | {"label": "trial t0001", "step": 10}):  # fmt: skip
        metrics.keep(facts)
    train = "rayhmr_train_"
    assert recorded[f"{train}step", "spin", ""] == 20
    assert recorded[f"{train}step", "spin", "t0001"] == 10
    assert recorded[f"{train}steps_planned", "spin", ""] == 80
    assert recorded[f"{train}epoch", "spin", ""] == 1
    assert recorded[f"{train}images_per_second", "spin", ""] == 400
    assert recorded[f"{train}loss", "spin", "", "total"] == 1.5
    assert recorded[f"{train}loss", "spin", "", "pose"] == 0.25
    assert recorded[f"{train}validation_mm", "spin", "", "pa_mpjpe"] == 61.25
    assert not any("count" in key for key in recorded), "people are no millimetres"
    assert recorded[f"{train}restarts_total", "spin", ""] == 1
    assert recorded[f"{train}skipped_steps", "spin", ""] == 2
    assert recorded[f"{train}checkpoints_total", "spin", ""] == 1
    assert recorded[f"{train}checkpoint_seconds_total", "spin", ""] == 1.5
    # Of the first 40 steps: the first batch, then a quarter of 39 steps of half a second.
    assert recorded[f"{train}data_wait_seconds_total", "spin", ""] == pytest.approx(3 + 39 / 8)


def test_waiting_adds_up_to_the_epochs_own_sum_however_it_is_told():
    waited = Waited()
    lines = [STEP | {"step": 20}, STEP | {"step": 30, "data_wait": 0.5}, EPOCH | {
        "train/data_wait": 0.3}]  # fmt: skip
    first, second, rest = (waited.more(facts) for facts in lines)
    assert (first, second) == (3 + 19 * 0.125, 10 * 0.25)
    assert first + second + rest == pytest.approx(3 + 39 * 0.15)
    # After a resume in the middle of the second epoch nothing is counted twice.
    assert waited.more({"kind": "resume", "step": 60}) == 0
    assert waited.more(STEP | {"step": 62, "epoch": 2}) == pytest.approx(3 + 0.125)


def test_rows_of_a_source_are_counted_by_what_became_of_them(recorded):
    metrics = DataMetrics("s3://bucket/people/")
    metrics.keep(NOTE)
    metrics.keep(NOTE | {"rejected": []})
    rows = "rayhmr_data_rows_"
    assert recorded == {
        (f"{rows}read_total", "people"): 17,
        (f"{rows}written_total", "people", "train"): 14,
        (f"{rows}rejected_total", "people", "unreadable"): 2,
        (f"{rows}rejected_total", "people", "no_labels"): 1,
    }


def test_a_study_tells_of_each_change(recorded, tmp_path):
    plan = SearchPlan(
        trials=3, epochs=2, score="val/pa_mpjpe_mm", rungs=rungs(2, 2, 2), factor=2,
        keep_first=False,
    )  # fmt: skip
    search = Search(
        plan, Ledger(Folder(str(tmp_path))), lambda number, records: {}, lambda trial: [],
        changed=SearchMetrics("study").keep,
    )  # fmt: skip
    assert recorded == {}
    first, second = search.begin(), search.begin()
    name = "rayhmr_search_trials"
    assert recorded[name, "study", "running"] == 2
    for epoch, score in ((1, 90.0), (2, 80.0)):
        search.report(first.trial, {"epoch": epoch, "val/pa_mpjpe_mm": score})
    search.fail(second.trial, "diverged")
    counts = {key[2]: value for key, value in recorded.items() if key[0] == name}
    assert counts == {"running": 0, "finished": 1, "stopped": 0, "failed": 1}
    assert recorded["rayhmr_search_trial_epochs", "study"] == 2
    assert recorded["rayhmr_search_best_score", "study", "val/pa_mpjpe_mm"] == 80


def test_what_ray_refuses_is_said_once_and_never_raised(monkeypatch, capsys):
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    metrics = Metrics(run="r")
    metrics.set("rayhmr_of_nobody", 1)
    metrics.set("rayhmr_of_nobody", 2)
    assert capsys.readouterr().err.count("metrics are lost") == 1


# A job of its own: metrics are of a process, and Ray counts every 10 s where nothing else is said.
_JOB = r"""
import json, sys, time, types
import ray
import rayhmr.metrics
from rayhmr.cluster import connect, open_here
from rayhmr.config import ClusterConfig, TrainJob
from rayhmr.job_metadata import metadata_of
from rayhmr.metric_series import JOBS
from rayhmr.metrics import Counted, DataMetrics, SearchMetrics, TrainingMetrics
from rayhmr.metrics import Metrics

rayhmr.metrics.REFRESH_S = 0.5
step, epoch, note = json.loads(sys.argv[1])
with connect(ClusterConfig(address="local", num_cpus=1, object_store_mb=100), 1,
             metadata=metadata_of(TrainJob(), "fingerprint")) as info:
    training, data = TrainingMetrics("spin"), DataMetrics("/data/people")
    record = types.SimpleNamespace(status="finished", history=[{"score": 80.0}])
    search = types.SimpleNamespace(records=[record], spent=4, best=record,
                                   plan=types.SimpleNamespace(score="score"))
    worker = {"kind": "worker", "rank": 0}
    checkpoint = {"kind": "checkpoint", "seconds": 1.5}
    for facts in (worker, worker, step, epoch, checkpoint):
        training.keep(facts)
    data.keep(note)
    SearchMetrics("study").keep(search)
    batch = types.SimpleNamespace(images=range(5))
    stream = types.SimpleNamespace(
        steps_per_epoch=2, val_batches=None, train_batches=lambda epoch, first: [batch] * 2)
    assert list(Counted(stream, run="spin").train_batches(0)) == [batch] * 2
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    discovery = (ray._private.worker._global_node.get_session_dir_path() +
                 "/../prom_metrics_service_discovery.json")
    names = [s.scraped for s in JOBS.values()] + json.loads(sys.argv[2])
    deadline, lines, targets = time.monotonic() + 40, {}, []

    def scrape():
        "Lines of what is looked for, by all but the value; Ray shows what is there at the moment."
        text = open_here(url, 5).read().decode()
        return {line.rpartition(" ")[0]: line for line in text.splitlines()
                if any(name.removesuffix("_total") in line for name in names)}

    while time.monotonic() < deadline:
        time.sleep(0.2)
        try:
            lines |= scrape()
            targets = [t for entry in json.load(open(discovery)) for t in entry["targets"]]
        except OSError:
            continue
        seen = {line.partition("{")[0] for line in lines}
        if seen.issuperset(names) and url.split("/")[2] in targets:
            break
    time.sleep(4)  # Ray has forgotten by now what was not set again
    kept = "ray_rayhmr_train_step{" in "".join(scrape())
    text = "\n".join(lines.values()) + "\n"
    metrics, begun = Metrics(run="cost"), time.perf_counter()
    for _ in range(1000):
        metrics.add("rayhmr_data_rows_streamed_total", 1)
    cost = (time.perf_counter() - begun) / 1000
    jobs = json.load(open_here(info.dashboard_url + "/api/jobs/", 5))
    print(json.dumps({"text": text, "jobs": jobs, "cost": cost, "kept": kept, "targets": targets,
                      "node": url.split("/")[2]}))
"""


@pytest.mark.ray
def test_what_a_job_tells_is_scraped_from_its_node_under_the_declared_names():
    done = subprocess.run(
        [sys.executable, "-c", _JOB, json.dumps([STEP, EPOCH, NOTE]), json.dumps(OF_RAY)],
        env=os.environ | {"RAY_metrics_report_interval_ms": "500", "RAY_AUTH_MODE": "disabled"},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "metrics are lost" not in done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    families = list(text_string_to_metric_families(seen["text"]))
    samples = {
        (sample.name, *(sample.labels[label] for label in series.labels)): sample.value
        for series in JOBS.values()
        for family in families
        for sample in family.samples
        if sample.name == series.scraped
    }
    assert {key[0] for key in samples} == {series.scraped for series in JOBS.values()}
    assert samples["ray_rayhmr_train_loss", "spin", "", "total"] == 1.5
    assert samples["ray_rayhmr_train_restarts_total", "spin", ""] == 1
    assert samples["ray_rayhmr_data_rows_rejected_total", "people", "unreadable"] == 2
    assert samples["ray_rayhmr_data_rows_streamed_total", "spin", ""] == 10
    assert samples["ray_rayhmr_search_best_score", "study", "score"] == 80
    names = {sample.name for family in families for sample in family.samples}
    assert set(OF_RAY) <= names
    kinds = {family.name: family.type for family in families}
    for series in JOBS.values():
        assert kinds[series.scraped.removesuffix("_total")] == series.kind

    assert seen["kept"], "a gauge stays though the run says nothing new"
    assert seen["node"] in seen["targets"], "Prometheus finds the node by Ray's file"
    assert seen["cost"] < 1e-3, "seconds that a step would lose"
    (job,) = seen["jobs"]
    assert job["metadata"].keys() == {"rayhmr_config_hash", "rayhmr_data_fingerprint"}
    assert job["metadata"]["rayhmr_data_fingerprint"] == "fingerprint"
    assert f"settings {job['metadata']['rayhmr_config_hash']}, data fingerprint" in done.stderr
