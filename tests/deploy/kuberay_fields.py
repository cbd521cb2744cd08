"""The fields that a manifest may have: those of KubeRay 1.5.1 to 1.6 (`ray.io/v1`) and, of pods and
the other kinds, what the project uses. No schema can be had here, so a field that is not in these
tables is an error; one that Kubernetes knows and we want is added.

A table is a dict of fields, of which `name!` must be there; `[x]` a list of x; `Map(x)` any keys; a
tuple the values that are allowed; a type; or a function from a value to what is wrong with it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray.autoscaler._private.kuberay.utils import parse_quantity


@dataclass(frozen=True)
class Map:
    """Any text as key, each value as `of` says."""

    of: Any


def quantity(value: Any) -> str | None:
    try:
        amount = parse_quantity(value)
    except (ValueError, TypeError):
        return f"{value!r} is no quantity such as 500m, 2 or 16Gi"
    return None if amount >= 0 else f"{value!r} is below zero"


def port(value: Any) -> str | None:
    good = type(value) is int and 1 <= value <= 65535
    return None if good else f"{value!r} is no port (1 to 65535)"


def count(value: Any) -> str | None:
    good = type(value) is int and value >= 0
    return None if good else f"{value!r} is no whole number from 0"


def label(value: Any) -> str | None:
    """DNS-1035, and short enough for what KubeRay adds to it."""
    good = isinstance(value, str) and re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", value)
    return None if good else f"{value!r} is no name (a-z, 0-9, -; at most 47 letters)"


def problems(value: Any, known: Any, path: str) -> Iterator[str]:
    """What in `value` is not as the table `known` has it, each with its path."""
    if isinstance(known, dict):
        yield from _fields(value, known, path)
    elif isinstance(known, list):
        if not isinstance(value, list):
            yield f"{path}: {value!r:.60} is not a list"
            return
        for number, item in enumerate(value):
            yield from problems(item, known[0], f"{path}[{number}]")
    elif isinstance(known, Map):
        if not isinstance(value, dict):
            yield f"{path}: {value!r:.60} is not a mapping"
            return
        for key, item in value.items():
            yield from problems(item, known.of, f"{path}.{key}")
    elif isinstance(known, tuple):
        if value not in known:
            yield f"{path}: {value!r} is not one of {', '.join(map(str, known))}"
    elif isinstance(known, type):
        if type(value) is not known:
            yield f"{path}: {value!r:.60} is {type(value).__name__}, must be {known.__name__}"
    elif wrong := known(value):
        yield f"{path}: {wrong}"


def _fields(value: Any, known: dict[str, Any], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r:.60} is not a mapping"
        return
    tables = {key.rstrip("!"): table for key, table in known.items()}
    for key, item in value.items():
        if key in tables:
            yield from problems(item, tables[key], f"{path}.{key}")
        else:
            near = difflib.get_close_matches(str(key), tables, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(tables)}"
            yield f"{path}.{key}: unknown field; {hint}"
    for key in known:
        if key.endswith("!") and key[:-1] not in value:
            yield f"{path}.{key[:-1]}: is missing"


NAMED = {"name!": str, "key!": str, "optional": bool}
FROM = {"secretKeyRef": NAMED, "configMapKeyRef": NAMED, "fieldRef": {"fieldPath!": str}}
ENV = {"name!": str, "value": str, "valueFrom": FROM}
RESOURCES = {"requests!": Map(quantity), "limits!": Map(quantity)}
LABELS = {"matchLabels!": Map(str)}
META = {"name": label, "labels": Map(str), "annotations": Map(str)}
NAMED_META = META | {"name!": label}
del NAMED_META["name"]
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": bool, "capabilities": {"drop": [str], "add": [str]},
    "runAsNonRoot": bool, "runAsUser": int, "readOnlyRootFilesystem": bool, "privileged": bool,
}  # fmt: skip
PROBE = {
    "httpGet": {"path!": str, "port!": port}, "tcpSocket": {"port!": port},
    "exec": {"command!": [str]}, "initialDelaySeconds": count, "periodSeconds": count,
    "timeoutSeconds": count, "successThreshold": count, "failureThreshold": count,
}  # fmt: skip
CONTAINER = {
    "name!": label, "image!": str, "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "command": [str], "args": [str], "env": [ENV], "envFrom": [{"secretRef": {"name!": str}}],
    "ports": [{"name!": label, "containerPort!": port, "protocol": ("TCP", "UDP")}],
    "livenessProbe": PROBE, "readinessProbe": PROBE, "startupProbe": PROBE,
    "lifecycle": {"preStop": {"exec!": {"command!": [str]}}}, "resources!": RESOURCES,
    "securityContext!": CONTAINER_SECURITY,
    "volumeMounts": [{"name!": str, "mountPath!": str, "subPath": str, "readOnly": bool}],
}  # fmt: skip
VOLUME = {
    "name!": label, "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
    "emptyDir": {"sizeLimit": quantity, "medium": ("", "Memory")},
    "secret": {"secretName!": str, "defaultMode": count, "optional": bool},
    "configMap": {"name!": str, "defaultMode": count},
}  # fmt: skip
POD = {
    "containers!": [CONTAINER], "initContainers": [CONTAINER], "volumes": [VOLUME],
    "restartPolicy": ("Never", "OnFailure", "Always"), "serviceAccountName": str,
    "automountServiceAccountToken": bool, "nodeSelector": Map(str),
    "imagePullSecrets": [{"name!": str}], "priorityClassName": str,
    "terminationGracePeriodSeconds": count,
    "tolerations": [{
        "key": str, "operator": ("Exists", "Equal"), "value": str,
        "effect": ("NoSchedule", "NoExecute", "PreferNoSchedule"),
    }],
    "securityContext!": {
        "runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int,
        "seccompProfile": {"type!": ("RuntimeDefault", "Localhost", "Unconfined")},
    },
}  # fmt: skip
TEMPLATE = {"metadata": META, "spec!": POD}

START = {"rayStartParams!": Map(str), "template!": TEMPLATE}
CREDENTIAL = {"value": str, "valueFrom": FROM}
CLUSTER = {
    "rayVersion!": str, "suspend": bool, "managedBy": str, "headServiceAnnotations": Map(str),
    "authOptions!": {"mode!": ("token", "disabled"), "secretName": str},
    "upgradeStrategy": {"type": ("Recreate", "None")}, "enableInTreeAutoscaling!": bool,
    "autoscalerOptions": {
        "version": ("v1", "v2"), "image": str, "imagePullPolicy": CONTAINER["imagePullPolicy"],
        "idleTimeoutSeconds": count, "upscalingMode": ("Default", "Aggressive", "Conservative"),
        "resources": RESOURCES, "env": [ENV], "envFrom": CONTAINER["envFrom"],
        "volumeMounts": CONTAINER["volumeMounts"], "securityContext": CONTAINER_SECURITY,
    },
    "gcsFaultToleranceOptions": {
        "redisAddress!": str, "redisPassword": CREDENTIAL, "redisUsername": CREDENTIAL,
        "externalStorageNamespace": str,
    },
    "headGroupSpec!": START | {
        "serviceType": ("ClusterIP", "NodePort", "LoadBalancer"), "enableIngress": bool,
        "resources": Map(str), "labels": Map(str),
    },
    "workerGroupSpecs!": [START | {
        "groupName!": label, "replicas!": count, "minReplicas!": count, "maxReplicas!": count,
        "idleTimeoutSeconds": count, "numOfHosts": count, "suspend": bool, "resources": Map(str),
        "labels": Map(str), "scaleStrategy": {"workersToDelete": [str]},
    }],
}  # fmt: skip
JOB = {
    "entrypoint!": str, "rayClusterSpec!": CLUSTER,
    "submissionMode!": ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
    "submitterPodTemplate!": TEMPLATE, "submitterConfig": {"backoffLimit": count},
    "shutdownAfterJobFinishes!": bool, "ttlSecondsAfterFinished": count, "suspend": bool,
    "activeDeadlineSeconds": count, "backoffLimit!": count, "runtimeEnvYAML": str, "jobId": str,
    "metadata": Map(str), "entrypointNumCpus": float, "entrypointNumGpus": float,
    "entrypointResources": str, "managedBy": str,
}  # fmt: skip
SERVICE = {
    "serveConfigV2!": str, "rayClusterConfig!": CLUSTER, "excludeHeadPodFromServeSvc": bool,
    "rayClusterDeletionDelaySeconds": count,
    "upgradeStrategy!": {"type!": ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")},
}  # fmt: skip
CLAIM = {
    "accessModes!": [("ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod")],
    "storageClassName": str,
    "resources!": {"requests!": {"storage!": quantity}},
}
PORTS = [{"name": label, "port!": port, "targetPort": port, "protocol": ("TCP", "UDP")}]
PEER = {"podSelector": {"matchLabels": Map(str)}, "namespaceSelector": LABELS}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "RayCluster": ("ray.io/v1", CLUSTER),
    "RayJob": ("ray.io/v1", JOB),
    "RayService": ("ray.io/v1", SERVICE),
    "PersistentVolumeClaim": ("v1", CLAIM),
    "Service": ("v1", {"selector!": Map(str), "ports!": PORTS}),
    "StatefulSet": (
        "apps/v1",
        {"serviceName!": str, "replicas!": count, "selector!": LABELS, "template!": TEMPLATE,
         "volumeClaimTemplates": [{"metadata!": NAMED_META, "spec!": CLAIM}]},
    ),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        {"podSelector!": PEER["podSelector"], "policyTypes!": [("Ingress", "Egress")],
         "ingress": [{"from": [PEER], "ports": [{"port!": port, "protocol": ("TCP", "UDP")}]}]},
    ),
}  # fmt: skip


def field_problems(document: Any, file: str) -> Iterator[str]:
    """Wrong kinds, versions, fields and values of one document."""
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in KINDS:
        yield f"{file}: kind: {kind!r} is not one of {', '.join(KINDS)}"
        return
    version, spec = KINDS[kind]
    table = {"apiVersion!": (version,), "kind!": (kind,), "metadata!": NAMED_META, "spec!": spec}
    yield from problems(document, table, f"{file} {kind}")
