"""The dashboard asks for series that exist, by labels that they have; all of ours are on it."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import re
from pathlib import Path

import pytest
from dashboard_rules import HISTOGRAM, known_labels, names_in, names_of_ray, problems, queries

from rayhmr.metric_series import DATA, SEARCH, SERVICE, TRAINING

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "platform/deploy/grafana/rayhmr.json").read_text())
OPERATIONS = (ROOT / "docs/operations.md").read_text()
OF_NODES = {"ray_object_store_used_memory"}
"""Of Ray's core, not its agent; the test that starts Ray finds it at a node."""


@pytest.fixture(scope="module")
def ray_names():
    """What Ray's agent sets on each node, whatever hardware it has."""
    agent = importlib.import_module("ray.dashboard.modules.reporter.reporter_agent")
    return {f"ray_{name}" for name in agent.METRICS_GAUGES} | OF_NODES


def test_every_query_names_series_and_labels_that_exist(ray_names):
    assert problems(DASHBOARD, ray_names) == []


def test_it_has_a_row_for_each_part_and_every_series_of_ours():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Data", "Training", "Search", "Service", "Cluster"]
    asked = {name for _, query, _ in queries(DASHBOARD) for name in names_in(query)}
    assert asked >= {n for n in known_labels() if not n.endswith(HISTOGRAM)}
    assert names_of_ray(DASHBOARD), "of the nodes as well"


def test_each_query_with_another_name_or_label_is_refused(ray_names):
    for place, panel in enumerate(DASHBOARD["panels"]):
        for number, target in enumerate(panel.get("targets", ())):
            for name in names_in(target["expr"]):
                changed = copy.deepcopy(DASHBOARD)
                one = changed["panels"][place]["targets"][number]
                one["expr"] = target["expr"].replace(name, name + "s", 1)
                assert f"{panel['title']}: {name}s: no such series" in problems(changed, ray_names)
            changed = copy.deepcopy(DASHBOARD)
            changed["panels"][place]["targets"][number]["legendFormat"] += "{{nobody}}"
            assert f"{panel['title']}: nobody: no such label" in problems(changed, ray_names)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('run=~"$run", trial', 'study=~"$run", trial', "study: no such label"),
        ("by (run, status)", "by (run, state)", "state: no such label"),
        ('run=~"$run"', 'run=~"$name"', "$name: no such variable"),
        ("sum by (le)", "sum by (le, reason)", "reason: no such label"),
        ("sum(rayhmr_serve_requests_in_flight)", "sum(rayhmr_serve_requests_in_flight",
         "brackets do not match"),
        ("label_values(ray_rayhmr_train_step,", "label_values(rayhmr_train_step,",
         "rayhmr_train_step: no such series"),
    ],
)  # fmt: skip
def test_a_wrong_label_variable_or_bracket_is_refused(old, new, words, ray_names):
    text = json.dumps(DASHBOARD)
    old, new = json.dumps(old)[1:-1], json.dumps(new)[1:-1]
    assert old in text
    assert any(words in problem for problem in problems(json.loads(text.replace(old, new)),
                                                        ray_names))  # fmt: skip


def test_a_panel_over_another_is_refused(ray_names):
    changed = copy.deepcopy(DASHBOARD)
    changed["panels"][2]["gridPos"] = changed["panels"][1]["gridPos"]
    assert any("lies over" in problem for problem in problems(changed, ray_names))


def test_the_page_lists_every_series_with_its_kind_labels_and_meaning():
    for series in (*DATA, *TRAINING, *SEARCH, *SERVICE):
        labels = ", ".join(f"`{label}`" for label in series.labels)
        line = f"| `{series.scraped}` | {series.kind} | {labels} | {series.help} |"
        assert line in OPERATIONS, line
    tables = OPERATIONS.partition("## Logs")[0]
    listed = {word for line in tables.splitlines() if line.startswith("| `")
              for word in line.split("`")[1:2] if "rayhmr_" in word}  # fmt: skip
    assert listed == {series.scraped for series in (*DATA, *TRAINING, *SEARCH, *SERVICE)}


def texts_of(file: Path) -> list[str]:
    """The strings of a module, adjacent ones as one, `…` for what is put into them."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def test_the_messages_that_the_page_explains_are_the_codes():
    files = [*(ROOT / "platform/rayhmr").rglob("*.py"), *(ROOT / "models/hmr").rglob("*.py")]
    texts = [text for file in files for text in texts_of(file)]
    section = OPERATIONS.partition("## What to do when")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    told = [word for line in lines for word in line.split(" | ")[0].split("`")[1::2]
            if not word.startswith("rayhmr_")]  # fmt: skip
    assert len(told) > 20
    for message in told:
        # Pieces of it stand together in one string, in this order, whatever is between them.
        pieces = [piece.strip() for piece in message.removeprefix("warning: ").split("…")]
        pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
        assert any(pattern.search(text) for text in texts), message
