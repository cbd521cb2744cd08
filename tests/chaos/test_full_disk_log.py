"""A full disk costs a run's log some lines, and nothing else."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from hmr.errors import HmrError
from rayhmr.chaos.damage import fill, small_disk
from rayhmr.telemetry import RunLog


def step(number):
    numbers = {"losses": {"loss": 1.0}, "weighted": {}, "lr": 0.1, "images_per_s": 5.0}
    return {"kind": "step", "epoch": 1, "step": number, "step_s": 0.1, **numbers}


def test_a_full_disk_does_not_stop_the_log(tmp_path):
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(tmp_path / "disk", 1))
        except HmrError as error:  # of the mount alone: what fails later is a failure
            pytest.skip(str(error))
        with RunLog(disk / "run") as log:
            log.write(step(0))
            ballast = fill(disk)
            # Far more than TensorBoard's queue holds.
            for number in range(1, 200):
                log.write(step(number))
            ballast.unlink()
            log.write(step(200))
        lines = (disk / "run" / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 200
        assert len(lines) < 201
