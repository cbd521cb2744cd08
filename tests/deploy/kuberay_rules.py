"""Rules of manifests that no list of fields can tell: what KubeRay's operator would refuse, what
would never start, and what this project wants. `folder_problems` is all of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy_commands import pinned
from kuberay_fields import field_problems
from kuberay_pods import (
    GPU,
    RAY_PORTS,
    SERVE_PORT,
    Pod,
    amount,
    image_problems,
    pod_at,
    pod_problems,
    reference_problems,
    secret_problems,
)
from kuberay_work import entry_problems, serve_problems
from ray.scripts.scripts import start as ray_start

START_OPTIONS = {name.lstrip("-") for one in ray_start.params for name in one.opts}
AGENT_PORT = 52365
OPERATORS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_REDIS_ADDRESS", "REDIS_PASSWORD")


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster in a manifest. kind: the manifest's; work: its spec."""

    path: str
    kind: str
    spec: dict[str, Any]
    work: dict[str, Any]
    pods: list[Pod]


def cluster_of(document: dict[str, Any], file: str) -> Cluster | None:
    kind, spec = document["kind"], document["spec"]
    key = {"RayCluster": "", "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(kind)
    if key is None:
        return None
    inside, path = (
        (spec[key], f"{file} {kind}.spec.{key}") if key else (spec, f"{file} {kind}.spec")
    )
    pods = [pod_at(f"{path}.headGroupSpec", "head", inside["headGroupSpec"])]
    pods += [
        pod_at(f"{path}.workerGroupSpecs[{n}]", "worker", group)
        for n, group in enumerate(inside["workerGroupSpecs"])
    ]
    if kind == "RayJob":
        template = {"template": spec["submitterPodTemplate"]}
        submitter = pod_at(f"{file} {kind}.spec.submitterPodTemplate", "submitter", template)
        pods.append(submitter)
    return Cluster(path, kind, inside, spec, pods)


def folder_problems(
    documents: list[tuple[str, Any]], secrets: dict[str, set[str]], root: str
) -> list[str]:
    """All that is wrong with a folder's documents, each with its file.

    secrets: those that a reader is told to make, with their keys. root: the project's folder in the
    image.
    """
    found = [problem for file, one in documents for problem in field_problems(one, file)]
    if found:
        return found
    clusters = [c for file, one in documents if (c := cluster_of(one, file))]
    pods = [pod for one in clusters for pod in one.pods]
    pods += [
        pod_at(f"{file} {one['kind']}.spec", "other", one["spec"])
        for file, one in documents if one["kind"] == "StatefulSet"
    ]  # fmt: skip
    found += _names(documents)
    found += image_problems(pods)
    for pod in pods:
        found += pod_problems(pod)
        found += reference_problems(pod, documents, secrets)
    for one in clusters:
        found += _cluster_problems(one, documents, secrets)
        found += _work_problems(one, root)
    return found


def _names(documents: list[tuple[str, Any]]) -> Iterator[str]:
    seen: dict[tuple[str, str], str] = {}
    for file, one in documents:
        # Each of Ray's gets services called after it, so they share their names.
        kind = "Ray's" if one["kind"].startswith("Ray") else one["kind"]
        name = one["metadata"]["name"]
        if other := seen.get((kind, name)):
            yield f"{file} {one['kind']}.metadata.name: {name} is taken by {other}"
        seen[kind, name] = file


def _cluster_problems(
    one: Cluster, documents: list[tuple[str, Any]], secrets: dict[str, set[str]]
) -> Iterator[str]:
    spec, ours = one.spec, pinned("ray")
    if spec["rayVersion"] != ours:
        yield f"{one.path}.rayVersion: {spec['rayVersion']} is not constraints.txt's {ours}"
    if spec["authOptions"]["mode"] != "token":
        yield f"{one.path}.authOptions.mode: must be token, or whoever connects owns the cluster"
    secret = spec["authOptions"].get("secretName")
    if secret is not None and "auth_token" not in secrets.get(secret, set()):
        yield f"{one.path}.authOptions.secretName: no reader is told to make {secret} (auth_token)"
    if spec["enableInTreeAutoscaling"] is not True:
        yield f"{one.path}.enableInTreeAutoscaling: must be true, or minReplicas is never left"
    if spec.get("autoscalerOptions", {}).get("version") != "v2":
        yield f"{one.path}.autoscalerOptions.version: must be v2"
    yield from _keeps_its_state(one, documents, secrets)
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    if len(set(names)) != len(names):
        yield f"{one.path}.workerGroupSpecs: a groupName stands twice in {', '.join(names)}"
    kinds = {
        GPU in pod.container["resources"]["limits"] for pod in one.pods if pod.role == "worker"
    }
    if kinds != {True, False}:
        yield f"{one.path}.workerGroupSpecs: needs a group with {GPU} and one without"
    for pod in one.pods:
        yield from _ray_pod(pod, one.kind)


def _keeps_its_state(
    one: Cluster, documents: list[tuple[str, Any]], secrets: dict[str, set[str]]
) -> Iterator[str]:
    options, path = one.spec.get("gcsFaultToleranceOptions"), f"{one.path}.gcsFaultToleranceOptions"
    if options is None:
        # A job that loses its head starts again on another cluster: backoffLimit.
        if one.kind != "RayJob":
            yield f"{path}: is missing; the loss of the head would end everything on the cluster"
        return
    services = [
        f"{d['metadata']['name']}:{p['port']}"
        for _, d in documents if d["kind"] == "Service" for p in d["spec"]["ports"]
    ]  # fmt: skip
    if options["redisAddress"] not in services:
        yield f"{path}.redisAddress: {options['redisAddress']} is no Service of the folder"
    source = options.get("redisPassword", {}).get("valueFrom", {})
    if "secretKeyRef" not in source:
        yield f"{path}.redisPassword.valueFrom.secretKeyRef: is missing"
    yield from secret_problems(source, secrets, f"{path}.redisPassword")


def _ray_pod(pod: Pod, kind: str) -> Iterator[str]:
    given = {one["name"]: one.get("value") for one in pod.container.get("env", [])}
    for name in OPERATORS:
        if name in given:
            yield f"{pod.path}.containers[0].env: {name} is the operator's to set"
    restart = pod.spec.get("restartPolicy")
    if restart not in ("Never",) + (() if pod.role == "submitter" else (None,)):
        yield f"{pod.path}.restartPolicy: {restart}, must be Never"
    if pod.role == "submitter":
        return
    start, path = pod.group["rayStartParams"], pod.path.replace(".template.spec", ".rayStartParams")
    for name in start.keys() - START_OPTIONS:
        yield f"{path}.{name}: `ray start` has no option --{name}"
    ports = {one["name"] for one in pod.container.get("ports", [])}
    needed = set(RAY_PORTS) if pod.role == "head" else {"metrics"}
    for name in (needed | (set(SERVE_PORT) if kind == "RayService" else set())) - ports:
        yield f"{pod.path}.containers[0].ports: {name} is missing"
    yield from _probes(pod, kind)
    if pod.role == "head":
        yield from _head(start, path, given, kind)
        return
    group = pod.group
    low, now, high = group["minReplicas"], group["replicas"], group["maxReplicas"]
    path = pod.path.replace(".template.spec", "")
    if not low <= now <= high or not high:
        yield f"{path}.replicas: {now} is not between minReplicas {low} and maxReplicas {high}"
    if "cpu" not in pod.container["resources"]["limits"]:
        yield f"{pod.path}.containers[0].resources.limits.cpu: is missing; Ray offers as many CPUs"


def _head(start: dict[str, str], path: str, given: dict[str, Any], kind: str) -> Iterator[str]:
    if start.get("num-cpus") != "0":
        yield f"{path}.num-cpus: must be '0', or tasks land on the head"
    if kind == "RayService":
        return
    # KubeRay puts the text into a command line for bash.
    shell = subprocess.run(
        ["bash", "-c", f"printf %s {start.get('resources', '')}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        offered = json.loads(shell.stdout)
    except json.JSONDecodeError:
        offered = shell.stdout
    if not isinstance(offered, dict) or not offered.get("drv"):
        yield f"{path}.resources: {offered!r} has no drv, which the drivers of trials hold"
    if int(given.get("RAY_JOB_STOP_WAIT_TIME_S") or 0) < 60:
        yield f"{path}: RAY_JOB_STOP_WAIT_TIME_S of the head must be 60 or more, for a checkpoint"


def _probes(pod: Pod, kind: str) -> Iterator[str]:
    wanted = dict.fromkeys(("livenessProbe", "readinessProbe"), ("/api/healthz", AGENT_PORT))
    if kind == "RayService" and pod.role == "worker":
        wanted["readinessProbe"] = ("/-/healthz", SERVE_PORT["serve"])
    for key, (address, port) in wanted.items():
        asked = pod.container.get(key, {}).get("httpGet", {})
        if (asked.get("path"), asked.get("port")) != (address, port):
            yield f"{pod.path}.containers[0].{key}.httpGet: must ask port {port} for {address}"


def _work_problems(one: Cluster, root: str) -> Iterator[str]:
    """What the manifest runs, and whether its cluster can."""
    ray_pods = [pod for pod in one.pods if pod.role != "submitter"]
    shown = [_shared(pod) for pod in ray_pods]
    # Folders that all pods see, and whether one may write there.
    mounts = {
        path: all(each[path] for each in shown)
        for path in shown[0] if all(path in each for each in shown)
    }  # fmt: skip
    room = {
        name: sum(
            pod.group["minReplicas"] * amount(pod.container["resources"]["limits"], name)
            for pod in ray_pods if pod.role == "worker"
        )
        for name in ("cpu", GPU)
    }  # fmt: skip
    path = one.path.rpartition(".")[0]
    if one.kind == "RayJob":
        yield from entry_problems(one.work, path, mounts, room["cpu"], room[GPU], root)
    elif one.kind == "RayService":
        yield from serve_problems(one.work, path, mounts, room["cpu"], room[GPU])


def _shared(pod: Pod) -> dict[str, bool]:
    """Where a pod mounts what others mount as well, and whether it may write there."""
    volumes = {
        one["name"] for one in pod.spec.get("volumes", [])
        if "persistentVolumeClaim" in one or "secret" in one
    }  # fmt: skip
    return {
        one["mountPath"]: not one.get("readOnly", False)
        for one in pod.container.get("volumeMounts", []) if one["name"] in volumes
    }  # fmt: skip


def documents_of(folder: Path, load: Any) -> list[tuple[str, Any]]:
    """All documents of a folder's files, with the file of each."""
    return [(file.name, one) for file in sorted(folder.glob("*.yaml")) for one in load(file)]
