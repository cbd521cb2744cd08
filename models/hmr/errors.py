"""The errors a user of `hmr` can meet.

HmrError (is a ValueError)
├── ConfigError   a setting is unknown, out of range, or contradicts another
├── BodyError     a body file is missing, malformed, or not the one a model was trained with
├── DataError     a label or data set breaks its contract
├── ImageError    bytes that are not an image we accept
└── BundleError   a model bundle is missing, incomplete, or was changed

Every message names the value, the rule it broke, and what to do about it.
"""

from __future__ import annotations


class HmrError(ValueError):
    """Base of all errors that a user of this package can cause and cure."""


class ConfigError(HmrError):
    """A setting is unknown, out of range, or contradicts another one."""


class BodyError(HmrError):
    """A body file is missing, malformed, or not the one a model was trained with."""


class DataError(HmrError):
    """A label or a data set breaks its contract."""


class ImageError(HmrError):
    """Bytes that are not an image we accept; `reason` is a short stable code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Two arguments: the default pickling of exceptions would lose one between Ray processes.
        return type(self), (self.reason, str(self))


class BundleError(HmrError):
    """A model bundle is missing, incomplete, or was changed after it was written."""


class DivergedError(HmrError):
    """A training without finite gradients; to start it again from its checkpoint would not help."""
