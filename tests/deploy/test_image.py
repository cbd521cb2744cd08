"""The image: what docker would send and copy is there, and the wheel baked into it is the project.

No image is built here. The wheel is: from a folder with just what the Dockerfile copies.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path, PurePosixPath

import pytest
from deploy_commands import ROOT

DOCKERFILE = ROOT / "platform/deploy/Dockerfile"
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER"}
SOURCES = {"hmr": ROOT / "models/hmr", "rayhmr": ROOT / "platform/rayhmr"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Word and rest of each instruction, continued lines joined."""
    bare = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n", " ", bare)
    words = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(first, rest.strip()) for first, _, rest in words]


def sent(path: str) -> bool:
    """Whether .dockerignore lets a file through: the last line that fits it, or a folder above it,
    decides."""
    above = [path, *map(str, PurePosixPath(path).parents)][:-1]
    through = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        anywhere = line.startswith("**/")
        if any(fnmatch(PurePosixPath(one).name if anywhere else one, pattern) for one in above):
            through = line.startswith("!")
    return through


def files_below(source: str) -> list[str]:
    """Files that a COPY of this source takes."""
    place = ROOT / source
    found = [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]
    return [name for one in found if sent(name := one.relative_to(ROOT).as_posix())]


def copied() -> list[tuple[list[str], str]]:
    """Sources and target of each COPY from outside the image."""
    found = []
    for word, rest in instructions(DOCKERFILE.read_text()):
        if word == "COPY" and not rest.startswith("--from="):
            *sources, target = rest.split()
            found.append((sources, target))
    return found


def test_every_instruction_is_known_and_every_path_is_there_and_sent() -> None:
    steps = instructions(DOCKERFILE.read_text())
    assert {word for word, _ in steps} <= KNOWN
    stages = [rest.split()[-1] for word, rest in steps if word == "FROM" and " AS " in rest]
    for word, rest in steps:
        if word == "COPY" and rest.startswith("--from="):
            assert rest.removeprefix("--from=").split()[0] in stages
    for sources, _ in copied():
        for source in sources:
            assert files_below(source), f"COPY {source}: nothing is sent"
    bases = {rest.split()[0] for word, rest in steps if word == "FROM"}
    assert bases == {"python:3.11-slim-bookworm"}
    assert f"python:{sys.version_info[0]}.{sys.version_info[1]}" in bases.pop()


def test_it_does_not_run_as_root_and_keeps_no_secret() -> None:
    steps = instructions(DOCKERFILE.read_text())
    last = max(n for n, (word, _) in enumerate(steps) if word == "FROM")
    (user,) = [rest for word, rest in steps[last:] if word == "USER"]
    assert user == "1000:1000"
    assert [word for word, _ in steps].index("USER") > last
    # What follows USER is run by that user, and it may not change the image's own files.
    after = steps[[word for word, _ in steps].index("USER") + 1 :]
    assert {word for word, _ in after} == {"WORKDIR"}
    assert not re.search(r"(?i)token|password|secret|api_key", DOCKERFILE.read_text())


def test_nothing_else_is_sent_to_docker() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    everything = {*listed.stdout.splitlines(), "models/hmr/__pycache__/x.pyc", ".git/config"}
    taken = {file for sources, _ in copied() for source in sources for file in files_below(source)}
    assert {file for file in everything if sent(file)} == taken
    for kept in ("tests/deploy/test_image.py", "cluster.yaml", ".git/config", "docs/service.md"):
        assert not sent(kept), kept
    assert not sent("models/hmr/__pycache__/x.pyc")
    assert sent("jobs/train.py")


def test_the_dependencies_are_those_of_the_project_and_pinned(tmp_path: Path) -> None:
    (step,) = [rest for word, rest in instructions(DOCKERFILE.read_text()) if "tomllib" in rest]
    command, _, install = step.partition(" > wanted.txt")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = command.replace("python", sys.executable, 1)
    asked = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    names = ("ray", "serve", "video", "export")
    assert asked == project["dependencies"] + [one for name in names for one in extras[name]]
    assert "--constraint constraints.txt" in install
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }  # fmt: skip
    for line in asked:
        name = re.match(r"[A-Za-z0-9_-]+", line)
        assert name, line
        assert name[0].lower().replace("_", "-") in pins, f"{line} is not in constraints.txt"


def test_its_tag_is_the_projects_version_wherever_it_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    files = [DOCKERFILE, ROOT / "docs/deployment.md", *DOCKERFILE.parent.glob("kuberay/*.yaml")]
    found = {
        file.name: re.findall(r"example\.com/rayhmr:(\S+?)[\s`]", file.read_text())
        for file in files
    }
    assert {tag for tags in found.values() for tag in tags} == {project["version"]}
    assert all(found[name] for name in ("Dockerfile", "deployment.md", "rayservice.yaml"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the Dockerfile copies before it builds one, and from nothing else."""
    source = tmp_path_factory.mktemp("context")
    for sources, target in copied():
        if target.startswith("/"):
            continue
        for name in [file for one in sources for file in files_below(one)]:
            # `COPY a b ./` takes files to the folder, `COPY x/y x/y` a folder to the same name.
            assert target in ("./", *sources)
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    here = importlib.util.find_spec("setuptools") and int(version("setuptools").split(".")[0]) >= 77
    out = tmp_path_factory.mktemp("wheels")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out),
            *(["--no-build-isolation"] if here else []), str(source),
        ],
        check=True, stderr=subprocess.STDOUT,
    )  # fmt: skip
    (made,) = out.glob("*.whl")
    return made


def test_the_wheel_has_both_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    info = {name for name in inside if ".dist-info/" in name}
    wanted = {
        f"{package}/{file.relative_to(folder).as_posix()}"
        for package, folder in SOURCES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }  # fmt: skip
    assert inside - info == wanted
    assert {"rayhmr/serve/static/index.html", "rayhmr/serve/golden.png", "hmr/py.typed"} <= inside
    assert {name.split("/")[-1] for name in info} >= {"METADATA", "LICENSE", "RECORD"}
    assert not [name for name in inside if "test" in name.lower().split("/")[0]]


def test_its_metadata_asks_for_what_the_project_asks_for(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        told = Parser().parsestr(archive.read(name).decode())
    assert (told["Name"], told["Version"]) == ("rayhmr", project["version"])
    assert told["Requires-Python"] == project["requires-python"]
    plain = [one for one in told.get_all("Requires-Dist", []) if "extra ==" not in one]
    assert plain == project["dependencies"]
    assert set(told.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])


def test_jobs_run_from_the_wheel_without_the_sources(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    # As in the image: /opt/rayhmr/jobs beside the installed packages.
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs")
    code = (
        "import hmr, rayhmr.config, rayhmr.serve.deploy; "
        "print(hmr.__file__, rayhmr.__file__, rayhmr.serve.deploy.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert all(path.startswith(str(tmp_path / "site")) for path in told.stdout.split())
    helped = subprocess.run(
        [sys.executable, "jobs/train.py", "--help"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert helped.returncode == 0, helped.stderr
    assert "scaling.num_workers" in helped.stdout


def test_a_path_that_is_not_sent_would_be_found() -> None:
    assert files_below("tests") == []
    assert files_below("platform/deploy") == []
    assert instructions("# x\nRUN a \\\n  b\n") == [("RUN", "a    b")]
