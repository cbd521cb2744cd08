"""What a run tells: every fact becomes a line, numbers become curves, stdout stays clean."""

from __future__ import annotations

import json
import math
import struct
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.proto.event_pb2 import Event

from hmr.crops import decode_image
from hmr.validation_pictures import to_png
from rayhmr.telemetry import RunLog, _BoardState, read_metrics, say, watching, worker_facts

STEP = {
    "kind": "step", "epoch": 0, "step": 20, "losses": {"loss": 1.5, "pose": 0.25}, "lr": 1e-3,
    "weighted": {"pose": 0.5}, "images_per_s": 400.0, "data_wait": 0.125, "skipped_steps": 2,
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
                if value.WhichOneof("value") == "simple_value":
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
        log.write(STEP | {"step": 40, "lr": 5e-4, "lr_encoder": 1e-5, "grad_norm": 3.5})
        log.write(EPOCH)
        log.write({"kind": "validation", "step": 60.0, "epoch": 2.0, "val/mpjpe_mm": 90.5})
    both = {20: 0.25, 40: 0.25}
    assert curves_of(tmp_path) == {
        "loss/total": {20: 1.5, 40: 1.5},
        "loss/pose": both,
        "weighted/pose": {20: 0.5, 40: 0.5},
        "step/lr": {20: pytest.approx(1e-3), 40: pytest.approx(5e-4)},
        "step/lr_encoder": {40: pytest.approx(1e-5)},
        "step/images_per_s": {20: 400, 40: 400},
        "step/data_wait": {20: 0.125, 40: 0.125},
        "step/grad_norm": {40: 3.5},
        "step/skipped_steps": {20: 2, 40: 2},
        "val/pa_mpjpe_mm": {40: 61.25},
        "val/mpjpe_mm": {60: 90.5},
        "train/total": {40: 0.75},
    }


def test_a_run_that_resumes_appends(tmp_path):
    for step in (20, 40):
        with RunLog(tmp_path) as log:
            log.write(STEP | {"step": step})
    assert [line["step"] for line in lines_of(tmp_path)] == [20, 40]


def picture(value):
    rng = np.random.default_rng(value)
    return rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def test_pictures_are_files_and_on_the_board_but_not_in_the_lines(tmp_path):
    with RunLog(tmp_path) as log:
        log.write({"kind": "pictures", "step": 20, "image": to_png(picture(1))})
        log.write({"kind": "pictures", "step": 40, "image": picture(2)})
    lines = lines_of(tmp_path)
    assert [set(line) for line in lines] == [{"time", "kind", "step", "file"}] * 2
    files = [(tmp_path / line["file"]) for line in lines]
    assert [file.name for file in files] == ["step-00000020.png", "step-00000040.png"]
    assert sorted((tmp_path / "pictures").iterdir()) == files
    for number, file in enumerate(files, start=1):
        assert (decode_image(file.read_bytes()) == picture(number)).all()
    shown = seen_by_tensorboard(tmp_path).Images("validation/people")
    assert [image.step for image in shown] == [20, 40]
    assert (decode_image(shown[1].encoded_image_string) == picture(2)).all()


def seen_by_tensorboard(folder):
    """What TensorBoard itself makes of the events."""
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    return board


def test_curves_of_a_run_that_resumes_do_not_fold_back(tmp_path):
    with RunLog(tmp_path) as log:
        for step in (20, 40, 60):
            log.write(STEP | {"step": step, "lr": 1.0})
    with RunLog(tmp_path) as log:
        log.write({"kind": "resume", "step": 40, "epoch": 1, "checkpoint": "step-00000040"})
        log.write(STEP | {"step": 50, "lr": 2.0})
        log.write(STEP | {"step": 60, "lr": 2.0})
    points = seen_by_tensorboard(tmp_path).Scalars("step/lr")
    assert [(point.step, point.value) for point in points] == [
        (20, 1.0), (40, 1.0), (50, 2.0), (60, 2.0),
    ]  # fmt: skip


def test_a_mirror_gets_every_fact_with_pictures_as_png(tmp_path):
    mirrored = []
    facts = [worker_facts(0), STEP, {"kind": "pictures", "step": 40, "image": picture(2)}]
    with RunLog(tmp_path, mirrored.append) as log:
        for one in facts:
            log.write(one)
    assert mirrored[:2] == facts[:2]
    assert mirrored[2]["image"] == to_png(picture(2))


def test_a_folder_that_takes_no_files_costs_lines_not_the_run(tmp_path, capsys):
    (tmp_path / "pictures").write_text("in the way")
    mirrored = []
    with RunLog(tmp_path, mirrored.append) as log:
        for step in (20, 40):
            log.write({"kind": "pictures", "step": step, "image": picture(step)})
        log.write(STEP)
    assert [line["kind"] for line in lines_of(tmp_path)] == ["step"]
    assert len(mirrored) == 3
    assert capsys.readouterr().err.count("lines are lost") == 1


# What counts of the lines


def kept(folder):
    return [(line["kind"], line.get("step")) for line in read_metrics(folder / "metrics.jsonl")]


def write_all(folder, *facts):
    with RunLog(folder) as log:
        for kind, step, *more in facts:
            log.write({"kind": kind, "step": step} | dict(*more))


def test_of_two_lines_with_one_step_the_later_one_counts(tmp_path):
    write_all(tmp_path, ("note", 20, {"n": 1}), ("note", 40, {"n": 1}), ("other", 60))
    write_all(tmp_path, ("note", 40, {"n": 2}), ("note", 60, {"n": 2}))
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["kind"], line["step"], line.get("n")) for line in lines] == [
        ("note", 20, 1), ("other", 60, None), ("note", 40, 2), ("note", 60, 2),
    ]  # fmt: skip


def test_steps_that_a_resume_lost_do_not_count_though_never_done_again(tmp_path):
    write_all(
        tmp_path, ("worker", None), ("note", 20), ("other", 30), ("note", 40), ("other", 45),
        ("worker", None), ("resume", 30), ("late", 25), ("note", 33), ("resume", 30),
    )  # fmt: skip
    assert kept(tmp_path) == [
        ("worker", None), ("note", 20), ("other", 30), ("worker", None), ("resume", 30),
        ("late", 25), ("resume", 30),
    ]  # fmt: skip


def test_going_back_without_a_checkpoint_begins_again(tmp_path):
    write_all(tmp_path, ("note", 20), ("note", 40), ("note", 10))
    assert kept(tmp_path) == [("note", 10)]


def test_runs_side_by_side_do_not_replace_each_other(tmp_path):
    write_all(
        tmp_path, ("note", 20, {"label": "a"}), ("note", 20, {"label": "b"}),
        ("resume", 0, {"label": "b"}), ("note", 10, {"label": "b"}),
    )  # fmt: skip
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["label"], line["step"]) for line in lines] == [("a", 20), ("b", 0), ("b", 10)]


def test_a_line_torn_by_a_kill_spoils_no_other_wherever_it_was_cut(tmp_path):
    write_all(tmp_path, ("note", 20), ("note", 40))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        before = [("note", 20)] * (length >= first - 1) + [("note", 40)] * (
            length >= len(whole) - 1
        )
        assert kept(tmp_path) == before
        write_all(tmp_path, ("note", 60))
        assert kept(tmp_path) == [*before, ("note", 60)]


def test_a_loss_that_is_no_number_does_not_end_the_run(tmp_path):
    with RunLog(tmp_path) as log:
        log.write(STEP | {"losses": {"loss": math.nan}})
    (line,) = lines_of(tmp_path)
    assert math.isnan(line["losses"]["loss"])


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
