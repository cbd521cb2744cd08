"""A save runs once, however the saving thread's end and the next save fall together."""

import threading
from typing import Any

from hmr.saver import Saver


class _Pausing(threading.Condition):
    """Once armed, holds the first saving thread where it has just let go of the lock."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.go_on = threading.Event(), threading.Event()
        self.held = threading.Event()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        is_saver = threading.current_thread().name == "checkpoint-saver"
        if is_saver and self.armed.is_set():
            self.armed.clear()
            self.held.set()
            self.go_on.wait(10)


def test_a_save_that_comes_as_the_thread_ends_runs_once() -> None:
    saver = Saver("here", print, 3)
    state = saver._state = _Pausing()
    runs: list[str] = []
    both, release = threading.Semaphore(0), threading.Event()

    def work() -> None:
        runs.append("second")
        both.release()
        release.wait(10)

    state.armed.set()
    saver.put("epoch-0001", lambda: runs.append("first"), droppable=False)
    assert state.held.wait(10)  # the first thread has nothing left, and has not ended yet
    saver.put("epoch-0002", work, droppable=False)
    assert both.acquire(timeout=10)
    first = [t for t in threading.enumerate() if t.name == "checkpoint-saver"]
    state.go_on.set()
    # Either the thread that was held ends, or it, too, takes the save that is under way.
    while len(runs) == 2 and all(thread.is_alive() for thread in first):
        both.acquire(timeout=0.05)
    release.set()
    saver.wait()
    for thread in first:
        thread.join(10)
    assert runs == ["first", "second"]
