"""Bundles come back bit for bit, and damage is found and named."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim import AdamW

from hmr.body import Body
from hmr.checkpoint import (
    BUNDLE_FILES,
    is_complete,
    load_bundle,
    load_model_weights,
    save_bundle,
    save_training_state,
    verify_bundle,
)
from hmr.config import ModelConfig
from hmr.errors import BundleError
from hmr.model import HMR, build_model

CONFIG = ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=2)
METRICS = {
    "mpjpe_mm": 88.125,
    "baseline_mpjpe_mm": 171.5,
    "pa_mpjpe_mm": 60.0,
    "note": "test split",
}
PROVENANCE = {"code": "0.1.0", "data": "f00d"}


@pytest.fixture(scope="module")
def body() -> Body:
    return Body.embedded()


def new_model(seed: int = 0, config: ModelConfig = CONFIG) -> HMR:
    torch.manual_seed(seed)
    return build_model(config).eval()


def random_images(seed: int, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def save(path: Path, body: Body, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "model": new_model(), "model_config": CONFIG, "body": body, "metrics": METRICS,
        "provenance": PROVENANCE,
    }  # fmt: skip
    return save_bundle(path, **(given | changes))


@pytest.fixture(scope="module")
def saved(body: Body, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bundles") / "hmr", body)


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "hmr"))


def rewrite(bundle: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file and its hash: damage that only its meaning shows."""
    value = json.loads((bundle / name).read_text())
    change(value)
    (bundle / name).write_text(json.dumps(value))
    if name != "manifest.json":
        digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
        rewrite(bundle, "manifest.json", lambda m: m["files"].update({name: digest}))


# Bundles


def test_a_loaded_bundle_predicts_bit_for_bit(bundle: Path) -> None:
    images = random_images(1)
    with torch.inference_mode():
        expected = new_model()(images)
    found = load_bundle(bundle).predict_crops(images)
    assert found.n_iter == expected.n_iter == 2
    for ours, theirs in zip(found.iterations, expected.iterations, strict=True):
        assert torch.equal(ours.rotmats, theirs.rotmats)
        assert torch.equal(ours.betas, theirs.betas)
        assert torch.equal(ours.pred_cam, theirs.pred_cam)


def test_what_a_bundle_holds(bundle: Path, body: Body) -> None:
    assert {file.name for file in bundle.iterdir()} == {*BUNDLE_FILES, "manifest.json"}
    manifest = verify_bundle(bundle)
    assert manifest["provenance"] == PROVENANCE
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    config = json.loads((bundle / "config.json").read_text())
    assert ModelConfig.model_validate(config["model"]) == CONFIG
    assert config["rotations"] == "6d interleaved"
    assert config["crop_focal_px"] == 5000
    described = json.loads((bundle / "body.json").read_text())
    assert described["hash"] == body.arrays.content_hash()
    predictor = load_bundle(bundle)
    assert predictor.info["metrics"] == METRICS
    assert predictor.info["provenance"] == PROVENANCE
    assert predictor.box_padding == config["box_padding"] == 1.2


def test_start_parameters_travel_with_the_weights(tmp_path: Path, body: Body) -> None:
    model = new_model()
    model.regressor.init_shape += 0.25
    config = CONFIG.model_copy(update={"mean_params": "a/file/of/this/machine.npz"})
    path = save(tmp_path / "b", body, model=model, model_config=config)
    assert "of/this/machine" not in (path / "config.json").read_text()
    start = load_bundle(path).predict_crops(random_images(0)).iterations[0]
    assert torch.equal(start.betas, torch.full((4, 10), 0.25))


def test_metrics_that_are_no_number_are_null(tmp_path: Path, body: Body) -> None:
    metrics = {"mpjpe_mm": float("nan"), "of": [1.0, float("inf")]}
    path = save(tmp_path / "b", body, metrics=metrics)
    assert json.loads((path / "metrics.json").read_text()) == {"mpjpe_mm": None, "of": [1.0, None]}


