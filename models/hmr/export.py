"""Bundles for other runtimes: one TorchScript or ONNX file, checked against the bundle itself.

Either file maps `images` (B, 3, S, S), uint8 RGB crops, to three outputs with every step of the
iteration, 0 to T: `rotmats` (B, T + 1, 24, 3, 3), `betas` (B, T + 1, 10), `pred_cam`
(B, T + 1, 3). Normalisation is inside; S and T are the bundle's; B is free. The body is not inside:
it may be licensed, and `hmr.body` computes it from the outputs.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hmr.checkpoint import load_network
from hmr.errors import ConfigError, HmrError
from hmr.model import HMR

OUTPUTS = ("rotmats", "betas", "pred_cam")
TOLERANCE = 1e-4
"""Largest difference of any output of any step from the bundle's own, on random crops."""

_Run = Callable[[Tensor], list[Tensor]]


class _AllSteps(nn.Module):
    """The network with tensors as outputs, in the order of OUTPUTS."""

    def __init__(self, model: HMR) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        steps = self.model(images).iterations
        return (
            torch.stack([step.rotmats for step in steps], 1),
            torch.stack([step.betas for step in steps], 1),
            torch.stack([step.pred_cam for step in steps], 1),
        )


def export(
    bundle: str | os.PathLike[str], to: str, output: str | os.PathLike[str]
) -> dict[str, Any]:
    """Write a bundle's network as the file `output`; to: `torchscript` or `onnx`.

    What was written is run on random crops, one and three at a time; only if every output of every
    step is within TOLERANCE of the bundle's own does the file get its name. Returns the file, its
    size, and the largest difference by output.

    ConfigError for an unknown format or when its packages are not installed; BundleError for a
    damaged bundle; HmrError when the numbers differ.
    """
    if to not in _WRITERS:
        raise ConfigError(f"to={to}: unknown format; one of {', '.join(_WRITERS)}")
    write = _WRITERS[to]
    model = load_network(bundle)
    network = _AllSteps(model).eval()
    target = Path(output)
    if target.is_dir():
        raise ConfigError(f"output={output}: is a folder; give the name of a file")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the finished file gets its name in one step.
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        # Exporters warn of their own deprecation and of the input check, which is fixed in a file.
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            run = write(network, _random_crops(2, model.image_size, seed=0), partial)
            differences = _differences(network, run, model.image_size)
        if not all(value <= TOLERANCE for value in differences.values()):
            raise HmrError(
                f"{bundle}: the {to} file differs from the bundle by {differences}, more than "
                f"{TOLERANCE:g}; nothing was written. Weights that are huge or degenerate do this: "
                "check the bundle with jobs/evaluate.py"
            )
        size = partial.stat().st_size
        partial.replace(target)
    return {
        "file": str(target),
        "format": to,
        "bytes": size,
        "image_size": model.image_size,
        "n_iter": model.regressor.n_iter,
        "tolerance": TOLERANCE,
        "largest_difference": differences,
    }


def _random_crops(count: int, side: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def _differences(network: nn.Module, run: _Run, side: int) -> dict[str, float]:
    """Largest absolute difference of each output over batches of other sizes than the example's."""
    largest = dict.fromkeys(OUTPUTS, 0.0)
    for count in (1, 3):
        crops = _random_crops(count, side, seed=count)
        for name, ours, theirs in zip(OUTPUTS, network(crops), run(crops), strict=True):
            if ours.shape != theirs.shape:
                raise HmrError(
                    f"{name} of the exported file is {tuple(theirs.shape)} for {count} crops, the "
                    f"bundle's is {tuple(ours.shape)}; export with the versions in constraints.txt"
                )
            # Not `max`: a comparison with NaN would hide it.
            difference = torch.tensor([largest[name], (ours - theirs).abs().max()])
            largest[name] = float(difference.max())
    return largest


def _write_torchscript(network: nn.Module, example: Tensor, path: Path) -> _Run:
    """Traced: every choice of the network is fixed by its configuration, none by its input.

    The trace is checked, not the file: this package loads no files that can hold programs.
    """
    traced = torch.jit.trace(network, (example,), check_trace=False)
    traced.save(str(path))
    return lambda images: list(traced(images))


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> _Run:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"to=onnx: needs the packages onnx, onnxscript and onnxruntime ({error}); run "
            "`pip install 'rayhmr[export]'`, or choose torchscript"
        ) from error
    torch.onnx.export(
        network, (example,), str(path), input_names=["images"], output_names=list(OUTPUTS),
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}}, dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: [
        torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})
    ]


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path], _Run]] = {
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
}
