"""The launcher's files are what Ray takes, and everything they name is there."""

from __future__ import annotations

import copy
import re
import shlex
import tomllib
from typing import Any

import jsonschema
import pytest
from deploy_commands import ROOT, commands_of, job_problem, pinned, strict_yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

FILES = ("cluster.yaml", "platform/deploy/gcp.yaml", "platform/deploy/onprem.yaml")
LISTS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture(params=FILES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(name: str) -> dict[str, Any]:
    return strict_yaml(ROOT / name)


def options_of(command: str) -> dict[str, str]:
    """The options of the `ray start` in a shell command, `--x=y` each; a flag has no value."""
    words = shlex.split(command.rpartition("; ")[2])
    assert words[:2] == ["ray", "start"], command
    return {key: value for key, _, value in (word.partition("=") for word in words[2:])}


def test_ray_accepts_it_and_fills_nothing_of_its_own_in(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert set(LISTS) <= set(config)
    # The launcher's own lists install another version of Ray where ours are missing.
    for setup in ("head_setup_commands", "worker_setup_commands"):
        assert prepared[setup] == config["setup_commands"] + config[setup]
    assert "ray-wheels" not in str(prepared)
    assert "0.0.0.0" not in str(prepared)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("docker", "imagee"), "x"),
        (("idle_timeout_minuts",), 5),
        (("head_node_type",), "haed"),
        (("available_node_types", "gpu", "resources"), {"GPU": 0.5}),
        (("available_node_types", "gpu", "max_wokers"), 1),
        (("available_node_types", "gpu", "min_workers"), 99),
    ],
)
def test_the_validator_finds_what_is_wrong(path: tuple[str, ...], value: Any) -> None:
    config = strict_yaml(ROOT / "cluster.yaml")
    below = config
    for part in path[:-1]:
        below = below[part]
    below[path[-1]] = value
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validate_config(prepare_config(config))


def test_the_image_has_the_pinned_ray(config: dict[str, Any]) -> None:
    version = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py311-gpu", config["docker"]["image"])
    assert version
    assert version[1] == pinned("ray")


def test_what_is_mounted_exists(config: dict[str, Any]) -> None:
    for source in config["file_mounts"].values():
        if not source.startswith("~"):
            assert (ROOT / source).exists(), source
    for command in config["setup_commands"]:
        for file in re.findall(r"-[rc] (\S+)", command):
            assert file in config["file_mounts"], file


def test_the_token_is_asked_for_and_lies_where_it_is_looked_for(config: dict[str, Any]) -> None:
    given = [option.removeprefix("--env ") for option in config["docker"]["run_options"]]
    variables = dict(text.partition("=")[::2] for text in given if "=" in text)
    assert variables["RAY_AUTH_MODE"] == "token"
    assert config["file_mounts"][variables["RAY_AUTH_TOKEN_PATH"]] == "~/.ray/auth_token"
    assert int(variables["RAY_JOB_STOP_WAIT_TIME_S"]) > 60, "time for a checkpoint"


def test_every_start_command_is_one_that_ray_knows(config: dict[str, Any]) -> None:
    known = {option for parameter in ray_start.params for option in parameter.opts}
    head = options_of(config["head_start_ray_commands"][-1])
    worker = options_of(config["worker_start_ray_commands"][-1])
    assert set(head) <= known
    assert set(worker) <= known
    assert head["--num-cpus"] == "0", "no task on the head"
    assert head["--dashboard-host"] == "127.0.0.1"
    assert head["--autoscaling-config"] == "~/ray_bootstrap_config.yaml"
    assert worker["--address"] == f"$RAY_HEAD_IP:{head['--port']}"


def test_the_head_offers_the_drivers_resource_and_no_cpu(config: dict[str, Any]) -> None:
    if "available_node_types" in config:
        head = config["available_node_types"][config["head_node_type"]]["resources"]
        assert head == {"CPU": 0, "drv": 100}
        for kind, group in config["available_node_types"].items():
            if kind != config["head_node_type"]:
                assert group["resources"]["CPU"] >= 2
                assert group["min_workers"] == 0
    else:
        options = options_of(config["head_start_ray_commands"][-1])
        assert options["--resources"] == '{"drv":100}'


def test_gpu_workers_are_spot_and_scale(config: dict[str, Any]) -> None:
    if config["provider"]["type"] == "local":
        assert config["provider"]["worker_ips"]
        return
    groups = config["available_node_types"]
    (gpu,) = [group for group in groups.values() if group["resources"].get("GPU")]
    assert gpu["max_workers"] > 0
    assert "spot" in str(gpu["node_config"]) or "preemptible" in str(gpu["node_config"])
    most = sum(group.get("max_workers", 0) for group in groups.values())
    assert most == config["max_workers"], "a group could never reach its own number"


def test_everything_that_the_project_needs_is_installed(config: dict[str, Any]) -> None:
    (command,) = config["setup_commands"]
    words = shlex.split(command)
    assert words[:4] == ["pip", "install", "-c", "/home/ray/constraints.txt"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + extras["ray"] + extras["serve"]
    assert {bare(word) for word in words[4:]} == {bare(word) for word in wanted}


def bare(requirement: str) -> str:
    """The name of what is required."""
    found = re.match(r"[A-Za-z0-9_-]+", requirement)
    assert found
    return found[0].lower().replace("_", "-")


def test_its_comments_tell_commands_that_run(name: str) -> None:
    text = (ROOT / name).read_text()
    commands = commands_of(text)
    assert commands
    for command in commands:
        assert job_problem(command) is None
    # Each file tells its own name.
    for told in re.findall(r"ray (?:up|down|dashboard) (\S+)", text.partition("cluster_name")[0]):
        assert told.rstrip("`:") == name
    # Nodes share nothing but what is named.
    where = re.findall(r"(?:data\.path|storage|registry)=(\S+)", commands[0])
    assert len(where) == 3
    assert all("://" in place or place.startswith("/srv/rayhmr") for place in where)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("python jobs/trian.py", "no such job"),
        ("python jobs/train.py --config jobs/configs/none.yaml", "no such file"),
        ("python jobs/train.py train.epoch=3", "did you mean train.epochs?"),
        ("python jobs/train.py scaling.num_workers=0", "greater than or equal to 1"),
        ("ray job submit --runtime-env jobs/env.yaml -- python jobs/train.py", "no such file"),
        ("bash jobs/train.py", "not by python"),
    ],
)
def test_a_command_that_would_not_run_is_found(command: str, said: str) -> None:
    assert said in str(job_problem(command))


def test_the_runtime_environment_has_both_source_roots() -> None:
    tree = strict_yaml(ROOT / "jobs/runtime_env.yaml")
    for root in tree["env_vars"]["PYTHONPATH"].split(":"):
        assert (ROOT / tree["working_dir"] / root).is_dir(), root
