"""What a run tells: every fact becomes a line, numbers become curves, stdout stays clean."""

from __future__ import annotations

import json
import math
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event

from rayhmr.telemetry import RunLog, _BoardState, say, watching, worker_facts

STEP = {
    "kind": "step", "epoch": 0, "step": 20, "losses": {"total": 1.5, "pose": 0.25}, "lr": 1e-3,
    "images_per_s": 400.0,
}  # fmt: skip
EPOCH = {
    "kind": "epoch", "epoch": 1, "step": 40, "seconds": 3.5, "val/pa_mpjpe_mm": 61.25,
    "train/total": 0.75, "best": True,
}  # fmt: skip


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def curves_of(folder):
    """{name: {step: value}}; TensorBoard's records are length, checksum, event, checksum."""
    curves = {}
    for file in sorted((folder / "tensorboard").glob("events*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                curves.setdefault(value.tag, {})[event.step] = value.simple_value
            content = content[12 + length + 4 :]
    return curves


def test_every_fact_is_a_line_with_its_time(tmp_path):
    before = time.time()
    with RunLog(tmp_path / "run") as log:
        for facts in (worker_facts(1), STEP, EPOCH):
            log.write(facts)
            assert lines_of(tmp_path / "run")[-1]["kind"] == facts["kind"], "at once"
    lines = lines_of(tmp_path / "run")
    times = [line.pop("time") for line in lines]
    assert lines == [worker_facts(1), STEP, EPOCH]
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[-1] <= time.time() + 0.001


def test_numbers_of_steps_and_epochs_are_curves(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(worker_facts(0))
        log.write(STEP)
        log.write(STEP | {"step": 40, "lr": 5e-4})
        log.write(EPOCH)
    curves = curves_of(tmp_path)
    assert curves == {
        "step/total": {20: 1.5, 40: 1.5},
        "step/pose": {20: 0.25, 40: 0.25},
        "step/lr": {20: pytest.approx(1e-3), 40: pytest.approx(5e-4)},
        "step/images_per_s": {20: 400, 40: 400},
        "val/pa_mpjpe_mm": {40: 61.25},
        "train/total": {40: 0.75},
    }


def test_a_run_that_resumes_appends(tmp_path):
    for step in (20, 40):
        with RunLog(tmp_path) as log:
            log.write(STEP | {"step": step})
    assert [line["step"] for line in lines_of(tmp_path)] == [20, 40]


def test_a_loss_that_is_no_number_does_not_end_the_run(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(STEP | {"losses": {"total": math.nan}})
    (line,) = lines_of(tmp_path)
    assert math.isnan(line["losses"]["total"])


def test_lines_for_people_go_to_stderr(capsys):
    say("made 3 of 7 people")
    assert capsys.readouterr() == ("", "made 3 of 7 people\n")


# The board's state is what its actor runs; here it is posted to directly.


def test_a_board_gives_every_fact_once_and_drops_the_oldest_beyond_its_limit():
    board = _BoardState(limit=3)
    board.post({"n": 0})
    board.post({"n": 1})
    assert board.take() == [{"n": 0}, {"n": 1}]
    assert board.take() == []
    for number in range(5):
        board.post({"n": number})
    assert board.take() == [{"n": 2}, {"n": 3}, {"n": 4}]


def test_watching_shows_every_fact_also_those_before_an_error():
    board, shown = _BoardState(), []
    board.post({"n": 0})
    with watching(board, shown.append):
        board.post({"n": 1})
    assert shown == [{"n": 0}, {"n": 1}]

    def fails():
        with watching(board, shown.append):
            board.post({"n": 2})
            raise OSError("the run fails")

    with pytest.raises(OSError, match="the run fails"):
        fails()
    assert shown[2:] == [{"n": 2}], "the last facts before a failure are the ones that matter"
