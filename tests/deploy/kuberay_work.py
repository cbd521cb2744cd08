"""What a manifest runs: the command of a RayJob, the configuration of a RayService."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import yaml
from deploy_commands import job_of, job_problem
from pydantic import BaseModel, ValidationError
from ray.runtime_env import RuntimeEnv
from ray.serve.schema import ServeDeploySchema

from hmr.errors import ConfigError
from rayhmr.config import PredictJob, ServeJob, TrainJob, TuneJob


def entry_problems(
    spec: dict[str, Any], path: str, mounts: dict[str, bool], cpus: float, gpus: float, root: str
) -> Iterator[str]:
    """mounts: folders that all pods have, and whether one may write there. cpus, gpus: of the pods
    that are there without anybody asking for more."""
    if spec["submissionMode"] != "K8sJobMode":
        yield f"{path}.submissionMode: must be K8sJobMode, which submitterPodTemplate is for"
    if spec["backoffLimit"] < 1:
        yield f"{path}.backoffLimit: must be 1 or more, or the loss of the head ends the job"
    if spec["shutdownAfterJobFinishes"] is not True:
        yield f"{path}.shutdownAfterJobFinishes: must be true, or the GPUs stay rented"
    yield from runtime_env_problems(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), path)
    if problem := job_problem(spec["entrypoint"], root=root):
        yield f"{path}.entrypoint: {problem}"
        return
    job = job_of(spec["entrypoint"], root=root)
    for name, place, written in _places(job):
        yield from _place_problems(f"{path}.entrypoint: {name}={place}", place, mounts, written)
    for name, needed, there in zip(("CPU", "GPU"), _needs(job), (cpus, gpus), strict=True):
        if needed > there:
            yield (
                f"{path}.entrypoint: waits for {needed:g} {name} before it starts, and the pods of "
                f"minReplicas have {there:g}"
            )


def _places(job: BaseModel) -> list[tuple[str, str, bool]]:
    """Settings that name a folder, and whether the job writes there."""
    if isinstance(job, TrainJob):
        return [
            ("storage", job.storage, True), ("registry", job.registry, True),
            ("data.path", job.data.path, False),
        ]  # fmt: skip
    if isinstance(job, TuneJob):
        return [
            ("storage", job.storage, True), ("registry", job.registry, True),
            ("trial.data.path", job.trial.data.path, False),
        ]  # fmt: skip
    assert isinstance(job, PredictJob), "no manifest runs another job"
    return [
        ("model", job.model, False), ("input", job.input, False), ("output", job.output.path, True)
    ]  # fmt: skip


def _needs(job: BaseModel) -> tuple[float, float]:
    """CPUs and GPUs that the job waits for before it starts, as its `connect` has them."""
    if isinstance(job, PredictJob):
        actors = job.num_actors or 1
        return actors + 1, actors if job.use_gpu else 0
    one = job.trial if isinstance(job, TuneJob) else job
    assert isinstance(one, TrainJob)
    workers = one.scaling.num_workers
    if job is one:
        workers = one.scaling.min_workers or workers
    spare = 1 + (job is one and one.validate_in == "task")
    return workers * one.scaling.cpus_per_worker + spare, workers * one.scaling.gpus


def _place_problems(what: str, place: str, mounts: dict[str, bool], written: bool) -> Iterator[str]:
    if "://" in place:
        return
    above = [str(one) for one in PurePosixPath(place).parents]
    mount = next((one for one in above if one in mounts), None)
    if mount is None:
        yield f"{what} lies in no volume that all pods share ({', '.join(mounts)})"
    elif written and not mounts[mount]:
        yield f"{what} is written, and {mount} is mounted readOnly"


def runtime_env_problems(tree: dict[str, Any], path: str) -> Iterator[str]:
    """Keys that Ray would ignore, and folders that only the sender has."""
    for key in tree.keys() - RuntimeEnv.known_fields:
        known = ", ".join(sorted(key for key in RuntimeEnv.known_fields if key[0] != "_"))
        yield f"{path}.runtimeEnvYAML.{key}: unknown key; known: {known}"
    if "://" not in tree.get("working_dir", "://"):
        yield f"{path}.runtimeEnvYAML.working_dir: {tree['working_dir']} is no URI"


def serve_problems(
    spec: dict[str, Any], path: str, mounts: dict[str, bool], cpus: float, gpus: float
) -> Iterator[str]:
    path = f"{path}.serveConfigV2"
    tree = yaml.safe_load(spec["serveConfigV2"])
    try:
        schema = ServeDeploySchema.model_validate(tree)
    except ValidationError as error:
        wrong = error.errors()[0]
        yield f"{path}.{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        return
    # Ray's schema takes any key.
    yield from _unknown(tree, type(schema), path)
    yield from _unknown(
        tree.get("http_options", {}), type(schema.http_options), f"{path}.http_options"
    )
    if (schema.http_options.host, schema.http_options.port) != ("0.0.0.0", 8000):
        yield f"{path}.http_options: host and port must be 0.0.0.0 and 8000, where clients ask"
    if len(schema.applications) != 1:
        yield f"{path}.applications: must be one, of this project"
        return
    application = schema.applications[0]
    path = f"{path}.applications[0]"
    yield from _unknown(tree["applications"][0], type(application), path)
    module, _, name = application.import_path.partition(":")
    try:
        getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        yield f"{path}.import_path: {application.import_path}: {error}"
    yield from runtime_env_problems(application.runtime_env, path)
    try:
        job = ServeJob.model_validate(application.args)
    except (ConfigError, ValidationError) as error:
        yield f"{path}.args: {error}"
        return
    if not job.model.rpartition("@")[2].isdecimal():
        yield f"{path}.args.model: {job.model} must name a version by its number"
    yield from _place_problems(f"{path}.args.model: {job.model}", job.model, mounts, False)
    key = job.api_key_file or ""
    yield from _place_problems(f"{path}.args.api_key_file: {key!r}", key, mounts, False)
    if schema.http_options.request_timeout_s <= job.request_timeout_s:
        yield f"{path}: http_options.request_timeout_s must be above the service's own"
    # A version that takes over runs beside the one before it.
    for name, each, there in (("CPU", job.num_cpus, cpus), ("GPU", job.num_gpus, gpus)):
        if (needed := 2 * job.num_replicas * each) > there:
            yield (
                f"{path}.args.num_replicas: a new version beside the old one needs {needed:g} "
                f"{name}, and the pods of minReplicas have {there:g}"
            )


def _unknown(tree: dict[str, Any], schema: type[BaseModel], path: str) -> Iterator[str]:
    for key in tree.keys() - schema.model_fields.keys():
        yield f"{path}.{key}: unknown key; known: {', '.join(sorted(schema.model_fields))}"
