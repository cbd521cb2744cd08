"""Published checkpoints as bundles: SPIN, mmhuman3d's HMR and SPIN, the ETH course project.

Fed with the same 224 px crop, a converted SPIN checkpoint gives SPIN's own rotations, betas and
camera to 1e-5. Encoder (torchvision's ResNet-50 has SPIN's names and its stride in the 3x3
convolution), normalisation (RGB / 255, ImageNet's mean and deviation), order of the regressor's
inputs and 6D layout are the same. Running SPIN itself differs in this:

- Its average pooling has a fixed 7 x 7 window, so it takes 224 px only. Ours pools whatever is
  there, which at 224 px is the same.
- Its crops are cut at whole pixels, and where they reach out of the picture old SciPy stretches
  their contrast; ours are exact affine ones (`hmr.crops`). Its demo takes a given box as it is,
  while the predictor widens boxes by `hmr.crops.DEFAULT_PADDING`.
- It turns only the last step into rotations; ours returns every step.

mmhuman3d pools by mean; a head that it trained without a mean file starts from zeros, which are no
rotations: its step 0 is meaningless, every later one is right.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmr.body import Body
from hmr.checkpoint import save_bundle
from hmr.errors import BundleError, ConfigError
from hmr.manifest import sha256
from hmr.model import HMR, build_model
from hmr.published_layouts import LAYOUTS, REGRESSOR, Layout, configuration
from hmr.regressor import POSE, MeanParameters

STARTS = {"init_pose": "pose", "init_shape": "shape", "init_cam": "cam"}
"""Buffers of the regressor and the arrays of smpl_mean_params.npz that fill them."""
SHOWN = 10
"""Names shown of each kind of difference."""

_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"), _SCALAR, np.dtype,
    *(type(np.dtype(code)) for code in "fdilq?"),
]  # fmt: skip
"""Figures such as a best loss stand in many checkpoints as numpy scalars, before numpy 2 under
another name."""


def convert_checkpoint(
    kind: str,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    body: Body,
    mean_params: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Write the checkpoint `input` of the given kind (a key of LAYOUTS) as the bundle `output`.

    body: the body that the weights were trained for; SPIN's and mmhuman3d's need the neutral SMPL.
    mean_params: a smpl_mean_params.npz, for a checkpoint without its start (init_pose, ...).

    The file is read by torch's allow-list reader: nothing in it is executed. A 6D head in the block
    layout (known by its start) is turned into the interleaved one. Returns bundle, encoder, number
    of tensors, the names left out, sha256 of the file.

    ConfigError for an unknown kind; BundleError when the file cannot be read or does not fit,
    naming what is missing, left over, or of another shape.
    """
    if kind not in LAYOUTS:
        raise ConfigError(f"from={kind}: unknown kind of checkpoint; one of {', '.join(LAYOUTS)}")
    layout, path = LAYOUTS[kind], Path(input)
    found = _state_dict(_read(path, layout), layout, path)
    ignored = [name for name in found if name.startswith(layout.ignored)]
    found = {name: value for name, value in found.items() if name not in ignored}
    if mean_params is not None:
        _add_start(found, layout, path, mean_params)
    config = configuration(found, layout)
    model = build_model(config)
    fitted = _fitted(found, model, layout, f"{path}: is no {kind} checkpoint ({config.encoder})")
    start = fitted.get(f"{REGRESSOR}init_pose")
    block = start is not None and _is_block(start)
    if block:
        _interleave(fitted, model.regressor.in_features)
    model.load_state_dict(fitted)
    digest = sha256(path)
    provenance = {"converted_from": kind, "file": path.name, "file_sha256": digest}
    bundle = save_bundle(
        output, model=model, model_config=config, body=body, metrics={}, provenance=provenance
    )
    return {
        "bundle": str(bundle),
        "encoder": config.encoder,
        "tensors": len(fitted),
        "left_out": sorted(ignored),
        "turned_from_block_6d": block,
        "sha256": digest,
    }


def _read(path: Path, layout: Layout) -> Any:
    """What torch saved in the file, if it is tensors and plain values."""
    if not path.is_file():
        raise BundleError(f"{path}: no such file; give the checkpoint as it was published")
    try:
        # What torch warns of (an old pickle, a sparse tensor) is harmless or refused below.
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL ([\w.]+)", str(error))
        if culprit is None:
            raise BundleError(f"{path}: is no file of torch.save; give the checkpoint") from error
        raise BundleError(
            f"{path}: refers to {culprit[1]}, and only tensors and plain values are read, since "
            "anything else could run code. If you trust the file, load it with the code it came "
            f"with and save its weights alone: torch.save(checkpoint[{layout.key!r}], new_file)"
        ) from error
    # Torch's reader raises nearly anything, depending on where a damaged file breaks.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise BundleError(f"{path}: cannot be read ({reason}); download it again") from error


