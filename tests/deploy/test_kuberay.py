"""The manifests for KubeRay are what its operator and Ray take, everything they name is there, and
the checker refuses what is wrong. No Kubernetes runs here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_commands import ROOT, commands_of, job_problem
from kuberay_rules import cluster_of, documents_of, folder_problems
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as ray_reads,
)

from rayhmr.command_line import _StrictLoader

FOLDER = ROOT / "platform/deploy/kuberay"
PAGE = ROOT / "docs/deployment.md"
PROJECT = "/opt/rayhmr"
Documents = list[tuple[str, Any]]


def strict_documents(file: Path) -> list[Any]:
    """A key that stands twice is an error."""
    return list(yaml.load_all(file.read_text(), _StrictLoader))


def told_secrets() -> dict[str, set[str]]:
    """Secrets that the page tells its reader to make, with their keys."""
    text = re.sub(r"\\\n\s*", "", PAGE.read_text())
    found = {}
    for line in re.findall(r"kubectl create secret generic (.+)", text):
        name, *options = shlex.split(line)
        keys = [re.match(r"--from-(?:literal|file)=([^=]+)=", one) for one in options]
        found[name] = {key[1] for key in keys if key}
    return found


@pytest.fixture(scope="module")
def documents() -> Documents:
    return documents_of(FOLDER, strict_documents)


def named(documents: Documents, name: str) -> Any:
    """The one document of a file; of several, the first."""
    return next(one for file, one in documents if file == name)


def test_nothing_is_wrong_with_the_manifests(documents: Documents) -> None:
    assert {file for file, _ in documents} == {
        "networkpolicy.yaml", "raycluster.yaml", "rayjob-predict.yaml", "rayjob-train.yaml",
        "rayjob-tune.yaml", "rayservice.yaml", "redis.yaml", "storage.yaml",
    }  # fmt: skip
    assert folder_problems(documents, told_secrets(), PROJECT) == []


def test_rays_own_autoscaler_reads_them(documents: Documents) -> None:
    """Ray takes the numbers of pods and what each offers from the same manifest."""
    for file, one in documents:
        cluster = cluster_of(one, file)
        if cluster is None:
            continue
        metadata = {"name": one["metadata"]["name"], "namespace": "rayhmr"}
        config = ray_reads({"metadata": metadata, "spec": cluster.spec})
        kinds = config["available_node_types"]
        head = kinds["headgroup"]["resources"]
        assert head["CPU"] == 0
        assert head.get("drv") == (None if one["kind"] == "RayService" else 100)
        assert "GPU" not in kinds["data"]["resources"]
        assert kinds["gpu"]["resources"]["GPU"] >= 1
        for kind in ("data", "gpu"):
            assert kinds[kind]["min_workers"] < kinds[kind]["max_workers"]
            assert kinds[kind]["resources"]["memory"] >= 16 * 2**30
        assert config["idle_timeout_minutes"] == 5


def test_the_service_is_the_one_that_serve_deploy_starts(documents: Documents) -> None:
    """But for its folders and its size: what is tested on a cluster for the one holds for both."""
    given = strict_documents(ROOT / "platform/deploy/serve.yaml")[0]
    ours = yaml.safe_load(named(documents, "rayservice.yaml")["spec"]["serveConfigV2"])
    for tree in (given, ours):
        for key in ("model", "api_key_file", "num_replicas"):
            assert tree["applications"][0]["args"].pop(key)
    assert ours == given


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        del document[path[-1]]

    return change


def _text(key: str, old: str, new: str) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        assert old in document["spec"][key]
        document["spec"][key] = document["spec"][key].replace(old, new)

    return change


HEAD = ("spec", "headGroupSpec")
HEAD_POD = (*HEAD, "template", "spec")
HEAD_BOX = (*HEAD_POD, "containers", 0)
DATA = ("spec", "workerGroupSpecs", 0)
GPU = ("spec", "workerGroupSpecs", 1)
GPU_BOX = (*GPU, "template", "spec", "containers", 0)
JOB = ("spec", "rayClusterSpec")
SERVE = ("spec", "rayClusterConfig")
SERVE_BOX = (*SERVE, "workerGroupSpecs", 0, "template", "spec", "containers", 0)

# File, what is broken in it, and the words that name it.
BROKEN: list[tuple[str, Callable[[Any], None], str]] = [
    ("raycluster.yaml", _set("apiVersion", to="ray.io/v1alpha1"), "RayCluster.apiVersion"),
    ("raycluster.yaml", _set("kind", to="RayClutser"), "kind: 'RayClutser'"),
    ("raycluster.yaml", _set("metadata", "name", to="Ray_HMR"), "metadata.name: 'Ray_HMR'"),
    ("rayservice.yaml", _set("metadata", "name", to="rayhmr"), "metadata.name: rayhmr is taken"),
    ("raycluster.yaml", _set("spec", "rayVersoin", to="2.60.0"), "did you mean rayVersion?"),
    ("raycluster.yaml", _set("spec", "rayVersion", to="2.59.0"), "spec.rayVersion: 2.59.0"),
    ("raycluster.yaml", _set("spec", "rayVersion", to=2.6), "rayVersion: 2.6 is float"),
    ("raycluster.yaml", _drop("spec", "headGroupSpec"), "spec.headGroupSpec: is missing"),
    ("raycluster.yaml", _set("spec", "authOptions", "mode", to="tokn"), "authOptions.mode: 'tokn'"),
    ("raycluster.yaml", _set("spec", "authOptions", "mode", to="disabled"), "owns the cluster"),
    ("raycluster.yaml", _set("spec", "authOptions", "secretName", to="x"), "secretName: no reader"),
    ("raycluster.yaml", _set("spec", "enableInTreeAutoscaling", to=False), "InTreeAutoscaling"),
    ("raycluster.yaml", _set("spec", "autoscalerOptions", "version", to="v3"), "version: 'v3'"),
    ("raycluster.yaml", _drop("spec", "gcsFaultToleranceOptions"), "gcsFaultToleranceOptions: is"),
    (
        "raycluster.yaml",
        _set("spec", "gcsFaultToleranceOptions", "redisAddress", to="redis:6380"),
        "redisAddress: redis:6380 is no Service",
    ),
    (
        "raycluster.yaml",
        _set("spec", "gcsFaultToleranceOptions", "redisPassword", to={"value": "open"}),
        "redisPassword.valueFrom.secretKeyRef: is missing",
    ),
    (
        "raycluster.yaml",
        _set(
            "spec", "gcsFaultToleranceOptions", "redisPassword", "valueFrom", "secretKeyRef", "key",
            to="pass",
        ),
        "rayhmr-redis is made without the key pass",
    ),
    ("raycluster.yaml", _set(*HEAD, "rayStartParams", "num-cpus", to=0), "num-cpus: 0 is int"),
    ("raycluster.yaml", _set(*HEAD, "rayStartParams", "num-cpus", to="4"), "num-cpus: must be"),
    ("raycluster.yaml", _set(*HEAD, "rayStartParams", "num-cpu", to="0"), "no option --num-cpu"),
    ("raycluster.yaml", _set(*HEAD, "rayStartParams", "resources", to='{"drv": 1}'), "has no drv"),
    ("raycluster.yaml", _drop(*HEAD_BOX, "livenessProbe"), "livenessProbe: is missing"),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "readinessProbe", "httpGet", "port", to=8265),
        "readinessProbe.httpGet: must ask port 52365",
    ),
    ("raycluster.yaml", _set(*HEAD_BOX, "env", 0, "value", to="3"), "RAY_JOB_STOP_WAIT_TIME_S"),
    ("raycluster.yaml", _set(*HEAD_BOX, "env", 0, "value", to=120), "value: 120 is int"),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "env", 0, to={"name": "RAY_AUTH_TOKEN", "value": "x"}),
        "RAY_AUTH_TOKEN is the operator's",
    ),
    ("raycluster.yaml", _set(*HEAD_BOX, "name", to="head"), "head must be ray-head"),
    ("raycluster.yaml", _set(*HEAD_BOX, "imagee", to="x"), "containers[0].imagee: unknown field"),
    ("raycluster.yaml", _set(*HEAD_BOX, "image", to="a/b:2"), "as elsewhere"),
    ("raycluster.yaml", _set(*HEAD_BOX, "image", to="a/b:latest"), "no fixed tag"),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "ports", 1, "containerPort", to=8266),
        "containerPort: dashboard 8266",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "ports", 1, "containerPort", to=70000),
        "containerPort: 70000 is no port",
    ),
    ("raycluster.yaml", _set(*HEAD_BOX, "ports", 0, "name", to="client"), "client stands twice"),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "resources", "limits", "memory", to="32Gi"),
        "limits.memory: 32Gi is not the request's 16Gi",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "resources", "limits", "memory", to="32 Gigs"),
        "limits.memory: '32 Gigs' is no quantity",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "securityContext", to={"capabilities": {"drop": ["ALL"]}}),
        "allowPrivilegeEscalation: must be false",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_POD, "securityContext", "runAsUser", to=0),
        "securityContext.runAsNonRoot: must be true",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_BOX, "volumeMounts", 0, "name", to="dta"),
        "volumeMounts[0].name: no volume dta",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_POD, "volumes", 0, "persistentVolumeClaim", "claimName", to="hmr"),
        "claimName: no claim hmr",
    ),
    (
        "raycluster.yaml",
        _set(*HEAD_POD, "volumes", 1, to={"name": "ray-logs", "configMap": {"name": "x"}}),
        "configMap.name: no ConfigMap x",
    ),
    ("raycluster.yaml", _set(*HEAD_POD, "serviceAccountName", to="ray"), "no ServiceAccount ray"),
    ("raycluster.yaml", _set(*HEAD_POD, "restartPolicy", to="Always"), "restartPolicy: Always"),
    ("raycluster.yaml", _set(*DATA, "minReplicas", to=5), "replicas: 1 is not between"),
    ("raycluster.yaml", _set(*DATA, "maxReplicas", to="4"), "maxReplicas: '4' is no whole number"),
    ("raycluster.yaml", _set(*DATA, "groupName", to="gpu"), "a groupName stands twice"),
    ("raycluster.yaml", _drop(*DATA, "rayStartParams"), "rayStartParams: is missing"),
    (
        "raycluster.yaml",
        _drop(*GPU_BOX, "resources", "limits", "nvidia.com/gpu"),
        "limits.nvidia.com/gpu: must be there",
    ),
    (
        "raycluster.yaml",
        _set(*GPU_BOX, "resources", "limits", "nvidia.com/gpus", to=4),
        "limits.nvidia.com/gpus: unknown resource",
    ),
    ("raycluster.yaml", _drop("spec", "workerGroupSpecs", 1), "needs a group with nvidia.com/gpu"),
    (
        "rayjob-train.yaml",
        _text("entrypoint", "train.py", "trian.py"),
        "spec.entrypoint: /opt/rayhmr/jobs/trian.py: no such job",
    ),
    ("rayjob-train.yaml", _text("entrypoint", "data.path", "data.pth"), "did you mean data.path?"),
    (
        "rayjob-train.yaml",
        _text("entrypoint", "/opt/rayhmr/jobs/train.py", "jobs/train.py"),
        "not below /opt/rayhmr",
    ),
    (
        "rayjob-train.yaml",
        _text("entrypoint", "storage=/srv/rayhmr/", "storage=/srv/other/"),
        "storage=/srv/other/runs lies in no volume",
    ),
    (
        "rayjob-train.yaml",
        _text("entrypoint", " registry=/srv/rayhmr/registry", ""),
        "registry=registry lies in no volume",
    ),
    (
        "rayjob-train.yaml",
        _text("entrypoint", "storage=/srv/rayhmr/", "storage=/tmp/ray/"),
        "storage=/tmp/ray/runs lies in no volume that all pods share (/srv/rayhmr)",
    ),
    (
        "rayjob-train.yaml",
        _set(*JOB, "headGroupSpec", "template", "spec", "containers", 0, "volumeMounts", 0,
             "readOnly", to=True),
        "/srv/rayhmr is mounted readOnly",
    ),
    (
        "raycluster.yaml",
        _drop(*HEAD_POD, "securityContext", "seccompProfile"),
        "seccompProfile.type: must be RuntimeDefault",
    ),
    (
        "rayjob-train.yaml",
        _set(*JOB, "workerGroupSpecs", 1, "minReplicas", to=0),
        "waits for 4 GPU before it starts, and the pods of minReplicas have 0",
    ),
    ("rayjob-train.yaml", _set("spec", "backoffLimit", to=0), "spec.backoffLimit: must be 1"),
    ("rayjob-train.yaml", _set("spec", "backoffLimit", to=-1), "backoffLimit: -1 is no whole"),
    ("rayjob-train.yaml", _set("spec", "submissionMode", to="K8sJob"), "submissionMode: 'K8sJob'"),
    ("rayjob-train.yaml", _set("spec", "schedule", to="* * * * *"), "spec.schedule: unknown field"),
    ("rayjob-train.yaml", _set("spec", "shutdownAfterJobFinishes", to=False), "stay rented"),
    (
        "rayjob-train.yaml",
        _drop("spec", "submitterPodTemplate", "spec", "restartPolicy"),
        "submitterPodTemplate.spec.restartPolicy: None",
    ),
    ("rayjob-train.yaml", _set("spec", "runtimeEnvYAML", to="env_var: {}"), "env_var: unknown key"),
    ("rayjob-train.yaml", _set("spec", "runtimeEnvYAML", to="working_dir: ."), ". is no URI"),
    (
        "rayjob-tune.yaml",
        _text("entrypoint", "trial.data.path=", "trial.body.path="),
        "trial.data.path=shards lies in no volume",
    ),
    ("rayjob-tune.yaml", _drop(*JOB, "headGroupSpec", "rayStartParams", "resources"), "no drv"),
    (
        "rayjob-predict.yaml",
        _text("entrypoint", "num_actors=2", "num_actors=3"),
        "waits for 3 GPU",
    ),
    ("rayservice.yaml", _text("serveConfigV2", "hmr@1", "hmr@best"), "name a version by its"),
    ("rayservice.yaml", _text("serveConfigV2", "deploy:build", "deploy:biuld"), "import_path: "),
    ("rayservice.yaml", _text("serveConfigV2", "route_prefix", "route_perfix"), "route_perfix: un"),
    ("rayservice.yaml", _text("serveConfigV2", "port: 8000", "port: 8001"), "8000, where clients"),
    ("rayservice.yaml", _text("serveConfigV2", "num_replicas", "num_replica"), "num_replica"),
    ("rayservice.yaml", _text("serveConfigV2", "replicas: 4", "replicas: 5"), "needs 10 CPU"),
    ("rayservice.yaml", _text("serveConfigV2", "/srv/secrets", "/srv/keys"), "args.api_key_file"),
    ("rayservice.yaml", _text("serveConfigV2", "host: 0", "hots: 0"), "http_options.hots: unknown"),
    ("rayservice.yaml", _text("serveConfigV2", "timeout_s: 40", "timeout_s: 4"), "above the serv"),
    (
        "rayservice.yaml",
        _set("spec", "upgradeStrategy", "type", to="Rolling"),
        "upgradeStrategy.type: 'Rolling'",
    ),
    (
        "rayservice.yaml",
        _set(*SERVE_BOX, "readinessProbe", "httpGet", to={"path": "/api/healthz", "port": 52365}),
        "readinessProbe.httpGet: must ask port 8000 for /-/healthz",
    ),
    (
        "rayservice.yaml",
        _set(*SERVE, "headGroupSpec", "template", "spec", "volumes", 1, "secret", "secretName",
             to="keys"),
        "secret.secretName: no reader is told to make the Secret keys",
    ),
    ("rayservice.yaml", _drop(*SERVE_BOX, "ports", 1), "containers[0].ports: serve is missing"),
    (
        "rayservice.yaml",
        _set(*SERVE_BOX, "volumeMounts", 0, "readonly", to=True),
        "did you mean readOnly?",
    ),
    ("storage.yaml", _set("spec", "accessModes", to=["ReadWriteAll"]), "accessModes[0]"),
    ("storage.yaml", _set("spec", "resources", "requests", "storage", to="1TB"), "storage: '1TB'"),
    ("networkpolicy.yaml", _set("spec", "ingres", to=[]), "did you mean ingress?"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "change", "said"), BROKEN, ids=[one[2] for one in BROKEN])
def test_what_is_broken_is_refused(
    documents: Documents, file: str, change: Callable[[Any], None], said: str
) -> None:
    # By way of JSON: an anchor makes one object of several places, and one place shall change.
    broken = [(name, json.loads(json.dumps(one))) for name, one in documents]
    change(named(broken, file))
    found = folder_problems(broken, told_secrets(), PROJECT)
    assert any(said in problem for problem in found), found
    assert all(problem.startswith(file) for problem in found), found


def test_a_second_key_of_one_name_is_refused(tmp_path: Path) -> None:
    text = (FOLDER / "storage.yaml").read_text()
    (tmp_path / "x.yaml").write_text(text.replace("spec:", "kind: Service\nspec:", 1))
    with pytest.raises(Exception, match="key 'kind' stands twice"):
        documents_of(tmp_path, strict_documents)


def test_the_page_and_the_comments_tell_commands_that_run() -> None:
    texts = {file: file.read_text() for file in [PAGE, *sorted(FOLDER.glob("*.yaml"))]}
    for file, text in texts.items():
        for command in commands_of(text):
            root = PROJECT if PROJECT in command else ""
            assert job_problem(command, root=root) is None, f"{file.name}: {command}"
        for path in re.findall(
            r"(?:-f|--filename|--file|ray up|-r) (platform/\S+|cluster.yaml)", text
        ):
            assert (ROOT / path).exists(), f"{file.name}: {path}"
    names = {one["metadata"]["name"] for _, one in documents_of(FOLDER, strict_documents)}
    for kind, name in re.findall(
        r"\b(rayjob|rayservice|raycluster|job)/([a-z-]+)", "\n".join(texts.values())
    ):
        assert name in names, f"{kind}/{name}"
    # Services that KubeRay makes after the objects' names.
    for name, _ in re.findall(r"\bservice/([a-z-]+)-(head|serve)-svc", "\n".join(texts.values())):
        assert name in names, name
    applied = set(re.findall(r"-f platform/deploy/kuberay/(\S+?)\.yaml", texts[PAGE]))
    assert applied == {file.stem for file in texts} - {PAGE.stem}, "each file is applied once told"
