"""The model registry: numbers only rise, aliases move in one step, and damage is never handed out.

`remote` is a file system that cannot rename and is no local path, as an object store is.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow.fs as pafs
import pytest
import torch

from hmr.body import Body
from hmr.checkpoint import load_bundle, save_bundle
from hmr.config import BodyConfig, ModelConfig
from hmr.errors import BundleError, ConfigError
from hmr.manifest import is_complete, write_manifest
from hmr.model import build_model
from rayhmr.pinned_model import PinnedModel
from rayhmr.registry import Registry, resolve


@pytest.fixture
def new_bundle(tmp_path):
    """What the registry takes for a bundle, with nothing in it but a text."""

    def make(text):
        folder = tmp_path / "made" / text
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_text(text)
        write_manifest(folder, {"kind": "bundle"})
        return folder

    return make


def local_registry(tmp_path):
    return Registry(str(tmp_path / "registry"))


def remote_registry(tmp_path):
    (tmp_path / "store").mkdir(exist_ok=True)
    store = pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem())
    return Registry("registry", store)


@pytest.fixture(params=[local_registry, remote_registry], ids=["local", "remote"])
def open_registry(request, tmp_path, monkeypatch):
    """Opens the same registry again at every call, as another process would."""
    monkeypatch.setenv("RAYHMR_CACHE", str(tmp_path / "cache"))
    return lambda: request.param(tmp_path)


@pytest.fixture
def registry(tmp_path):
    return local_registry(tmp_path)


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYHMR_CACHE", str(tmp_path / "cache"))
    return remote_registry(tmp_path)


def text_of(folder):
    return (folder / "weights.bin").read_text()


# Versions


def test_versions_count_up_and_hold_what_was_registered(open_registry, new_bundle):
    assert open_registry().names() == []
    assert open_registry().versions("hmr") == []
    numbers = [open_registry().register("hmr", new_bundle(text)) for text in ("one", "two")]
    open_registry().register("other", new_bundle("three"))
    assert numbers == [1, 2]
    assert open_registry().names() == ["hmr", "other"]
    assert open_registry().versions("hmr") == [1, 2]
    for reference, text in (("1", "one"), ("2", "two"), ("latest", "two")):
        folder = open_registry().fetch("hmr", reference)
        assert is_complete(folder)
        assert text_of(folder) == text


def test_an_alias_moves_and_latest_is_always_the_highest(open_registry, new_bundle):
    for text in ("one", "two"):
        open_registry().register("hmr", new_bundle(text))
    open_registry().set_alias("hmr", "best", 2)
    assert open_registry().aliases("hmr") == {"best": 2, "latest": 2}
    open_registry().set_alias("hmr", "best", 1)
    open_registry().register("hmr", new_bundle("three"))
    assert open_registry().aliases("hmr") == {"best": 1, "latest": 3}
    assert text_of(open_registry().fetch("hmr", "best")) == "one"


def test_more_than_nine_versions_are_ordered_as_numbers(registry, new_bundle):
    for number in range(1, 12):
        assert registry.register("hmr", new_bundle(f"{number}")) == number
    assert registry.versions("hmr") == list(range(1, 12))
    assert text_of(registry.fetch("hmr")) == "11"


def test_writers_at_the_same_time_get_numbers_of_their_own(open_registry, new_bundle):
    texts = ["a", "b", "c", "d"]
    bundles = [new_bundle(text) for text in texts]
    together = threading.Barrier(len(texts))

    def register(folder):
        registry = open_registry()
        together.wait(10)
        return registry.register("hmr", folder)

    with ThreadPoolExecutor(len(texts)) as pool:
        numbers = list(pool.map(register, bundles))
    assert len(set(numbers)) == len(texts)
    for number, text in zip(numbers, texts, strict=True):
        assert text_of(open_registry().fetch("hmr", str(number))) == text


def test_of_two_writers_who_want_one_remote_number_only_one_gets_it(remote, new_bundle, tmp_path):
    bundles = [new_bundle("a"), new_bundle("b")]
    together = threading.Barrier(2)

    class Simultaneous(Registry):
        """Goes on from its first look at the claims when the other one has looked as well."""

        looked = False

        def _list(self, folder):
            infos = super()._list(folder)
            if folder.endswith(".claims") and not self.looked:
                self.looked = True
                together.wait(20)
            return infos

    def register(folder):
        return Simultaneous(remote.uri, remote._files).register("hmr", folder)

    with ThreadPoolExecutor(2) as pool:
        numbers = list(pool.map(register, bundles))
    assert len(set(numbers)) == 2
    for number, text in zip(numbers, "ab", strict=True):
        assert text_of(remote.fetch("hmr", str(number))) == text
    assert not list((tmp_path / "store/registry/hmr/.claims").iterdir())


def test_a_version_without_its_manifest_is_never_seen_and_its_number_never_given_again(
    open_registry, new_bundle, tmp_path
):
    for text in ("one", "two"):
        open_registry().register("hmr", new_bundle(text))
    (manifest,) = tmp_path.glob("*/**/hmr/2/manifest.json")
    manifest.unlink()
    assert open_registry().versions("hmr") == [1]
    assert text_of(open_registry().fetch("hmr")) == "one"
    with pytest.raises(BundleError, match="no version or alias '2'"):
        open_registry().fetch("hmr", "2")
    assert open_registry().register("hmr", new_bundle("three")) == 3


def test_what_a_killed_writer_leaves_is_passed_over(registry, remote, new_bundle, tmp_path):
    registry.register("hmr", new_bundle("one"))
    shutil.copytree(tmp_path / "registry/hmr/1", tmp_path / "registry/hmr/.0af3.partial")
    assert registry.versions("hmr") == [1]
    assert registry.register("hmr", new_bundle("two")) == 2
    claims = tmp_path / "store/registry/hmr/.claims"
    claims.mkdir(parents=True)
    (claims / "1.0af3").write_bytes(b"claimed")
    assert remote.register("hmr", new_bundle("three")) == 2
    assert remote.versions("hmr") == [2]
    assert [file.name for file in claims.iterdir()] == ["1.0af3"], "its own claim is taken back"


def test_a_damaged_bundle_is_refused_and_leaves_nothing(open_registry, new_bundle, tmp_path):
    bundle = new_bundle("weights")
    (bundle / "weights.bin").write_text("Weights")
    with pytest.raises(
        BundleError, match=r"weights\.bin: sha256 is .* the manifest says .* copy the folder again"
    ):
        open_registry().register("hmr", bundle)
    (bundle / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"has no manifest\.json, so it was never finished"):
        open_registry().register("hmr", bundle)
    assert open_registry().names() == []
    assert not list(tmp_path.glob("*/**/hmr")), "no folder either"


@pytest.mark.parametrize("name", ["", "../outside", "a/b", ".hidden", "two words", "-x"])
def test_names_that_could_lead_elsewhere_are_refused(registry, new_bundle, name):
    bundle = new_bundle("one")
    with pytest.raises(ConfigError, match="use letters, digits"):
        registry.register(name, bundle)
    with pytest.raises(ConfigError, match="use letters, digits"):
        registry.version_of(name, "1")
    registry.register("hmr", bundle)
    with pytest.raises(ConfigError, match=r"alias .*use letters, digits"):
        registry.set_alias("hmr", name, 1)


# Aliases


def test_previous_goes_back_through_the_good_versions(registry, new_bundle):
    for text in ("one", "two", "three", "four"):
        registry.register("hmr", new_bundle(text))
    with pytest.raises(BundleError, match="hmr@best has pointed at no other version yet"):
        registry.previous("hmr", "best")
    for version in (1, 3, 2, 2):
        registry.set_alias("hmr", "best", version)
    registry.set_alias("hmr", "other", 4)
    assert registry.previous("hmr", "best") == 3
    registry.set_alias("hmr", "best", 3)  # back: 2 was worse
    assert registry.previous("hmr", "best") == 1
    registry.set_alias("hmr", "best", 4)
    assert registry.previous("hmr", "best") == 3


def test_a_writer_killed_before_the_alias_moved_does_not_change_what_was_before(
    tmp_path, new_bundle, monkeypatch
):
    registry = local_registry(tmp_path)
    for text in ("one", "two", "three"):
        registry.register("hmr", new_bundle(text))
    registry.set_alias("hmr", "best", 1)
    registry.set_alias("hmr", "best", 2)
    write = registry._replace_file

    def killed(path, text):
        if path.endswith("/aliases/best.json"):
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(registry, "_replace_file", killed)
    with pytest.raises(KeyboardInterrupt):
        registry.set_alias("hmr", "best", 3)
    monkeypatch.undo()
    assert registry.aliases("hmr")["best"] == 2
    assert registry.previous("hmr", "best") == 1


def test_aliases_that_mean_something_already_and_unknown_versions_are_refused(registry, new_bundle):
    registry.register("hmr", new_bundle("one"))
    for alias in ("latest", "previous", "7"):
        with pytest.raises(ConfigError, match=f"alias '{alias}': a number is a version and"):
            registry.set_alias("hmr", alias, 1)
    registry.set_alias("hmr", "best", 1)
    with pytest.raises(
        BundleError, match="hmr has no version 2; versions: 1; aliases: best -> 1, latest -> 1"
    ):
        registry.set_alias("hmr", "best", 2)
    assert registry.aliases("hmr") == {"best": 1, "latest": 1}


def test_a_reference_to_nothing_says_what_there_is(registry, new_bundle):
    with pytest.raises(BundleError, match="there is no model 'hmr', only: none at all"):
        registry.fetch("hmr")
    registry.register("other", new_bundle("one"))
    with pytest.raises(BundleError, match="there is no model 'hmr', only: other"):
        registry.fetch("hmr", "best")
    with pytest.raises(BundleError, match="no version or alias 'best'; versions: 1; aliases: lat"):
        registry.fetch("other", "best")


def test_readers_see_the_old_alias_or_the_new_one(registry, new_bundle):
    for text in ("one", "two"):
        registry.register("hmr", new_bundle(text))
    registry.set_alias("hmr", "best", 1)
    seen = []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            seen.append(registry.version_of("hmr", "best"))

    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            for number in range(60):
                registry.set_alias("hmr", "best", 1 + number % 2)
        finally:
            stop.set()
        reader.result()
    assert set(seen) <= {1, 2}
    assert registry.version_of("hmr", "best") == 2


def test_two_writers_of_different_aliases_lose_none(registry, new_bundle, tmp_path):
    registry.register("hmr", new_bundle("one"))
    names = [f"alias-{number}" for number in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: local_registry(tmp_path).set_alias("hmr", name, 1), names))
    assert registry.aliases("hmr") == dict.fromkeys([*names, "latest"], 1)
    stored = [file.name for file in (tmp_path / "registry/hmr/aliases").iterdir()]
    assert sorted(stored) == sorted(f"{name}.json" for name in names), "and nothing half-written"


# Remote registries


def test_a_remote_version_is_copied_to_this_machine_once(remote, new_bundle, tmp_path):
    remote.register("hmr", new_bundle("one"))
    folder = remote.fetch("hmr", "1")
    assert folder.is_relative_to(tmp_path / "cache")
    (tmp_path / "store/registry/hmr/1/weights.bin").unlink()
    assert remote.fetch("hmr", "latest") == folder
    assert text_of(folder) == "one"


def test_a_damaged_download_is_refused_and_not_kept(remote, new_bundle, tmp_path):
    remote.register("hmr", new_bundle("one"))
    stored = tmp_path / "store/registry/hmr/1/weights.bin"
    stored.write_text("eno")
    with pytest.raises(BundleError, match=r"weights\.bin: sha256 is"):
        remote.fetch("hmr", "1")
    assert not list((tmp_path / "cache/bundles").iterdir())
    stored.write_text("one")
    assert text_of(remote.fetch("hmr", "1")) == "one"


def test_a_cached_copy_that_was_changed_is_fetched_again(remote, new_bundle):
    remote.register("hmr", new_bundle("one"))
    folder = remote.fetch("hmr", "1")
    (folder / "weights.bin").write_text("changed")
    assert text_of(remote.fetch("hmr", "1")) == "one"


# References


def test_what_a_reference_means(registry, new_bundle, tmp_path, monkeypatch):
    plain = new_bundle("a@b")
    registry.register("hmr", new_bundle("one"))
    registry.register("hmr", new_bundle("two"))
    registry.set_alias("hmr", "best", 1)
    assert resolve(str(plain)) == plain, "a folder whose name has an @ is that folder"
    root = tmp_path / "registry"
    assert resolve(f"{root}/hmr@best") == root / "hmr/1"
    assert resolve(f"{root}/hmr@2/") == root / "hmr/2"
    assert resolve(f"{root}/hmr/2") == root / "hmr/2"
    monkeypatch.chdir(tmp_path)
    assert resolve("registry/hmr@latest") == root / "hmr/2"
    monkeypatch.chdir(root)
    assert resolve("hmr@best") == root / "hmr/1"


def test_a_reference_that_lacks_something_says_what_to_add(registry, new_bundle, tmp_path):
    registry.register("hmr", new_bundle("one"))
    with pytest.raises(
        BundleError, match=r"holds the versions 1 of a model; add one, such as .*@1"
    ):
        resolve(str(tmp_path / "registry/hmr"))
    with pytest.raises(BundleError, match=r"add @ and a version or alias"):
        resolve("s3://bucket/registry/hmr")
    with pytest.raises(BundleError, match=r"is no bundle \(there is no manifest\.json in it\)"):
        resolve(str(tmp_path))


def test_an_address_of_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match=r"nope://x: cannot be opened .*give a local path or an"):
        Registry("nope://x")
    with pytest.raises(ConfigError, match="nope://x: cannot be opened"):
        resolve("nope://x/hmr@best")


# Pinned models


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory):
    """Another model of the same kind as `bundle`."""
    torch.manual_seed(1)
    config = ModelConfig(image_size=32, encoder_width=4, hidden=32)
    return save_bundle(
        tmp_path_factory.mktemp("bundle") / "other", model=build_model(config),
        model_config=config, body=Body.embedded(), metrics={}, provenance={},
    )  # fmt: skip


def answer(predictor):
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return predictor.predict_crops(images).final.betas


def test_a_pinned_model_keeps_its_version_while_the_alias_moves(registry, bundle, other_bundle):
    registry.set_alias("tiny", "best", registry.register("tiny", bundle))
    pinned = PinnedModel.of(f"{registry.uri}/tiny@best", BodyConfig())
    assert (pinned.name, pinned.version) == ("tiny", 1)
    registry.set_alias("tiny", "best", registry.register("tiny", other_bundle))
    assert torch.equal(answer(pinned.load("cpu")), answer(load_bundle(bundle)))
    moved = PinnedModel.of(f"{registry.uri}/tiny@best", BodyConfig())
    assert moved.version == 2
    assert moved.sha256 != pinned.sha256
    assert torch.equal(answer(moved.load("cpu")), answer(load_bundle(other_bundle)))


def test_a_folder_whose_weights_change_during_the_job_is_refused(bundle, other_bundle, tmp_path):
    folder = Path(shutil.copytree(bundle, tmp_path / "model"))
    pinned = PinnedModel.of(f"{folder}/", BodyConfig())
    assert (pinned.name, pinned.version) == ("model", None)
    shutil.rmtree(folder)
    shutil.copytree(other_bundle, folder)
    with pytest.raises(
        BundleError, match=rf"the weights changed from {pinned.sha256[:12]}… to .*start it again"
    ):
        pinned.load("cpu")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"model\.safetensors: sha256 is"):
        pinned.load("cpu")


def test_a_relative_reference_opens_from_another_folder(bundle, tmp_path, monkeypatch):
    local_registry(tmp_path).register("tiny", bundle)
    monkeypatch.chdir(tmp_path)
    pinned = PinnedModel.of("registry/tiny@latest", BodyConfig())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(answer(pinned.load("cpu")), answer(load_bundle(bundle)))


def test_a_folder_that_is_complete_and_no_model_is_refused(new_bundle):
    with pytest.raises(BundleError, match=r"is no bundle, it lacks README\.md, body\.json"):
        PinnedModel.of(str(new_bundle("one")), BodyConfig())


def test_a_pinned_model_of_another_body_is_refused(bundle, tmp_path):
    from hmr.body_arrays import save_body

    arrays = Body.embedded().arrays
    save_body(tmp_path / "mine.npz", replace(arrays, shapedirs=1.1 * arrays.shapedirs))
    pinned = PinnedModel.of(str(bundle), BodyConfig(path=str(tmp_path / "mine.npz")))
    with pytest.raises(BundleError, match="weights fit one body only"):
        pinned.load("cpu")
