"""Checkpoints: saved in the background, whole or not at all, found again whatever was damaged."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hmr import checkpoint_store
from hmr.checkpoint_place import LocalPlace, epoch_name, is_checkpoint, number_of, step_name
from hmr.checkpoint_store import CheckpointStore
from hmr.errors import BundleError, HmrError
from hmr.manifest import is_complete, write_json, write_manifest

SCORE = "val/pa_mpjpe_mm"


def writer(step: int, **state: Any) -> Callable[[Path], None]:
    """Writes a small training state."""

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes([step % 251]) * 200)
        write_json(folder / "state.json", {"step": step, **state})
        write_manifest(folder, {"kind": "training state"})

    return write


def at_end_of(epoch: int, error: float, *, steps: int = 40) -> Callable[[Path], None]:
    """Writes the state at the end of an epoch with this error, in mm."""
    history = [{"epoch": float(epoch), SCORE: error}]
    return writer(epoch * steps, epoch=epoch, history=history)


class Gate:
    """A save that stops in the middle until it is let through."""

    def __init__(self, step: int) -> None:
        self.inside, self.open = threading.Event(), threading.Event()
        self.step = step

    def __call__(self, folder: Path) -> None:
        self.inside.set()
        assert self.open.wait(60)
        writer(self.step)(folder)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, warnings: list[str]) -> Iterator[Callable[..., CheckpointStore]]:
    """Stores of one run's folder, closed at the end."""
    made = []

    def make_one(keep: int = 3, **options: Any) -> CheckpointStore:
        made.append(CheckpointStore(tmp_path / "run", keep, warn=warnings.append, **options))
        return made[-1]

    yield make_one
    for store in made:
        store.close()


@pytest.fixture
def store(make: Callable[..., CheckpointStore]) -> CheckpointStore:
    return make()


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run").iterdir())


