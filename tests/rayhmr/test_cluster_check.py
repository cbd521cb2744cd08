"""The check of a cluster: its rules, and real nodes that lack something."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import venv
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from rayhmr import cluster_probe
from rayhmr.chaos.cluster import ChaosCluster
from rayhmr.cluster_check import _within
from rayhmr.cluster_rules import CHECKS, MAX_SKEW_S, NodeReport, judge

ROOT = Path(__file__).resolve().parents[2]
HERE = {
    "versions": {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0"}, "missing": {},
    "code": "c0ffee",
}  # fmt: skip
MISSING = {"hmr": "ModuleNotFoundError: No module named 'hmr'"}


def report(**facts):
    """Of a node that is as it should be, but for these facts."""
    good = {
        "name": "node", "cpus": 4, "software": HERE, "skew_s": 0.01, "unsure_s": 0.01, "unseen": {},
        "data_rows": 8,
    }  # fmt: skip
    return NodeReport(**(good | facts))


@pytest.mark.parametrize(
    ("facts", "check", "words"),
    [
        ({"silent": "GetTimeoutError"}, "answers", "did not answer (GetTimeoutError)"),
        ({"software": HERE | {"missing": MISSING, "code": ""}}, "imports",
         "hmr cannot be imported (ModuleNotFoundError: No module named 'hmr'): install the "),
        ({"software": HERE | {"versions": HERE["versions"] | {"torch": "2.11"}}}, "versions",
         "torch 2.11 (the driver has 2.13.0): install constraints.txt"),
        ({"software": HERE | {"code": "bad"}}, "code", "are bad, the driver's are c0ffee"),
        ({"write_error": "PermissionError: no"}, "storage",
         "storage=runs cannot be written (PermissionError: no)"),
        ({"files": 3, "unseen": {"abc": "FileNotFoundError: abc", "def": "also"}}, "storage",
         "lacks 2 of the files that other nodes wrote, among them abc (FileNotFoundError: abc)"),
        ({"skew_s": -9.0}, "clock", "-9.0 s from the driver's"),
        ({"gpus": 2, "torch_gpus": {"seen": 1, "error": None}}, "gpu",
         "Ray counts 2 GPUs, torch can use 1"),
        ({"data_error": "RayTaskError"}, "data", "could not be computed there (RayTaskError)"),
        ({"data_rows": 7}, "data", "7 of 8 rows came back"),
    ],
)  # fmt: skip
def test_each_rule_names_the_node_the_fact_and_the_cure(facts, check, words):
    bad, good = report(**facts), report(name="other")
    (problem,) = judge([good, bad], HERE, "runs", 8)
    assert problem.startswith(f"node: {check}: ")
    assert words in problem
    assert bad.cells[check] == "FAILED"
    assert {bad.cells[other] for other in CHECKS if other != check} <= {"ok", "–"}
    assert set(good.cells.values()) == {"other", "ok", "–"}


def test_a_node_that_is_as_it_should_be_has_no_problem():
    full = report(gpus=1, torch_gpus={"seen": 1, "error": None})
    assert judge([full, report(name="b")], HERE, "runs", 8) == []
    assert {full.cells[check] for check in CHECKS} == {"ok"}
    # Of three nodes one does not see what the others wrote: they are not to blame.
    apart = report(name="apart", files=3, unseen={"abc": "not there", "def": "not there"})
    (problem,) = judge([report(files=3, unseen={"abc": "not there"}), apart], HERE, "runs", 8)
    assert problem.startswith("apart: storage: ")
    # Where nobody is, the storage is.
    (problem,) = judge([report(files=3, unseen={"abc": "not there"})], HERE, "runs", 8)
    assert problem.startswith("storage=runs: 1 nodes missed files that others wrote")
    # A clock that may be right is not called wrong.
    assert judge([report(skew_s=MAX_SKEW_S + 2, unsure_s=2.5)], HERE, "runs", 8) == []


def test_the_hash_of_the_code_is_the_code_and_not_where_it_lies(tmp_path):
    package = Path(cluster_probe.__file__).parent
    copy = Path(shutil.copytree(package, tmp_path / "copy"))
    assert cluster_probe._code(copy) == cluster_probe._code(package)
    (copy / "telemetry.py").write_text("pass\n")
    assert cluster_probe._code(copy) != cluster_probe._code(package)


def test_a_question_without_an_answer_has_an_end():
    never = threading.Event()
    try:
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            _within(0.05, never.wait)
    finally:
        never.set()
    assert _within(5.0, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        _within(5.0, lambda: 1 / 0)


def checked(cluster, storage, *words):
    command = [
        sys.executable, str(ROOT / "jobs/cluster_check.py"), f"storage={storage}",
        "scaling.num_workers=2", "allreduce_mb=8", *words,
    ]  # fmt: skip
    environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


@contextmanager
def node_of_another_environment(cluster, folder):
    """A node whose Python has the libraries and not this project."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/*/site-packages")
    # Folders that are added this way have no .pth files of their own read: no editable install.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    start = "from ray.scripts.scripts import main; main()"
    command = [
        str(folder / "bin/python"), "-c", start, "start", "--address", cluster.address,
        "--num-cpus", "0", "--block",
    ]  # fmt: skip
    environment = {k: v for k, v in cluster.environment.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert any("Ray runtime started" in line for line in process.stdout)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def other_code(folder):
    """The PYTHONPATH of a node with another commit, and another numpy, or so it says."""
    for name in ("models", "platform"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info"))
    with (folder / "platform/rayhmr/telemetry.py").open("a") as file:
        file.write("# another commit\n")
    (folder / "sitecustomize.py").write_text("import numpy\nnumpy.__version__ = '9.9.9'\n")
    return ":".join(str(folder / part) for part in ("", "models", "platform"))


@pytest.mark.ray
@pytest.mark.skipif(os.geteuid() != 0, reason="a disk of a node's own is mounted by root alone")
def test_a_cluster_passes_and_nodes_that_lack_something_are_named(tmp_path):
    storage = tmp_path / "runs"
    storage.mkdir()
    with ExitStack() as stack:
        cluster = stack.enter_context(ChaosCluster(1))
        cluster.add(1)
        done = checked(cluster, storage)
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout.splitlines()[-1])
        assert (facts["nodes"], facts["problems"]) == (2, 0)
        assert facts["allreduce_gb_per_s"] > 0
        assert "FAILED" not in done.stderr
        assert list(storage.iterdir()) == []

        mount = f'mount -t tmpfs none {storage} && exec "$@"'
        local = cluster.add(0, prefix=["unshare", "-m", "sh", "-c", mount, "sh"])
        other = cluster.add(0, prefix=["env", f"PYTHONPATH={other_code(tmp_path / 'other')}"])
        stack.enter_context(node_of_another_environment(cluster, tmp_path / "bare"))
        done = checked(cluster, storage, "scaling.num_workers=1")
    assert done.returncode == 1
    lines = done.stderr.splitlines()

    def said(node, check):
        return [line for line in lines if f" {node[:6]}: {check}: " in line]

    (problem,) = said(local.node_id, "storage")
    assert "it is local to a node" in problem
    (problem,) = said(other.node_id, "code")
    (problem,) = said(other.node_id, "versions")
    assert "numpy 9.9.9 (the driver has" in problem
    bare = [line for line in lines if ": imports: hmr cannot be imported" in line]
    assert len(bare) == 1
    assert "No module named 'rayhmr'" in bare[0]
    assert "install the project there" in bare[0]
    # The nodes that are as they should be are not blamed for the others.
    assert sum(" FAILED " in line for line in lines) == 3
