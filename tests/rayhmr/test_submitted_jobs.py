"""Jobs sent to a head and a worker with a token, whose Python has the libraries and not this
project, from a folder that is not the project's."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from contextlib import suppress
from pathlib import Path

import pytest

from rayhmr.cluster import free_port

ROOT = Path(__file__).resolve().parents[2]
START_S = 120.0
START = "from ray.scripts.scripts import main; main()"


def make_bare_python(folder):
    """Ray Data, torch and the rest, but not hmr and rayhmr."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/*/site-packages")
    # Folders that are added this way have no .pth files of their own read: no editable install.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin/python"
    done = subprocess.run([python, "-c", "import torch, rayhmr"], capture_output=True, text=True,
                          cwd=folder, check=False)  # fmt: skip
    assert "No module named 'rayhmr'" in done.stderr
    return python


class Nodes:
    """A head and a worker, two CPUs each."""

    def __init__(self, folder):
        self.folder = folder
        # Ray's sockets live in here and their paths may have 107 letters.
        self._ray = Path(tempfile.mkdtemp(prefix="sent-", dir=os.environ.get("RAY_TMPDIR")))
        self._python = make_bare_python(folder / "bare")
        self.dashboard = f"http://127.0.0.1:{(port := free_port())}"
        self.environment = {k: v for k, v in os.environ.items() if k[:4] not in ("RAY_", "PYTH")}
        self.environment |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(self._ray), "RAY_JOB_STOP_WAIT_TIME_S": "60",
            "PATH": f"{self._python.parent}:{os.environ['PATH']}",
        }  # fmt: skip
        self._processes = []
        gcs = free_port()
        try:
            self._start(
                "--head", f"--port={gcs}", f"--dashboard-port={port}", f"--temp-dir={self._ray}",
                f"--ray-client-server-port={free_port()}",
            )  # fmt: skip
            self._start(f"--address=127.0.0.1:{gcs}")
        except BaseException:
            self.close()
            raise

    def _start(self, *words):
        command = [
            self._python, "-c", START, "start", "--block", "--num-cpus=2", "--num-gpus=0",
            "--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0",
            f"--dashboard-agent-listen-port={free_port()}", "--resources={\"drv\": 100}", *words,
        ]  # fmt: skip
        with (self._ray / f"said-{len(self._processes)}").open("w") as said:
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip
        self._processes.append(process)
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in (text := Path(said.name).read_text()):
            assert process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)

    def close(self):
        for process in reversed(self._processes):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            # All that it started is in its group, and none of it is needed any more.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self._ray, ignore_errors=True)

    def send(self, *words, retries=0, **changes):
        """jobs/submit.py, from a folder of its own."""
        command = [
            sys.executable, str(ROOT / "jobs/submit.py"), "--address", self.dashboard,
            "--retries", str(retries), "--", *words,
        ]  # fmt: skip
        return subprocess.run(
            command, env=self.environment | changes, cwd=self.folder, capture_output=True,
            text=True, timeout=400, check=False,
        )  # fmt: skip

    def result(self, *words):
        done = self.send(*words)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)["result"]

    def asked(self, script):
        """What a script prints that knows the cluster."""
        done = subprocess.run(
            [sys.executable, "-c", script, self.dashboard], env=self.environment, cwd=self.folder,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    one = Nodes(tmp_path_factory.mktemp("elsewhere"))
    yield one
    one.close()


@pytest.mark.ray
def test_what_fails_is_sent_again_and_what_cannot_be_cured_is_not(nodes):
    count = nodes.folder / "count"
    fails_twice = f"echo x >> {count}; echo line $(wc -l < {count}); test $(wc -l < {count}) -ge 3"
    done = nodes.send("sh", "-c", fails_twice, retries=3)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["status"], found["attempts"]) == ("SUCCEEDED", 3)
    assert len(set(found["submissions"])) == 3
    for number in (1, 2, 3):  # the logs of all attempts
        assert f"line {number}\n" in done.stderr
    assert done.stderr.count("FAILED with exit code 1; trying again") == 2

    # Settings that a job refuses: our code is there, though the cluster's Python has none of it.
    done = nodes.send("python", "jobs/train.py", "train.epoch=3", retries=3)
    assert done.returncode == 1
    assert "did you mean" in done.stderr
    assert "FAILED with exit code 2; another attempt would end the same way" in done.stderr
    assert "attempt 2" not in done.stderr

    done = nodes.send("true", RAY_AUTH_TOKEN="0" * 64)
    assert done.returncode == 2
    assert f"address={nodes.dashboard}: cannot submit there" in done.stderr
    assert "token" in done.stderr