def _state_dict(loaded: Any, layout: Layout, path: Path) -> dict[str, Tensor]:
    """The weights by their published names, without the prefix of DataParallel."""
    state = loaded
    if isinstance(loaded, Mapping) and isinstance(loaded.get(layout.key), Mapping):
        state = loaded[layout.key]
    if not isinstance(state, Mapping) or not state:
        raise BundleError(f"{path}: holds no weights; expected them under {layout.key!r}")
    for name, value in state.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise BundleError(
                f"{path}: expected tensors by name under {layout.key!r}, found {name!r} with a "
                f"{type(value).__name__}; give the checkpoint as it was published"
            )
        if not value.isfinite().all():
            raise BundleError(f"{path}: {name} has values that are not finite; download it again")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    # The course project repeats its start for every row of its training batch.
    repeated = "regressor.init_theta"
    return {n: v[:1] if n == repeated and v.ndim == 2 else v for n, v in state.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized


def _add_start(
    found: dict[str, Tensor], layout: Layout, path: Path, mean_params: str | os.PathLike[str]
) -> None:
    mean = MeanParameters.from_file(mean_params)
    if "regressor" in layout.settings:
        raise ConfigError(f"mean_params={mean_params}: this kind brings its start; leave it out")
    for ours, array in STARTS.items():
        theirs = layout.theirs(REGRESSOR + ours)
        if theirs in found:
            raise BundleError(
                f"{path}: brings its own start ({theirs}); leave mean_params={mean_params} out"
            )
        found[theirs] = getattr(mean, array)[None]


def _fitted(
    found: dict[str, Tensor], model: HMR, layout: Layout, problem: str
) -> dict[str, Tensor]:
    """The tensors under our names; BundleError shows both sides of every difference."""
    own = {layout.theirs(name): (name, value) for name, value in model.state_dict().items()}
    stand_ins = {n: value for n, (name, value) in own.items() if name.endswith(layout.optional)}
    found = stand_ins | found
    missing = {name: value for name, (_, value) in own.items() if name not in found}
    left_over = {name: value for name, value in found.items() if name not in own}
    reshaped = [
        f"{name} is {tuple(found[name].shape)}, must be {tuple(value.shape)}"
        for name, (_, value) in own.items()
        if name in found and found[name].shape != value.shape
    ]
    parts = [
        _listed("lacks", [f"{name} {tuple(value.shape)}" for name, value in missing.items()]),
        _listed("has left over", [f"{n} {tuple(v.shape)}" for n, v in left_over.items()]),
        _listed("has in another shape", reshaped),
    ]
    if any(parts):
        cure = "choose the kind of code that wrote it: " + ", ".join(LAYOUTS)
        if missing and all(name.rpartition(".")[2] in STARTS for name in missing):
            cure = "give the start as mean_params=smpl_mean_params.npz"
        raise BundleError(f"{problem}. {' '.join(filter(None, parts))} Cure: {cure}")
    return {name: found[theirs].to(value.dtype) for theirs, (name, value) in own.items()}


def _listed(what: str, names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"It {what} ({len(names)}): {', '.join(names[:SHOWN])}{more}." if names else ""


def _is_block(init_pose: Tensor) -> bool:
    """Whether a (1, 144) start is rotations in HMR2's block layout, and not in the interleaved."""

    def orthonormal(columns: Tensor) -> bool:
        return torch.allclose(columns.mT @ columns, torch.eye(2), atol=1e-3)

    interleaved, block = init_pose.view(24, 3, 2), init_pose.view(24, 2, 3).mT
    return orthonormal(block) and not orthonormal(interleaved)


def _interleave(tensors: dict[str, Tensor], in_features: int) -> None:
    """Reorder, in place, all that reads or writes a pose in the block layout."""
    order = torch.arange(POSE).view(24, 2, 3).mT.flatten()
    for name in ("decpose.weight", "decpose.bias"):
        tensors[REGRESSOR + name] = tensors[REGRESSOR + name][order]
    tensors[f"{REGRESSOR}init_pose"] = tensors[f"{REGRESSOR}init_pose"][:, order]
    columns = torch.arange(tensors[f"{REGRESSOR}fc1.weight"].shape[1])
    columns[in_features : in_features + POSE] = in_features + order
    tensors[f"{REGRESSOR}fc1.weight"] = tensors[f"{REGRESSOR}fc1.weight"][:, columns]
