"""Speed as ratios measured in one run: peer and candidate take turns, medians are compared.

Absolute times belong to the machine that printed them; only the ratios travel.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmr.body import Body
from hmr.embedded_body import embedded_body
from hmr.rotations import axis_angle_to_matrix
from hmr.synthetic import Generator
from rayhmr.benchmark_chaos import chaos_rates
from rayhmr.benchmark_chaos_serve import serve_chaos_rates
from rayhmr.benchmark_data import data_rates
from rayhmr.benchmark_predict import predict_rates
from rayhmr.benchmark_scale import scale_rates
from rayhmr.benchmark_serve import serve_rates
from rayhmr.benchmark_train import train_ratios
from rayhmr.benchmark_tune import tune_rates
from rayhmr.config import BenchmarkJob
from rayhmr.report import text_table
from rayhmr.telemetry import say

BATCHES = (1, 32, 256)


def interleaved(
    candidates: dict[str, Callable[[], object]], *, rounds: int, at_least_s: float = 0.05
) -> dict[str, float]:
    """Median seconds of one call of each candidate; the candidates take turns in every round."""
    repeats = {}
    for name, function in candidates.items():
        function()  # the first call compiles and fills caches
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        repeats[name] = max(1, int(at_least_s / max(once, 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(values) for name, values in seconds.items()}


def _random_input(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    pose = 0.4 * torch.randn(batch, 24, 3, generator=generator)
    return axis_angle_to_matrix(pose), torch.randn(batch, 10, generator=generator)


def _forward_backward(
    function: Callable[[Tensor, Tensor], Tensor], rotmats: Tensor, betas: Tensor
) -> Callable[[], None]:
    def call() -> None:
        r, b = rotmats.clone().requires_grad_(), betas.clone().requires_grad_()
        function(r, b).square().sum().backward()

    return call


def body_ratios(rounds: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Our body layer against smplx: all vertices, forward and with backward, and landmarks.

    `bf16`: with bfloat16 inputs, which our layer computes in float32; the peer has float32 ones.
    """
    arrays = embedded_body()
    ours, smplx = Body(arrays), Body(arrays, backend="smplx")
    rows, ratios = [], {}
    for batch in BATCHES:
        rotmats, betas = _random_input(batch)

        half = rotmats.bfloat16(), betas.bfloat16()

        def forward(body: Body, r: Tensor = rotmats, b: Tensor = betas) -> Callable[[], object]:
            def call() -> object:
                with torch.no_grad():
                    return body(r, b)

            return call

        def landmarks(r: Tensor = rotmats, b: Tensor = betas) -> object:
            with torch.no_grad():
                return ours.landmarks(r, b)

        seconds = interleaved(
            {
                "smplx": forward(smplx),
                "ours": forward(ours),
                "ours_bf16": forward(ours, *half),
                "landmarks": landmarks,
                "smplx_bwd": _forward_backward(lambda r, b: smplx(r, b).vertices, rotmats, betas),
                "ours_bwd": _forward_backward(lambda r, b: ours(r, b).vertices, rotmats, betas),
                "ours_bf16_bwd": _forward_backward(lambda r, b: ours(r, b).vertices, *half),
                "landmarks_bwd": _forward_backward(ours.landmarks, rotmats, betas),
            },
            rounds=rounds,
        )
        name = f"ratio_vs_smplx_b{batch}"
        ratios[name] = seconds["smplx"] / seconds["ours"]
        ratios[f"{name}_bwd"] = seconds["smplx_bwd"] / seconds["ours_bwd"]
        ratios[f"{name}_landmarks"] = seconds["smplx"] / seconds["landmarks"]
        ratios[f"{name}_bf16"] = seconds["smplx"] / seconds["ours_bf16"]
        ratios[f"{name}_bf16_bwd"] = seconds["smplx_bwd"] / seconds["ours_bf16_bwd"]
        rows.append({"batch": batch} | {f"{k} ms": 1000 * v for k, v in seconds.items()})
    return rows, ratios


def generator_rates(rounds: int, images: int = 64) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Synthetic people per CPU second, from pose to pixels, in one thread."""
    rows, rates = [], {}
    for size in (64, 112, 224):
        generator = Generator(embedded_body(), "easy", size, seed=0, split="train")
        generator.samples(range(8))  # compiles the rasterizer
        per_round = []
        for number in range(rounds):
            start = time.process_time()
            generator.samples(range(number * images, (number + 1) * images))
            per_round.append(images / (time.process_time() - start))
        rates[f"synthetic_images_per_core_s_{size}"] = float(np.median(per_round))
        rows.append(
            {
                "image side": size,
                "images per core-second": rates[f"synthetic_images_per_core_s_{size}"],
            }
        )
    return rows, rates


def benchmark(job: BenchmarkJob) -> dict[str, Any]:
    """Run the chosen measurements, print their tables, return their figures."""
    torch.set_num_threads(job.threads)
    parts = {
        "body": body_ratios,
        "synthetic": generator_rates,
        "data": lambda rounds: data_rates(rounds, job.threads),
        "serve": lambda _: serve_rates(job),
        "predict": lambda _: predict_rates(job),
        "chaos": lambda _: (
            serve_chaos_rates(job.load_s)
            if job.chaos_of == "serve"
            else chaos_rates(job.kill_for_s)
        ),
        "scale": lambda _: scale_rates(job.scale_workers, job.scale_trials),
        "train": train_ratios,
        "tune": tune_rates,
    }
    results: dict[str, Any] = {"threads": job.threads}
    for name in job.what:
        say(f"measuring {name} ({job.rounds} rounds, {job.threads} thread)")
        rows, figures = parts[name](job.rounds)
        say(text_table(rows))
        results |= {key: round(value, 3) for key, value in figures.items()}
    return results
