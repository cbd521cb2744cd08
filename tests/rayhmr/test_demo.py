"""The demo in small: every step for real, and the promises it makes about its folder."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from hmr.errors import ConfigError, HmrError
from rayhmr import command_line
from rayhmr.config import ClusterConfig, DemoJob
from rayhmr.demo import MARKER, accuracy_rows, demo, epochs_of, fresh_folder, place, time_service
from rayhmr.sheet import spread

SMALL = [
    "prepare.rows_per_file=40",
    "prepare.synthetic.image_size=32",
    "prepare.synthetic.train=160",
    "prepare.synthetic.val=20",
    "prepare.synthetic.test=20",
    "tune.trials=2",
    "tune.trial.data.train_fraction=0.5",
    "tune.trial.train.epochs=1",
    "tune.grace_epochs=1",
    "tune.trial.model.image_size=32",
    "tune.trial.model.encoder_width=4",
    "tune.trial.train.batch_size=32",
    "train.model.image_size=32",
    "train.model.encoder_width=4",
    "train.train.batch_size=32",
    "train.train.epochs=2",
    "sheet_people=4",
    "serve_requests=5",
    "serve_port=0",
]


def small_job(folder):
    return command_line.load(DemoJob, ["jobs/configs/demo.yaml"], [f"output={folder}/demo", *SMALL])


@pytest.mark.ray
def test_the_whole_platform_runs_in_a_row(local_cluster, tmp_path, monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    results = demo(small_job(tmp_path))
    made = tmp_path / "demo"
    for key in ("baseline_mpjpe_mm", "mpjpe_mm", "baseline_pa_mpjpe_mm", "pa_mpjpe_mm",
                "best_n_iter", "trials", "images_per_s", "serve_p50_ms"):  # fmt: skip
        assert results[key] > 0, key
    json.dumps(results, allow_nan=False)
    assert (results["trials"], results["predicted"]) == (2, 4)
    assert results["best_n_iter"] in (1, 2, 3, 4)

    printed = [ln for ln in (made / "submitted.log").read_text().splitlines() if ln[:1] == "{"]
    submitted = json.loads(printed[-1])
    assert submitted["epochs"] == 1
    assert submitted["run"] == str(made / "runs/submitted")
    assert (made / "runs/submitted/bundle/manifest.json").is_file()

    answer = json.loads((made / "answer.json").read_text())
    assert len(answer["people"]) == 1
    assert (made / "answer.glb").read_bytes()[:4] == b"glTF"
    sheet = np.asarray(Image.open(made / "people.png"))
    assert sheet.std() > 20
    page = (made / "report.html").read_text()
    for figure in (results["pa_mpjpe_mm"], results["serve_p50_ms"]):
        assert f"{figure:.4g}" in page
    assert page.count("data:image/jpeg;base64,") == 2, "people and body"
    steps = [row["step"] for row in json.loads((made / "summary.json").read_text())["steps"]]
    assert len(steps) == 8


def test_only_a_folder_of_an_earlier_demo_is_replaced(tmp_path):
    first = fresh_folder(str(tmp_path / "demo"))
    (first / "report.html").write_text("old")
    again = fresh_folder(str(tmp_path / "demo"))
    assert [path.name for path in again.iterdir()] == [MARKER]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"output=.*thesis: the folder holds files that no demo"):
        fresh_folder(str(tmp_path / "thesis"))
    assert (tmp_path / "thesis" / "draft.tex").read_text() == "x"


def test_every_path_lies_in_the_demo_folder(tmp_path):
    cluster = ClusterConfig(address="local", num_cpus=4)
    job = small_job(tmp_path)
    trial = place(job.tune, tmp_path, cluster).trial
    final = place(job.train, tmp_path, cluster)
    prepared = place(job.prepare, tmp_path, cluster)
    assert prepared.output == trial.data.path == final.data.path == str(tmp_path / "shards")
    assert trial.storage == final.storage == str(tmp_path / "runs")
    assert trial.cluster == final.cluster == prepared.cluster == cluster


def test_a_demo_without_a_model_name_is_refused_before_it_touches_anything(tmp_path):
    job = command_line.load(DemoJob, [], [f"output={tmp_path}/demo"])
    assert job.train.register_as is None
    with pytest.raises(ConfigError, match=r"train\.register_as is empty: .* such as train"):
        demo(job)
    assert not (tmp_path / "demo").exists()


def test_of_an_epoch_trained_twice_the_later_counts(tmp_path):
    facts = [
        {"kind": "epoch", "epoch": 1, "val/pa_mpjpe_mm": 90},
        {"kind": "step", "step": 3},
        {"kind": "epoch", "epoch": 2, "val/pa_mpjpe_mm": 80},
        {"kind": "epoch", "epoch": 2, "val/pa_mpjpe_mm": 70},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, facts)) + "\n")
    assert [f["val/pa_mpjpe_mm"] for f in epochs_of(tmp_path)] == [90, 70]


def test_the_mean_pose_stands_first_among_the_rows():
    step = {"mpjpe_mm": 90.0, "pa_mpjpe_mm": 60.0, "pve_mm": 80.0, "mpjpe_ratio": 0.5,
            "pa_mpjpe_ratio": 0.4, "n_iter": 1}  # fmt: skip
    measured = {
        "baseline_mpjpe_mm": 180.0, "baseline_pa_mpjpe_mm": 150.0, "by_iteration": [step]
    }  # fmt: skip
    rows = accuracy_rows(measured)
    assert [row["mpjpe_mm"] for row in rows] == [180.0, 90.0]
    assert [row["mpjpe_ratio"] for row in rows] == [1.0, 0.5]
    assert rows[1]["who"] == "model, T = 1"


def test_people_of_the_sheet_go_evenly_from_best_to_worst():
    assert spread(list("abcdefghi"), 3) == ["a", "e", "i"]
    assert spread(list("ab"), 5) == ["a", "b"]


def test_latency_is_the_median_and_an_error_of_the_service_ends_the_demo():
    answers = {"status": 200, "asked": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            answers["asked"] += 1
            self.send_response(answers["status"])
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        latency = time_service(url, b"photo", 20)
        assert answers["asked"] == 25
        assert 0 < latency["p50_ms"] <= latency["p95_ms"]
        answers["status"] = 500
        with pytest.raises(HmrError, match=r"answered 500: b'hello'"):
            time_service(url, b"photo", 20)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
