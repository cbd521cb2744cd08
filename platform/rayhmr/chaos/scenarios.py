"""What dies, when, and what has to hold afterwards: the training rows of the scorecard R1 to R17.

Every function plays one scenario in a lab and returns its record. A check that fails is an
HmrError, and so is a wait that takes too long; `played` turns both into a record.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from hmr.errors import HmrError
from rayhmr.chaos.lab import SAVE_EVERY, STEPS_PER_EPOCH, Lab, Record
from rayhmr.chaos.run import PATIENCE_S

Scenario = Callable[[Lab], Record]

STOPPED_BY_SIGTERM = 143


def expect(holds: bool, what: str) -> None:
    """HmrError unless it holds."""
    if not holds:
        raise HmrError(what)


def played(scenario: Scenario, lab: Lab) -> Record:
    """The record of a scenario, also when it failed: one that breaks does not cost the others."""
    try:
        return scenario(lab)
    except Exception as error:
        what = str(error) if isinstance(error, HmrError) else repr(error)
        note = " ".join(what.split())
        return Record(scenario=scenario.__name__, survived=False, note=note[:400])


def worker_kills(lab: Lab) -> Record:
    """SIGKILL to a training worker, three times in one run (R1, R2, R3)."""
    return _process_kills(lab, "worker_kills", lambda cluster, run, n: run.worker(n % 2))


def controller_kill(lab: Lab) -> Record:
    """SIGKILL to the actor that directs the training; the same command goes on."""
    with lab.shared() as cluster, lab.run("controller_kill") as run:
        run.start(cluster)
        run.until_step(STEPS_PER_EPOCH + 13)
        (controller,) = cluster.workers("ray::TrainController")
        wait = run.recovery()
        os.kill(controller, signal.SIGKILL)
        outcome = run.job.wait()
        note = "same weights"
        if outcome.code != 0:
            note += f", after the same command again (the job had ended with {outcome.code})"
            run.start(cluster)
            seconds = wait()
            outcome = run.job.wait()
        else:
            seconds = wait()
        expect(lab.same_weights(outcome), "other weights than without the kill")
        return Record(
            scenario="controller_kill", survived=True, note=note, kills=1,
            steps_lost=run.steps_lost(lab.total), seconds=(seconds,),
        )  # fmt: skip


def _process_kills(lab: Lab, name: str, victim: Callable[..., int], times: int = 3) -> Record:
    """SIGKILL to a process of a run's group of workers, at steps spread over the run."""
    with lab.shared() as cluster, lab.run(name) as run:
        run.start(cluster)
        seconds = []
        for number in range(times):
            run.until_step(lab.total * (number + 1) // (times + 1) + 3)
            pid = victim(cluster, run, number)
            wait = run.recovery()
            os.kill(pid, signal.SIGKILL)
            seconds.append(wait())
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the kills")
        expect(not run.repeated_or_missing(lab.ids()), "samples did not count exactly once")
        lost = run.steps_lost(lab.total)
        expect(lost <= times * 4 * SAVE_EVERY, f"{lost} steps were lost")
        return Record(
            scenario=name, survived=True, note="same weights, every sample once an epoch",
            kills=times, steps_lost=lost, seconds=tuple(seconds),
        )  # fmt: skip


def node_kill(lab: Lab) -> Record:
    """SIGKILL to the raylet of a node with a worker, while a spare node is there (R4)."""
    with lab.cluster(nodes=3) as cluster, lab.run("node_kill") as run:
        run.start(cluster)
        run.until_step(STEPS_PER_EPOCH + 13)
        node = cluster.node_of(run.worker(1))
        wait = run.recovery()
        node.tell("kill-raylet")
        seconds = wait()
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the kill")
        return Record(
            scenario="node_kill", survived=True, note="same weights, on the spare node", kills=1,
            steps_lost=run.steps_lost(lab.total), seconds=(seconds,),
        )  # fmt: skip


def elastic(lab: Lab) -> Record:
    """A node of two dies without a spare, and comes back: the run goes on with one worker, then
    with two (R5)."""
    # Long enough for Ray to notice the new node.
    epochs = 6 * lab.epochs
    settings = {"scaling__min_workers": 1, "data__lanes": 2, "train__epochs": epochs}
    with lab.cluster() as cluster, lab.run("elastic", **settings) as run:
        run.start(cluster)
        run.until_step(STEPS_PER_EPOCH + 13)
        wait = run.recovery()
        cluster.node_of(run.worker(1)).tell("kill-raylet")
        seconds = wait()
        expect(len(run.starts()[-1]) == 1, "did not go on with one worker")
        cluster.add(lab.cpus)
        grown = run.until(lambda: len(run.starts()[-1]) == 2, "the second worker")
        outcome = run.job.wait(2 * PATIENCE_S)
        expect(outcome.code == 0, f"ended with {outcome.code}: {outcome.stderr[-400:]}")
        wrong = run.repeated_or_missing(lab.ids())
        expect(not wrong, f"{len(wrong)} samples did not count exactly once in each epoch")
        return Record(
            scenario="elastic", survived=True, kills=1, seconds=(seconds,),
            note=f"2 workers, 1, and 2 again {grown:.0f} s after the node; every sample once",
            steps_lost=run.steps_lost(epochs * STEPS_PER_EPOCH),
        )  # fmt: skip


def preemption(lab: Lab) -> Record:
    """Notice that a node will be taken away, then it is (R6)."""
    notice_s = 15.0
    with lab.cluster(nodes=3) as cluster, lab.run("preemption", max_failures=0) as run:
        run.start(cluster)
        run.until_step(5)
        node = cluster.node_of(run.worker(1))
        wait = run.recovery()
        cluster.drain(node, notice_s)
        noticed = time.monotonic()

        def taken() -> bool:
            # A fast machine must not be done before the node is gone.
            late = time.monotonic() - noticed > notice_s or run.position() > lab.total - 30
            return late or len(run.starts()) > 1

        before = run.until(taken, "the deadline")
        node.tell("kill-raylet")
        seconds = wait() - before
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the notice")
        return Record(
            scenario="preemption", survived=True, kills=1,
            note=f"{before:.0f} s after the notice; same weights, not charged to max_failures",
            steps_lost=run.steps_lost(lab.total), seconds=(seconds,),
        )  # fmt: skip


def gcs_kill(lab: Lab) -> Record:
    """SIGKILL to the GCS, which keeps its state in RocksDB, and its restart (R7)."""
    with lab.cluster(durable=True) as cluster, lab.run("gcs_kill") as run:
        run.start(cluster)
        run.until_step(STEPS_PER_EPOCH // 2)
        cluster.head.tell("kill-gcs")
        at, since = run.position(), time.monotonic()
        time.sleep(3)
        cluster.head.tell("start-gcs")
        run.until(lambda: run.position() > at, "a step without the GCS")
        seconds = time.monotonic() - since
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the kill")
        lost = run.steps_lost(lab.total)
        expect(lost == 0 and len(run.starts()) == 1, f"{lost} steps lost, workers restarted")
        return Record(
            scenario="gcs_kill", survived=True, kills=1, seconds=(seconds,),
            note="3 s without GCS; no restart, same weights",
        )  # fmt: skip


def driver_kills(lab: Lab) -> Record:
    """SIGKILL to the job and the same command again, three times (R8, R10)."""
    with lab.shared() as cluster, lab.run("driver_kills") as run:
        run.start(cluster)
        seconds = []
        for number in range(3):
            run.until_step(lab.total * (number + 1) // 4 + 3)
            wait = run.recovery()
            run.job.send(signal.SIGKILL)
            run.start(cluster)
            seconds.append(wait())
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the kills")
        expect(not run.repeated_or_missing(lab.ids()), "samples did not count exactly once")
        return Record(
            scenario="driver_kills", survived=True, kills=3,
            note="same weights, every sample once an epoch",
            steps_lost=run.steps_lost(lab.total), seconds=tuple(seconds),
        )  # fmt: skip


def sigterm(lab: Lab) -> Record:
    """SIGTERM to the job, which keeps a checkpoint and ends with 143; then the same command."""
    with lab.shared() as cluster, lab.run("sigterm", train__save_every=None) as run:
        run.start(cluster)
        run.until_step(STEPS_PER_EPOCH + 13)
        wait = run.recovery()
        run.job.send(signal.SIGTERM)
        code = run.job.wait().code
        expect(code == STOPPED_BY_SIGTERM, f"ended with {code}")
        run.start(cluster)
        seconds = wait()
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the signal")
        lost = run.steps_lost(lab.total)
        # The batch that was ready when the wish came is recorded, and not trained on.
        expect(lost <= 1, f"{lost} steps lost")
        return Record(
            scenario="sigterm", survived=True, note="exit 143, same weights", kills=1,
            steps_lost=lost, seconds=(seconds,),
        )  # fmt: skip


def hang(lab: Lab) -> Record:
    """SIGSTOP to a worker: it is there and does nothing (R14)."""
    timeout_s = 20.0
    with lab.shared() as cluster, lab.run("hang", train__hang_timeout_s=timeout_s) as run:
        run.start(cluster)
        run.until_step(STEPS_PER_EPOCH + 13)
        pid = run.worker(1)
        wait = run.recovery()
        os.kill(pid, signal.SIGSTOP)
        seconds = wait()
        outcome = run.job.wait()
        expect(lab.same_weights(outcome), "other weights than without the hang")
        return Record(
            scenario="hang", survived=True, kills=1, steps_lost=run.steps_lost(lab.total),
            note=f"train.hang_timeout_s={timeout_s:g} included; same weights", seconds=(seconds,),
        )  # fmt: skip
