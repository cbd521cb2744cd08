"""Checkpoints of a run by path and behind a URI: the same rules, whatever the storage."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from hmr.checkpoint_place import LocalPlace, epoch_name, step_name
from hmr.errors import BundleError, HmrError
from hmr.manifest import verify, write_json, write_manifest
from rayhmr import remote_place
from rayhmr.remote_place import RemotePlace, place_of
from rayhmr.run_checkpoints import RunCheckpoints, best_epoch
from rayhmr.storage import Folder

SCORE = "val/pa_mpjpe_mm"


def state(step, error=None):
    """Writes a small training state; with an error it is one at the end of an epoch."""

    def write(folder):
        (folder / "model.safetensors").write_bytes(bytes([step]) * 200)
        history = [] if error is None else [{SCORE: error, "step": float(step)}]
        write_json(folder / "state.json", {"step": step, "history": history})
        write_manifest(folder, {"kind": "training state"})

    return write


def behind_a_uri(root):
    """A folder as an object store shows it: its files are not at a path of this machine."""
    folder = Folder("mock:///bucket/runs/one")
    root.mkdir(exist_ok=True)
    folder.files = pafs.SubTreeFileSystem(str(root), pafs.LocalFileSystem())
    folder.root = "bucket/runs/one"
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of this test alone."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture(params=["path", "file uri", "object store"])
def folder(request, tmp_path):
    if request.param == "object store":
        return behind_a_uri(tmp_path / "store")
    place = tmp_path / "store/bucket/runs/one"
    return Folder(str(place) if request.param == "path" else place.as_uri())


@pytest.fixture
def remote(tmp_path):
    return behind_a_uri(tmp_path / "store")


@pytest.fixture
def run(tmp_path):
    """Where the files of `folder` really are."""
    return tmp_path / "store/bucket/runs/one"


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(folder, warnings):
    made = RunCheckpoints(folder, 2, warn=warnings.append)
    yield made
    made.close()


def flip_a_bit(path, at=20):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_only_local_storage_is_local(tmp_path, remote):
    assert isinstance(place_of(Folder(str(tmp_path))), LocalPlace)
    assert isinstance(place_of(Folder(tmp_path.as_uri())), LocalPlace)
    assert isinstance(place_of(remote), RemotePlace)


def test_what_was_saved_comes_back_the_newest_first(store, run):
    assert store.newest() is None
    order = [("epoch-0001", 40), (step_name(50), 50), (step_name(60), 60), ("epoch-0002", 80)]
    for name, step in order:
        assert store.save(name, state(step), wait=True)
        assert store.newest_name() == name
        found = store.newest()
        assert (found / "model.safetensors").read_bytes() == bytes([step]) * 200
        verify(found)
    assert sorted(os.listdir(run)) == sorted(name for name, _ in order)
    assert verify(run / "epoch-0001")["kind"] == "training state"
    assert (store.fetch(step_name(50)) / "model.safetensors").read_bytes() == bytes([50]) * 200


def test_inside_epochs_the_newest_stay_and_epochs_are_rays(store, run):
    for epoch in (1, 2, 3):
        for step in (10, 20, 30):
            number = 40 * (epoch - 1) + step
            store.save(step_name(number), state(number), wait=True)
        store.save(epoch_name(epoch), state(40 * epoch), wait=True)
    expected = [*(epoch_name(n) for n in (1, 2, 3)), step_name(100), step_name(110)]
    assert sorted(os.listdir(run)) == expected


@pytest.mark.parametrize(
    "damage", ["flipped", "cut", "lost", "no manifest", "state flipped", "foreign"]
)
def test_damage_of_the_newest_costs_one_checkpoint(store, folder, run, warnings, damage):
    store.save(step_name(10), state(10), wait=True)
    store.save(step_name(20), state(20), wait=True)
    weights, manifest = (run / step_name(20) / n for n in ("model.safetensors", "manifest.json"))
    {
        "flipped": lambda: flip_a_bit(weights),
        "cut": lambda: os.truncate(weights, 100),
        "lost": weights.unlink,
        "no manifest": manifest.unlink,
        "foreign": lambda: (run / step_name(20) / "core").write_bytes(b""),
        "state flipped": lambda: flip_a_bit(run / step_name(20) / "state.json"),
    }[damage]()
    other = RunCheckpoints(folder, 2, warn=warnings.append)
    assert other.newest_name() == step_name(10)
    assert len(warnings) == 1
    assert "step-00000020: passed over" in warnings[0]
    with pytest.raises(BundleError):
        other.fetch(step_name(20))
    assert other.save(step_name(20), state(20), wait=True)
    assert other.newest_name() == step_name(20)
    other.close()


def test_a_checkpoint_saved_again_is_the_one_that_is_read(store):
    store.save("epoch-0001", state(40, 50.0), wait=True)
    assert (store.newest() / "model.safetensors").read_bytes() == bytes([40]) * 200
    store.save("epoch-0001", state(41, 60.0), wait=True)
    assert (store.newest() / "model.safetensors").read_bytes() == bytes([41]) * 200


def test_a_save_that_fails_leaves_nothing(store, run, temporary):
    def full(folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.save(step_name(10), state(10), wait=True)
    for number in (1, 2):
        assert not store.save(step_name(20), full, wait=True)
        assert store.failures == number
    assert os.listdir(run) == [step_name(10)]
    assert os.listdir(temporary) == []
    with pytest.raises(HmrError, match="3 checkpoints in a row could not be saved"):
        store.save(step_name(20), full, wait=True)
    assert store.newest_name() == step_name(10)


def test_a_checkpoint_as_ray_knows_it(store, folder, run):
    store.save("epoch-0001", state(40, 50.0), wait=True)
    ours = store.as_ray("epoch-0001")
    with ours.as_directory() as found:
        assert verify(found) == verify(run / "epoch-0001")
    assert ours.filesystem == folder.files
    assert ours.path == folder.path("epoch-0001")


def test_the_best_epoch_of_a_run(folder, run, warnings):
    store = RunCheckpoints(folder, 2)
    for epoch, error in enumerate([50.0, 20.0, 30.0, 40.0], start=1):
        store.save(epoch_name(epoch), state(40 * epoch, error), wait=True)
    path, metrics = best_epoch(folder, SCORE)
    assert (path / "model.safetensors").read_bytes() == bytes([80]) * 200
    assert metrics == {SCORE: 20.0, "step": 80.0}
    folder.write_json("validation/epoch-0002.json", {SCORE: 60.0})
    folder.write_json("validation/epoch-0004.json", {SCORE: 10.0})
    path, metrics = best_epoch(folder, SCORE)
    assert (path / "model.safetensors").read_bytes() == bytes([160]) * 200
    assert metrics == {SCORE: 10.0, "step": 160.0}
    flip_a_bit(run / "epoch-0004/model.safetensors")
    path, metrics = best_epoch(folder, SCORE, warn=warnings.append)
    assert metrics[SCORE] == 30.0
    assert len(warnings) == 1


# What an object store does otherwise


@pytest.mark.parametrize("files", range(4))
def test_an_upload_that_broke_off_is_never_taken_for_a_checkpoint(
    remote, run, monkeypatch, warnings, files
):
    """files: uploaded before the line went down; the manifest would be the third."""
    store = RunCheckpoints(remote, 3, warn=warnings.append)
    store.save(step_name(10), state(10), wait=True)
    uploaded = 0

    def count(real):
        def call(*arguments, **options):
            nonlocal uploaded
            if uploaded == files:
                raise ConnectionError("line down")
            uploaded += 1
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(remote_place.pafs, "copy_files", count(pafs.copy_files))
        patched.setattr(Folder, "write", count(Folder.write))
        assert store.save(step_name(20), state(20), wait=True) == (files == 3)
    again = RunCheckpoints(remote, 3, warn=warnings.append)
    assert again.newest_name() == step_name(20 if files == 3 else 10)
    again.tidy()
    assert len(os.listdir(run)) == (2 if files == 3 else 1)
    assert again.save(step_name(20), state(20), wait=True)
    assert again.newest_name() == step_name(20)
    for one in (store, again):
        one.close()


def test_a_next_writer_removes_what_a_dead_one_left(remote, run, tmp_path, temporary):
    store = RunCheckpoints(remote, 3)
    store.save(step_name(10), state(10), wait=True)
    (temporary / f"{store.place._staging}xyz").mkdir()
    (temporary / "rayhmr-staging-of-another-run").mkdir()
    for name in (step_name(20), "epoch-0001", "bundle"):
        (run / name).mkdir()
        (run / name / "model.safetensors").write_bytes(b"half")
    store.tidy()
    assert sorted(os.listdir(run)) == ["bundle", step_name(10)]
    assert os.listdir(temporary) == ["rayhmr-staging-of-another-run"]


def test_downloads_go_when_the_store_is_closed(remote, temporary):
    store = RunCheckpoints(remote, 3)
    store.save(step_name(10), state(10), wait=True)
    found = store.newest()
    assert found.is_relative_to(temporary)
    assert store.newest() == found, "and are downloaded once"
    store.close()
    assert os.listdir(temporary) == []
    assert store.newest().exists()
    store.close()


def test_a_download_that_broke_off_is_no_copy(remote, temporary, monkeypatch):
    store = RunCheckpoints(remote, 3)
    store.save(step_name(10), state(10), wait=True)
    real = pafs.copy_files

    def broken(source, target, **options):
        real(source, target, **options)
        (Path(target) / "model.safetensors").unlink()
        raise ConnectionError("line down")

    with monkeypatch.context() as patched:
        patched.setattr(remote_place.pafs, "copy_files", broken)
        with pytest.raises(HmrError, match=r"none can be read now \(.*line down"):
            store.newest()
    verify(store.newest())
    store.close()


def test_the_machines_own_disk_must_have_room(remote, monkeypatch, warnings):
    store = RunCheckpoints(remote, 3, warn=warnings.append)
    store.save(step_name(10), state(10), wait=True)
    assert store.place.size(step_name(10)) > 200
    monkeypatch.setattr(RemotePlace, "free", lambda self: 2 * self.size(step_name(10)))
    assert not store.save(step_name(20), state(20), wait=True)
    assert "bytes are free, saving step-00000020 needs" in warnings[0]
