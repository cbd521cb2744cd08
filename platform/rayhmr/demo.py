"""The whole platform in a row, for real, on this machine: people, shards, search, training,
evaluation, registry, batch prediction, service, and one training through `ray job submit`.

Every step is the function behind the job script of the same name; the demo only hands the results
on, times the steps, and writes `report.html`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from hmr.body_arrays import body_from_path
from hmr.body_sheet import LEGEND as BODY_LEGEND
from hmr.body_sheet import body_sheet
from hmr.errors import ConfigError, HmrError
from rayhmr import report
from rayhmr.cluster import ClusterInfo, connect
from rayhmr.config import (
    ClusterConfig,
    DemoJob,
    EvaluateJob,
    PredictJob,
    PrepareJob,
    ServeJob,
    TrainJob,
    TuneJob,
)
from rayhmr.data.prepare import prepare
from rayhmr.data.schema import read_info
from rayhmr.evaluate import evaluate, measure, open_model
from rayhmr.predict import predict
from rayhmr.serve.host import running_service, wait_for_signal
from rayhmr.sheet import LEGEND, HeldOut, held_out, people_sheet, spread
from rayhmr.telemetry import say
from rayhmr.train import train
from rayhmr.tune import tune, with_settings

Job = TypeVar("Job", PrepareJob, TuneJob, TrainJob)
MARKER = ".rayhmr-demo"


class Steps:
    """Seconds of each step, in order."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Say that a step begins, and note how long it took."""
        say(f"\n=== {name} ===")
        start = time.perf_counter()
        yield
        self.rows.append({"step": name, "seconds": round(time.perf_counter() - start, 1)})


def fresh_folder(path: str) -> Path:
    """An empty folder for the demo; only a folder that an earlier demo made is replaced."""
    folder = Path(path).resolve()
    if folder.exists():
        if any(folder.iterdir()) and not (folder / MARKER).exists():
            raise ConfigError(
                f"output={folder}: the folder holds files that no demo made (there is no "
                f"{MARKER} in it); choose another folder, such as output=demo2"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).touch()
    return folder


def place(job: Job, folder: Path, cluster: ClusterConfig) -> Job:
    """`job` with every path inside the demo's folder, on the demo's cluster."""
    if isinstance(job, PrepareJob):
        return job.model_copy(update={"output": str(folder / "shards"), "cluster": cluster})
    update: dict[str, Any] = {
        "storage": str(folder / "runs"),
        "registry": str(folder / "registry"),
        "cluster": cluster,
    }
    if isinstance(job, TuneJob):
        return job.model_copy(update=update | {"trial": place(job.trial, folder, cluster)})
    data = job.data.model_copy(update={"path": str(folder / "shards")})
    return job.model_copy(update=update | {"data": data})


def submit_training(job: TrainJob, cluster: ClusterInfo, folder: Path) -> dict[str, Any]:
    """The same training through `ray job submit`; the last line of its log is its result."""
    root = Path.cwd()
    if not (root / "jobs" / "train.py").is_file():
        raise ConfigError(
            f"{root} holds no jobs/train.py: `ray job submit` uploads the project's folder, so "
            "start the demo from there"
        )
    if cluster.dashboard_url is None:
        raise HmrError("the cluster has no dashboard, so no job can be submitted to it")
    config = folder / "submitted.yaml"
    config.write_text(json.dumps(job.model_dump(mode="json")), encoding="utf-8")
    command = [
        str(Path(sys.executable).with_name("ray")), "job", "submit", "--address",
        cluster.dashboard_url, "--runtime-env", "jobs/runtime_env.yaml", "--", sys.executable,
        "jobs/train.py", "--config", str(config), "cluster.address=auto",
    ]  # fmt: skip
    log = folder / "submitted.log"
    say(f"its log: {log}")
    with log.open("w", encoding="utf-8") as stream:
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False)
    lines = log.read_text(encoding="utf-8").splitlines()
    if done.returncode != 0:
        raise HmrError(f"ray job submit ended with code {done.returncode}; its log is {log}")
    results = [line for line in lines if line.startswith("{") and line.endswith("}")]
    if not results:
        raise HmrError(f"the submitted job printed no result; its log is {log}")
    result: dict[str, Any] = json.loads(results[-1])
    return result


