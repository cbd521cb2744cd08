"""The architecture, as assertions: roots, import direction, thin scripts, pure imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCH_FREE = (
    "skeleton",
    "crops",
    "pose_prior",
    "body_arrays",
    "embedded_body",
    "render",
    "render_errors",
    "render_lines",
    "mesh_files",
    "synthetic",
    "synthetic_look",
    "raster",
    "body_sheet",
    "protocols",
    "safe_pickle",
)


def run_python(code: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("folder", ["platform", "models", "jobs"])
def test_source_roots_are_not_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_no_package_under_tests() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_standard_platform_module_survives_the_repository_root_on_the_path() -> None:
    out = run_python(
        "import sys; sys.path.insert(0, '.'); import platform; print(platform.system())"
    )
    assert out in {"Linux", "Darwin", "Windows"}


def test_hmr_imports_with_the_platform_blocked() -> None:
    code = """
import sys, pkgutil, importlib
for name in ("ray", "rayhmr", "fastapi", "uvicorn", "pyarrow"):
    sys.modules[name] = None
import hmr
for module in pkgutil.walk_packages(hmr.__path__, "hmr."):
    importlib.import_module(module.name)
for name in hmr.__all__:
    getattr(hmr, name)
print("ok")
"""
    assert run_python(code) == "ok"


@pytest.mark.parametrize("module", TORCH_FREE)
def test_data_workers_import_no_torch(module: str) -> None:
    code = f"import sys, hmr.{module}; print('torch' in sys.modules)"
    assert run_python(code) == "False"


def test_importing_the_platform_starts_nothing() -> None:
    code = """
import pkgutil, importlib, os, rayhmr, ray
before = set(os.listdir("."))
for module in pkgutil.walk_packages(rayhmr.__path__, "rayhmr."):
    importlib.import_module(module.name)
assert not ray.is_initialized()
assert set(os.listdir(".")) == before
print("ok")
"""
    assert run_python(code) == "ok"


@pytest.mark.parametrize("script", sorted((ROOT / "jobs").glob("*.py")), ids=lambda p: p.name)
def test_scripts_only_parse_build_and_run(script: Path) -> None:
    tree = ast.parse(script.read_text())
    assert ast.get_docstring(tree), "a script says what it does"
    code_lines = [line for line in script.read_text().splitlines() if line.strip()]
    assert len(code_lines) <= 40
    assert not any(isinstance(node, ast.ClassDef | ast.For | ast.While) for node in ast.walk(tree))


def test_no_unsafe_loader_in_the_source() -> None:
    unsafe = re.compile(
        r"pickle\.loads?\(|cloudpickle\.loads?\(|joblib\.load\(|allow_pickle=True"
        r"|weights_only=False|torch\.jit\.load\(|yaml\.(unsafe_)?load\((?!.*Loader=_StrictLoader)"
    )
    for file in [
        *ROOT.glob("models/**/*.py"),
        *ROOT.glob("platform/**/*.py"),
        *ROOT.glob("jobs/*.py"),
    ]:
        found = [line for line in file.read_text().splitlines() if unsafe.search(line)]
        assert not found, f"{file}: {found}"
