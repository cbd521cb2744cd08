"""Lines for people are text, or with RAYHMR_LOG=json one JSON object each, on stderr."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rayhmr.log import say, speaking_of
from rayhmr.train import show

STEP = {
    "kind": "step", "label": "trial t0003", "epoch": 1, "epochs": 2, "step": 20, "steps": 40,
    "losses": {"loss": math.nan, "pose": 0.25}, "lr": 1e-3, "images_per_s": 400.0,
    "data_wait": 0.125, "eta_s": 3.0,
}  # fmt: skip
JOBS = Path(__file__).parents[2] / "jobs"


@pytest.fixture
def lines(monkeypatch, capsys):
    """What was said as JSON since the last call; a constant of Python in it is no JSON."""
    monkeypatch.setenv("RAYHMR_LOG", "json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    def read():
        out, err = capsys.readouterr()
        assert out == "", "stdout belongs to the results"
        return [json.loads(line, parse_constant=refuse) for line in err.splitlines()]

    return read


def test_a_line_has_time_level_run_and_text(lines):
    before = datetime.now(UTC)
    say("before")
    with speaking_of(run="spin"):
        say("two\nlines", level="error")
    say("after")
    first, line, last = lines()
    assert line.keys() == {"time", "level", "run", "text"}
    assert (line["level"], line["run"], line["text"]) == ("error", "spin", "two\nlines")
    assert abs((datetime.fromisoformat(line["time"]) - before).total_seconds()) < 5
    assert "run" not in first
    assert "run" not in last
    assert last["level"] == "info"


def test_facts_of_a_training_are_fields_and_the_text_is_what_people_read(lines, monkeypatch):
    with speaking_of(run="study"):
        show(STEP)
        show({"kind": "warning", "text": "slow disk", "label": "trial t0003"})
        show({"kind": "worker", "rank": 1, "pid": 7, "host": "node", "label": ""})
    step, warning, worker = lines()
    assert (step["run"], step["trial"], step["step"]) == ("study", "t0003", 20)
    assert step["losses"] == {"loss": "nan", "pose": 0.25}
    assert step["text"].startswith("trial t0003: epoch 1/2 step 20/40 loss nan")
    assert (warning["level"], warning["text"]) == ("warning", "trial t0003: warning: slow disk")
    assert (worker["rank"], worker["host"]) == (1, "node")
    assert "trial" not in worker


def test_without_the_variable_lines_are_text(monkeypatch, capsys):
    monkeypatch.delenv("RAYHMR_LOG", raising=False)
    show(STEP)
    assert capsys.readouterr().err.startswith("trial t0003: epoch 1/2 step 20/40 loss nan")


@pytest.mark.parametrize(("form", "status"), [("json", 1), ("xml", 2)])
def test_a_job_keeps_to_the_format_to_its_end(tmp_path, form, status):
    done = subprocess.run(
        [sys.executable, JOBS / "train.py", f"data.path={tmp_path}/none", "name=r"],
        env=os.environ | {"RAYHMR_LOG": form}, cwd=tmp_path, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (status, "")
    if form == "xml":
        assert done.stderr == "RAYHMR_LOG=xml: must be one of text, json\n"
    else:
        said = [json.loads(line) for line in done.stderr.splitlines()]
        assert said[-1]["level"] == "error"
        assert "none" in said[-1]["text"]
