"""Every curl line of README and docs/service.md, and the Python there, run against a service."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from hmr.crops import encode_jpeg

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = ("README.md", "docs/service.md")
ADDRESS = "localhost:8000"


def blocks(document, language=""):
    """The fenced blocks of a document."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def curl_lines():
    """Each with the document and the lines of its block that prepare for it."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document):
            before = []
            for line in block.splitlines():
                if line.startswith("curl "):
                    found.append(pytest.param(before, line, id=f"{document}: {line}"))
                elif line.startswith("jq "):
                    before = [*before, line]
    return found


@pytest.fixture(scope="module")
def service(app_of, predictor, live):
    return live(app_of({"hmr": predictor})).removeprefix("http://")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for name in ("photo.jpg", "other.jpg"):
        noise = rng.integers(0, 255, (250, 230, 3), dtype=np.uint8)
        (folder / name).write_bytes(encode_jpeg(noise, 70))
    return folder


def checked(path):
    """Whether a file is what its name says, with something in it."""
    content = path.read_bytes()
    if path.suffix == ".glb":
        scene = trimesh.load(io.BytesIO(content), file_type="glb")
        return sum(len(mesh.vertices) for mesh in scene.geometry.values()) > 0
    if path.suffix == ".npz":
        return np.load(io.BytesIO(content))["poses"].shape == (1, 72)
    if path.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return "index.json" in archive.namelist() and archive.testzip() is None
    if path.suffix == ".png":
        return Image.open(io.BytesIO(content)).size == (230, 250)
    return len(content) % 12 == 0 and len(content) > 0


def test_there_are_lines_to_run():
    assert len(curl_lines()) >= 18


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize(("before", "line"), curl_lines())
def test_curl_lines_do_what_is_said(service, folder, before, line):
    assert ADDRESS in line, "lines of the documents speak to the default port"
    if before and shutil.which("jq") is None:
        pytest.skip("needs jq")
    script = "\n".join([
        "set -euo pipefail",
        'curl() { command curl --noproxy "*" --fail-with-body --max-time 60 "$@"; }',
        *before, line.replace(ADDRESS, service),
    ])  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, check=False,
        env=os.environ | {"RAYHMR_API_KEY": "unused-here"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
    if output := re.search(r" -o (\S+)", line):
        assert checked(folder / output[1])
    elif "/metrics" in line:
        assert b"rayhmr_serve_requests_total" in done.stdout
    else:
        answer = json.loads(done.stdout)
        if "/v1/predict/batch" in line:
            assert [item["status"] for item in answer["items"]] == [200, 200]
        elif "/v1/predict" in line:
            assert len(answer["people"]) == (2 if line.count("[") > 2 else 1)
        else:
            assert {"status", "models", "name"} & set(answer)


def test_the_python_of_the_documents_runs(service, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = [block for block in blocks("docs/service.md", "python") if "rayhmr.client" in block]
    namespace = {}
    exec(compile(code.replace(ADDRESS, service), "docs/service.md", "exec"), namespace)
    assert namespace["person"].vertices.shape == (6890, 3)
    assert namespace["glb"][:4] == b"glTF"
    assert capsys.readouterr().out.rstrip().endswith("1\n1")
