"""What is wrong with a Grafana dashboard: names and labels that nobody has, panels over each other.

Of PromQL only as much is read as such queries use: selectors, ranges, `by (...)`, functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from rayhmr.metric_series import DATA, SEARCH, SERVICE, TRAINING

HISTOGRAM = ("_bucket", "_sum", "_count")
OF_RAY = ("instance", "node_type", "GpuIndex")
"""Labels of Ray's own series, and the node's address, which Prometheus adds."""
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_BY = re.compile(r"\bby\s*\(([^)]*)\)")
_WORD = re.compile(r"[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])")
_VALUES = re.compile(r"label_values\(\s*(.+?)\s*,\s*(\w+)\s*\)$")


def known_labels() -> dict[str, set[str]]:
    """{name as Prometheus sees it: labels} of our series."""
    known = {}
    for series in (*DATA, *TRAINING, *SEARCH, *SERVICE):
        ends = HISTOGRAM if series.kind == "histogram" else ("",)
        for end in ends:
            known[series.scraped + end] = set(series.labels) | (
                {"le"} if end == "_bucket" else set()
            )
    return known


def names_in(query: str) -> set[str]:
    """The series that a query asks for."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]", "", _BY.sub("", bare))
    return set(_WORD.findall(bare)) - {"by", "on"}


def _labels_in(query: str) -> set[str]:
    inside = {label for _, text in _SELECTOR.findall(query) for label in _LABEL.findall(text)}
    grouped = {label.strip() for text in _BY.findall(query) for label in text.split(",")}
    return inside | grouped


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Where it stands, the query, and the text of its legend."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            series, label = _VALUES.match(variable["query"]).groups()
            yield f"${variable['name']}", series, f"{{{{{label}}}}}"


def names_of_ray(dashboard: dict[str, Any]) -> set[str]:
    """The series of Ray's own that it asks for."""
    asked = {name for _, query, _ in queries(dashboard) for name in names_in(query)}
    return asked - known_labels().keys()


def problems(dashboard: dict[str, Any], ray_names: set[str]) -> list[str]:
    """A line for each. ray_names: series of Ray's own that exist."""
    known, found = known_labels(), []
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    for where, query, legend in queries(dashboard):
        names = names_in(query)
        if not names:
            found.append(f"{where}: {query}: asks for nothing")
        found += [f"{where}: {name}: no such series" for name in names - known.keys() - ray_names]
        labels = set.intersection(*(known.get(name, set(OF_RAY)) for name in names or {""}))
        shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
        found += [f"{where}: {label}: no such label" for label in
                  (_labels_in(query) | shown) - labels]  # fmt: skip
        used = {name for name in re.findall(r"\$(\w+)", query) if not name.startswith("__")}
        found += [f"{where}: ${name}: no such variable" for name in used - variables]
        if query.count("(") != query.count(")") or query.count("{") != query.count("}"):
            found.append(f"{where}: {query}: brackets do not match")
    panels = dashboard["panels"]
    if len({panel["id"] for panel in panels}) < len(panels):
        found.append("two panels have one id")
    found += [
        f"{a['title']} lies over {b['title']}"
        for a, b in combinations(panels, 2)
        if _overlap(a["gridPos"], b["gridPos"])
    ]
    return found


def _overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    return (a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
            and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"])  # fmt: skip
