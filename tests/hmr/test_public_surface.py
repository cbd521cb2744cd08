"""What `import hmr` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hmr


def test_every_public_name_resolves_to_the_object_of_its_module() -> None:
    for name in hmr.__all__:
        value = getattr(hmr, name)
        assert callable(value)
        assert value.__name__ == name
        assert getattr(importlib.import_module(value.__module__), name) is value
        assert value.__module__.startswith("hmr.")


def test_public_names_are_sorted_and_listed() -> None:
    # Acronyms, then classes, then functions: the order of the linter.
    assert hmr.__all__ == sorted(
        set(hmr.__all__), key=lambda name: (not name.isupper(), name.islower(), name)
    )
    assert set(hmr.__all__) <= set(dir(hmr))


def test_type_checkers_see_the_same_names_in_the_same_modules() -> None:
    tree = ast.parse(Path(hmr.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(seen) == set(hmr.__all__)
    for name, module in seen.items():
        assert getattr(hmr, name).__module__ == module


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hmr' has no attribute 'Bodies'"):
        hmr.Bodies  # noqa: B018


@pytest.mark.parametrize("module", ["hmr", "hmr.skeleton", "hmr.errors", "hmr.config"])
def test_importing_without_using_a_name_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