@pytest.mark.parametrize("name", [*BUNDLE_FILES, "manifest.json"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        load_bundle(bundle)
    assert not is_complete(bundle)


@pytest.mark.parametrize("name", BUNDLE_FILES)
def test_one_changed_byte_is_named(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: sha256 is .* changed or damaged"):
        load_bundle(bundle)


def test_additions_are_refused(bundle: Path) -> None:
    (bundle / "extra.bin").write_bytes(b"1")
    with pytest.raises(BundleError, match=r"extra\.bin: is not in the manifest; remove it"):
        load_bundle(bundle)
    (bundle / "extra.bin").unlink()
    (bundle / "sub").mkdir()
    with pytest.raises(BundleError, match="sub: is not in the manifest"):
        load_bundle(bundle)


def test_a_folder_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    (bundle / "README.md").mkdir()
    with pytest.raises(BundleError, match=r"README\.md: is no file"):
        verify_bundle(bundle)


def test_a_manifest_cannot_point_outside(bundle: Path) -> None:
    (bundle.parent / "secret").write_text("x")
    rewrite(bundle, "manifest.json", lambda m: m["files"].update({"../secret": "0" * 64}))
    with pytest.raises(BundleError, match="secret: is missing"):
        verify_bundle(bundle)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        ('{"format_version": 99, "files": {}}', "format version 99, this code reads 1"),
        ('{"format_version": 1, "files": ["a"]}', "must map names to sha256"),
        ("[]", "no JSON object"),
        ('{"format_version": 1, "fi', "not readable JSON"),
        ("", "not readable JSON"),
    ],
)
def test_unreadable_manifests(bundle: Path, content: str, rule: str) -> None:
    (bundle / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=rule):
        load_bundle(bundle)


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere: no such folder"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        load_bundle(tmp_path)
    save_training_state(tmp_path, new_model(), AdamW(new_model().parameters()), {})
    with pytest.raises(BundleError, match=r"is no bundle, it lacks README\.md"):
        load_bundle(tmp_path)


def test_weights_of_another_architecture_are_listed(bundle: Path) -> None:
    rewrite(bundle, "config.json", lambda c: c["model"].update(hidden=24))
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert "regressor.fc2.weight is (16, 16), the model has (24, 24)" in str(caught.value)


def test_missing_and_unexpected_weights_are_listed(bundle: Path) -> None:
    model = torch.nn.ModuleDict({"encoder": new_model().encoder, "head": torch.nn.Linear(2, 2)})
    with pytest.raises(
        BundleError, match=r"missing head\.bias.*unexpected regressor.*and \d+ more"
    ):
        load_model_weights(bundle, model)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"rotations": "6d block"}, "rotations is '6d block', this code works with '6d inter"),
        ({"crop_focal_px": 1000.0}, "crop_focal_px is 1000.0"),
        ({"model": {"hidden": -5}}, r"model\.hidden: .*greater than or equal to 16"),
        ({"model": {"hiden": 64}}, r"model\.hiden: "),
    ],
)
def test_other_conventions_are_refused(bundle: Path, change: dict[str, Any], rule: str) -> None:
    rewrite(bundle, "config.json", lambda c: c.update(change))
    with pytest.raises(BundleError, match=rf"config\.json: {rule}"):
        load_bundle(bundle)
    rewrite(bundle, "config.json", lambda c: c.pop("joint_set"))
    with pytest.raises(BundleError, match=r"config\.json: lacks joint_set"):
        load_bundle(bundle)


# Bodies


def test_a_licensed_body_is_named_but_never_contained(tmp_path: Path, body: Body) -> None:
    mine = Body(replace(body.arrays, name="mine", licence="user"))
    path = save(tmp_path / "b", mine)
    largest = max(array.nbytes for array in (body.arrays.v_template, body.arrays.faces))
    others = sum(file.stat().st_size for file in path.iterdir() if file.suffix != ".safetensors")
    assert others < largest / 10
    with pytest.raises(BundleError, match=r"trained with the body 'mine'.*body=Body\.from_file"):
        load_bundle(path)
    assert load_bundle(path, body=mine).body.arrays.name == "mine"
    with pytest.raises(BundleError, match="weights fit one body only"):
        load_bundle(path, body=body)


def test_another_body_is_refused(bundle: Path, body: Body) -> None:
    other = replace(
        body.arrays, name="other", licence="user", shapedirs=1.1 * body.arrays.shapedirs
    )
    with pytest.raises(BundleError, match=r"but 'other' is .* weights fit one body only"):
        load_bundle(bundle, body=Body(other))


# Writing


def test_a_failed_save_changes_nothing(bundle: Path, body: Body) -> None:
    before = verify_bundle(bundle)
    with pytest.raises(TypeError):
        save(bundle, body, provenance={"not json": object()})
    assert verify_bundle(bundle) == before
    assert list(bundle.parent.iterdir()) == [bundle]


def test_a_bundle_replaces_a_bundle_and_nothing_else(bundle: Path, body: Body) -> None:
    (bundle / "README.md").write_text("damaged, and replaced all the same")
    save(bundle, body, provenance={"run": 2})
    assert verify_bundle(bundle)["provenance"] == {"run": 2}
    assert list(bundle.parent.iterdir()) == [bundle]
    foreign = bundle.parent / "thesis"
    foreign.mkdir()
    save(foreign, body)  # an empty folder is no loss
    shutil.rmtree(foreign)
    foreign.mkdir()
    (foreign / "chapter1.txt").write_text("work of years")
    with pytest.raises(BundleError, match="thesis: is there and is no bundle"):
        save(foreign, body)
    assert (foreign / "chapter1.txt").read_text() == "work of years"


def test_the_manifest_is_written_last(bundle: Path, tmp_path: Path) -> None:
    """Whatever a killed writer had finished, without the manifest it is not read."""
    for count in range(len(BUNDLE_FILES) + 1):
        partial = tmp_path / f"partial-{count}"
        partial.mkdir()
        for name in BUNDLE_FILES[:count]:
            shutil.copy(bundle / name, partial)
        assert not is_complete(partial)
    written = (bundle / "manifest.json").stat().st_mtime_ns
    assert all(file.stat().st_mtime_ns <= written for file in bundle.iterdir())


# The card


def card(bundle: Path) -> tuple[dict[str, Any], str]:
    _, header, text = (bundle / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


def test_the_card_shows_figures_beside_the_baseline(bundle: Path) -> None:
    header, text = card(bundle)
    assert header["license"] == "apache-2.0"
    assert "mpjpe_mm" in header["metrics"]
    assert "| mpjpe_mm | 88.12 | 171.5 |" in text
    assert "| pa_mpjpe_mm | 60 | – |" in text
    assert "| baseline_mpjpe_mm |" not in text
    assert "- data: f00d" in text
    assert "Max Planck" not in text
    for heading in ("Measured", "Intended use", "Limits", "Made from"):
        assert f"## {heading}\n" in text


def test_the_card_of_a_users_body_speaks_of_its_licence(tmp_path: Path, body: Body) -> None:
    mine = Body(replace(body.arrays, name="mine", licence="user"))
    header, text = card(save(tmp_path / "b", mine, metrics={}, provenance={}))
    assert header["license"] == "other"
    assert "Max Planck" in text
    assert "Not measured." in text
