"""Trainings that read a node's cache are those that read the shards."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.checkpoint import save_bundle
from hmr.config import AugmentConfig, LossConfig, OptimizerConfig, TrainConfig
from hmr.errors import BundleError, ConfigError
from hmr.exchange import Wish
from hmr.local_context import LocalContext
from hmr.training import fit
from rayhmr import command_line
from rayhmr.config import DataConfig, ModelConfig, TrainJob
from rayhmr.data.cache import open_cached
from rayhmr.data.cache_store import CacheStore
from rayhmr.data.reading import fetch_here
from rayhmr.data.schema import DatasetInfo, encode_shard
from rayhmr.data.stream import ShardStream, split_files
from rayhmr.registry import Registry
from rayhmr.starting_model import encoding_of, pinned_encoder, starting_model

MODEL = ModelConfig(encoder_width=4, image_size=32, hidden=32, n_iter=2, dropout=0.3)


@pytest.fixture(scope="module")
def info(make_person, tmp_path_factory):
    """90 training people in two files and 20 to validate."""
    folder = tmp_path_factory.mktemp("shards")
    for name, people in (("a", range(50)), ("b", range(50, 90)), ("val", range(90, 110))):
        (folder / name).write_bytes(encode_shard([make_person(n).row(90) for n in people]))
    return DatasetInfo(
        location=str(folder), fingerprint="f", source="made", image_size=32,
        files={
            "train": [{"name": "a", "rows": 50}, {"name": "b", "rows": 40}],
            "val": [{"name": "val", "rows": 20}],
        },
        statistics={"labelled": 0}, rejected={}, body={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of other weights than those of a new one, in a registry twice."""
    torch.manual_seed(7)
    model = starting_model(TrainJob(model=MODEL, train=TrainConfig(seed=7)), without_labels())
    model.train()(torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8))
    folder = tmp_path_factory.mktemp("trained")
    bundle = save_bundle(
        folder / "bundle", model=model, model_config=MODEL, body=Body.embedded(), metrics={},
        provenance={},
    )  # fmt: skip
    registry = Registry(str(folder / "registry"))
    for _ in range(2):
        registry.set_alias("hmr", "best", registry.register("hmr", bundle))
    return folder, model


def without_labels():
    return DatasetInfo(
        location="", fingerprint="", source="", image_size=32, files={}, rejected={}, body={},
        statistics={"labelled": 0},
    )  # fmt: skip


class Stopping(LocalContext):
    """Wants the run to end after so many steps."""

    def __init__(self, folder, steps=None):
        super().__init__(folder, "cpu")
        self.left = steps

    def wish(self):
        if self.left is None:
            return Wish.NOTHING
        self.left -= 1
        return Wish.STOP if self.left == 0 else Wish.NOTHING


@pytest.fixture
def run(info, tmp_path, small_body):
    """Trains with a kind of cache, in `folder`; the weights afterwards and what was reported."""

    def make(kind, folder, *, frozen, steps=None, encoder_from=None):
        config = TrainConfig(
            epochs=2, batch_size=16, freeze_encoder=frozen, optimizer=OptimizerConfig(lr=1e-2),
            augment=AugmentConfig(preset="none" if frozen else "default"),
            losses=LossConfig(scale=1.0),
        )  # fmt: skip
        data = DataConfig(cache=kind, decode_threads=1)
        job = TrainJob(model=MODEL, train=config, data=data, encoder_from=encoder_from)
        model = starting_model(job, info)
        cached = open_cached(
            info, split_files(info, "train"), split_files(info, "val"), config=data,
            image_size=32, encoding=encoding_of(model, config, batch_size=16), warn=pytest.fail,
            store=CacheStore(tmp_path, room=lambda root: (2**40, 2**40, 2**40)),
        )  # fmt: skip
        fetch = fetch_here(info.location)
        stream = ShardStream(
            info, config=data, fetch=fetch, fetch_val=fetch, batch_size=16, image_size=32, seed=0,
            epochs=2, lanes=2, rank=0, world_size=1, cached=cached,
        )  # fmt: skip
        with closing(stream):
            metrics = fit(
                config, model=model, body=small_body, data=stream,
                context=Stopping(tmp_path / folder, steps), log=lambda facts: None,
            )  # fmt: skip
        return model.state_dict(), metrics

    return make


@pytest.fixture
def small_body():
    return Body.embedded()


@pytest.mark.parametrize("frozen", [False, True])
def test_decoded_pixels_change_no_bit_of_a_training_or_of_its_errors(run, frozen):
    weights, metrics = run("none", "plain", frozen=frozen)
    cached, measured = run("decoded", "cached", frozen=frozen)
    assert all(torch.equal(tensor, cached[name]) for name, tensor in weights.items())
    assert measured["val/pa_mpjpe_mm"] == metrics["val/pa_mpjpe_mm"]


