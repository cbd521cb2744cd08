"""What a chaos run is judged by: steps done again, samples that counted, figures over scenarios."""

from __future__ import annotations

import json
import sys

import pytest

from hmr.errors import HmrError
from rayhmr.benchmark_chaos import figures_of, row_of
from rayhmr.chaos.cluster import is_running, parent_of, running
from rayhmr.chaos.lab import Record
from rayhmr.chaos.run import OverdueError, TrainRun
from rayhmr.chaos.scenarios import expect, played


@pytest.fixture
def run(tmp_path):
    """Two steps an epoch, two samples a step."""
    (tmp_path / "run" / "samples").mkdir(parents=True)
    return TrainRun({"storage": str(tmp_path), "name": "run", "steps_per_epoch": 2})


def record(run, time, rank, *steps):
    """One start of a rank: (epoch, step, ids) each."""
    lines = [
        json.dumps({"epoch": epoch, "step": step, "rank": rank, "ids": list(ids)}) + "\n"
        for epoch, step, ids in steps
    ]
    path = run.folder / "samples" / f"{time}-rank{rank}.jsonl"
    path.write_text("".join(lines))
    return path


def test_a_run_that_starts_once_loses_nothing(run):
    record(run, 100, 0, (0, 0, "a"), (0, 1, "c"), (1, 0, "d"))
    record(run, 100, 1, (0, 0, "b"), (0, 1, "d"), (1, 0, "c"))
    assert len(run.starts()) == 1
    assert run.position() == 3
    assert run.steps_lost(total=3) == 0
    assert run.repeated_or_missing(set("abcd")) == ["a", "b"], "epoch 2 has not seen them yet"


def test_what_was_done_again_is_lost_and_counts_once(run):
    record(run, 100, 1, (0, 0, "b"), (0, 1, "d"))
    record(run, 100, 0, (0, 0, "a"), (0, 1, "c"), (1, 0, "a"))
    # It goes on after the first step, with one worker.
    record(run, 200, 0, (0, 1, "cd"), (1, 0, "ab"), (1, 1, "dc"))
    assert [set(ranks) for ranks in run.starts()] == [{0, 1}, {0}]
    assert run.position() == 4
    assert run.steps_lost(total=4) == 2
    assert run.repeated_or_missing(set("abcd")) == []


def test_samples_that_are_left_out_or_come_twice_are_named(run):
    record(run, 100, 0, (0, 0, "ab"), (0, 1, "bc"))
    assert run.repeated_or_missing(set("abcd")) == ["b", "d"]


def test_the_newest_start_says_where_a_run_is(run):
    record(run, 100, 0, (0, 0, "a"), (0, 1, "c"), (1, 0, "a"))
    record(run, 200, 0)
    assert run.position() == 3, "nothing was done since"
    record(run, 300, 0, (0, 1, "c"))
    assert run.position() == 2


def test_a_line_that_is_being_written_is_not_read(run):
    path = record(run, 100, 0, (0, 0, "a"))
    path.write_text(path.read_text() + '{"epoch": 0, "st')
    assert [line.ids for line in run.lines()] == [("a",)]


def test_a_run_that_was_not_started_says_so(run):
    with pytest.raises(HmrError, match="run: was not started"):
        run.until(lambda: False, "nothing", 0.1)


def test_a_check_that_fails_and_a_wait_that_is_too_long_are_records():
    def broken(lab):
        expect(1 + 1 == 3, "it does\nnot add up")

    def slow(lab):
        raise OverdueError("no end within 2 s")

    assert played(broken, None) == Record(
        scenario="broken", survived=False, note="it does not add up"
    )
    assert played(slow, None).note == "no end within 2 s"


def test_figures_are_of_the_scenarios_that_were_survived():
    records = [
        Record(scenario="a", survived=True, note="", kills=3, steps_lost=9, seconds=(5, 6, 16)),
        Record(scenario="b", survived=True, note="", kills=1, steps_lost=1, seconds=(8,)),
        Record(scenario="c", survived=True, note=""),
        Record(scenario="d", survived=False, note="", kills=1, steps_lost=90, seconds=(99,)),
    ]
    assert figures_of(records) == {
        "survived": 3, "tried": 4, "steps_lost_per_kill": 2.5, "seconds_to_recover": 7,
    }  # fmt: skip
    assert figures_of(records[3:])["steps_lost_per_kill"] == 0
    row = row_of(records[0], "R1", "dies")
    assert (row["row"], row["survived"], row["seconds"]) == ("R1", "yes", "5, 6, 16")
    assert row_of(records[3], "R1", "dies")["survived"] == "NO"


def test_processes_are_found_by_title_and_parent(tmp_path):
    import os
    import subprocess

    # A process has no title yet when the system call that starts it returns: hear from it first.
    code = "print('up', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as child:
        child.stdout.readline()
        assert child.pid in running(sys.executable)
        assert parent_of(child.pid) == os.getpid()
        assert is_running(child.pid)
        child.kill()
        child.wait()
        assert not is_running(child.pid)
        assert parent_of(child.pid) is None
