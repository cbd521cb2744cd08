"""The forms of an answer, and which of them a client wants."""

from __future__ import annotations

from rayhmr.serve.problems import Problem

JSON, GLB, NPZ, PNG = "application/json", "model/gltf-binary", "application/x-npz", "image/png"
ZIP = "application/zip"
MEDIA_TYPES = (JSON, GLB, NPZ, PNG)
"""Forms of the answer to one picture."""


def negotiate(accept: str | None, offers: tuple[str, ...] = MEDIA_TYPES) -> str:
    """The one of `offers` that an Accept header prefers; Problem 406 when it allows none."""
    best, best_quality = "", 0.0
    for part in (accept or "*/*").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = _quality(parameters)
        offered = next((media for media in offers if _matches(kind, media)), None)
        if offered is not None and quality > best_quality:
            best, best_quality = offered, quality
    if not best:
        raise Problem(
            406, "not_acceptable", f"accept {accept:.80}: ask for one of {', '.join(offers)}"
        )
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def _matches(pattern: str, media: str) -> bool:
    family = media.partition("/")[0]
    return pattern in (media, f"{family}/*", "*/*")
