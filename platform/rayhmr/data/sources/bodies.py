"""Body arrays that a worker process reads once."""

from __future__ import annotations

import functools

from hmr.body_arrays import BodyArrays, body_from_path


@functools.cache
def shared_body(path: str) -> BodyArrays:
    """`embedded` or the path of a body file; one copy for each process."""
    return body_from_path(path)
