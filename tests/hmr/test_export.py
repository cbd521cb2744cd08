"""Exported files: run by another runtime, they give the bundle's numbers on every step."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmr import export as module
from hmr.body import Body
from hmr.checkpoint import load_network, save_bundle
from hmr.config import ModelConfig
from hmr.errors import BundleError, ConfigError, HmrError
from hmr.export import OUTPUTS, TOLERANCE, export
from hmr.model import build_model

CONFIG = ModelConfig(encoder_width=4, image_size=32, hidden=16, n_iter=2)


def bundle_of(config: ModelConfig, path: Path, body: Body) -> Path:
    torch.manual_seed(0)
    model = build_model(config)
    # New heads are close to zero; open them, so that every step moves.
    for parameter in model.regressor.parameters():
        nn.init.normal_(parameter, std=0.2)
    return save_bundle(
        path, model=model, model_config=config, body=body, metrics={}, provenance={}
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, small_body: Body) -> Path:
    """Of a body from a file, which an export must not ask for."""
    return bundle_of(CONFIG, tmp_path_factory.mktemp("export") / "bundle", small_body)


def run_torchscript(path: Path, images: Tensor) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is on its way out
        return list(torch.jit.load(str(path))(images))


def run_onnx(path: Path, images: Tensor) -> list[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_outputs()] == list(OUTPUTS)
    return [torch.from_numpy(a) for a in session.run(None, {"images": images.numpy()})]


RUNNERS: dict[str, Callable[[Path, Tensor], list[Tensor]]] = {
    "torchscript": run_torchscript,
    "onnx": run_onnx,
}


def crops(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)


def assert_runs_like(bundle: Path, to: str, file: Path) -> None:
    images = crops(5)  # a batch of another size than any the exporter has seen
    with torch.inference_mode():
        steps = load_network(bundle)(images).iterations
    assert (steps[-1].betas - steps[0].betas).abs().max() > 0.1
    found = dict(zip(OUTPUTS, RUNNERS[to](file, images), strict=True))
    for name in OUTPUTS:
        expected = torch.stack([getattr(step, name) for step in steps], 1)
        torch.testing.assert_close(found[name], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("to", ["torchscript", "onnx"])
def test_every_step_is_the_bundles(bundle: Path, to: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / f"hmr.{to}"
    report = export(bundle, to, file)
    assert_runs_like(bundle, to, file)
    assert report["file"] == str(file)
    assert report["format"] == to
    assert report["bytes"] == file.stat().st_size
    assert (report["image_size"], report["n_iter"]) == (32, 2)
    assert report["largest_difference"].keys() == set(OUTPUTS)
    assert max(report["largest_difference"].values()) <= report["tolerance"] == TOLERANCE
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_course_projects_regressor_exports_too(tmp_path: Path, small_body: Body) -> None:
    config = CONFIG.model_copy(update={"regressor": "axis_angle"})
    other = bundle_of(config, tmp_path / "bundle", small_body)
    export(other, "torchscript", tmp_path / "hmr.pt")
    assert_runs_like(other, "torchscript", tmp_path / "hmr.pt")


def test_a_file_whose_numbers_differ_never_gets_its_name(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_by(amount: float) -> Callable[..., Any]:
        def write(network: nn.Module, example: Tensor, path: Path) -> Any:
            path.write_bytes(b"new")

            def run(images: Tensor) -> list[Tensor]:
                *others, last = network(images)
                return [*others, last + amount]

            return run

        return write

    file = tmp_path / "hmr.pt"
    file.write_bytes(b"old")
    for amount in (2 * TOLERANCE, float("nan")):
        monkeypatch.setitem(module._WRITERS, "torchscript", wrong_by(amount))
        with pytest.raises(HmrError, match=r"differs from the bundle by .* nothing was written"):
            export(bundle, "torchscript", file)
        assert file.read_bytes() == b"old"
    monkeypatch.setitem(module._WRITERS, "torchscript", wrong_by(0.0))
    export(bundle, "torchscript", file)
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_forgets_steps_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(network: nn.Module, example: Tensor, path: Path) -> Any:
        return lambda images: [output[:, -1:] for output in network(images)]

    monkeypatch.setitem(module._WRITERS, "torchscript", write)
    with pytest.raises(HmrError, match=r"rotmats .*\(1, 1, 24, 3, 3\) for 1 crops.*\(1, 3, 24"):
        export(bundle, "torchscript", tmp_path / "hmr.pt")


@pytest.mark.parametrize("package", ["onnxruntime", "onnxscript"])
def test_missing_packages_are_named_with_their_cure(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{package}.*pip install 'rayhmr\[export\]'"):
        export(bundle, "onnx", tmp_path / "hmr.onnx")
    assert list(tmp_path.iterdir()) == []


def test_wrong_requests_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"to=tensorrt: .*torchscript, onnx"):
        export(bundle, "tensorrt", tmp_path / "hmr.engine")
    with pytest.raises(ConfigError, match="is a folder"):
        export(bundle, "torchscript", tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        export(tmp_path / "absent", "torchscript", tmp_path / "hmr.pt")
