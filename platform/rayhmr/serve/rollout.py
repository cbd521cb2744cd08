"""Models change while clients are answered: the service follows the aliases of its registry.

Each version of a model is a Ray Serve application of its own beside the one that listens. A new
version starts beside the old one and must prove itself: whole files, a finite and repeatable answer
to the golden picture that is the recorded one. Only then it dials the listening process, which
gives it the next request; the old version ends what it has, and leaves. One that fails is refused,
with the reason, and tried again only when the alias has pointed elsewhere in between.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ray import serve as ray_serve

from hmr.errors import ConfigError, HmrError
from rayhmr.config import ServeJob
from rayhmr.pinned_model import PinnedModel
from rayhmr.registry import Registry
from rayhmr.serve import notices
from rayhmr.serve.app import model_application
from rayhmr.serve.loaded_model import ModelSettings
from rayhmr.storage import joined, split
from rayhmr.telemetry import say

START_WITHIN_S = 180.0
"""A version that does not answer after so long is refused."""
DRAIN_S = 10.0
"""Longest that an old version stays to end what it has."""
POLL_S = 0.1
_ERROR = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): (.+)$", re.MULTILINE)


@dataclass
class Slot:
    """One name that requests may choose, and what answers for it.

    number: of the slot. follows: the alias whose version it is; none: the version never changes.
    refused: the version that the alias points at and that failed. tried: versions begun so far.
    """

    number: int
    settings: ModelSettings
    follows: tuple[Registry, str, str] | None
    refused: str | None = None
    tried: int = 0

    @property
    def name(self) -> str:
        """By which requests choose it."""
        return self.settings.model.name


def slots_of(job: ServeJob) -> list[Slot]:
    """The job's models, verified, the default first; BundleError or ConfigError for a bad one."""
    slots: list[Slot] = []
    for reference in (job.model, *job.models):
        model = PinnedModel.of(reference, job.body)
        if model.name in (slot.name for slot in slots):
            model = replace(model, name=split(reference)[1])
        if model.name in (slot.name for slot in slots):
            raise ConfigError(
                f"models: {reference} is there twice under the name {model.name}; leave it out, or "
                "name another version or alias"
            )
        wanted = split(reference)[1].partition("@")[2]
        follows = None
        if model.version is not None and not wanted.isdecimal():
            registry, last = split(model.reference)
            follows = Registry(registry), last.partition("@")[0], wanted
        slots.append(Slot(len(slots), settings_of(job, model), follows))
    return slots


def settings_of(job: ServeJob, model: PinnedModel, generation: int = 0) -> ModelSettings:
    """What a process with this model needs to know."""
    return ModelSettings(
        model=model, version=model.sha256[:12] if model.version is None else str(model.version),
        aliases=_aliases(model), threads=max(1, int(job.num_cpus)),
        device="cuda" if job.num_gpus else "cpu", max_batch_size=job.max_batch_size,
        backend=job.backend, generation=generation,
    )  # fmt: skip


def _aliases(model: PinnedModel) -> tuple[str, ...]:
    if model.version is None:
        return ()
    registry, last = split(model.reference)
    aliases = Registry(registry).aliases(last.partition("@")[0])
    return tuple(sorted(name for name, version in aliases.items() if version == model.version))


