"""Real trainings on what a node shares: the same weights, and nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hmr.checkpoint import verify_bundle
from rayhmr import train as train_module
from rayhmr.config import PrepareJob, SyntheticConfig, TrainJob
from rayhmr.data.cache_cleaning import remove_here
from rayhmr.data.cache_store import CacheStore, cache_root
from rayhmr.data.prepare import prepare
from rayhmr.study_space import with_settings
from rayhmr.train import train

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(local_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    people = SyntheticConfig(image_size=32, train=96, val=20, test=1)
    prepare(PrepareJob(output=str(folder / "shards"), rows_per_file=60, synthetic=people))
    return folder


def trained(folder, name, **changes):
    job = TrainJob.model_validate(
        {
            "name": name, "storage": str(folder / "runs"), "register_as": "person",
            "registry": str(folder / "registry"),
            "data": {"path": str(folder / "shards"), "cache_folder": str(folder / "cache")},
            "model": {"encoder_width": 4, "image_size": 32, "hidden": 32, "dropout": 0.1},
            "train": {
                "epochs": 1, "batch_size": 32, "optimizer": {"lr": 2e-3}, "losses": {"scale": 1.0},
            },
            "scaling": {"num_workers": 2},
        }
    )  # fmt: skip
    return train(with_settings(job, changes))


def weights(result):
    return load_file(Path(result["bundle"]) / "model.safetensors")


def test_trainings_on_what_a_node_shares(folder, monkeypatch):
    plain = trained(folder, "plain")
    lines = []
    monkeypatch.setattr(train_module, "show", lines.append)
    decoded = trained(folder, "decoded", **{"data.cache": "decoded"})
    theirs = weights(plain)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in weights(decoded).items())
    assert decoded["pa_mpjpe_mm"] == plain["pa_mpjpe_mm"]

    reference = f"{folder}/registry/person@best"
    features = trained(
        folder, "features",
        **{"data.cache": "features", "train.freeze_encoder": True, "train.augment": "none",
           "encoder_from": reference},
    )  # fmt: skip
    trained_on = weights(features)
    for name, tensor in theirs.items():
        kept = torch.equal(trained_on[name], tensor)
        assert kept == (name.startswith("encoder.") or ".init_" in name), name
    settings = verify_bundle(features["bundle"])["provenance"]["settings"]
    assert settings["encoder_from"] == f"{folder}/registry/person@2"
    stored = json.loads((Path(features["run"]) / "run.json").read_text())
    assert stored["encoder_from"] == settings["encoder_from"]
    assert not [line for line in lines if line["kind"] == "warning"], "both found room"
    assert not list((folder / "cache").iterdir()), "caches go at the end of a job"


def test_a_job_leaves_what_another_one_holds(folder):
    store = CacheStore(cache_root(str(folder / "cache")))
    held = store.hold("mine", 1, lambda path: (path / "x").write_bytes(b"x"))
    assert remove_here(str(folder / "cache")) == []
    held.close()
    assert remove_here(str(folder / "cache")) == ["mine"]
