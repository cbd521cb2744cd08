"""Command line of every job: `--config file.yaml` (repeatable) and dotted `key=value` overrides.

Defaults < files, in order < overrides; the result is validated once and every problem is printed
in one line with the dotted path, the value and, for a misspelt key, the nearest valid one.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hmr.errors import ConfigError, HmrError
from rayhmr.log import check_format, say

Job = TypeVar("Job", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word; here it is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"{node.start_mark.name}: key {key!r} stands twice (line {line})")
            seen.add(key)
        return super().construct_mapping(node, deep)


# PyYAML follows YAML 1.1, where 3e-4 and 1.5e3 are strings; everybody means numbers.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse_yaml(text: str, name: str) -> Any:
    """The content of one document; ConfigError says where in `name` it is wrong."""
    loader = _StrictLoader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {error}") from error
    finally:
        loader.dispose()


def _read_yaml(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config {path}: no such file; jobs/configs/ holds the shipped ones")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not a readable text file: {error}") from error
    content = _parse_yaml(text, f"--config {path}")
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
    changed = dict(tree)
    below, parts = changed, path.split(".")
    for depth, part in enumerate(parts[:-1], start=1):
        inner = below.get(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(
                f"{path}: {'.'.join(parts[:depth])!r} is the value {inner!r}, "
                "nothing can be set below it"
            )
        below[part] = dict(inner)
        below = below[part]
    below[parts[-1]] = value
    return changed


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


def _section_at(job: type[BaseModel], location: Sequence[int | str]) -> type[BaseModel]:
    """The class that refused the last part of `location`; keys of a dict are parts, too."""
    section = job
    for part in location[:-1]:
        field = section.model_fields.get(str(part))
        inside = _sections(field.annotation) if field is not None else []
        section = inside[0] if inside else section
    return section


def _hint(job: type[BaseModel], location: Sequence[int | str]) -> str:
    """What an unknown key was probably meant to be, or what could stand there."""
    *parents, key = (str(part) for part in location)
    known, path = valid_paths(job), ".".join([*parents, key])
    if path in known:
        return "in a file it is nested: one level for each dot"
    names = list(_section_at(job, location).model_fields)
    close = [".".join([*parents, name]) for name in difflib.get_close_matches(key, names, n=1)]
    if not close and (not parents or ".".join(parents) in known):
        close = [other for other in known if other.rpartition(".")[2] == key]
        if not close and not parents:
            close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"valid: {', '.join('.'.join([*parents, name]) for name in names)}"


def _explain(job: type[BaseModel], error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {path}: unknown key -- {_hint(job, problem['loc'])}")
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
        value = _parse_yaml(text, repr(override))
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
        for section in _sections(field.annotation):
            lines += _help_lines(section, f"{prefix}{name}.<key>.")
    return lines


def _parser(job: type[BaseModel], default_config: str | None) -> argparse.ArgumentParser:
    doc = " ".join((job.__doc__ or "").split())
    parser = argparse.ArgumentParser(
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings (key=default):\n" + "\n".join(_help_lines(job)),
    )
    parser.add_argument(
        "--config",
        action="append",
        metavar="FILE",
        help=f"YAML file; may be given several times (default: {default_config or 'none'})",
    )
    parser.add_argument("--print-config", action="store_true", help="print the result and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted settings")
    return parser


def _with_words(overrides: Sequence[str], setting: str | None) -> list[str]:
    """The overrides, with bare words gathered into the setting they are values of."""
    given = [text for text in overrides if "=" in text]
    bare = [text for text in overrides if "=" not in text]
    if setting is None or not bare:
        return list(overrides)
    return [*given, f"{setting}=[{', '.join(bare)}]"]


_LESS_NOISE = {
    # Tune's own tables; ours are shorter.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Two messages of every healthy run: a training has more processes than CPUs, and Serve's
    # controller ends while it is asked to end.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "maximum expected startup concurrency|graceful_shutdown failed",
}


def run(
    job: type[Job], main: Callable[[Job], dict[str, Any]], *, default_config: str | None = None,
    words: str | None = None, switches: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Parse the command line, run `main`, print its results as the last line of stdout.

    words: the setting, a list, that words without an equals sign are the values of. switches: short
    forms of settings, such as `--serve` of `chaos_of=serve`. Exit code 0
    only on success; 2 for a wrong setting, 1 for an error the user can cure. Those two print a
    message instead of a traceback.
    """
    try:
        check_format()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    parser = _parser(job, default_config)
    for switch, meaning in (switches or {}).items():
        parser.add_argument(
            switch, dest="overrides_of_switches", action="append_const", const=meaning,
            help=f"short for {meaning}",
        )  # fmt: skip
    arguments = parser.parse_intermixed_args()
    arguments.overrides += vars(arguments).get("overrides_of_switches") or []
    files = arguments.config or ([default_config] if default_config else [])
    try:
        settings = load(job, files, _with_words(arguments.overrides, words))
    except ConfigError as error:
        say(str(error), level="error")
        sys.exit(2)
    if arguments.print_config:
        sys.stdout.write(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        return
    print_results(lambda: main(settings))


def print_results(work: Callable[[], dict[str, Any]]) -> None:
    """Do the work and print its results as the last line of stdout; an error that the user can
    cure becomes a message and exit code 1."""
    for name, value in _LESS_NOISE.items():  # Ray reads them when it is imported: in `work`
        os.environ.setdefault(name, value)
    try:
        results = work()
    except HmrError as error:
        say(f"error: {error}", level="error")
        sys.exit(1)
    sys.stdout.flush()
    sys.stdout.write(json.dumps(results, allow_nan=False) + "\n")
    sys.stdout.flush()
