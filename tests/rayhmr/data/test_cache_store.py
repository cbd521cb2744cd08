"""Folders that processes share: made once, removed only when nobody uses them, never too large."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hmr.errors import ConfigError
from rayhmr.data import cache_store
from rayhmr.data.cache_store import CacheStore, NoRoomError, available_memory, cache_root

MB = 10**6


@pytest.fixture
def make_store(tmp_path):
    """Makes stores of one folder; on the machine there are so many MB."""

    def make(memory=1000, free=1000, total=1000):
        room = lambda root: (memory * MB, free * MB, total * MB)  # noqa: E731
        return CacheStore(tmp_path, room)

    return make


def writing(content: bytes = b"x"):
    return lambda folder: (folder / "file").write_bytes(content)


def names(store):
    return sorted(path.name for path in store.root.iterdir() if path.is_dir())


def unused_since(store, key, seconds):
    store.hold(key, 1, writing()).close()
    then = time.time() - seconds
    os.utime(store.root / key, (then, then))


def test_a_folder_gets_its_name_when_it_is_complete(make_store):
    store, seen = make_store(), []

    def make(folder):
        seen.append(names(store))
        writing(b"abc")(folder)

    held = store.hold("a", 3, make)
    assert seen == [["a.partial"]]
    assert (held.path / "file").read_bytes() == b"abc"
    assert names(store) == ["a"]
    held.close()


def test_what_somebody_holds_is_not_removed(make_store):
    store = make_store()
    first, second = store.hold("a", 1, writing()), store.hold("a", 1, pytest.fail)
    first.close()
    assert store.remove_unused() == []
    second.close()
    assert store.remove_unused() == ["a"]
    assert list(store.root.iterdir()) == [], "nor do locks stay"


def test_what_was_removed_is_made_again(make_store):
    store = make_store()
    store.hold("a", 1, writing(b"old")).close()
    store.remove_unused()
    held = store.hold("a", 1, writing(b"new"))
    assert (held.path / "file").read_bytes() == b"new"
    held.close()


def test_closing_twice_is_no_harm_to_the_next_user(make_store):
    store = make_store()
    first = store.hold("a", 1, writing())
    first.close()
    other = store.hold("a", 1, pytest.fail)
    first.close()
    assert store.remove_unused() == []
    other.close()


def test_who_comes_second_waits_for_the_first(make_store, monkeypatch):
    begun, waits = threading.Event(), threading.Event()

    def make(folder):
        begun.set()
        assert waits.wait(60)
        writing(b"made")(folder)

    maker = threading.Thread(target=lambda: make_store().hold("a", 1, make).close())
    maker.start()
    assert begun.wait(60)
    monkeypatch.setattr(cache_store, "time", SimpleNamespace(sleep=lambda s: waits.set()))
    held = make_store().hold("a", 1, pytest.fail)
    assert (held.path / "file").read_bytes() == b"made"
    maker.join()
    held.close()


def test_a_maker_that_was_killed_is_followed_by_the_next(make_store, tmp_path):
    code = f"""
import time
from pathlib import Path
from rayhmr.data.cache_store import CacheStore

def make(folder):
    (folder / "half").write_bytes(b"x")
    print("half", flush=True)
    time.sleep(600)

CacheStore(Path({str(tmp_path)!r})).hold("a", 1, make)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as maker:
        assert maker.stdout.readline() == b"half\n"
        maker.kill()
    assert names(make_store()) == ["a.partial"]
    held = make_store().hold("a", 1, writing())
    assert [file.name for file in held.path.iterdir()] == ["file"]
    assert names(make_store()) == ["a"]
    held.close()


def test_what_a_killed_maker_left_is_removed_like_any_other(make_store, tmp_path):
    (tmp_path / "b.partial").mkdir()
    assert make_store().remove_unused() == ["b.partial"]


def test_an_error_while_making_leaves_nothing_and_is_raised(make_store):
    store = make_store()

    def fail(folder):
        writing()(folder)
        raise ValueError("no")

    with pytest.raises(ValueError, match=r"^no$"):
        store.hold("a", 1, fail)
    assert names(store) == []
    store.hold("a", 1, writing()).close()


def test_a_full_disk_is_no_room(make_store):
    store = make_store()

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(NoRoomError, match=r"could not be made in .*No space left on device"):
        store.hold("a", 1, full)
    assert names(store) == []


@pytest.mark.parametrize(
    ("size", "room", "fits"),
    [
        (500, {}, True), (501, {}, False),  # half of the memory
        (50, {"free": 100}, True), (51, {"free": 100}, False),  # a twentieth of the disk stays
    ],
)  # fmt: skip
def test_memory_and_disk_that_must_stay(make_store, size, room, fits):
    store = make_store(**room)
    if fits:
        store.hold("a", size * MB, writing()).close()
    else:
        with pytest.raises(NoRoomError, match=rf"it takes {size} MB"):
            store.hold("a", size * MB, writing())
    assert names(store) == ["a"] * fits


def test_all_caches_of_a_node_count(make_store):
    store = make_store(memory=10)
    first = store.hold("a", 3 * MB, writing(bytes(3 * MB)))
    with pytest.raises(NoRoomError, match="it takes 3 MB beside 3 MB of other caches"):
        store.hold("b", 3 * MB, writing())
    first.close()
    store.hold("b", 3 * MB, writing()).close()
    assert names(store) == ["b"], "what nobody uses makes room"


def test_the_longest_unused_goes_first_and_only_as_much_as_must(make_store):
    store = make_store(memory=10)
    for key, age in (("old", 50), ("older", 90), ("new", 10)):
        unused_since(store, key, age)
        (store.root / key / "file").write_bytes(bytes(MB))
        then = time.time() - age
        os.utime(store.root / key, (then, then))
    store.hold("a", 3 * MB, writing()).close()
    assert names(store) == ["a", "new", "old"]


def test_old_ones_are_removed_when_something_is_made(make_store):
    store = make_store()
    unused_since(store, "hours", 2 * cache_store.IDLE_S)
    unused_since(store, "minutes", 60)
    store.hold("a", 1, writing()).close()
    assert names(store) == ["a", "minutes"]


def test_use_keeps_young(make_store):
    store = make_store()
    unused_since(store, "a", 2 * cache_store.IDLE_S)
    held = store.hold("a", 1, pytest.fail)
    os.utime(store.root / "a", (0, 0))
    held.close()
    store.hold("b", 1, writing()).close()
    assert names(store) == ["a", "b"]


def test_the_folder_is_ones_own(tmp_path):
    root = cache_root(str(tmp_path / "x" / "y"))
    assert root.stat().st_mode & 0o777 == 0o700
    assert cache_root(str(root)) == root
    (tmp_path / "link").symlink_to(root)
    with pytest.raises(ConfigError, match=r"data\.cache_folder=.*/link: belongs to another user"):
        cache_root(str(tmp_path / "link"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cache_folder=.*/file/below: cannot be made"):
        cache_root(str(tmp_path / "file" / "below"))


def test_memory_is_that_of_the_machine_or_of_its_group(tmp_path, monkeypatch):
    assert 0 < available_memory() < 2**50
    group = tmp_path / "group"
    group.mkdir()
    for name, text in (("memory.max", "9000"), ("memory.current", "5000"),
                       ("memory.stat", "anon 100\ninactive_file 300\n")):  # fmt: skip
        (group / name).write_text(text)
    assert cache_store._left_in_group(group) == 4300
    (group / "memory.max").write_text("max\n")
    assert cache_store._left_in_group(group) > 2**50
    assert cache_store._left_in_group(Path(tmp_path, "nothing")) > 2**50
