"""Training and search on a real cluster: they finish, survive a kill, go on, refuse a mix-up."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hmr.checkpoint import load_bundle, verify_bundle
from hmr.errors import ConfigError
from rayhmr import ray_context, telemetry
from rayhmr import train as train_module
from rayhmr import tune as tune_module
from rayhmr.config import (
    ClusterConfig,
    Dimension,
    EvaluateJob,
    FinalConfig,
    PrepareJob,
    SyntheticConfig,
    TrainJob,
    TuneJob,
)
from rayhmr.data.prepare import prepare
from rayhmr.data.schema import read_info
from rayhmr.evaluate import evaluate
from rayhmr.registry import Registry
from rayhmr.stopping import StopFlag
from rayhmr.storage import Folder
from rayhmr.study import Ledger
from rayhmr.study_trial import trained_epochs
from rayhmr.train import train
from rayhmr.tune import tune, with_settings


@pytest.fixture(scope="module")
def shards(local_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shards"
    people = SyntheticConfig(image_size=32, train=320, val=40, test=20)
    prepare(PrepareJob(output=str(folder), rows_per_file=80, synthetic=people))
    return folder


def job_for(shards, folder, name="run", **changes):
    job = TrainJob.model_validate(
        {
            "name": name,
            "storage": str(folder / "runs"),
            "registry": str(folder / "registry"),
            "data": {"path": str(shards), "decode_threads": 1},
            "model": {"encoder_width": 4, "image_size": 32, "hidden": 32, "dropout": 0.1},
            "train": {
                "epochs": 3,
                "batch_size": 32,
                "log_every": 2,
                "optimizer": {"lr": 2e-3},
                "losses": {"scale": 1.0, "keypoint_error": "l1"},
            },
            "scaling": {"num_workers": 2},
        }
    )
    return with_settings(job, changes)


def weights(results):
    return load_file(Path(results["bundle"]) / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return train(job_for(shards, folder, register_as="person"))


@pytest.mark.ray
def test_a_run_writes_a_bundle_that_predicts_and_is_registered(uninterrupted, shards):
    manifest = verify_bundle(uninterrupted["bundle"])
    fingerprint = json.loads((shards / "dataset.json").read_text())["fingerprint"]
    assert manifest["provenance"]["data_fingerprint"] == fingerprint
    registry = Registry(str(Path(uninterrupted["run"]).parents[1] / "registry"))
    assert registry.version_of("person", "best") == uninterrupted["version"] == 1
    predictor = load_bundle(registry.fetch("person", "best"))
    assert predictor.n_iter == 3
    lines = (Path(uninterrupted["run"]) / "metrics.jsonl").read_text().splitlines()
    epochs = [f for f in map(json.loads, lines) if f["kind"] == "epoch"]
    assert [f["epoch"] for f in epochs] == [1, 2, 3]
    saved = [f for f in map(json.loads, lines) if f["kind"] == "checkpoint"]
    assert [f["checkpoint"] for f in saved] == ["epoch-0001", "epoch-0002", "epoch-0003"]
    assert all(f["seconds"] > 0 for f in saved)
    # 320 rows in batches of 32, on both workers together.
    assert [f["step"] for f in epochs] == [10, 20, 30]
    assert {f["val/count"] for f in epochs} == {40}, "every validation person counts once"
    best = min(f["val/pa_mpjpe_mm"] for f in epochs)
    assert uninterrupted["pa_mpjpe_mm"] == pytest.approx(best, abs=1e-3)


@pytest.mark.ray
def test_a_killed_worker_costs_nothing_but_time(uninterrupted, shards, tmp_path, monkeypatch):
    pids, killed = {}, threading.Event()
    show = train_module.show

    def kill_once(facts):
        show(facts)
        if facts["kind"] == "worker" and facts["rank"] == 1 and not killed.is_set():
            pids["rank 1"] = facts["pid"]
        if facts["kind"] == "epoch" and not killed.is_set():
            killed.set()
            os.kill(pids["rank 1"], signal.SIGKILL)

    monkeypatch.setattr(train_module, "show", kill_once)
    results = train(job_for(shards, tmp_path))
    assert killed.is_set()
    assert results["restarts"] == 1
    ours, theirs = weights(results), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.ray
def test_where_decoding_and_validation_happen_changes_no_weight(uninterrupted, shards, tmp_path):
    job = job_for(
        shards, tmp_path,
        **{"data.decode_in": "tasks", "data.record_samples": True, "validate_in": "task",
           "select_by": "mpjpe_mm", "train.save_every": 3, "keep_checkpoints": 3},
    )  # fmt: skip
    results = train(job)
    run = Path(results["run"])
    validated = [
        json.loads((run / f"validation/epoch-{n:04d}.json").read_text()) for n in (1, 2, 3)
    ]
    scores = {n: found["val/mpjpe_mm"] for n, found in enumerate(validated, start=1)}
    assert results["best_epoch"] == min(scores, key=scores.get)
    assert results["mpjpe_mm"] == pytest.approx(min(scores.values()), abs=1e-3)
    lines = map(json.loads, (Path(uninterrupted["run"]) / "metrics.jsonl").read_text().splitlines())
    theirs = {f["epoch"]: f["val/mpjpe_mm"] for f in lines if f["kind"] == "epoch"}
    assert {float(n): score for n, score in scores.items()} == pytest.approx(theirs, rel=1e-5)
    last = load_file(run / "epoch-0003/model.safetensors")
    expected = load_file(Path(uninterrupted["run"]) / "epoch-0003/model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in last.items())
    seen = [
        (line["epoch"], name)
        for file in (run / "samples").iterdir()
        for line in map(json.loads, file.read_text().splitlines()) for name in line["ids"]
    ]  # fmt: skip
    assert len(seen) == len(set(seen)) == 3 * 320, "every sample once in every epoch"


@pytest.mark.ray
def test_a_run_goes_on_with_another_number_of_workers(uninterrupted, shards, tmp_path):
    """After SIGTERM, at the very next sample, and every sample of the epoch is seen once."""
    job = job_for(shards, tmp_path, **{"data.record_samples": True, "train.epochs": 20})
    seen = threading.Event()
    show = train_module.show

    def stop_early(facts):
        show(facts)
        if facts["kind"] == "step" and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "show", stop_early)
        with pytest.raises(SystemExit) as stopped:
            train(job)
    assert stopped.value.code == 143
    results = train(with_settings(job, {"scaling.num_workers": 1}))
    assert results["restarts"] == 0
    samples = [
        line
        for file in (Path(results["run"]) / "samples").iterdir()
        for line in map(json.loads, file.read_text().splitlines())
    ]
    for epoch in range(20):
        ids = [name for line in samples if line["epoch"] == epoch for name in line["ids"]]
        assert len(ids) == len(set(ids)) == 320
    assert {line["rank"] for line in samples if line["epoch"] == 19} == {0}
    assert {line["rank"] for line in samples if line["epoch"] == 0} == {0, 1}


@pytest.mark.ray
def test_the_same_command_again_changes_nothing_and_another_one_is_refused(uninterrupted, shards):
    folder = Path(uninterrupted["run"]).parents[1]
    before = weights(uninterrupted)
    again = train(job_for(shards, folder))
    assert again["restarts"] == 0
    assert again["images_per_s"] is None, "no epoch was trained again"
    assert all(torch.equal(value, before[name]) for name, value in weights(again).items())
    with pytest.raises(ConfigError, match=r"train\.optimizer\.lr is 0\.002 there and 0\.5 now"):
        train(job_for(shards, folder, **{"train.optimizer.lr": 0.5}))


def test_what_cannot_be_trained_is_refused_before_anything_starts(tmp_path):
    from hmr.errors import DataError

    with pytest.raises(DataError, match=r"is not there; make it with"):
        train(job_for(tmp_path / "nowhere", tmp_path))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"has no dataset\.json, so it was never finished"):
        train(job_for(tmp_path / "half", tmp_path))


def study(shards, folder, **changes):
    trial = job_for(
        shards, folder,
        **{"scaling.num_workers": 1, "train.epochs": 3, "data.record_samples": False,
           "train.log_every": 1},
    )  # fmt: skip
    return TuneJob(
        name="study", storage=str(folder / "runs"), registry=str(folder / "registry"), trials=3,
        trial=trial, searcher="random", max_concurrent=1, compare_default=True,
        space={
            "model.n_iter": Dimension(choice=[1, 2]),
            "train.losses.pose": Dimension(low=0.1, high=10.0, log=True),
        },
    ).model_copy(update=changes)  # fmt: skip


def ledger_of(folder):
    return Ledger(Folder(str(folder / "runs/study")))


def facts(records):
    """All that does not depend on the time a trial took."""
    return [
        (r.trial, r.status, r.settings, r.reason,
         [{k: v for k, v in row.items() if k != "seconds"} for row in r.history])
        for r in records
    ]  # fmt: skip


@pytest.fixture(scope="module")
def searched(shards, tmp_path_factory):
    """A study that nothing disturbed, and its folder."""
    folder = tmp_path_factory.mktemp("searched")
    more = {"evaluate_iterations": (1, 2, 4), "final": FinalConfig(retrain=True, epochs=1)}
    return tune(study(shards, folder, register_as="found", **more)), folder


@pytest.mark.ray
def test_a_search_ends_and_registers_its_best(searched):
    found, folder = searched
    assert found["trials"] == 3
    assert found["finished"] >= 1
    assert found["finished"] + found["stopped"] == 3
    records = {record.trial: record for record in ledger_of(folder).records()}
    assert records["t0000"].settings == {}
    assert records["t0000"].status == "finished"
    finished = [record for record in records.values() if record.status == "finished"]
    assert all(record.epochs == 3 for record in finished)
    best = min(finished, key=lambda record: record.history[-1]["val/pa_mpjpe_mm"])
    assert found["best_trial"] == best.trial
    assert found["best_settings"] == best.settings
    assert found["trial_epochs"] == sum(record.epochs for record in records.values()) <= 9
    registry = Registry(str(folder / "registry"))
    default = study(folder, folder).trial
    assert load_bundle(registry.fetch("found", "best")).n_iter == best.settings.get(
        "model.n_iter", default.model.n_iter
    )
    written = yaml.safe_load((folder / "runs/study/best.yaml").read_text())
    assert written["train"]["losses"]["pose"] == best.settings.get(
        "train.losses.pose", default.train.losses.pose
    )
    with (folder / "runs/study/trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == ["t0000", "t0001", "t0002"]
    assert not (folder / "runs/study/tune").exists(), "Tune's own files are of no use any more"
    # Every figure of the ledger is the one that the trial's own checkpoint has.
    for record in records.values():
        kept = trained_epochs(Folder(str(folder / "runs/study")), record.trial)
        for row, epoch in zip(record.history, kept, strict=False):
            assert {k: v for k, v in row.items() if k != "seconds"}.items() <= epoch.items()


@pytest.mark.ray
def test_the_best_is_measured_on_people_that_no_trial_has_seen(searched, shards):
    found, folder = searched
    bundle, best = str(folder / "runs/study/bundle"), found["best_trial"]
    evaluated = evaluate(EvaluateJob(model=bundle, data=str(shards), split="test"))
    held_out = found["held_out"]
    assert held_out["split"] == "test"
    assert held_out[best] == pytest.approx(evaluated["pa_mpjpe_mm"], abs=2e-3)
    if best != "t0000":
        low, high = held_out["difference_mm"][1:]
        assert low <= held_out[best] - held_out["t0000"] <= high
        assert held_out["paired_by"] == "people"
    with (folder / "runs/study/cross_iterations.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["trial"] == best]
    assert [row["n_iter"] for row in rows] == ["1", "2", "4"]
    for row in rows:
        if row["n_iter"] == row["trained_n_iter"]:
            assert float(row["pa_mpjpe_mm"]) == pytest.approx(evaluated["pa_mpjpe_mm"], abs=2e-3)
    report = (folder / "runs/study/report.html").read_text()
    assert "Other T than trained" in report
    assert "paired bootstrap over 20 people of the test split" in report or best == "t0000"


@pytest.mark.ray
def test_the_best_settings_are_a_file_for_training_and_the_final_model_names_its_study(
    searched, shards
):
    found, folder = searched
    job = study(shards, folder).trial
    written = TrainJob.model_validate(
        yaml.safe_load((folder / "runs/study/best.yaml").read_text()) | {"name": job.name}
    )
    best = with_settings(job, found["best_settings"])
    for section in ("data", "model", "train", "scaling", "body"):
        assert getattr(written, section).model_dump() == getattr(best, section).model_dump()
    registered = Registry(str(folder / "registry")).fetch("found", "best")
    provenance = json.loads((Path(registered) / "manifest.json").read_text())["provenance"]
    assert provenance["study"] == "study"
    assert provenance["trial"] == found["best_trial"]
    assert provenance["run"] == "study-final"
    assert provenance["settings"]["train"]["epochs"] == 1
    assert provenance["data_fingerprint"] == read_info(str(shards)).fingerprint


@pytest.mark.ray
def test_the_same_search_again_runs_nothing_and_more_trials_extend_it(
    searched, shards, tmp_path, monkeypatch
):
    found, folder = searched
    shutil.copytree(folder / "runs", tmp_path / "runs")
    job = study(shards, tmp_path, register_as=None)
    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "connect", None)  # nothing to connect for
        assert tune(job)["rows"] == found["rows"]
    before = ledger_of(tmp_path).records()
    assert tune(job.model_copy(update={"trials": 4}))["trials"] == 4
    after = ledger_of(tmp_path).records()
    assert after[:3] == before
    assert after[3].status in ("finished", "stopped")
    with pytest.raises(ConfigError, match="trials=3: 4 were begun already"):
        tune(job)
    with pytest.raises(ConfigError, match="seed is 0 there and 1 now"):
        tune(job.model_copy(update={"seed": 1, "trials": 4}))


SEARCH_ALONE = """
import sys
from rayhmr.config import TuneJob
from rayhmr.tune import tune
tune(TuneJob.model_validate_json(sys.stdin.read()))
"""


def processes_with(mark):
    """Ids of the processes that have this variable in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append(int(folder.name))
    return found


