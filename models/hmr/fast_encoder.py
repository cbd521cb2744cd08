"""The same encoder, run faster on CPUs: compiled by torch in bfloat16, or by ONNX Runtime.

The encoder is nearly all of a forward pass with a large network; regressor and body stay as they
are, in float32. What a faster encoder costs in millimetres is measured by `benchmark.py serve`.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hmr.encoder import Encoder
from hmr.errors import ConfigError
from hmr.model import HMR


def use_backend(model: HMR, backend: str, batch_sizes: Sequence[int]) -> HMR:
    """`model` with its encoder exchanged; it is for inference then.

    backend: `torch` leaves it as it is; `compiled` is torch.compile with frozen weights, in
    bfloat16 where the CPU computes with it; `onnx` is ONNX Runtime in float32. batch_sizes: what
    `compiled` compiles for; other batches are padded to the next of them, or cut.

    ConfigError when the backend is unknown or what it needs is missing.
    """
    if backend == "torch":
        return model
    if backend not in _MAKERS:
        raise ConfigError(f"backend={backend}: must be one of torch, {', '.join(_MAKERS)}")
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ConfigError(f"backend={backend} is for CPUs (the model is on {device}); use torch")
    run = _MAKERS[backend](model.encoder.eval(), model.image_size, sorted(batch_sizes))
    model.encoder = _Replaced(run, model.encoder.out_features)
    return model


def computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; else it would only be slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class _Replaced(Encoder):
    """An encoder that something else computes."""

    def __init__(self, run: Callable[[Tensor], Tensor], out_features: int) -> None:
        super().__init__()
        self._run, self.out_features = run, out_features

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)


def _compiled(encoder: nn.Module, side: int, sizes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    kind = torch.bfloat16 if computes_bfloat16() else torch.float32
    network = copy.deepcopy(encoder).to(kind).to(memory_format=torch.channels_last)
    compiled = torch.compile(network, dynamic=False, options={"freezing": True})

    def run(images: Tensor) -> Tensor:
        parts = [_padded(compiled, part.to(kind), sizes) for part in images.split(sizes[-1])]
        return torch.cat(parts).float()

    try:
        with torch.inference_mode():
            for size in sizes:
                run(_blank(size, side))
    except Exception as error:  # the compiler's own errors are of many kinds
        raise ConfigError(
            f"backend=compiled: torch cannot compile the encoder here ({error!s:.200}); it needs "
            "a C++ compiler such as g++: install one, or use backend=onnx or torch"
        ) from error
    return run


def _padded(
    network: Callable[[Tensor], Tensor], images: Tensor, sizes: Sequence[int]
) -> Tensor:  # fmt: skip
    size = next(size for size in sizes if size >= len(images))
    missing = size - len(images)
    if missing:
        images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
    images = images.contiguous(memory_format=torch.channels_last)
    return network(images)[: size - missing]


def _onnx(encoder: nn.Module, side: int, sizes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"backend=onnx: needs the packages onnx, onnxscript and onnxruntime ({error}); run "
            "`pip install 'rayhmr[export]'`, or choose another backend"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory(prefix="rayhmr-onnx-") as folder:
        path = Path(folder) / "encoder.onnx"
        # The exporter warns of its own deprecations.
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                encoder, (_blank(2, side),), str(path), input_names=["images"],
                output_names=["features"], dynamic_shapes=[{0: torch.export.Dim("batch")}],
                dynamo=True, external_data=False, verbose=False,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def run(images: Tensor) -> Tensor:
        (features,) = session.run(None, {"images": images.contiguous().numpy()})
        return torch.from_numpy(features)

    return run


def _blank(count: int, side: int) -> Tensor:
    return torch.zeros(count, 3, side, side).contiguous(memory_format=torch.channels_last)


_MAKERS = {"compiled": _compiled, "onnx": _onnx}
