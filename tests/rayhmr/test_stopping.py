"""SIGTERM is a wish, the second one an order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rayhmr.stopping import StopFlag, terminating


def test_the_first_sigterm_is_passed_on_once_and_the_handler_goes_back():
    before = signal.getsignal(signal.SIGTERM)
    called = threading.Event()
    with terminating(called.set) as asked:
        assert not asked.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert called.wait(10)
        assert asked.is_set()
        assert asked.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_is_heard_where_that_is_asked_for():
    before = signal.getsignal(signal.SIGINT)
    called = threading.Event()
    with terminating(called.set, (signal.SIGTERM, signal.SIGINT)) as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert called.wait(10)
        assert asked.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    with terminating(called.set):
        assert signal.getsignal(signal.SIGINT) is before


def test_the_second_sigterm_ends_the_process():
    code = (
        "import time\n"
        "from rayhmr.stopping import terminating\n"
        "with terminating(lambda: None):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None, "the first one only asks"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "keeping a checkpoint" in errors


@pytest.mark.ray
def test_workers_hear_what_the_driver_wants(local_cluster):
    import ray

    flag = StopFlag()
    listen = ray.remote(num_cpus=0)(lambda flag: flag.is_wanted())
    assert ray.get(listen.remote(flag)) is False
    flag.want()
    # Calls of different processes may overtake each other.
    deadline = time.monotonic() + 30
    while not ray.get(listen.remote(flag)):
        assert time.monotonic() < deadline
