"""Training and search on a real cluster: they finish, survive a kill, go on, refuse a mix-up."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from hmr.checkpoint import load_bundle, verify_bundle
from hmr.errors import ConfigError, HmrError
from rayhmr import train as train_module
from rayhmr.config import Dimension, PrepareJob, SyntheticConfig, TrainJob, TuneJob
from rayhmr.data.prepare import prepare
from rayhmr.registry import Registry
from rayhmr.train import train
from rayhmr.tune import check_space, concurrent_trials, tune, with_settings


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
    trial = job_for(shards, folder, **{"scaling.num_workers": 1, "train.epochs": 2})
    return TuneJob(
        name="study", storage=str(folder / "runs"), registry=str(folder / "registry"), trials=3,
        trial=trial,
        space={
            "model.n_iter": Dimension(choice=[1, 2]),
            "train.losses.pose": Dimension(low=0.1, high=10.0, log=True),
        },
    ).model_copy(update=changes)  # fmt: skip


@pytest.mark.ray
def test_a_search_ends_registers_its_best_and_is_not_repeated(shards, tmp_path):
    job = study(shards, tmp_path, register_as="found")
    found = tune(job)
    assert found["trials"] == 3
    assert found["finished"] >= 1
    assert found["finished"] + found["stopped"] == 3
    finished = [row for row in found["rows"] if row["status"] == "finished"]
    assert all(row["epochs"] == 2 for row in finished)
    assert found["best_trial"] == min(finished, key=lambda row: row["pa_mpjpe_mm"])["trial"]
    registry = Registry(str(tmp_path / "registry"))
    best = load_bundle(registry.fetch("found", "best"))
    assert best.n_iter == found["best_settings"]["model.n_iter"]
    written = yaml.safe_load((tmp_path / "runs/study/best.yaml").read_text())
    assert written["train"]["losses"]["pose"] == found["best_settings"]["train.losses.pose"]
    with (tmp_path / "runs/study/trials.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == [r["trial"] for r in found["rows"]]

    again = tune(job.model_copy(update={"register_as": None}))
    assert again["rows"] == found["rows"]
    with pytest.raises(ConfigError, match="trials is 3 there and 4 now"):
        tune(job.model_copy(update={"trials": 4}))


def node(cpus, gpus=0):
    return {"CPU": float(cpus), "GPU": float(gpus)}


@pytest.mark.parametrize(
    ("nodes", "trial", "expected"),
    [
        ([node(2)], (1, 1, 0), 1),  # one worker, one whole CPU for the data
        ([node(4)], (1, 1, 0), 2),
        ([node(2), node(2)], (1, 1, 0), 2),
        ([node(2)], (2, 1, 0), 0),
        ([node(3)], (2, 1, 0), 1),
        # Two workers on two nodes: each node keeps a CPU free.
        ([node(2), node(2)], (2, 1, 0), 1),
        # CPUs of different nodes do not add up.
        ([node(1), node(1), node(1)], (1, 1, 0), 0),
        ([node(0), node(16, 4)], (1, 2, 1), 4),
        ([node(64, 2)], (1, 2, 1), 2),
    ],
)  # fmt: skip
def test_only_as_many_trials_run_at_once_as_cannot_block_each_other(nodes, trial, expected):
    workers, cpus, gpus = trial
    assert concurrent_trials(nodes, workers=workers, cpus=cpus, gpus=gpus) == expected


def test_a_searched_setting_must_exist_and_fit():
    trial = TrainJob()
    wrong = TuneJob(trial=trial, space={"model.n_itre": Dimension(choice=[1])})
    with pytest.raises(ConfigError, match=r"model\.n_itre: unknown key -- did you mean"):
        check_space(wrong)
    with pytest.raises(ConfigError, match=r"model\.n_iter.*got 99"):
        check_space(TuneJob(trial=trial, space={"model.n_iter": Dimension(choice=[1, 99])}))
    with pytest.raises(HmrError):
        check_space(TuneJob(trial=trial, space={"name": Dimension(choice=["../x"])}))
