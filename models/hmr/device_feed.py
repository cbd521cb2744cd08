"""Batches on the training device, one ahead of the step that uses it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from hmr.structures import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches on `device`.

    To a GPU each is copied from pinned memory on a stream of its own while the step before is
    computed. On a CPU they are where they should be.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.pinned().to(device, non_blocking=True)
        if ahead is not None:
            yield ahead
        # The step may begin when the copy has ended, and the memory is in use until the step has.
        torch.cuda.current_stream(device).wait_stream(stream)
        copied.record_stream(torch.cuda.current_stream(device))
        ahead = copied
    if ahead is not None:
        yield ahead
