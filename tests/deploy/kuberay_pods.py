"""What a pod of a manifest must be, whoever starts it: containers, amounts, ports, volumes, and the
Secrets and claims that it names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray.autoscaler._private.kuberay.utils import parse_quantity

RAY_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "metrics": 8080}
SERVE_PORT = {"serve": 8000}
GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Pod:
    """A pod of a manifest. role: head, worker, submitter or other; group: what stands around its
    template."""

    path: str
    role: str
    spec: dict[str, Any]
    group: dict[str, Any]

    @property
    def container(self) -> dict[str, Any]:
        """The first, which is Ray's."""
        return self.spec["containers"][0]


def pod_at(path: str, role: str, group: dict[str, Any]) -> Pod:
    below = "spec" if role == "submitter" else "template.spec"
    return Pod(f"{path}.{below}", role, group["template"]["spec"], group)


def image_problems(pods: list[Pod]) -> Iterator[str]:
    # The one that most have, so that the one which differs is named.
    ours = Counter(
        one["image"] for pod in pods if pod.role != "other" for one in pod.spec["containers"]
    )
    usual = ours.most_common(1)[0][0]
    for pod in pods:
        for n, container in enumerate(pod.spec["containers"]):
            image, where = container["image"], f"{pod.path}.containers[{n}].image"
            if image.rpartition(":")[2] in ("latest", image):
                yield f"{where}: {image} has no fixed tag"
            if pod.role != "other" and image != usual:
                yield f"{where}: {image} is not {usual}, as elsewhere"


def pod_problems(pod: Pod) -> Iterator[str]:
    wanted = {"head": "ray-head", "worker": "ray-worker", "submitter": "ray-job-submitter"}
    for n, one in enumerate(pod.spec["containers"]):
        path = f"{pod.path}.containers[{n}]"
        if pod.role in wanted and (n or one["name"] != wanted[pod.role]):
            yield f"{path}.name: {one['name']} must be {wanted[pod.role]}, and the only container"
        yield from _amounts(one["resources"], path)
        safe = one["securityContext"]
        if safe.get("allowPrivilegeEscalation") is not False or safe.get("privileged"):
            yield f"{path}.securityContext.allowPrivilegeEscalation: must be false"
        if "ALL" not in safe.get("capabilities", {}).get("drop", []):
            yield f"{path}.securityContext.capabilities.drop: must have ALL"
        yield from _ports(one.get("ports", []), path)
        for key in ("livenessProbe", "readinessProbe"):
            if pod.role != "submitter" and key not in one:
                yield f"{path}.{key}: is missing"
    safe = pod.spec["securityContext"]
    if safe.get("runAsNonRoot") is not True or not safe.get("runAsUser"):
        yield f"{pod.path}.securityContext.runAsNonRoot: must be true, with a runAsUser above 0"
    if safe.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{pod.path}.securityContext.seccompProfile.type: must be RuntimeDefault"


def _amounts(resources: dict[str, Any], path: str) -> Iterator[str]:
    asked, most = resources["requests"], resources["limits"]
    for name in ("cpu", "memory"):
        if name not in asked:
            yield f"{path}.resources.requests.{name}: is missing"
    if asked.get("memory") != most.get("memory"):
        yield (
            f"{path}.resources.limits.memory: {most.get('memory')} is not the request's "
            f"{asked.get('memory')}; a pod that may take more than it asked for is ended first"
        )
    if "cpu" in asked and "cpu" in most and amount(asked, "cpu") > amount(most, "cpu"):
        yield f"{path}.resources.limits.cpu: {most['cpu']} is below the request {asked['cpu']}"
    for where, amounts in (("requests", asked), ("limits", most)):
        for name in amounts:
            if name not in ("cpu", "memory", "ephemeral-storage", GPU):
                yield f"{path}.resources.{where}.{name}: unknown resource"
    if GPU in asked or GPU in most:
        if asked.get(GPU, most.get(GPU)) != most.get(GPU):
            yield f"{path}.resources.limits.{GPU}: must be there, and equal to the request"
        elif amount(most, GPU) % 1 or not amount(most, GPU):
            yield f"{path}.resources.limits.{GPU}: {most[GPU]} is not a whole number from 1"


def amount(amounts: dict[str, Any], name: str) -> float:
    return float(parse_quantity(amounts.get(name, 0)))


def _ports(ports: list[dict[str, Any]], path: str) -> Iterator[str]:
    for key in ("name", "containerPort"):
        values = [one[key] for one in ports]
        for value in {value for value in values if values.count(value) > 1}:
            yield f"{path}.ports: {key} {value} stands twice"
    known = RAY_PORTS | SERVE_PORT | {"redis": 6379}
    for n, one in enumerate(ports):
        if known.get(one["name"]) != one["containerPort"]:
            yield (
                f"{path}.ports[{n}].containerPort: {one['name']} {one['containerPort']} is none of "
                + ", ".join(f"{name} {number}" for name, number in known.items())
            )


def reference_problems(
    pod: Pod, documents: list[tuple[str, Any]], secrets: dict[str, set[str]]
) -> Iterator[str]:
    """Claims, Secrets, service accounts and volumes that are named and are not there."""
    claims = {d["metadata"]["name"] for _, d in documents if d["kind"] == "PersistentVolumeClaim"}
    volumes = {one["name"]: one for one in pod.spec.get("volumes", [])}
    own = {one["metadata"]["name"] for one in pod.group.get("volumeClaimTemplates", [])}
    used = set()
    for n, container in enumerate(pod.spec["containers"]):
        path = f"{pod.path}.containers[{n}]"
        for m, mount in enumerate(container.get("volumeMounts", [])):
            used.add(mount["name"])
            if mount["name"] not in volumes.keys() | own:
                yield f"{path}.volumeMounts[{m}].name: no volume {mount['name']}"
        for m, variable in enumerate(container.get("env", [])):
            where = f"{path}.env[{m}]"
            if ("value" in variable) == ("valueFrom" in variable):
                yield f"{where}: {variable['name']} needs value or valueFrom, and one of them"
            yield from secret_problems(variable.get("valueFrom", {}), secrets, where)
    for name, volume in volumes.items():
        path = f"{pod.path}.volumes.{name}"
        if name not in used:
            yield f"{path}: no container mounts it"
        if len(volume) != 2:
            yield f"{path}: needs one source, has {', '.join(volume.keys() - {'name'}) or 'none'}"
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claim not in claims:
            yield f"{path}.persistentVolumeClaim.claimName: no claim {claim} in the folder"
        secret = volume.get("secret", {}).get("secretName")
        if secret is not None and secret not in secrets:
            yield f"{path}.secret.secretName: no reader is told to make the Secret {secret}"
        if "configMap" in volume:
            yield f"{path}.configMap.name: no ConfigMap {volume['configMap']['name']} in the folder"
    account = pod.spec.get("serviceAccountName")
    if account is not None:
        yield f"{pod.path}.serviceAccountName: no ServiceAccount {account} in the folder"


def secret_problems(
    source: dict[str, Any], secrets: dict[str, set[str]], path: str
) -> Iterator[str]:
    """A value's source: a Secret that a reader is told to make, with that key."""
    if "secretKeyRef" in source:
        name, key = source["secretKeyRef"]["name"], source["secretKeyRef"]["key"]
        if name not in secrets:
            yield f"{path}.valueFrom.secretKeyRef.name: no reader is told to make the Secret {name}"
        elif key not in secrets[name]:
            yield f"{path}.valueFrom.secretKeyRef.key: {name} is made without the key {key}"
