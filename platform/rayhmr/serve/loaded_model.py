"""A verified, warm model in this process, and how it proves that it still answers as it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from hmr.fast_encoder import use_backend
from rayhmr.pinned_model import PinnedModel
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.exchange import Introduction
from rayhmr.serve.golden import check_golden
from rayhmr.serve.inference import Computed, Prepared, Work, compute_batch, probe_work

SAME_ANSWER_M = 1e-3
"""Metres by which the answer to one picture may differ between two checks."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What a process with a model needs to know.

    version, aliases: of the model, as answers show them. generation: of two versions under one name
    the one with the higher number answers. max_batch_size: most people of one forward pass.
    backend: of `hmr.fast_encoder`.
    """

    model: PinnedModel
    version: str
    aliases: tuple[str, ...]
    threads: int
    device: str
    max_batch_size: int
    backend: str = "torch"
    generation: int = 0


class LoadedModel:
    """The model of `settings`; BundleError when it is not the pinned one any more, or when its
    answer to the golden picture is wrong."""

    def __init__(self, settings: ModelSettings) -> None:
        torch.set_num_threads(settings.threads)
        cv2.setNumThreads(settings.threads)
        self._settings = settings
        self._predictor = settings.model.load(settings.device)
        use_backend(self._predictor.model, settings.backend, self._sizes)
        self.info = ModelInfo.of(
            self._predictor, name=settings.model.name, version=settings.version,
            aliases=settings.aliases,
        )  # fmt: skip
        check_golden(
            self._predictor, name=f"{settings.model.name}@{settings.version}",
            backend=settings.backend,
        )  # fmt: skip
        self._warm_up()
        self._expected = self._probe()

    @property
    def _sizes(self) -> list[int]:
        """Of batches that are made ready for: a lone request, a few, as many as there may be."""
        return sorted({1, min(4, self._settings.max_batch_size), self._settings.max_batch_size})

    @property
    def introduction(self) -> Introduction:
        """What it says of itself to the process that answers HTTP."""
        return Introduction(
            info=self.info, padding=self._predictor.box_padding,
            max_people=self._settings.max_batch_size, generation=self._settings.generation,
        )  # fmt: skip

    def compute(self, items: Sequence[Prepared]) -> list[Computed | Exception]:
        """One batch, in the order of its items."""
        return compute_batch(self._predictor, items)

    def prepare(self, work: Work) -> Prepared:
        """Cut out the people of a picture as this model wants them."""
        return Prepared.of(
            work, image_size=self._predictor.image_size, padding=self._predictor.box_padding
        )  # fmt: skip

    def check(self) -> None:
        """RuntimeError when the model's answer to the probe picture has changed."""
        difference = np.abs(self._probe() - self._expected).max()
        if not difference < SAME_ANSWER_M:
            raise RuntimeError(
                f"the model's answer to the probe picture changed by {difference:.3g} m"
            )

    def _warm_up(self) -> None:
        """Kernels are chosen, and memory is set aside, when a size of batch first comes."""
        probe = self.prepare(probe_work())
        for size in self._sizes:
            for result in self.compute([probe] * size):
                if isinstance(result, Exception):
                    raise result

    def _probe(self) -> np.ndarray:
        """(V, 3) metres: the mesh that the model sees in a gray picture."""
        (result,) = self.compute([self.prepare(probe_work())])
        if isinstance(result, Exception):
            raise result
        vertices: np.ndarray = result.columns["vertices"][0]
        return vertices