def kill_search_when(job, log, is_time):
    """Run the search in processes of its own, and kill them all at that moment."""
    mark = f"RAYHMR_TEST={log}"
    environment = os.environ | dict([mark.split("=", 1)])
    environment.pop("RAY_ADDRESS", None)
    with log.open("wb") as errors:
        driver = subprocess.Popen(
            [sys.executable, "-c", SEARCH_ALONE], stdin=subprocess.PIPE, stderr=errors,
            stdout=subprocess.DEVNULL, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        driver.stdin.write(job.model_dump_json().encode())
        driver.stdin.close()
        while not is_time():
            assert driver.poll() is None, log.read_text()[-2000:]
            time.sleep(0.02)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
        # Ray's workers look for the node they belong to and end; some have sessions of their own.
        deadline = time.monotonic() + 60
        while processes_with(mark) and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in processes_with(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def stops_at_its_worker(patch, show):
    """A `show` that sends this process SIGTERM when it hears of a worker, which is held until it
    will know of the wish at once: a trial of a second would else be over before that."""
    held = []
    want = StopFlag.want

    def stop_early(told):
        show(told)
        if told["kind"] == "worker" and not held:
            held.append(told["pid"])
            os.kill(held[0], signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGTERM)

    def want_then_let_go(flag):
        try:
            want(flag)
            assert flag.is_wanted()
            time.sleep(ray_context.POLL_S)  # its next look is due then
        finally:
            os.kill(held[0], signal.SIGCONT)

    patch.setattr(telemetry, "POLL_S", 0.05)
    patch.setattr(StopFlag, "want", want_then_let_go)
    return stop_early


@pytest.mark.ray
def test_a_search_that_is_stopped_then_killed_ends_like_one_that_was_not(
    searched, shards, tmp_path, monkeypatch
):
    """SIGTERM in the first trial, SIGKILL of the driver and its whole cluster in a later one."""
    job = study(shards, tmp_path, register_as=None)
    with monkeypatch.context() as patch:
        patch.setattr(tune_module, "show", stops_at_its_worker(patch, tune_module.show))
        with pytest.raises(SystemExit) as stopped:
            tune(job)
    assert stopped.value.code == 143
    ledger, runs = ledger_of(tmp_path), tmp_path / "runs/study/trials"
    assert [(r.trial, r.status) for r in ledger.records()] == [("t0000", "running")]
    assert list(runs.glob("t0000/*/manifest.json")), "it kept a checkpoint"

    def in_the_second_trial():
        return any(r.number > 0 and r.history for r in ledger.records())

    alone = job.model_copy(update={"cluster": ClusterConfig(address="local", num_cpus=2)})
    kill_search_when(alone, tmp_path / "log", in_the_second_trial)
    ended = [r for r in ledger.records() if r.status != "running"]
    assert "t0000" in {r.trial for r in ended}
    files = {
        path: path.stat().st_mtime_ns
        for r in ended for path in (runs / r.trial).glob("epoch-*/*")
    }  # fmt: skip
    assert files

    found = tune(job)
    _, undisturbed = searched
    assert facts(ledger.records()) == facts(ledger_of(undisturbed).records())
    assert all(path.stat().st_mtime_ns == when for path, when in files.items()), "none ran twice"
    for r in ledger.records():
        kept = trained_epochs(Folder(str(tmp_path / "runs/study")), r.trial)
        assert [row["epoch"] for row in kept][: r.epochs] == [row["epoch"] for row in r.history]
    assert found["best_trial"] == searched[0]["best_trial"]