def test_features_give_the_regressor_of_a_frozen_encoder(run, trained):
    reference = str(trained[0] / "bundle")
    weights, metrics = run("none", "plain", frozen=True, encoder_from=reference)
    cached, measured = run("features", "cached", frozen=True, encoder_from=reference)
    for name, tensor in weights.items():
        torch.testing.assert_close(cached[name], tensor, atol=1e-5, rtol=0, msg=name)
    assert measured["val/pa_mpjpe_mm"] == pytest.approx(metrics["val/pa_mpjpe_mm"], abs=1e-3)
    fresh, _ = run("none", "fresh", frozen=True)
    assert not torch.allclose(fresh["regressor.fc1.weight"], weights["regressor.fc1.weight"])


@pytest.mark.parametrize("kinds", [("none", "decoded"), ("decoded", "none")])
def test_a_run_goes_on_inside_an_epoch_with_or_without_the_cache(run, kinds):
    whole, _ = run("none", "whole", frozen=False)
    _, metrics = run(kinds[0], "cut", frozen=False, steps=9)  # the third step of the second epoch
    assert metrics["stopped"] == 1
    weights, _ = run(kinds[1], "cut", frozen=False)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights.items())


def test_features_of_several_trials_are_shared_and_of_other_encoders_are_not(
    run, trained, tmp_path
):
    def made():
        return {path.name: path.stat().st_ino for path in tmp_path.glob("features-train-*[!k]")}

    run("features", "1", frozen=True, encoder_from=str(trained[0] / "bundle"))
    first = made()
    run("features", "2", frozen=True, encoder_from=str(trained[0] / "registry" / "hmr@1"))
    assert made() == first, "the same weights under another name"
    run("features", "3", frozen=True)
    assert len(made()) == 2


def test_a_training_starts_with_the_encoder_it_is_given_and_a_regressor_of_its_own(trained):
    folder, model = trained
    job = TrainJob(model=MODEL, train=TrainConfig(seed=3))
    new = starting_model(job, without_labels()).state_dict()
    reference = str(folder / "bundle")
    taken = starting_model(
        job.model_copy(update={"encoder_from": reference}), without_labels()
    ).state_dict()
    for name, tensor in model.state_dict().items():
        wanted = tensor if name.startswith("encoder.") else new[name]
        assert torch.equal(taken[name], wanted), name


def test_an_alias_is_held_fast(trained):
    registry = trained[0] / "registry"
    assert pinned_encoder(f"{registry}/hmr@best", MODEL) == f"{registry}/hmr@2"
    assert pinned_encoder(f"{registry}/hmr@1", MODEL) == f"{registry}/hmr@1"
    assert pinned_encoder(str(trained[0] / "bundle"), MODEL) == str(trained[0] / "bundle")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_width": 8}, r"model\.encoder_width=8 \(there: 4\)"),
        ({"image_size": 64}, r"model\.image_size=64 \(there: 32\)"),
        ({"encoder": "resnet18"}, r"model\.encoder=resnet18 \(there: small\)"),
    ],
)
def test_the_encoder_of_another_model_is_refused_at_once(trained, changes, words):
    with pytest.raises(ConfigError, match=words):
        pinned_encoder(str(trained[0] / "bundle"), MODEL.model_copy(update=changes))


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        pinned_encoder(str(tmp_path / "nothing"), MODEL)


@pytest.mark.parametrize(
    ("train", "named"),
    [
        ({"augment": "none"}, ["train.freeze_encoder=false"]),
        ({"freeze_encoder": True}, ["train.augment.flip=0.5", "train.augment.channel_noise=0.4"]),
        ({"freeze_encoder": True, "augment": {"preset": "none", "rotation": 30.0}},
         ["train.augment.rotation=30.0"]),
        ({"freeze_encoder": True, "augment": "none", "pictures_every": 5},
         ["train.pictures_every=5"]),
    ],
)  # fmt: skip
def test_features_of_pictures_that_change_are_refused(train, named):
    tree = {"data": {"cache": "features"}, "train": train}
    with pytest.raises(ConfigError, match=r"data\.cache=features with ") as caught:
        command_line.validate(TrainJob, tree)
    message = str(caught.value)
    assert all(name in message for name in named)
    assert "set train.freeze_encoder=true train.augment=none" in message
    command_line.validate(TrainJob, {**tree, "data": {"cache": "decoded"}})


def test_what_the_message_says_helps():
    job = command_line.validate(
        TrainJob,
        {"data": {"cache": "features"}, "train": {"freeze_encoder": True, "augment": "none"}},
    )
    assert job.data.cache == "features"
    amounts = job.train.augment.model_dump()
    assert not np.any([amounts[name] for name in ("flip", "channel_noise", "colour", "scale")])


def test_settings_of_a_cache_do_not_make_another_run(info):
    from rayhmr.train import settings_of

    jobs = [TrainJob(data=DataConfig(cache=kind)) for kind in ("none", "decoded")]
    jobs.append(TrainJob(data=DataConfig(cache_folder="/elsewhere")))
    assert all(a == b for a, b in pairwise(settings_of(job, info, 1) for job in jobs))
    assert settings_of(TrainJob(encoder_from="x"), info, 1) != settings_of(TrainJob(), info, 1)
