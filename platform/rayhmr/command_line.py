"""Command line of every job: `--config file.yaml` (repeatable) and dotted `key=value` overrides.

Defaults < files, in order < overrides; the result is validated once and every problem is printed
in one line with the dotted path, the value and, for a misspelt key, the nearest valid one.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hmr.errors import ConfigError, HmrError
from pydantic import BaseModel, ValidationError

Job = TypeVar("Job", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{node.start_mark.name}: key {key!r} stands twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config {path}: no such file; jobs/configs/ holds the shipped ones")
    try:
        with file.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: must hold `key: value` lines, got {content!r:.60}")
    return content


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def set_dotted(tree: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`tree` with `value` at the dotted `path`; setting below a plain value is a ConfigError."""
    head, _, rest = path.partition(".")
    if not rest:
        return {**tree, head: value}
    below = tree.get(head, {})
    if not isinstance(below, dict):
        raise ConfigError(f"{path}: {head!r} is the value {below!r}, nothing can be set below it")
    return {**tree, head: set_dotted(below, rest, value)}


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The configuration classes inside an annotation (also inside unions, lists, dicts)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.GenericAlias) or typing.get_origin(annotation) is not None:
        return [c for a in typing.get_args(annotation) for c in _sections(a)]
    return []


def valid_paths(job: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted paths of every setting of `job`."""
    paths = []
    for name, field in job.model_fields.items():
        paths.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths += valid_paths(field.annotation, f"{prefix}{name}.")
    return paths


def _explain(job: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = valid_paths(job)
            close = difflib.get_close_matches(path, known, n=1, cutoff=0.6)
            parent = path.rpartition(".")[0]
            siblings = [p for p in known if p.rpartition(".")[0] == parent]
            hint = f"did you mean {close[0]}?" if close else f"valid: {', '.join(siblings)}"
            lines.append(f"  {path}: unknown key -- {hint}")
        else:
            lines.append(f"  {path}: {problem['msg']} (got {problem['input']!r:.80})")
    return "config error:\n" + "\n".join(lines)


def validate(job: type[Job], tree: dict[str, Any]) -> Job:
    """A checked job from a plain tree; ConfigError lists every problem at once."""
    try:
        return job.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(job, error)) from error


def load(job: type[Job], files: Sequence[str], overrides: Sequence[str]) -> Job:
    """Files merged in order, then overrides, then one validation."""
    tree: dict[str, Any] = {}
    for file in files:
        tree = _merge(tree, _read_yaml(file))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"{override!r}: overrides have the form key=value, as train.epochs=3")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from error
        tree = set_dotted(tree, path, value)
    return validate(job, tree)


def _help_lines(job: type[BaseModel], prefix: str = "") -> list[str]:
    lines = []
    for name, field in job.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            lines += _help_lines(field.annotation, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True)
        text = " ".join((field.description or "").split())
        lines.append(f"  {prefix}{name}={json.dumps(default, default=str)}\n      {text}")
    return lines


def _parser(job: type[BaseModel], default_config: str | None) -> argparse.ArgumentParser:
    doc = " ".join((job.__doc__ or "").split())
    parser = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings (key=default):\n" + "\n".join(_help_lines(job)),
    )
    parser.add_argument(
        "--config", action="append", metavar="FILE",
        help=f"YAML file; may be given several times (default: {default_config or 'none'})",
    )
    parser.add_argument("--print-config", action="store_true", help="print the result and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings")
    return parser


def run(job: type[Job], main: Callable[[Job], dict[str, Any]], *,
        default_config: str | None = None) -> None:
    """Parse the command line, run `main`, print its results as the last line of stdout.

    Exit code 0 only on success; 2 for a wrong setting, 1 for an error the user can cure. Those
    two print a message instead of a traceback.
    """
    arguments = _parser(job, default_config).parse_args()
    files = arguments.config or ([default_config] if default_config else [])
    try:
        settings = load(job, files, arguments.overrides)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    if arguments.print_config:
        sys.stdout.write(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        return
    try:
        results = main(settings)
    except HmrError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    sys.stdout.flush()
    sys.stdout.write(json.dumps(results, allow_nan=False) + "\n")
    sys.stdout.flush()
