"""A head started as KubeRay starts it, with a manifest's own parameters, on this machine."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from deploy_commands import ROOT

from rayhmr.cluster import free_port, open_here

CLUSTER = yaml.safe_load((ROOT / "platform/deploy/kuberay/raycluster.yaml").read_text())
HEAD = CLUSTER["spec"]["headGroupSpec"]
START_S = 90.0


@dataclass(frozen=True)
class Head:
    """Ports of its dashboard and of its agent, and the token of its cluster."""

    dashboard: int
    agent: int
    token: str

    def get(self, port: int, path: str, token: str | None = None) -> tuple[int, str]:
        """Status and text of an answer; status 0 where nobody listens."""
        header = {} if token is None else {"authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=header)
        try:
            with open_here(request, 10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Ray's sockets live in here and their paths may have 107 letters.
    folder = Path(tempfile.mkdtemp(prefix="kube-", dir=os.environ.get("RAY_TMPDIR")))
    one = Head(free_port(), free_port(), secrets.token_hex(32))
    # The operator joins the parameters to a line for bash, and adds some of its own.
    given = " ".join(f"--{name}={value}" for name, value in HEAD["rayStartParams"].items())
    ours = (
        f"--port={free_port()} --dashboard-port={one.dashboard} --temp-dir={folder} "
        f"--dashboard-agent-listen-port={one.agent} --object-store-memory=100000000 "
        "--min-worker-port=0 --max-worker-port=0 --num-gpus=0"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": one.token}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            ["bash", "-c", f"exec ray start --head --block {given} {ours}"],
            env=environment, stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip
        try:
            ready = HEAD["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]
            deadline = time.monotonic() + START_S
            while one.get(one.agent, ready["path"])[0] != 200:
                assert process.poll() is None, (folder / "said").read_text()
                assert time.monotonic() < deadline, (folder / "said").read_text()
                time.sleep(0.5)
            yield one
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            # All that it started is in its group, and none of it is needed any more.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
def test_the_probes_need_no_token_and_see_raylet_and_gcs(head: Head) -> None:
    box = HEAD["template"]["spec"]["containers"][0]
    for probe in ("livenessProbe", "readinessProbe"):
        status, text = head.get(head.agent, box[probe]["httpGet"]["path"])
        assert (status, text) == (200, "raylet: success\ngcs: success")


@pytest.mark.ray
def test_everything_else_does(head: Head) -> None:
    for path in ("/api/jobs/", "/api/v0/nodes", "/api/cluster_status"):
        assert head.get(head.dashboard, path)[0] == 401, path
        assert head.get(head.dashboard, path, "0" * 64)[0] == 403, path
        assert head.get(head.dashboard, path, head.token)[0] == 200, path


@pytest.mark.ray
def test_it_offers_no_cpu_but_what_drivers_hold(head: Head) -> None:
    status, text = head.get(head.dashboard, "/api/v0/nodes?detail=1", head.token)
    assert status == 200
    (node,) = json.loads(text)["data"]["result"]["result"]
    offered = node["resources_total"]
    assert "CPU" not in offered
    assert offered["drv"] == 100
