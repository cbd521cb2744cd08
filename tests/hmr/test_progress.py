"""Lines for people: short, complete, and never wider than a terminal."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmr.progress import (
    WIDTH,
    duration,
    epoch_line,
    print_progress,
    progress_line,
    short_number,
)

STEP = {
    "kind": "step", "epoch": 3, "epochs": 40, "step": 1200, "steps": 16000,
    "losses": {"keypoints_2d": 0.0123, "keypoints_3d": 0.034, "pose": 0.051, "loss": 0.4231},
    "lr": 1e-4, "images_per_s": 812.3, "data_wait": 0.031, "eta_s": 7800.0, "skipped_steps": 0,
    "pa_mpjpe_mm": None,
}  # fmt: skip
TERMS = ("keypoints_2d", "keypoints_3d", "pose", "betas", "camera", "v2v_l1", "v2v_l2")
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, ".012"), (-0.25, "-.25"), (0.0009996, ".001"), (0.0012, ".0012"), (1.26, "1.3"),
        (12.3, "12"), (99.6, "100"), (1234.4, "1234"), (56789.0, "5.7e4"), (9999.6, "1e4"),
        (0.000012, "1.2e-5"), (0.0001, "1e-4"), (0.0, "0"), (math.nan, "nan"), (-math.inf, "-inf"),
    ],
)  # fmt: skip
def test_numbers_take_few_columns(value, text):
    assert short_number(value) == text


@given(st.floats(min_value=-1e30, max_value=1e30).filter(lambda x: abs(x) > 1e-30))
def test_a_short_number_is_the_number_within_its_digits(value):
    for digits in (2, 3):
        text = short_number(value, digits)
        assert float(text) == pytest.approx(value, rel=0.5001 * 10 ** (1 - digits))
        assert len(text.lstrip("-")) <= digits + 5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"), (59.4, "59s"), (59.6, "1m00s"), (185, "3m05s"), (3599.7, "1h00m"),
        (7800, "2h10m"), (86399.9, "1d00h"), (3 * 86400 + 4 * 3600 + 59, "3d04h"), (math.nan, "?"),
    ],
)  # fmt: skip
def test_times_are_days_hours_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


def test_a_line_tells_where_the_run_is_and_how_it_goes():
    assert progress_line(STEP) == (
        "epoch 3/40 step 1200/16000 loss .423 (2d .012 3d .034 pose .051) lr 1e-4 812 img/s "
        "wait 3% eta 2h10m"
    )
    more = STEP | {
        "pa_mpjpe_mm": 61.26, "lr_encoder": 1e-5, "images_per_s_epoch": 790.4, "skipped_steps": 2,
        "restarts": 1,
    }  # fmt: skip
    assert progress_line(more) == (
        "epoch 3/40 step 1200/16000 loss .423 (2d .012 3d .034 pose .051) pa 61.3mm lr 1e-4/1e-5 "
        "skipped 2 restarts 1 812 img/s (mean 790) wait 3% eta 2h10m"
    )


def test_what_does_not_fit_is_left_out_the_mean_rate_first():
    many = STEP | {
        "losses": dict.fromkeys(TERMS, 0.0123) | {"loss": 0.5}, "images_per_s_epoch": 790.4,
        "pa_mpjpe_mm": 61.26, "skipped_steps": 2,
    }  # fmt: skip
    line = progress_line(many)
    assert "mean" not in line
    assert "v2 .012)" in line
    assert len(line) <= WIDTH
    long = progress_line(many | {"step": 1_200_000, "steps": 16_000_000, "restarts": 1})
    assert "(2d .012 3d .012 pose .012" in long
    assert " +2)" in long
    assert len(long) <= WIDTH


@given(
    st.lists(NUMBERS, min_size=len(TERMS), max_size=len(TERMS)), NUMBERS,
    st.integers(0, 10**7), st.floats(0, 1e9),
)  # fmt: skip
def test_no_line_is_wider_than_a_terminal(values, total, steps, eta):
    facts = STEP | {
        "losses": dict(zip(TERMS, values, strict=True)) | {"loss": total}, "step": steps,
        "steps": steps, "eta_s": eta, "pa_mpjpe_mm": 123.45, "lr_encoder": 1.2e-5, "lr": 1.2e-4,
        "images_per_s_epoch": 12345.6, "skipped_steps": 999, "restarts": 99,
    }  # fmt: skip
    line = progress_line(facts)
    assert len(line) <= WIDTH
    assert f"eta {duration(eta)}" in line


def test_an_epoch_line_says_what_is_known():
    train = {"epoch": 2.0, "train/loss": 0.4321, "train/images_per_s": 812.4}
    errors = {
        "val/mpjpe_mm": 91.26, "val/pa_mpjpe_mm": 61.0, "val/pve_mm": 101.5, "val/count": 300.0,
    }  # fmt: skip
    assert epoch_line(train) == "epoch 2 done: mean loss .432 812 img/s"
    assert epoch_line({"epoch": 2.0} | errors) == (
        "epoch 2 done: validation mpjpe 91.3mm pa 61.0mm pve 101.5mm over 300 people"
    )
    assert epoch_line(train | errors | {"val/best_pa_mpjpe_mm": 60.0}).endswith("best pa 60.0mm")


def test_only_what_has_a_line_is_printed_and_only_to_stderr(capsys):
    print_progress(STEP)
    print_progress({"kind": "pictures", "step": 20, "image": b""})
    print_progress({"kind": "resume", "step": 20, "epoch": 1, "checkpoint": "runs/a/step-20"})
    print_progress({"kind": "epoch", "epoch": 1.0})
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        progress_line(STEP), "going on after step 20, from runs/a/step-20", "epoch 1 done:",
    ]  # fmt: skip
