"""Two hosts with a link between them, as network namespaces: training goes across it, and on after
it was cut for 20 s. `make test-netns`; needs root, iproute2 and a kernel with veth."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from rayhmr.chaos.cluster import ChaosCluster, is_running
from rayhmr.chaos.lab import STEPS_PER_EPOCH, Lab
from rayhmr.chaos.run import weights_hash

pytestmark = [pytest.mark.chaos, pytest.mark.ray]

INTERFACE = "link0"
CUT_S = 20.0


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Host:
    """A namespace with the address `ip` on its end of the link, and a route to everywhere over it,
    by which Ray finds out what its own address is."""

    name: str
    ip: str
    other: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return "ip", "netns", "exec", self.name

    def up(self) -> None:
        ip("-n", self.name, "link", "set", INTERFACE, "up")
        ip("-n", self.name, "route", "add", "default", "via", self.other)

    def down(self) -> None:
        ip("-n", self.name, "link", "set", INTERFACE, "down")


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip`; install iproute2")
    number = os.getpid()
    one = Host(f"rayhmr-{number}-one", "10.77.0.1", "10.77.0.2")
    two = Host(f"rayhmr-{number}-two", "10.77.0.2", "10.77.0.1")
    made = []
    try:
        try:
            for host in (one, two):
                ip("netns", "add", host.name)
                made.append(host)
                ip("-n", host.name, "link", "set", "lo", "up")
            ends = ["name", INTERFACE, "netns", one.name, "type", "veth", "peer", "name", INTERFACE]
            ip("link", "add", *ends, "netns", two.name)
            for host in (one, two):
                ip("-n", host.name, "address", "add", f"{host.ip}/24", "dev", INTERFACE)
                host.up()
        except OSError as error:
            pytest.skip(f"this machine does not allow two linked network namespaces: {error}")
        yield one, two
    finally:
        for host in made:
            ip("netns", "del", host.name)


def test_training_goes_across_a_link_and_on_after_it_was_cut(hosts, tmp_path):
    one, two = hosts
    lab = Lab(tmp_path, epochs=3)
    # A node that is cut off for 20 s is not given up: Ray's own setting, not the tests' quick one.
    patient = {
        "GLOO_SOCKET_IFNAME": INTERFACE, "RAY_health_check_period_ms": "3000",
        "RAY_health_check_failure_threshold": "5",
    }  # fmt: skip
    with (
        ChaosCluster(1, ip=one.ip, prefix=one.prefix, environment=patient) as cluster,
        lab.run("across", train__hang_timeout_s=90) as run,
    ):
        cluster.add(lab.cpus, ip=one.ip, prefix=one.prefix)
        far = cluster.add(lab.cpus, ip=two.ip, prefix=two.prefix)
        lab.prepare(cluster, prefix=one.prefix)
        run.start(cluster, prefix=one.prefix)
        run.until_step(STEPS_PER_EPOCH // 2)
        nodes = [cluster.node_of(run.worker(rank)) for rank in (0, 1)]
        assert far in nodes
        assert nodes[0] is not nodes[1]
        at = run.position()
        one.down()
        time.sleep(CUT_S)
        stopped_at = run.position()
        assert stopped_at <= at + 3, "no step without the other worker's gradients"
        one.up()
        run.until(lambda: run.position() > stopped_at, "a step after the cut")
        outcome = run.job.wait()
        assert outcome.code == 0, outcome.stderr[-1000:]
        assert len(weights_hash(outcome)) == 64
        assert not run.repeated_or_missing(lab.ids())
        assert is_running(far.raylet), "the node was not given up"
        print(f"{len(run.starts()) - 1} restarts, {run.steps_lost(lab.total)} steps lost")  # noqa: T201