def flip_a_bit(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def disk_full(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"some of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Names and order


def test_names_say_what_they_are_and_sort_by_number() -> None:
    assert (step_name(120), epoch_name(3)) == ("step-00000120", "epoch-0003")
    assert (number_of("step-00000120"), number_of("epoch-0003")) == (120, 3)
    assert all(map(is_checkpoint, ("step-123456789", "epoch-12345", step_name(0))))
    assert not any(map(is_checkpoint, ("step-1", "epoch-0001.partial", ".epoch-0001", "bundle")))


def test_the_newest_is_the_one_after_most_steps(store: CheckpointStore, tmp_path: Path) -> None:
    assert store.newest() is None
    order = [("step-00000020", 20), ("epoch-0001", 40), ("epoch-0002", 80), ("step-00000120", 120)]
    for name, step in order:
        store.save(name, writer(step), wait=True)
        assert store.newest() == tmp_path / "run" / name
        assert store.newest_name() == name
    store.save("epoch-0003", writer(120), wait=True)
    assert store.newest_name() == "epoch-0003", "after the same step the end of an epoch is newer"


def test_a_checkpoint_needs_a_checkpoints_name(store: CheckpointStore) -> None:
    with pytest.raises(HmrError, match=r"'latest': is no checkpoint's name; use step_name"):
        store.save("latest", writer(1))


def test_other_things_in_the_run_are_left_alone(store: CheckpointStore, tmp_path: Path) -> None:
    run = tmp_path / "run"
    others = [".hidden", ".epoch-1.partial", ".other-0123456789ab.partial", "bundle", "step-9"]
    for name in others:
        (run / name).mkdir(parents=True)
    (run / "run.json").write_text("{}")
    store.tidy()
    store.save("step-00000001", writer(1), wait=True)
    assert names(tmp_path) == sorted([*others, "run.json", "step-00000001"])


# Keeping


def test_inside_epochs_the_newest_stay_and_all_ends_of_epochs(
    store: CheckpointStore, tmp_path: Path
) -> None:
    for epoch in (1, 2, 3, 4, 5):
        for step in (10, 20, 30):
            number = (epoch - 1) * 40 + step
            store.save(step_name(number), writer(number), wait=True)
        store.save(epoch_name(epoch), at_end_of(epoch, 50.0), wait=True)
    assert names(tmp_path) == [
        *(epoch_name(n) for n in range(1, 6)), *(step_name(n) for n in (170, 180, 190))
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("errors", "stay"),
    [
        ([50, 40, 30, 20], [3, 4]),
        ([20, 30, 40, 50], [1, 3, 4]),
        ([50, 20, 40, 30], [2, 3, 4]),
        ([20, 20, 40, 50], [2, 3, 4]),
        ([math.nan, 60, math.nan, math.nan], [2, 3, 4]),
    ],
)
def test_of_ends_of_epochs_the_newest_and_the_best_stay(
    make: Callable[..., CheckpointStore], tmp_path: Path, errors: list[float], stay: list[int]
) -> None:
    store = make(keep_epochs=2, score=SCORE)
    for epoch, error in enumerate(errors, start=1):
        store.save(epoch_name(epoch), at_end_of(epoch, float(error)), wait=True)
    assert names(tmp_path) == [epoch_name(epoch) for epoch in stay]


def test_a_damaged_checkpoint_pushes_no_good_one_out(
    make: Callable[..., CheckpointStore], tmp_path: Path
) -> None:
    store = make(keep=1)
    store.save(step_name(70), writer(70), wait=True)
    store.save(step_name(80), writer(80), wait=True)
    flip_a_bit(tmp_path / "run/step-00000080/model.safetensors")
    again = make(keep=2)
    assert again.newest() is None
    again.save(step_name(10), writer(10), wait=True)
    assert again.newest_name() == step_name(10)
    again.save(step_name(75), writer(75), wait=True)
    assert names(tmp_path) == [step_name(10), step_name(75), step_name(80)]
    again.save(step_name(80), writer(80), wait=True)
    assert names(tmp_path) == [step_name(75), step_name(80)]
    assert again.newest_name() == step_name(80)


def test_a_damaged_checkpoint_goes_before_older_good_ones(
    make: Callable[..., CheckpointStore], tmp_path: Path
) -> None:
    store = make(keep=2)
    for step in (10, 20):
        store.save(step_name(step), writer(step), wait=True)
    flip_a_bit(tmp_path / "run/step-00000020/model.safetensors")
    again = make(keep=2)
    assert again.newest_name() == step_name(10)
    again.save(step_name(21), writer(21), wait=True)
    assert names(tmp_path) == [step_name(10), step_name(21)]


def test_a_checkpoint_saved_again_is_replaced(store: CheckpointStore, tmp_path: Path) -> None:
    store.save("epoch-0001", at_end_of(1, 50.0), wait=True)
    store.save("epoch-0001", at_end_of(1, 60.0), wait=True)
    assert names(tmp_path) == ["epoch-0001"]
    assert store.best_epoch(SCORE)[1][SCORE] == 60.0


def test_an_unfinished_copy_by_somebody_else_is_replaced(
    store: CheckpointStore, tmp_path: Path
) -> None:
    half = tmp_path / "run/epoch-0001"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert store.newest() is None
    assert store.save("epoch-0001", at_end_of(1, 50.0), wait=True)
    assert store.newest() == half


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_everything_is_on_the_disk_before_it_gets_its_name_and_the_name_after(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may lose whatever was not flushed, in any order."""
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def noted_rename(self: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    assert store.save(step_name(1), writer(1), wait=True)
    named = events.index("rename to step-00000001")
    before, after = events[:named], events[named + 1 :]
    files = {"model.safetensors", "state.json", "manifest.json"}
    assert files < set(before)
    folder = next(name for name in before if name.endswith(".partial"))
    assert max(map(before.index, files)) < len(before) - 1 - before[::-1].index(folder)
    assert after == ["run"]


# In the background


def test_saving_does_not_wait_and_of_waiting_steps_the_newest_is_saved(
    store: CheckpointStore, tmp_path: Path
) -> None:
    slow = Gate(10)
    store.save(step_name(10), slow)
    assert slow.inside.wait(60)
    # Nothing below could return if it waited for the disk.
    for step in (20, 30):
        store.save(step_name(step), writer(step))
    store.save("epoch-0001", at_end_of(1, 50.0))
    store.save("epoch-0002", at_end_of(2, 50.0))
    for step in (90, 100):
        store.save(step_name(step), writer(step))
    assert store.newest() is None, "what is being written cannot be seen"
    slow.open.set()
    assert store.wait()
    assert names(tmp_path) == ["epoch-0001", "epoch-0002", "step-00000010", "step-00000100"]


def test_there_is_one_saving_thread_and_none_when_nothing_is_saved(store: CheckpointStore) -> None:
    def savers() -> int:
        return sum(thread.name == "checkpoint-saver" for thread in threading.enumerate())

    slow = Gate(10)
    store.save("epoch-0001", slow)
    for epoch in (2, 3, 4):
        store.save(epoch_name(epoch), at_end_of(epoch, 50.0))
    assert slow.inside.wait(60)
    assert savers() == 1
    slow.open.set()
    store.close()
    for thread in threading.enumerate():
        if thread.name == "checkpoint-saver":
            thread.join()
    assert savers() == 0


def test_waiting_for_one_checkpoint_tells_whether_it_is_there(store: CheckpointStore) -> None:
    slow = Gate(10)
    store.save("epoch-0001", slow)
    store.save("epoch-0002", disk_full)
    assert slow.inside.wait(60)
    slow.open.set()
    assert store.wait("epoch-0001")
    assert not store.wait("epoch-0002")
    assert store.save("epoch-0002", at_end_of(2, 50.0), wait=True)
    assert store.wait("epoch-0002")


def test_a_step_that_gave_way_to_a_newer_one_is_not_there(store: CheckpointStore) -> None:
    slow = Gate(10)
    store.save("step-00000010", slow)
    assert slow.inside.wait(60)
    store.save("step-00000020", writer(20))
    store.save("step-00000030", writer(30))
    slow.open.set()
    assert not store.wait("step-00000020")
    assert store.wait("step-00000030")


# When saving fails


def test_a_full_disk_costs_a_checkpoint_and_the_third_in_a_row_ends_the_run(
    store: CheckpointStore, tmp_path: Path, warnings: list[str]
) -> None:
    assert store.save(step_name(1), writer(1), wait=True)
    for number in (1, 2):
        assert not store.save(step_name(1 + number), disk_full, wait=True)
        assert store.failures == number
        assert names(tmp_path) == [step_name(1)], "and nothing half-written"
        store.check()
    assert store.save(step_name(4), writer(4), wait=True)
    assert store.failures == 0
    assert len(warnings) == 2
    assert "step-00000003 could not be saved, failure 2 of 3 in a row" in warnings[1]
    assert "No space left on device" in warnings[1]

    for number in (1, 2, 3):
        store.save(step_name(4 + number), disk_full)
        store._saver.wait()
    message = r"3 checkpoints in a row could not be saved, the last one \(step-00000007\) because"
    with pytest.raises(HmrError, match=message + r".*No space left on device; what was saved bef"):
        store.check()
    with pytest.raises(HmrError, match=message):
        store.save(step_name(8), writer(8))
    assert names(tmp_path) == [step_name(1), step_name(4)]
    assert store.newest_name() == step_name(4)


def test_an_error_that_is_no_disks_fault_counts_as_well(
    store: CheckpointStore, warnings: list[str]
) -> None:
    def broken(folder: Path) -> None:
        raise TypeError("tensor on another planet")

    store.save(step_name(1), broken)
    store.save("epoch-0001", broken)
    store._saver.wait()
    with pytest.raises(HmrError, match="tensor on another planet"):
        store.save(step_name(2), broken, wait=True)
    assert store.newest() is None


def test_a_checkpoint_without_a_manifest_is_refused(
    store: CheckpointStore, tmp_path: Path, warnings: list[str]
) -> None:
    def forgetful(folder: Path) -> None:
        write_json(folder / "state.json", {"step": 1})

    assert not store.save(step_name(1), forgetful, wait=True)
    assert "was written without manifest.json; end with write_manifest" in warnings[0]
    assert names(tmp_path) == []


def test_without_room_for_two_and_a_half_checkpoints_nothing_is_written(
    make: Callable[..., CheckpointStore], tmp_path: Path, warnings: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(LocalPlace, "free", lambda self: 0)
    store = make()
    assert store.save(step_name(1), writer(1), wait=True), "the size of the first is unknown"
    size = sum(p.stat().st_size for p in (tmp_path / "run/step-00000001").iterdir())
    needed = math.ceil(2.5 * size)
    # Another process knows the size from what lies there.
    for one in (store, make()):
        assert not one.save(step_name(2), writer(2), wait=True)
        assert f"0 bytes are free, saving step-00000002 needs {needed} (2.5 times" in warnings[-1]
        assert "remove files from that disk, or keep fewer" in warnings[-1]
    monkeypatch.setattr(LocalPlace, "free", lambda self: needed - 1)
    assert not store.save(step_name(2), writer(2), wait=True)
    monkeypatch.setattr(LocalPlace, "free", lambda self: needed)
    assert make().save(step_name(2), writer(2), wait=True)
    assert names(tmp_path) == [step_name(1), step_name(2)]


def test_an_old_checkpoint_that_cannot_be_removed_costs_a_warning(
    make: Callable[..., CheckpointStore], warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: LocalPlace, name: str) -> None:
        raise PermissionError(errno.EACCES, "not yours", name)

    store = make(keep=1)
    monkeypatch.setattr(LocalPlace, "remove", refuse)
    assert store.save(step_name(1), writer(1), wait=True)
    assert store.save(step_name(2), writer(2), wait=True)
    assert (store.failures, store.newest_name()) == (0, step_name(2))
    assert len(warnings) == 1
    assert "an old checkpoint could not be removed" in warnings[0]


# Damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a flipped bit in the weights": lambda folder: flip_a_bit(folder / "model.safetensors"),
    "a flipped bit in the state": lambda folder: flip_a_bit(folder / "state.json", 12),
    "a flipped bit in the manifest": lambda folder: flip_a_bit(folder / "manifest.json", 50),
    "weights lost": lambda folder: (folder / "model.safetensors").unlink(),
    "state lost": lambda folder: (folder / "state.json").unlink(),
    "manifest lost": lambda folder: (folder / "manifest.json").unlink(),
    "weights cut off": lambda folder: os.truncate(folder / "model.safetensors", 100),
    "manifest empty": lambda folder: os.truncate(folder / "manifest.json", 0),
    "a foreign file": lambda folder: (folder / "core").write_bytes(b""),
}


@pytest.mark.parametrize("newest", ["epoch-0002", "step-00000080"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_of_the_newest_is_found_told_once_and_costs_one_checkpoint(
    make: Callable[..., CheckpointStore], tmp_path: Path, warnings: list[str], damage: str,
    newest: str,
) -> None:  # fmt: skip
    writing = make()
    writing.save("epoch-0001", at_end_of(1, 50.0), wait=True)
    writing.save("step-00000060", writer(60), wait=True)
    writing.save(newest, writer(80, history=[{SCORE: 40.0}]), wait=True)
    DAMAGE[damage](tmp_path / "run" / newest)
    store = make()
    assert store.newest_name() == "step-00000060"
    assert store.newest() == tmp_path / "run/step-00000060"
    assert len(warnings) == 1
    assert f"{newest}: passed over" in warnings[0]
    with pytest.raises(BundleError):
        store.fetch(newest)


def test_no_flipped_bit_goes_unnoticed(
    make: Callable[..., CheckpointStore], tmp_path: Path
) -> None:
    store = make()
    store.save("epoch-0001", at_end_of(1, 50.0), wait=True)
    store.save(step_name(60), writer(60), wait=True)
    newest = tmp_path / "run" / step_name(60)
    whole = {path: path.read_bytes() for path in newest.iterdir()}
    for path, content in whole.items():
        for bit in range(0, 8 * len(content), 11):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            if make().newest_name() != "epoch-0001":
                # Of the manifest only what names and hashes files counts, not its `kind`.
                assert path.name == "manifest.json", (path, bit)
                assert b'"kind": "training state"' in content[bit // 8 - 30 : bit // 8 + 30]
        path.write_bytes(content)


def test_a_state_that_says_fewer_steps_than_it_was_saved_with_is_told(
    store: CheckpointStore, tmp_path: Path, warnings: list[str]
) -> None:
    for epoch in (1, 2):
        store.save(epoch_name(epoch), at_end_of(epoch, 50.0), wait=True)
    path = tmp_path / "run/epoch-0002/state.json"
    path.write_text(path.read_text().replace('"step": 80', '"step": 10'))
    assert store.newest_name() == "epoch-0001"
    assert len(warnings) == 1
    assert "state.json: is not the file that the manifest names" in warnings[0]


def test_a_removal_that_is_cut_off_leaves_no_half_checkpoint(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise InterruptedError

    store.save(step_name(1), writer(1), wait=True)
    with monkeypatch.context() as patched:
        patched.setattr("hmr.checkpoint_place.shutil.rmtree", cut_off)
        with pytest.raises(InterruptedError):
            store.place.remove(step_name(1))
    assert store.place.names() == []
    store.tidy()
    assert names(tmp_path) == []


def test_a_lost_folder_costs_one_checkpoint(store: CheckpointStore, tmp_path: Path) -> None:
    for step in (10, 20):
        store.save(step_name(step), writer(step), wait=True)
    LocalPlace(tmp_path / "run").remove(step_name(20))
    assert names(tmp_path) == [step_name(10)]
    assert store.newest_name() == step_name(10)


def test_when_nothing_is_left_whole_there_is_no_checkpoint(
    store: CheckpointStore, tmp_path: Path, warnings: list[str]
) -> None:
    for step in (10, 20):
        store.save(step_name(step), writer(step), wait=True)
        flip_a_bit(tmp_path / "run" / step_name(step) / "model.safetensors")
    assert store.newest() is None
    assert len(warnings) == 2


class Outage(LocalPlace):
    """Storage that sometimes does not answer."""

    broken: tuple[str, ...] = ()

    def read(self, path: str) -> bytes:
        if path.startswith(self.broken):
            raise ConnectionError("no answer")
        return super().read(path)

    def fetch(self, name: str) -> Path:
        if name in self.broken:
            raise ConnectionError("no answer")
        return super().fetch(name)


def test_an_outage_is_no_reason_to_start_anew(
    make: Callable[..., CheckpointStore], tmp_path: Path, warnings: list[str]
) -> None:
    writing = make()
    for step in (10, 20):
        writing.save(step_name(step), writer(step), wait=True)
    place = Outage(tmp_path / "run")
    store = CheckpointStore(place, 2, warn=warnings.append)
    place.broken = (step_name(20),)
    assert store.newest_name() == step_name(10)
    assert len(warnings) == 1
    assert "step-00000020: passed over, it cannot be read: no answer" in warnings[0]
    place.broken = (step_name(10), step_name(20))
    with pytest.raises(HmrError, match=r"there are checkpoints, but none can be read now \(no an"):
        store.newest()
    place.broken = ()
    assert store.newest_name() == step_name(20)


# After a crash


def test_what_dead_writers_left_is_removed(store: CheckpointStore, tmp_path: Path) -> None:
    store.save(step_name(10), writer(10), wait=True)
    for name in (".step-00000020-0123456789ab.partial", ".epoch-0001-0123456789ab.old"):
        (tmp_path / "run" / name).mkdir()
        (tmp_path / "run" / name / "model.safetensors").write_bytes(b"half")
    (tmp_path / "run/epoch-0001").mkdir()
    store.tidy()
    assert names(tmp_path) == ["epoch-0001", step_name(10)]
    store.tidy()
    assert store.newest_name() == step_name(10)


def test_a_checkpoint_moved_away_for_one_that_never_came_returns(
    store: CheckpointStore, tmp_path: Path
) -> None:
    store.save("epoch-0001", at_end_of(1, 50.0), wait=True)
    run = tmp_path / "run"
    (run / "epoch-0001").rename(run / ".epoch-0001-0123456789ab.old")
    assert store.newest() is None
    store.tidy()
    assert store.newest_name() == "epoch-0001"


def test_tidying_does_not_disturb_a_save_under_way(store: CheckpointStore) -> None:
    slow = Gate(10)
    store.save(step_name(10), slow)
    assert slow.inside.wait(60)
    threading.Timer(0.05, slow.open.set).start()
    store.tidy()
    assert store.newest_name() == step_name(10)


# The best epoch


def test_the_best_epoch_is_the_one_with_the_lowest_error(
    store: CheckpointStore, tmp_path: Path
) -> None:
    for epoch, error in enumerate([50.0, 30.0, 40.0], start=1):
        store.save(epoch_name(epoch), at_end_of(epoch, error), wait=True)
    folder, metrics = store.best_epoch(SCORE)
    assert folder == tmp_path / "run/epoch-0002"
    assert metrics == {"epoch": 2.0, SCORE: 30.0}


def test_of_equal_epochs_the_last_is_best_and_no_number_is_worst(store: CheckpointStore) -> None:
    for epoch, error in enumerate([math.nan, 30.0, 30.0, math.inf, math.nan], start=1):
        store.save(epoch_name(epoch), at_end_of(epoch, error), wait=True)
    assert store.best_epoch(SCORE)[0].name == "epoch-0003"


def test_what_was_validated_elsewhere_wins(store: CheckpointStore, tmp_path: Path) -> None:
    store.save("epoch-0001", at_end_of(1, 50.0), wait=True)
    store.save("epoch-0002", at_end_of(2, 10.0), wait=True)
    store.save("epoch-0003", writer(120, history=[{"epoch": 3.0}]), wait=True)
    assert store.best_epoch(SCORE)[0].name == "epoch-0002"
    validation = tmp_path / "run/validation"
    validation.mkdir()
    write_json(validation / "epoch-0002.json", {SCORE: 60.0})
    assert store.best_epoch(SCORE)[0].name == "epoch-0001"
    write_json(validation / "epoch-0003.json", {SCORE: 20.0, "val/mpjpe_mm": 33.0})
    folder, metrics = store.best_epoch(SCORE)
    assert folder.name == "epoch-0003"
    assert metrics == {"epoch": 3.0, SCORE: 20.0, "val/mpjpe_mm": 33.0}
    (validation / "epoch-0003.json").write_text("{torn")
    assert store.best_epoch(SCORE)[0].name == "epoch-0001"


def test_a_damaged_best_epoch_gives_way_to_the_next(
    store: CheckpointStore, tmp_path: Path, warnings: list[str]
) -> None:
    for epoch, error in enumerate([40.0, 20.0, 30.0], start=1):
        store.save(epoch_name(epoch), at_end_of(epoch, error), wait=True)
    flip_a_bit(tmp_path / "run/epoch-0002/model.safetensors")
    flip_a_bit(tmp_path / "run/epoch-0003/state.json", 12)
    assert store.best_epoch(SCORE)[0].name == "epoch-0001"
    assert len(warnings) == 2
    assert not is_complete(tmp_path / "run/epoch-0002")


def test_without_an_epoch_there_is_no_best_one(store: CheckpointStore) -> None:
    message = r"no complete checkpoint at the end of an epoch has 'val/pa_mpjpe_mm'; train one"
    with pytest.raises(HmrError, match=message):
        store.best_epoch(SCORE)
    store.save(step_name(10), writer(10, history=[{SCORE: 20.0}]), wait=True)
    store.save("epoch-0001", writer(40), wait=True)
    with pytest.raises(HmrError, match=message):
        store.best_epoch(SCORE)


def test_warnings_go_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(tmp_path, 1)
    (tmp_path / "epoch-0001").mkdir()
    assert store.newest() is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{tmp_path}/epoch-0001: passed over: ")
    assert checkpoint_store.MAX_FAILURES == 3
