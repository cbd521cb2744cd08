"""Which model a job uses, held fast: an alias may move while the job runs, its model may not."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hmr.body import Body
from hmr.checkpoint import WEIGHTS, load_bundle, verify_bundle
from hmr.config import BodyConfig
from hmr.errors import BundleError
from hmr.predictor import Predictor
from rayhmr.registry import Registry, resolve
from rayhmr.storage import absolute, joined, split


@dataclass(frozen=True, kw_only=True)
class PinnedModel:
    """reference: opens the same weights in every process. version: none for a plain folder.
    sha256: of the weights. body: the body file they belong to, unless it is the embedded one."""

    reference: str
    name: str
    version: int | None
    sha256: str
    body: BodyConfig

    @classmethod
    def of(cls, reference: str, body: BodyConfig) -> PinnedModel:
        """A bundle's folder, registry/name@version or registry/name@alias; BundleError if none."""
        reference = absolute(reference.rstrip("/"))
        registry, last = split(reference)
        name, at, wanted = last.partition("@")
        version = None
        if at and not os.path.isdir(reference):
            version = Registry(registry).version_of(name, wanted)
            reference = joined(registry, f"{name}@{version}")
        manifest = verify_bundle(resolve(reference))
        if body.path != "embedded":
            body = body.model_copy(update={"path": absolute(body.path)})
        return cls(
            reference=reference,
            name=last if version is None else name,
            version=version,
            sha256=manifest["files"][WEIGHTS],
            body=body,
        )

    def load(self, device: str) -> Predictor:
        """The model on `device`. BundleError when its weights are not the pinned ones any more."""
        folder = resolve(self.reference)
        body = None if self.body == BodyConfig() else Body.from_config(self.body)
        predictor = load_bundle(folder, device=device, body=body)
        found = verify_bundle(folder)["files"][WEIGHTS]
        if found != self.sha256:
            raise BundleError(
                f"{self.reference}: the weights changed from {self.sha256[:12]}… to "
                f"{found[:12]}… during the job; start it again"
            )
        return predictor
