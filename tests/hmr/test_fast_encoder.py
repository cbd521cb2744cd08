"""Faster encoders give the same features, whatever the size of the batch."""

from __future__ import annotations

import copy

import pytest
import torch

from hmr import fast_encoder
from hmr.config import ModelConfig
from hmr.errors import ConfigError
from hmr.fast_encoder import use_backend
from hmr.model import build_model

SIDE = 32


@pytest.fixture(scope="module")
def model():
    """Read only: all tests share it."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(encoder_width=4, image_size=SIDE, hidden=16)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("regressor.dec"):
                weight.normal_(0, 0.1)
    return model


def crops(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def difference(one, other, images, n_iter=None):
    """Largest of any parameter of any step."""
    with torch.inference_mode():
        pairs = zip(one(images, n_iter).iterations, other(images, n_iter).iterations, strict=True)
        return max(
            float((getattr(a, name) - getattr(b, name)).abs().max())
            for a, b in pairs
            for name in ("rotmats", "betas", "pred_cam")
        )


def test_onnx_gives_the_numbers_of_torch_for_every_batch_and_number_of_steps(model):
    pytest.importorskip("onnxruntime")
    fast = use_backend(copy.deepcopy(model), "onnx", (1, 4))
    for count, n_iter in ((1, None), (3, 1), (7, 5)):
        assert difference(model, fast, crops(count), n_iter) < 1e-5


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_compiled_batches_are_padded_and_cut_to_the_sizes_that_were_compiled(
    model, monkeypatch, has_bfloat16
):
    seen = []

    def compiler(network, **_):
        def run(images):
            seen.append((len(images), images.dtype))
            return network(images)

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(fast_encoder, "computes_bfloat16", lambda: has_bfloat16)
    fast = use_backend(copy.deepcopy(model), "compiled", (4, 1))
    assert [size for size, _ in seen] == [1, 4]  # ready before the first request
    assert {kind for _, kind in seen} == {torch.bfloat16 if has_bfloat16 else torch.float32}
    for count, sizes in ((1, [1]), (2, [4]), (4, [4]), (9, [4, 4, 1]), (6, [4, 4])):
        seen.clear()
        assert difference(model, fast, crops(count)) < (0.05 if has_bfloat16 else 1e-5)
        assert [size for size, _ in seen] == sizes


def test_a_machine_without_a_compiler_is_told_what_to_do(model, monkeypatch):
    def compiler(network, **_):
        def run(images):
            raise RuntimeError("g++ not found")

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    with pytest.raises(ConfigError, match=r"g\+\+ not found.*use backend=onnx or torch"):
        use_backend(copy.deepcopy(model), "compiled", (1,))


def test_torch_is_the_model_itself_and_other_names_are_refused(model):
    assert use_backend(model, "torch", (1,)) is model
    with pytest.raises(ConfigError, match="backend=tensorrt: must be one of torch, compiled, onnx"):
        use_backend(model, "tensorrt", (1,))
