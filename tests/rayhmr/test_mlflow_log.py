"""A run in MLflow, in a database file: written, resumed, and lost without harm."""

from __future__ import annotations

import math
import sys
import threading

import numpy as np
import pytest

from hmr.crops import decode_image
from hmr.errors import ConfigError
from hmr.validation_pictures import to_png
from rayhmr.mlflow_log import EXPERIMENT, MlflowLog, check_mlflow, flat
from rayhmr.storage import Folder

pytest.importorskip("mlflow")
# What MLflow and SQLAlchemy warn of among themselves is theirs.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

SETTINGS = {"name": "a", "train": {"epochs": 3, "optimizer": {"lr": 0.001}}, "registry": {}}
STEP = {
    "kind": "step", "step": 20, "losses": {"loss": 1.5, "pose": 0.25}, "weighted": {"pose": 0.5},
    "lr": 1e-3, "images_per_s": 400.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One database for all tests: MLflow takes seconds to make its tables."""
    address = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    check_mlflow(address)
    return address


@pytest.fixture(scope="module")
def client(uri):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def points(client, run_id, name):
    return [(m.step, m.value) for m in client.get_metric_history(run_id, name)]


def test_settings_become_parameters_by_their_path():
    assert list(flat(SETTINGS)) == [
        ("name", "a"), ("train.epochs", "3"), ("train.optimizer.lr", "0.001"), ("registry", "{}"),
    ]  # fmt: skip


def test_a_run_shows_settings_curves_pictures_and_its_end(tmp_path, uri, client):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    with MlflowLog(uri, Folder(str(tmp_path)), "walk", SETTINGS) as log:
        log.write({"kind": "worker", "rank": 0})
        log.write(STEP)
        log.write(STEP | {"step": 40, "losses": {"loss": math.nan, "pose": 0.125}})
        log.write({"kind": "epoch", "step": 40.0, "epoch": 1.0, "val/pa_mpjpe_mm": 61.25})
        log.write({"kind": "pictures", "step": 40, "image": to_png(picture)})
        assert client.get_run(log.run_id).info.status == "RUNNING"
    run = client.get_run(log.run_id)
    assert (run.info.run_name, run.info.status) == ("walk", "FINISHED")
    assert run.data.params == dict(flat(SETTINGS))
    assert client.get_experiment(run.info.experiment_id).name == EXPERIMENT
    assert set(run.data.metrics) == {
        "loss/total", "loss/pose", "weighted/pose", "step/lr", "step/images_per_s",
        "val/pa_mpjpe_mm",
    }  # fmt: skip
    assert points(client, log.run_id, "loss/pose") == [(20, 0.25), (40, 0.125)]
    assert points(client, log.run_id, "val/pa_mpjpe_mm") == [(40, 61.25)]
    (first, second) = points(client, log.run_id, "loss/total")
    assert first == (20, 1.5)
    assert math.isnan(second[1])
    stored = client.download_artifacts(log.run_id, "pictures/step-00000040.png", str(tmp_path))
    with open(stored, "rb") as file:
        assert (decode_image(file.read()) == picture).all()


def test_a_run_that_resumes_goes_on_in_the_same_mlflow_run(tmp_path, uri, client):
    folder = Folder(str(tmp_path))
    first = MlflowLog(uri, folder, "a", SETTINGS)
    first.write(STEP)
    first.__exit__(SystemExit, SystemExit(143), None)
    assert client.get_run(first.run_id).info.status == "KILLED"
    # How often lines are written may change; what MLflow shows as settings stays.
    with MlflowLog(uri, folder, "a", SETTINGS | {"name": "b"}) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.write(STEP | {"step": 40})
    assert second.run_id == first.run_id
    assert points(client, first.run_id, "step/lr") == [(20, 1e-3), (40, 1e-3)]
    assert client.get_run(first.run_id).data.params == dict(flat(SETTINGS))
    with pytest.raises(OSError, match="broken"), MlflowLog(uri, folder, "a", SETTINGS):
        raise OSError("broken")
    assert client.get_run(first.run_id).info.status == "FAILED"


def test_a_run_that_mlflow_has_forgotten_begins_anew_there(tmp_path, uri, client, capsys):
    folder = Folder(str(tmp_path))
    with MlflowLog(uri, folder, "a", SETTINGS) as first:
        pass
    client.delete_run(first.run_id)
    with MlflowLog(uri, folder, "a", SETTINGS) as second:
        pass
    assert second.run_id != first.run_id
    assert first.run_id in capsys.readouterr().err
    with MlflowLog(uri, folder, "a", SETTINGS) as third:
        pass
    assert third.run_id == second.run_id


def test_a_lost_server_costs_points_not_the_run_and_is_told_of_once(
    tmp_path, uri, client, capsys, monkeypatch
):
    with MlflowLog(uri, Folder(str(tmp_path)), "a", SETTINGS) as log:
        tried = threading.Event()
        works = log._client.log_batch

        def fails(*arguments, **more):
            tried.set()
            raise ConnectionError("http://me:secret@host/api: no route")

        monkeypatch.setattr(log._client, "log_batch", fails)
        for step in (20, 40):
            tried.clear()
            log.write(STEP | {"step": step})
            assert tried.wait(60)
        monkeypatch.setattr(log._client, "log_batch", works)
        log.write(STEP | {"step": 60})
    said = capsys.readouterr().err
    assert said.count("does not answer") == 1
    assert "secret" not in said
    assert (60, 1e-3) in points(client, log.run_id, "step/lr")


def test_a_server_that_hangs_does_not_keep_the_run_from_its_end(tmp_path, uri, capsys, monkeypatch):
    monkeypatch.setattr("rayhmr.mlflow_log.PATIENCE_S", 0.1)
    answers, asked = threading.Event(), threading.Event()
    with MlflowLog(uri, Folder(str(tmp_path)), "a", SETTINGS) as log:

        def hangs(*arguments, **more):
            asked.set()
            answers.wait(60)

        monkeypatch.setattr(log._client, "log_batch", hangs)
        for step in range(2000):
            log.write(STEP | {"step": step})
        assert asked.wait(60)
        assert len(log._facts) <= 1000
    assert "took too long" in capsys.readouterr().err
    answers.set()
    log._thread.join()


def test_what_cannot_be_used_is_refused_before_the_training(tmp_path, monkeypatch):
    for address, rule in {
        "ftp://host/x": "sqlite:////folder/mlflow.db",
        f"{tmp_path}/mlruns": "sqlite",
        "http://me:secret@127.0.0.1:9": "a server that runs",
    }.items():
        with pytest.raises(ConfigError, match=rule) as caught:
            check_mlflow(address)
        assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ConfigError, match=r"pip install 'rayhmr\[mlflow\]'"):
        check_mlflow("sqlite:///x.db")
