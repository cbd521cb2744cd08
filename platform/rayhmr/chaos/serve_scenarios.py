"""What happens to a service under load, and what has to hold: rows R22 to R30 of the scorecard.

Every function plays one scenario in a `ServeLab` and returns its record. `seconds` are those that a
client waited longest, or that passed until the service was as before.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from hmr.errors import HmrError
from rayhmr.benchmark_load import Measured
from rayhmr.benchmark_servers import ask
from rayhmr.chaos.lab import Record
from rayhmr.chaos.scenarios import expect
from rayhmr.chaos.serve_lab import BATCH, QUEUE, ServeLab, expect_answers

ServeScenario = Callable[[ServeLab], Record]

OUTAGE_S = 7.0
"""Longest that nobody may be let in when the only process that listens has died."""
ROLLBACK_S = 30.0
MEMORY_MB = 200.0


def replica_kill(lab: ServeLab) -> Record:
    """SIGKILL to one of two processes with the model, under load (R22)."""
    sent = lab.send()
    time.sleep(lab.load_s / 4)
    victim = lab.models()[0]
    os.kill(victim, signal.SIGKILL)
    measured = sent.result()
    expect_answers(measured, "200")
    back = lab.until(lambda: len(set(lab.models()) - {victim}) == 2, "the second process again")
    more = f"second process back {back:.0f} s after the load"
    return _record("replica_kill", measured, kills=1, more=more)


def controller_kill(lab: ServeLab) -> Record:
    """SIGKILL to Ray Serve's controller, under load (R23)."""
    before = lab.controller()
    sent = lab.send()
    time.sleep(lab.load_s / 4)
    os.kill(before, signal.SIGKILL)
    measured = sent.result()
    expect_answers(measured, "200")
    expect(lab.controller() != before, "the controller did not come back")
    return _record("controller_kill", measured, kills=1, more="controller back")


def front_kill(lab: ServeLab) -> Record:
    """SIGKILL to the only process that listens (R24)."""
    os.kill(lab.front(), signal.SIGKILL)
    begun = time.monotonic()
    lab.until(lambda: not lab.is_answered(), "the end of the process")
    lab.until(lab.is_answered, "an answer")
    outage = time.monotonic() - begun
    expect(outage <= OUTAGE_S, f"nobody was let in for {outage:.1f} s, more than {OUTAGE_S:g} s")
    return Record(
        scenario="front_kill", survived=True, kills=1, seconds=(outage,), note="models dialled anew"
    )


def rolling_update(lab: ServeLab) -> Record:
    """A new version under load, and back (R25)."""
    sent = lab.send(seconds=2 * lab.load_s)
    forth = lab.move(lab.versions.second)
    back = lab.move(lab.versions.first)
    measured = sent.result()
    expect_answers(measured, "200")
    expect(back <= ROLLBACK_S, f"the way back took {back:.0f} s, more than {ROLLBACK_S:g} s")
    more = f"new version after {forth:.0f} s, old one again after {back:.0f} s"
    return _record("rolling_update", measured, kills=0, more=more)


def bad_weights(lab: ServeLab) -> Record:
    """A version whose constructor fails for its NaN, then one with a wrong hash, under load (R25,
    R26)."""
    sent = lab.send(seconds=2 * lab.load_s)
    for version, words in ((lab.versions.nan, "finite"), (lab.versions.damaged, "sha256")):
        lab.registry.set_alias("hmr", "best", version)
        lab.until(
            lambda version=version, words=words: any(  # type: ignore[misc]
                r["wanted"] == str(version) and words in (r.get("reason") or "")
                for r in lab.rollouts()
            ),
            f"the refusal of version {version}",
        )
        expect(lab.serving() == lab.versions.first, "another version answers")
    measured = sent.result()
    expect_answers(measured, "200")
    return _record("bad_weights", measured, kills=0, more="both refused, reasons in /v1/models")