OF_RAY_DATA = {
    "_StatsActor", "_AutoscalingCoordinatorActor", "_UsageCollectionActor", "ActorLocationTracker",
}  # fmt: skip
"""One of each belongs to the cluster, and stays."""
ACTORS = """
import sys
from ray.util.state import list_actors
alive = list_actors(address=sys.argv[1], filters=[("state", "!=", "DEAD")])
print(" ".join(actor.class_name for actor in alive))
"""
STOP = """
import sys, time
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient(sys.argv[1])
(job,) = [job for job in client.list_jobs() if job.status == "RUNNING"]
client.stop_job(job.submission_id)
while not client.get_job_status(job.submission_id).is_terminal():
    time.sleep(0.2)
print(client.get_job_status(job.submission_id).value)
"""


@pytest.mark.ray
@pytest.mark.chaos
def test_every_job_runs_there_and_a_stopped_one_keeps_a_checkpoint(nodes):
    folder = nodes.folder
    prepared = nodes.result(
        "python", "jobs/prepare.py", f"output={folder}/shards", "rows_per_file=64",
        "synthetic.image_size=32", "synthetic.train=256", "synthetic.val=64", "synthetic.test=32",
    )  # fmt: skip
    assert prepared["rows"] == {"train": 256, "val": 64, "test": 32}
    model = ["model.encoder_width=4", "model.image_size=32", "model.hidden=32"]
    training = ["train.batch_size=32", "data.decode_threads=1", f"data.path={folder}/shards",
                "scaling.num_workers=2", *model]  # fmt: skip
    places = [f"storage={folder}/runs", f"registry={folder}/registry"]
    trained = nodes.result(
        "python", "jobs/train.py", "name=run", "register_as=person", "train.epochs=1", *training,
        *places,
    )  # fmt: skip
    assert trained["epochs"] == 1
    trial = [f"trial.{word}" for word in training if not word.startswith("scaling")]
    space = json.dumps({"model.n_iter": {"choice": [1, 2]}})
    tuned = nodes.result(
        "python", "jobs/tune.py", "name=study", "trials=2", f"space={space}", "searcher=random",
        "trial.train.epochs=1", "trial.scaling.num_workers=1", "scheduler=none", *trial, *places,
    )  # fmt: skip
    assert tuned["finished"] == 2
    reference = f"model={folder}/registry/person@best"
    measured = nodes.result(
        "python", "jobs/evaluate.py", reference, f"data={folder}/shards", "split=val"
    )
    assert measured["pa_mpjpe_mm"] == pytest.approx(trained["pa_mpjpe_mm"], abs=0.1)
    predicted = nodes.result(
        "python", "jobs/predict.py", reference, f"input={folder}/shards", "split=test",
        f"output={folder}/predictions", "num_actors=1",
    )  # fmt: skip
    assert (predicted["predicted"], predicted["rejected"]) == (32, 0)

    command = [
        sys.executable, str(ROOT / "jobs/submit.py"), "--address", nodes.dashboard, "--retries",
        "2", "--", "python", "jobs/train.py", "name=long", "train.epochs=500", *training, *places,
    ]  # fmt: skip
    with subprocess.Popen(command, env=nodes.environment, cwd=folder, text=True,
                          stderr=subprocess.PIPE) as sent:  # fmt: skip
        run = folder / "runs/long"
        deadline = time.monotonic() + START_S
        while not list(run.glob("epoch-*")):
            assert sent.poll() is None, sent.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert nodes.asked(STOP).strip() == "STOPPED"
        assert sent.wait(60) == 1
        said = sent.stderr.read()
    assert "STOPPED with exit code" in said
    assert "attempt 2" not in said
    assert "stopped early" in said, "it kept a checkpoint first"
    deadline = time.monotonic() + 30
    while left := set(nodes.asked(ACTORS).split()) - OF_RAY_DATA:
        assert time.monotonic() < deadline, left
        time.sleep(1)
