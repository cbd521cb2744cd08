"""`benchmark.py serve`: the service beside a bare model, offline batches and a plain web server.

All of them take turns on the same pictures in one run; ratios are taken within a round, and the
median of the rounds counts. The load comes from a process of its own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hmr.checkpoint import load_bundle
from hmr.config import BodyConfig
from hmr.crops import decode_image
from hmr.errors import HmrError
from rayhmr.benchmark_load import Load, Measured
from rayhmr.benchmark_servers import (
    LoadGenerator,
    Server,
    largest_difference,
    load_generator,
    make_bundle,
    make_pictures,
    plain_server,
    serve_processes,
)
from rayhmr.cluster import connect
from rayhmr.config import BenchmarkJob, ClusterConfig, ServeJob
from rayhmr.pinned_model import PinnedModel
from rayhmr.recoverer import Recoverer
from rayhmr.serve.host import running_service
from rayhmr.telemetry import say

MAX_BATCH = 16
CONCURRENCY = (1, 4, 16)
RATES = (0.3, 0.6, 0.9)
"""Fixed rates, as shares of what the plain server answers at most."""
TURN_S = 2.0
OFFLINE_BATCH = 32
_OURS, _SINGLE, _PLAIN = "ours", "ours, no batches", "plain uvicorn"


def serve_rates(job: BenchmarkJob) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows: one a candidate. Figures: the ratios that the table is about."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rayhmr-bench-")))
        bundle = make_bundle(folder / "bundle", job.encoder)
        pictures = make_pictures(folder / "pictures")
        cluster = ClusterConfig(address="local", object_store_mb=100)
        stack.enter_context(connect(cluster, cpus_needed=2 * (job.threads + 1)))
        servers = {_PLAIN: stack.enter_context(plain_server(bundle, job.threads))}
        for name, size in ((_OURS, MAX_BATCH), (_SINGLE, 1)):
            service = ServeJob(
                model=str(bundle), port=0, num_cpus=job.threads, max_batch_size=size,
                max_queued_requests=256, backend=job.backend,
            )  # fmt: skip
            application = f"batch{size}"
            url = stack.enter_context(running_service(service, application))
            servers[name] = Server(url, partial(serve_processes, application))
        difference = largest_difference(servers[_PLAIN], servers[_OURS], pictures)
        load = stack.enter_context(load_generator(folder / "pictures"))
        bench = _Bench(bundle, pictures, load, servers)
        for number in range(job.rounds):
            say(f"round {number + 1} of {job.rounds}")
            bench.round()
        return bench.rows(), bench.figures() | {"largest_difference_mm": 1000 * difference}


class _Bench:
    """Candidates that take turns, and what each of them did in every round."""

    def __init__(
        self, bundle: Path, pictures: list[bytes], load: LoadGenerator, servers: dict[str, Server]
    ) -> None:
        self._load, self._servers = load, servers
        self._predictor = load_bundle(bundle)
        self._pictures = [decode_image(picture) for picture in pictures]
        model = PinnedModel.of(str(bundle), BodyConfig())
        self._recoverer = Recoverer(model, "cpu", None, overlays=False)
        self._table = pa.Table.from_pylist(
            [
                {"path": str(n), "content": picture, "known": None, "reason": None, "detail": None}
                for n, picture in enumerate(pictures[:OFFLINE_BATCH])
            ]
        )
        self._bare_ms: list[list[float]] = []
        self._offline: list[float] = []
        self._runs: dict[tuple[str, str], list[Measured]] = defaultdict(list)
        self._cpu_ms: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._rates: dict[str, float] = {}
        self._measure_bare()
        self._measure_offline()
        self._bare_ms.clear()
        self._offline.clear()

    def round(self) -> None:
        """One turn of everybody, neighbours in time where a ratio is taken of them."""
        self._measure_bare()
        for name in (_PLAIN, _OURS):
            self._closed(name, 1)
        self._closed(_OURS, 4)
        self._measure_offline()
        for name in (_PLAIN, _OURS, _SINGLE):
            self._closed(name, 16)
        if not self._rates:
            most = _rate(self._runs[_PLAIN, "16 clients"][0])
            self._rates = {f"{share:g} of plain": share * most for share in RATES}
        for name in (_PLAIN, _OURS, _SINGLE):
            for label, rate in self._rates.items():
                self._measure(name, label, Load(
                    url=self._servers[name].url, connections=64, seconds=TURN_S, rate_per_s=rate
                ))  # fmt: skip

    def _measure_bare(self) -> None:
        """The model alone, one decoded picture a call."""
        latencies: list[float] = []
        end = time.perf_counter() + TURN_S
        while (start := time.perf_counter()) < end:
            self._predictor.predict(self._pictures[len(latencies) % len(self._pictures)])
            latencies.append(1000 * (time.perf_counter() - start))
        self._bare_ms.append(latencies)

    def _measure_offline(self) -> None:
        """What an actor of jobs/predict.py does with the encoded pictures, in its batches."""
        start, done = time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < TURN_S:
            done += len(self._recoverer(self._table))
        self._offline.append(done / seconds)

    def _closed(self, name: str, clients: int) -> None:
        label = f"{clients} client{'s' if clients > 1 else ''}"
        url = self._servers[name].url
        self._measure(name, label, Load(url=url, connections=clients, seconds=TURN_S))

    def _measure(self, name: str, label: str, load: Load) -> None:
        server = self._servers[name]
        before = server.cpu_seconds()
        measured = self._load.run(load)
        if set(measured.statuses) != {"200"}:
            raise HmrError(
                f"{name}, {label}: answers were {measured.statuses}; every one must be 200 for "
                "the times to mean something: lower the load of the machine and run it again"
            )
        self._runs[name, label].append(measured)
        seconds = server.cpu_seconds() - before
        self._cpu_ms[name, label].append(1000 * seconds / len(measured.latencies_ms))

    def rows(self) -> list[dict[str, Any]]:
        """One a candidate and load; latencies over all rounds together."""
        offline = statistics.median(self._offline)
        bare = [value for one in self._bare_ms for value in one]
        rows = [
            _row("bare model call", "1 at a time", bare, 1000 / float(np.median(bare)), offline),
            _row("offline batches", f"{OFFLINE_BATCH} a batch", [], offline, offline),
        ]
        for (name, label), runs in self._runs.items():
            latencies = [value for run in runs for value in run.latencies_ms]
            rate = statistics.median(map(_rate, runs))
            cpu = statistics.median(self._cpu_ms[name, label])
            rows.append(_row(name, label, latencies, rate, offline) | {"CPU ms": cpu})
        return rows

    def figures(self) -> dict[str, float]:
        """Medians over the rounds of ratios within a round."""
        plain_1, ours_1 = self._runs[_PLAIN, "1 client"], self._runs[_OURS, "1 client"]
        plain_16, ours_16 = self._runs[_PLAIN, "16 clients"], self._runs[_OURS, "16 clients"]
        single_16 = self._runs[_SINGLE, "16 clients"]
        rates = [_rate(run) for run in ours_16]
        lone = [value for run in ours_1 for value in run.latencies_ms]
        return {
            "p50_over_plain": _median_ratio(map(_p50, ours_1), map(_p50, plain_1)),
            "throughput_over_offline": _median_ratio(rates, self._offline),
            "throughput_over_plain": _median_ratio(rates, map(_rate, plain_16)),
            "throughput_over_no_batches": _median_ratio(rates, map(_rate, single_16)),
            "p50_ms": float(np.median(lone)),
            "p99_ms": float(np.percentile(lone, 99)),
            "images_per_s": statistics.median(rates),
            "answer_bytes": float(ours_1[0].answer_bytes),
        }


def _row(
    name: str, load: str, latencies: list[float], rate: float, offline: float
) -> dict[str, Any]:
    levels = np.percentile(latencies, (50, 95, 99)) if latencies else (None, None, None)
    return {
        "candidate": name, "load": load,
        "p50 ms": levels[0], "p95 ms": levels[1], "p99 ms": levels[2],
        "images/s": rate, "of offline": rate / offline, "CPU ms": None,
    }  # fmt: skip


def _p50(run: Measured) -> float:
    return statistics.median(run.latencies_ms)


def _rate(run: Measured) -> float:
    return len(run.latencies_ms) / run.seconds


def _median_ratio(upper: Any, lower: Any) -> float:
    return statistics.median(a / b for a, b in zip(upper, lower, strict=True))