class Rollout:
    """Starts the models of a service, and exchanges them. One thread at a time may use it.

    prefix: of the names of its applications. folder: where the listening process is dialled
    (`address`) and notices are left. node: address of the machine.
    """

    def __init__(
        self, job: ServeJob, slots: Sequence[Slot], *, prefix: str, folder: Path, address: str,
        node: str,
    ) -> None:  # fmt: skip
        self._job, self._slots, self._prefix = job, list(slots), prefix
        self._folder, self._address, self._node = folder, address, node
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def applications(self) -> list[str]:
        """Names of the Serve applications of the present versions."""
        return [self._application(slot, slot.settings) for slot in self._slots]

    def start(self) -> None:
        """All models at once; HmrError says why one does not come up."""
        for slot in self._slots:
            self._deploy(slot, slot.settings)
        for slot in self._slots:
            self._wait_for(slot, slot.settings)

    def follow(self, every_s: float) -> None:
        """Look at the registry from now on, in a thread, until `stop`."""
        if any(slot.follows for slot in self._slots):
            self._thread = threading.Thread(
                target=self._follow, args=(every_s,), name="rollout", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Begin no exchange any more, and give up one under way."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _follow(self, every_s: float) -> None:
        troubles: dict[int, str] = {}
        while not self._stopped.wait(every_s):
            for slot in self._slots:
                try:
                    self.look(slot)
                    troubles.pop(slot.number, None)
                except Exception as error:  # a registry out of reach; what serves goes on
                    if troubles.get(slot.number) != str(error):
                        say(f"{slot.name}: cannot follow the registry: {error}")
                    troubles[slot.number] = str(error)

    def look(self, slot: Slot) -> None:
        """Exchange the model of a slot if its alias has moved."""
        if slot.follows is None:
            return
        registry, name, alias = slot.follows
        version = registry.version_of(name, alias)
        if str(version) == slot.settings.version:
            if slot.refused is not None:
                slot.refused = None
                self._tell(slot)
        elif str(version) != slot.refused:
            say(f"{slot.name}: {alias} moved to version {version}, starting it")
            self._tell(slot, wanted=str(version), state="starting")
            self._exchange(slot, joined(registry.uri, f"{name}@{version}"), str(version))

    def _exchange(self, slot: Slot, reference: str, version: str) -> None:
        old, begun = slot.settings, time.monotonic()
        slot.tried += 1
        new = replace(old, generation=slot.tried)
        try:
            model = replace(PinnedModel.of(reference, self._job.body), name=slot.name)
            new = settings_of(self._job, model, slot.tried)
            self._deploy(slot, new)
            self._wait_for(slot, new)
        except HmrError as error:
            self._delete(slot, new)
            place = split(reference)[0].partition("?")[0]
            reason = str(error).replace(f"{place}/", "")
            slot.refused = version
            say(f"{slot.name}: refused version {version}, {old.version} stays: {reason}")
            self._tell(slot, wanted=version, state="refused", reason=reason)
            return
        slot.settings, slot.refused = new, None
        say(f"{slot.name}: version {version} answers, {time.monotonic() - begun:.1f} s after")
        self._tell(slot)
        # The old version gets no more requests; it may have some to answer.
        self._stopped.wait(min(DRAIN_S, self._job.request_timeout_s))
        self._delete(slot, old)

    def _application(self, slot: Slot, settings: ModelSettings) -> str:
        return f"{self._prefix}-{slot.number}-{settings.generation}"

    def _deploy(self, slot: Slot, settings: ModelSettings) -> None:
        """Ask Ray for the processes; returns at once."""
        target = ray_serve.RunTarget(
            model_application(self._job, settings, self._address, self._node),
            name=self._application(slot, settings), route_prefix=None,
        )  # fmt: skip
        try:
            ray_serve.run_many(
                [target], wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )  # fmt: skip
        except RuntimeError as error:
            raise HmrError(f"Ray Serve did not take the model: {error}") from error

    def _wait_for(self, slot: Slot, settings: ModelSettings) -> None:
        """Return once this version answers with all of its processes; HmrError says why it does
        not."""
        name = self._application(slot, settings)
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            message = ""
            if (status := ray_serve.status().applications.get(name)) is not None:
                answering = notices.read(self._folder, notices.ANSWERING, {}).get(slot.name)
                if status.status == "RUNNING" and answering == settings.generation:
                    return
                message = " ".join(d.message for d in status.deployments.values())
                if status.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise HmrError(_reason(f"{message}\n{status.message}"))
            if time.monotonic() > deadline:
                raise HmrError(
                    f"did not answer within {START_WITHIN_S:g} s ({message or 'no news'}); a new "
                    "version needs room beside the old one: free or add CPUs or GPUs"
                )
            if self._stopped.wait(POLL_S):
                raise HmrError("the service was stopped meanwhile")

    def _delete(self, slot: Slot, settings: ModelSettings) -> None:
        name = self._application(slot, settings)
        if name in ray_serve.status().applications:
            ray_serve.delete(name)

    def _tell(self, slot: Slot, **news: Any) -> None:
        """Note what happens to the version that an alias points at; nothing: it answers."""
        told = notices.read(self._folder, notices.ROLLOUTS, [])
        others = [one for one in told if one["model"] != slot.name]
        mine = [{"model": slot.name, "serving": slot.settings.version} | news] if news else []
        notices.leave(self._folder, notices.ROLLOUTS, [*others, *mine])


def _reason(message: str) -> str:
    """The error's own words from the traceback that Serve tells."""
    found: list[str] = _ERROR.findall(message)
    return found[-1] if found else " ".join(message.split())[-500:]
