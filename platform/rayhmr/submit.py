"""A job sent to a cluster, and sent again when it fails: Ray itself runs an entry point once.

The same command goes on where it stopped (shards, runs, studies, predictions), so another attempt
costs what the failed one had not kept. What it cannot cure is not tried again: settings that a job
refuses (exit code 2), and a job that somebody stopped.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from hmr.errors import ConfigError, HmrError
from rayhmr.telemetry import say

REFUSED = 2
"""Exit code of our jobs for settings that cannot be used."""
WAIT_S = 5.0
"""Before another attempt; a lost node is noticed in the meantime."""
POLL_S = 1.0


def submit(
    entrypoint: Sequence[str], *, address: str, runtime_env: str, retries: int, root: Path
) -> dict[str, Any]:
    """Run a command on a cluster, at most `retries` times more; follow its log on stderr.

    address: of the dashboard, http://host:8265. runtime_env: a YAML file. root: the folder that is
    sent where that file says working_dir ".". Returns status, attempts and, of a job of ours, its
    result. ConfigError when the cluster does not take it, HmrError when it did not succeed.
    """
    environment = _runtime_env(runtime_env, root)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, RayError) as error:
        raise ConfigError(
            f"address={address}: cannot submit there ({error}); check address, RAY_AUTH_MODE and "
            "its token"
        ) from error
    command, names = shlex.join(entrypoint), list[str]()
    for attempt in range(1, retries + 2):
        try:
            names.append(client.submit_job(entrypoint=command, runtime_env=environment))
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"address={address}: did not take the job ({error})") from error
        say(f"attempt {attempt} of {retries + 1}: {names[-1]}: {command}")
        log = _followed(client, names[-1])
        info = client.get_job_info(names[-1])
        if info.status == JobStatus.SUCCEEDED:
            return {"status": "SUCCEEDED", "attempts": attempt, "submissions": names} | _result(log)
        reason = f"{info.status.value} with exit code {info.driver_exit_code}"
        if info.status == JobStatus.STOPPED or info.driver_exit_code == REFUSED:
            raise HmrError(f"{names[-1]}: {reason}; another attempt would end the same way")
        if attempt <= retries:
            say(f"{names[-1]}: {reason}; trying again in {WAIT_S:g} s")
            time.sleep(WAIT_S)
    raise HmrError(
        f"{names[-1]}: {reason} at attempt {attempt}, the last; `ray job logs --address {address} "
        f"{names[-1]}` shows why, and --retries allows more"
    )


def _runtime_env(file: str, root: Path) -> dict[str, Any]:
    try:
        environment = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {file}: cannot be read ({error})") from error
    if not isinstance(environment, dict):
        raise ConfigError(f"--runtime-env {file}: must hold `key: value` lines")
    if environment.get("working_dir") == ".":
        environment["working_dir"] = str(root)
    return environment


def _followed(client: JobSubmissionClient, name: str) -> str:
    """The job's log, which is shown while it grows, once the job has ended."""

    async def follow() -> None:
        async for lines in client.tail_job_logs(name):
            sys.stderr.write(lines)
            sys.stderr.flush()

    try:
        asyncio.run(follow())
    except (OSError, RuntimeError) as error:  # the dashboard is out of reach; the job is not
        say(f"{name}: its log cannot be followed ({error})")
    while not client.get_job_status(name).is_terminal():
        time.sleep(POLL_S)
    log: str = client.get_job_logs(name)
    return log


def _result(log: str) -> dict[str, Any]:
    """The last line of one of our jobs; nothing for another command."""
    last = log.rstrip().rpartition("\n")[2]
    try:
        result = json.loads(last)
    except ValueError:
        return {}
    return {"result": result} if isinstance(result, dict) else {}
