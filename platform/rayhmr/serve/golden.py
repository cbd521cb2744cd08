"""The golden picture: what a model must make of it before anybody is answered by it.

The picture, a made-up person, is part of the package, as PNG, so that every decoder gives the same
pixels. A training records its model's answer in the bundle's manifest; a process that is about to
serve the model must come to the same one. Bundles without a record must still give a finite body
of a possible size, twice the same.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from hmr.crops import decode_image
from hmr.errors import BundleError, DataError
from hmr.predictor import Predictor
from rayhmr.serve.inference import Computed, Prepared, Work, compute_batch

RECORD = "golden_answer"
"""Key of a manifest's provenance: the joints (24, 3) in tenths of millimetres, pelvis-centred."""
SIZE_M = (0.2, 4.0)
"""Between these the longest side of a body's mesh is; a new model's bodies are still odd."""
REPEATED_M = 1e-4
"""Metres by which two answers of one process may differ."""
RECORDED_M = {"torch": 2e-3, "onnx": 2e-3, "compiled": 3e-2}
"""Metres by which an answer may differ from the recorded one, by backend: other machines round
differently, and `compiled` computes in bfloat16."""


@cache
def golden_work() -> Work:
    """The picture, whole."""
    content = Path(__file__).with_name("golden.png").read_bytes()
    return Work(image=decode_image(content))


def golden_answer(predictor: Predictor) -> list[list[int]] | None:
    """What a bundle's manifest records under RECORD; none for a model whose answer is not finite,
    which no service will take."""
    joints = _joints(_answer(predictor))
    if not np.isfinite(joints).all():
        return None
    rounded: list[list[int]] = np.rint(1e4 * joints).astype(int).tolist()
    return rounded


def check_golden(predictor: Predictor, *, name: str, backend: str = "torch") -> None:
    """BundleError unless the model answers the golden picture as it should.

    name: of the model, for the message. backend: what runs it, for the tolerance.
    """
    try:
        first, second = _answer(predictor), _answer(predictor)
        _check_body(first)
        _check_same(_joints(first), _joints(second), REPEATED_M, "its own answer a moment before")
        recorded = predictor.info.get("provenance", {}).get(RECORD)
        if recorded is not None:
            expected = np.asarray(recorded, np.float64) / 1e4
            _check_same(_joints(first), expected, RECORDED_M[backend], "the recorded answer")
    except BundleError as error:
        raise BundleError(f"{name}: failed the check with the golden picture: {error}") from error


def _answer(predictor: Predictor) -> dict[str, np.ndarray]:
    prepared = Prepared.of(
        golden_work(), image_size=predictor.image_size, padding=predictor.box_padding
    )  # fmt: skip
    (result,) = compute_batch(predictor, [prepared])
    if isinstance(result, DataError):
        raise BundleError(str(result)) from result
    if not isinstance(result, Computed):
        raise result
    return result.columns


def _joints(columns: dict[str, np.ndarray]) -> np.ndarray:
    """(24, 3) metres around the pelvis."""
    joints: np.ndarray = columns["joints_3d"][0].astype(np.float64)
    return joints - joints[0]


def _check_body(columns: dict[str, np.ndarray]) -> None:
    for column, values in columns.items():
        if not np.isfinite(values).all():
            raise BundleError(
                f"{column} is not finite; train the model anew, or promote another version"
            )
    size = float(np.ptp(columns["vertices"][0], axis=0).max())
    if not SIZE_M[0] <= size <= SIZE_M[1]:
        raise BundleError(
            f"the body is {size:.3g} m long, people are between {SIZE_M[0]:g} and {SIZE_M[1]:g} m; "
            "train the model anew, or promote another version"
        )


def _check_same(found: np.ndarray, expected: np.ndarray, limit_m: float, what: str) -> None:
    difference = float(np.abs(found - expected).max())
    if not difference <= limit_m:
        raise BundleError(
            f"a joint is {difference:.3g} m from {what}, at most {limit_m:g} m are allowed; "
            "register the bundle that was trained, or promote another version"
        )
