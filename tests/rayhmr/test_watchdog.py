"""A worker that makes no step is ended, one that does is left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

from rayhmr.watchdog import EXIT_CODE, Watchdog


def test_silence_ends_and_life_does_not():
    ended = threading.Event()
    watchdog = Watchdog(1.0, ended.set)
    for _ in range(8):
        time.sleep(0.25)
        watchdog.alive()
    assert not ended.is_set()
    assert ended.wait(30)


def test_a_watchdog_that_has_not_begun_pauses_or_is_stopped_is_quiet():
    ended = threading.Event()
    watchdog = Watchdog(0.4, ended.set)
    assert not ended.wait(1.5), "nothing has begun"
    watchdog.alive()
    watchdog.pause()
    assert not ended.wait(1.5)
    watchdog.alive()
    watchdog.stop()
    assert not ended.wait(1.5)


def test_a_process_that_hangs_dies_and_says_where():
    code = (
        "import threading\n"
        "from rayhmr.watchdog import Watchdog\n"
        "def the_place_where_it_hangs():\n"
        "    threading.Event().wait()\n"
        "Watchdog(0.5).alive()\n"
        "the_place_where_it_hangs()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == EXIT_CODE
    assert "no training step for" in done.stderr
    assert "train.hang_timeout_s=0.5" in done.stderr
    assert "the_place_where_it_hangs" in done.stderr
