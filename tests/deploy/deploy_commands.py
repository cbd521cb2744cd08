"""What a deploy file or a page tells its reader to run, checked against what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml
from pydantic import BaseModel

from hmr.errors import ConfigError
from rayhmr import command_line
from rayhmr.config import (
    ClusterCheckJob,
    EvaluateJob,
    PredictJob,
    PrepareJob,
    PromoteJob,
    ServeJob,
    TrainJob,
    TuneJob,
)

ROOT = Path(__file__).resolve().parents[2]
JOBS: dict[str, type[BaseModel]] = {
    "prepare": PrepareJob,
    "train": TrainJob,
    "tune": TuneJob,
    "evaluate": EvaluateJob,
    "predict": PredictJob,
    "promote": PromoteJob,
    "serve": ServeJob,
    "cluster_check": ClusterCheckJob,
}
PLACEHOLDER = re.compile(r"<[a-z ]+>")


def pinned(package: str) -> str:
    """The exact version of a package in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name.lower() == package.lower():
            return version
    raise AssertionError(f"{package}: not pinned in constraints.txt")


def commands_of(text: str) -> list[str]:
    """Lines that run `python jobs/...`, also behind comment signs, with continued lines joined."""
    bare = "\n".join(re.sub(r"^\s*#\s?", "", line) for line in text.splitlines())
    joined = re.sub(r"\\\n\s*", "", bare)
    return [line.strip() for line in joined.splitlines() if re.search(r"python \S*jobs/", line)]


def job_problem(command: str, root: str = "") -> str | None:
    """Why a command would not run one of our jobs; none when it would.

    root: the folder of the project in an image, which absolute paths begin with.
    """
    words = shlex.split(PLACEHOLDER.sub("placeholder", command))
    if "--runtime-env" in words:
        file = words[words.index("--runtime-env") + 1]
        if not (ROOT / file).is_file():
            return f"--runtime-env {file}: no such file"
    start = next(i for i, word in enumerate(words) if "jobs/" in word and word.endswith(".py"))
    script = words[start]
    if words[start - 1] != "python":
        return f"{script}: run by {words[start - 1]!r}, not by python"
    if root and not script.startswith(f"{root}/"):
        return f"{script}: not below {root}, where the image has the jobs"
    relative = script.removeprefix(f"{root}/") if root else script
    if not (ROOT / relative).is_file():
        return f"{script}: no such job"
    job = JOBS.get(Path(script).stem)
    if job is None:
        return f"{script}: no settings are known for it; known: {', '.join(JOBS)}"
    files, overrides, rest = [], [], iter(words[start + 1 :])
    for word in rest:
        if word == "--config":
            named = next(rest, "")
            file = named.removeprefix(f"{root}/") if root else named
            files.append(str(ROOT / file))
        else:
            overrides.append(word)
    try:
        command_line.load(job, files, overrides)
    except ConfigError as error:
        return f"{script}: {error}"
    return None


def job_of(command: str, root: str = "") -> BaseModel:
    """The settings that a command, which has no problem, runs with."""
    words = shlex.split(command)
    start = next(i for i, word in enumerate(words) if "jobs/" in word and word.endswith(".py"))
    rest = words[start + 1 :]
    files = [
        str(ROOT / rest[i + 1].removeprefix(f"{root}/"))
        for i, word in enumerate(rest)
        if word == "--config"
    ]
    skipped = {i + d for i, word in enumerate(rest) if word == "--config" for d in (0, 1)}
    overrides = [word for i, word in enumerate(rest) if i not in skipped]
    return command_line.load(JOBS[Path(words[start]).stem], files, overrides)


def strict_yaml(path: Path) -> dict:
    """One document; a key that stands twice is an error."""
    tree = command_line._parse_yaml(path.read_text(), str(path))
    assert yaml.safe_load(path.read_text()) == tree
    return tree