def overload(lab: ServeLab) -> Record:
    """Four times the requests that it can answer (R27)."""
    full = lab.send(rate_per_s=None, connections=BATCH, seconds=lab.load_s / 4).result()
    most = len(full.latencies_ms) / full.seconds
    front = lab.front()
    before = _memory_mb(front)
    measured = lab.send(rate_per_s=4 * most, connections=128).result()
    expect_answers(measured, "200", "429", "408")
    expect("429" in measured.statuses, f"{4 * most:.0f} requests a second were no overload")
    grown = _memory_mb(front) - before
    expect(grown <= MEMORY_MB, f"the process that listens grew by {grown:.0f} MB")
    waited = lab.until(lab.is_answered, "an answer")
    calm = lab.send(rate_per_s=most / 8, seconds=lab.load_s / 4).result()
    expect_answers(calm, "200")
    shares = ", ".join(f"{n} x {status}" for status, n in sorted(measured.statuses.items()))
    return Record(
        scenario="overload", survived=True, seconds=(waited,),
        note=f"{shares} (limit {QUEUE} + {BATCH}); {grown:+.0f} MB; all 200 afterwards",
    )  # fmt: skip


def poison(lab: ServeLab) -> Record:
    """Bodies that are no picture among good ones (R28)."""
    good = lab.pictures[: QUEUE // 2]
    alone = [_joints(lab, picture) for picture in good]
    with ThreadPoolExecutor(QUEUE) as pool:
        bad = [pool.submit(_status, lab, b"no picture") for _ in range(4)]
        together = [pool.submit(_joints, lab, picture) for picture in good]
    expect({b.result() for b in bad} == {415}, "what is no picture was not refused with 415")
    far = max(
        float(np.abs(t.result() - a).max()) for t, a in zip(together, alone, strict=True)
    )  # fmt: skip
    expect(far <= 1e-5, f"an answer moved by {far:.2g} m in the company of bad ones")
    return Record(
        scenario="poison", survived=True,
        note=f"4 x 415, {len(good)} x 200, within {far:.1g} m of the answers alone",
    )  # fmt: skip


def _joints(lab: ServeLab, picture: bytes) -> np.ndarray:
    return np.array(ask(lab.url, picture)["people"][0]["joints_3d"])


def _status(lab: ServeLab, body: bytes) -> int:
    headers = {"content-type": "image/jpeg"}
    return httpx.post(
        f"{lab.url}/v1/predict", content=body, headers=headers, timeout=60
    ).status_code  # fmt: skip


def _memory_mb(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1000


def _record(name: str, measured: Measured, *, kills: int, more: str) -> Record:
    levels = np.percentile(measured.latencies_ms, (50, 99))
    return Record(
        scenario=name, survived=True, kills=kills, seconds=(max(measured.latencies_ms) / 1000,),
        note=f"0 of {len(measured.latencies_ms)} failed, p50 {levels[0]:.0f} ms, "
        f"p99 {levels[1]:.0f} ms; {more}",
    )  # fmt: skip


def played_on_service(scenario: ServeScenario, lab: ServeLab) -> Record:
    """The record of a scenario, also when it failed; afterwards the service is as before."""
    try:
        lab.settle()  # another scenario may have failed before
        record = scenario(lab)
        lab.settle()
    except Exception as error:
        what = str(error) if isinstance(error, HmrError) else repr(error)
        return Record(scenario=scenario.__name__, survived=False, note=" ".join(what.split())[:400])
    return record


SERVE_SCENARIOS: dict[ServeScenario, tuple[str, str]] = {
    replica_kill: ("R22", "1 of 200 failed, p50 2.85 s for 10 s"),
    controller_kill: ("R23", "0 of 240 failed"),
    front_kill: ("R24", "29.9 s (6.0 s tuned) without its proxy"),
    rolling_update: ("R25", "0 of 300 failed"),
    bad_weights: ("R25, R26", "no such check"),
    overload: ("R27", "36 x 429, 8 x 408, 16 x 200 of 60, limits configured"),
    poison: ("R28", "all 500"),
}
"""Scenario -> its rows, and what unmodified Ray does. R29 and R30 are tests
(`tests/rayhmr/serve/test_hostile.py`)."""