def time_service(url: str, image: bytes, requests: int) -> dict[str, float]:
    """Latency of `POST /v1/predict`, one request at a time, in milliseconds."""
    milliseconds = []
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        for number in range(requests + 5):
            start = time.perf_counter()
            _ask(connection, image, "application/json")
            if number >= 5:  # the first ones fill caches
                milliseconds.append(1000 * (time.perf_counter() - start))
    return {
        "p50_ms": statistics.median(milliseconds),
        "p95_ms": float(np.percentile(milliseconds, 95)),
    }


def write_images(people: list[HeldOut], folder: Path) -> None:
    """The pictures of held-out people as files, as a user would bring them."""
    folder.mkdir()
    for number, person in enumerate(people):
        (folder / f"person-{number:02d}.jpg").write_bytes(person.jpeg)


def ask_for_meshes(url: str, image: bytes, folder: Path) -> None:
    """Keep the service's answers to one picture, in three forms."""
    forms = {"json": "application/json", "glb": "model/gltf-binary", "png": "image/png"}
    with closing(HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        for ending, accept in forms.items():
            (folder / f"answer.{ending}").write_bytes(_ask(connection, image, accept))


def _ask(connection: HTTPConnection, image: bytes, accept: str) -> bytes:
    headers = {"Content-Type": "image/jpeg", "Accept": accept}
    connection.request("POST", "/v1/predict", body=image, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise HmrError(
            f"POST http://{connection.host}:{connection.port}/v1/predict answered "
            f"{answer.status}: {content[:300]!r}"
        )
    return content


def accuracy_sections(measured: dict[str, Any], curve: list[dict[str, Any]]) -> list[
    tuple[str, str]
]:  # fmt: skip
    """What the report says about accuracy and the way there."""
    names = (("MPJPE", "mpjpe_mm"), ("PA-MPJPE", "pa_mpjpe_mm"))
    by_step = report.line_chart(
        {name: [(row["n_iter"], row[key]) for row in measured["by_iteration"]]
         for name, key in names},
        x_label="refinement steps", y_label="held-out error (mm)",
    )  # fmt: skip
    learning = report.line_chart(
        {name: [(row["epoch"], row[f"val/{key}"]) for row in curve] for name, key in names},
        x_label="epoch",
        y_label="validation error (mm)",
    )
    return [
        (
            "Held-out accuracy by number of iterations",
            report.html_table(accuracy_rows(measured)) + by_step,
        ),
        ("Learning curve", learning),
    ]


def accuracy_rows(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The mean pose and every iteration of the model."""
    baseline = {
        "who": "mean pose of the training people",
        "mpjpe_mm": measured["baseline_mpjpe_mm"],
        "pa_mpjpe_mm": measured["baseline_pa_mpjpe_mm"],
        "pve_mm": None,
        "mpjpe_ratio": 1.0,
        "pa_mpjpe_ratio": 1.0,
    }
    rows = [
        {"who": f"model, T = {row['n_iter']}"} | {k: row[k] for k in baseline if k != "who"}
        for row in measured["by_iteration"]
    ]
    return [baseline, *rows]


def epochs_of(run: Path) -> list[dict[str, Any]]:
    """The facts of each epoch from a run's metrics.jsonl; of two the later one."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    facts = [json.loads(line) for line in lines]
    return list({f["epoch"]: f for f in facts if f["kind"] == "epoch"}.values())


def _sheet(question: EvaluateJob, count: int) -> tuple[np.ndarray, list[HeldOut]]:
    """The sheet of people, and its people from the best to the worst."""
    info = read_info(question.data)
    _, predictor = open_model(question, info)
    errors = measure(predictor, info, question.split, batch_size=question.batch_size)
    people = held_out(info, question.split, spread(errors.ranked(), count), predictor)
    return people_sheet(people, predictor), people


def write_report(
    folder: Path, results: dict[str, Any], steps: Steps, found: dict[str, Any],
    measured: dict[str, Any], sheet: np.ndarray, body: np.ndarray,
) -> None:  # fmt: skip
    """demo/report.html, and the same figures as summary.json."""
    facts = [{"what": key, "value": value} for key, value in results.items()]
    curve = epochs_of(folder / "runs" / "final")
    sections = [
        ("Summary", report.html_table(facts)),
        *accuracy_sections(measured, curve),
        ("Held-out people", report.html_picture(sheet, LEGEND)),
        ("The body", report.html_picture(body, BODY_LEGEND)),
        ("Search", report.html_table(found["rows"])),
        ("Time of each step", report.html_table(steps.rows)),
    ]
    report.write_page(
        folder / "report.html", "rayhmr: the whole platform on synthetic people",
        "Written by jobs/demo.py from one run on this machine.", sections,
    )  # fmt: skip
    text = json.dumps(results | {"steps": steps.rows}, indent=2)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")


def demo(job: DemoJob) -> dict[str, Any]:
    """Run everything in order; returns the summary. HmrError says what failed, and where its log
    is."""
    if job.train.register_as is None:
        raise ConfigError(
            "train.register_as is empty: the demo evaluates and serves the registered model; "
            "give it a name, such as train.register_as=hmr"
        )
    folder = fresh_folder(job.output)
    cluster = ClusterConfig(address="local", num_cpus=job.num_cpus)
    steps = Steps()
    model = f"{folder}/registry/{job.train.register_as}@best"
    with ExitStack() as opened:
        with steps.time("start Ray"):
            info = opened.enter_context(connect(cluster, cpus_needed=job.num_cpus))
        with steps.time("prepare: synthetic people to shards"):
            prepared = prepare(place(job.prepare, folder, cluster))
        with steps.time(f"tune: {job.tune.trials} trials"):
            found = tune(place(job.tune, folder, cluster))
        final = with_settings(place(job.train, folder, cluster), found["best_settings"])
        with steps.time("train: best settings, all data"):
            trained = train(final)
        with steps.time("the same training through ray job submit"):
            changes = {
                "name": "submitted", "register_as": None, "train.epochs": job.submit_epochs,
                "data.train_fraction": job.submit_fraction,
            }  # fmt: skip
            submitted = submit_training(with_settings(final, changes), info, folder)
        with steps.time("evaluate: held-out people"):
            question = EvaluateJob(
                model=model, data=f"{folder}/shards", output=f"{folder}/evaluation"
            )
            measured = evaluate(question)
            sheet, people = _sheet(question, job.sheet_people)
            Image.fromarray(sheet).save(folder / "people.png")
        with steps.time("predict: a folder of images"):
            write_images(people, folder / "images")
            predicted = predict(
                PredictJob(
                    model=model,
                    input=f"{folder}/images",
                    output=f"{folder}/predictions",
                    num_actors=1,
                )
            )
        with steps.time("serve: start, ask, measure"):
            service = ServeJob(model=model, port=job.serve_port)
            url = opened.enter_context(running_service(service))
            ask_for_meshes(url, people[0].jpeg, folder)
            latency = time_service(url, people[0].jpeg, job.serve_requests)
        results = {
            "baseline_mpjpe_mm": round(measured["baseline_mpjpe_mm"], 2),
            "mpjpe_mm": round(measured["mpjpe_mm"], 2),
            "baseline_pa_mpjpe_mm": round(measured["baseline_pa_mpjpe_mm"], 2),
            "pa_mpjpe_mm": round(measured["pa_mpjpe_mm"], 2),
            "best_n_iter": measured["n_iter"],
            "trials": found["trials"],
            "images_per_s": trained["images_per_s"],
            "serve_p50_ms": round(latency["p50_ms"], 2),
            "serve_p95_ms": round(latency["p95_ms"], 2),
            "prepare_images_per_s": prepared["images_per_s"],
            "submitted_pa_mpjpe_mm": submitted["pa_mpjpe_mm"],
            "predicted": predicted["predicted"],
            "seconds": round(sum(row["seconds"] for row in steps.rows), 1),
            "report": str(folder / "report.html"),
        }
        body = body_sheet(body_from_path(job.prepare.body.path))
        Image.fromarray(body).save(folder / "body.png")
        write_report(folder, results, steps, found, measured, sheet, body)
        _say_summary(results, steps, measured, model)
        if job.keep_serving:
            say(f"serving on {url} until Ctrl-C")
            wait_for_signal()
    return results


def _say_summary(
    results: dict[str, Any], steps: Steps, measured: dict[str, Any], model: str
) -> None:
    folder = Path(results["report"]).parent
    say("\n" + report.text_table(steps.rows))
    say("\n" + report.text_table(accuracy_rows(measured)))
    say("\n" + report.text_table([{"what": k, "value": v} for k, v in results.items()]))
    say(
        f"\nreport  {results['report']}\n"
        f"serve   python jobs/serve.py model={model}\n"
        f"ask     curl -sF image=@{folder}/images/person-00.jpg localhost:8000/v1/predict"
    )
