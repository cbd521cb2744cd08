"""Batch prediction against a plain loop over the same bundle: `jobs/benchmark.py predict`.

(a) the model alone, on a batch of crops that is there already: its ceiling; (b) a loop of one
process that reads, decodes, recovers in batches and writes one Parquet file; (c) `jobs/predict.py`
with one and two actors. They take turns in one run. Rates of (c) count from its first results on,
because the start of the processes does not grow with the number of pictures; it stands beside them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hmr.checkpoint import load_bundle
from hmr.crops import decode_image
from hmr.errors import HmrError
from hmr.predictor import Predictor
from rayhmr.benchmark_servers import make_bundle, make_pictures
from rayhmr.cluster import connect
from rayhmr.config import BenchmarkJob, ClusterConfig, PredictJob
from rayhmr.people_table import PEOPLE_SCHEMA, person_row
from rayhmr.predict import predict
from rayhmr.telemetry import say

PICTURES = {"small": 3000, "resnet50": 240}
"""Pictures of one turn: enough for some seconds of work."""
BATCH = 32
ACTORS = (1, 2)
CEILING_S = 1.0


def ceiling_rate(predictor: Predictor, seconds: float = CEILING_S) -> float:
    """Crops a second of the model alone, on one resident batch."""
    size = predictor.image_size
    crops = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    predictor.predict_crops(crops)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predictor.predict_crops(crops)
        done += BATCH
    return done / (time.perf_counter() - start)


def plain_rate(predictor: Predictor, folder: Path, output: Path) -> float:
    """Pictures a second of the loop that anybody would write first."""
    start = time.perf_counter()
    paths, rows = sorted(folder.iterdir()), []
    for first in range(0, len(paths), BATCH):
        some = paths[first : first + BATCH]
        images = [decode_image(path.read_bytes()) for path in some]
        for path, image, people in zip(some, images, predictor.predict_many(images), strict=True):
            if isinstance(people, HmrError):
                raise people
            height, width = image.shape[:2]
            rows += [
                person_row(person, None)
                | {"sample_id": f"{path.name}/{number}", "image": path.name, "person": number,
                   "image_width": width, "image_height": height, "image_size": [width, height],
                   "model": "benchmark", "model_sha256": ""}
                for number, person in enumerate(people)
            ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, PEOPLE_SCHEMA), output, compression="zstd")
    return len(paths) / (time.perf_counter() - start)


def our_rate(bundle: Path, folder: Path, output: Path, actors: int) -> tuple[float, float]:
    """Pictures a second of our job once it runs, and the seconds until its first results."""
    job = PredictJob(
        model=str(bundle), input=str(folder), output=str(output), overlays=False,
        batch_size=BATCH, num_actors=actors,
    )  # fmt: skip
    results = predict(job)
    return results["steady_images_per_s"], results["first_result_s"]


def figures(rates: dict[str, list[float]], first: dict[str, float]) -> dict[str, float]:
    """Medians of all rates, and of the quotients of the same round."""
    found = {f"{name}_images_per_s": median(values) for name, values in rates.items()}
    for name in (f"ours_{actors}" for actors in ACTORS):
        for other in ("plain", "ceiling"):
            pairs = zip(rates[name], rates[other], strict=True)
            found[f"{name}_over_{other}"] = median(ours / theirs for ours, theirs in pairs)
        found[f"{name}_first_result_s"] = first[name]
    pairs = zip(rates["plain"], rates["ceiling"], strict=True)
    found["plain_over_ceiling"] = median(plain / ceiling for plain, ceiling in pairs)
    return found


def predict_rates(job: BenchmarkJob) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Table and figures."""
    rates: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="rayhmr-bench-") as temporary:
        folder = Path(temporary)
        bundle = make_bundle(folder / "bundle", job.encoder)
        contents = make_pictures(folder / "some")
        pictures = folder / "pictures"
        pictures.mkdir()
        for number in range(PICTURES[job.encoder]):
            (pictures / f"{number:06d}.jpg").write_bytes(contents[number % len(contents)])
        torch.set_num_threads(1)
        predictor = load_bundle(bundle)
        cluster = ClusterConfig(address="local", object_store_mb=200)
        with connect(cluster, cpus_needed=max(ACTORS) + 1):
            for number in range(job.rounds):
                say(f"round {number + 1} of {job.rounds}")
                rates["ceiling"].append(ceiling_rate(predictor))
                rates["plain"].append(plain_rate(predictor, pictures, folder / "plain.parquet"))
                for actors in ACTORS:
                    rate, start = our_rate(bundle, pictures, folder / "out", actors)
                    rates[f"ours_{actors}"].append(rate)
                    first[f"ours_{actors}"].append(start)
                    shutil.rmtree(folder / "out")
    ceiling = median(rates["ceiling"])
    rows = [
        {"what": name, "images/s": median(values), "share of the ceiling": median(values) / ceiling}
        for name, values in rates.items()
    ]
    return rows, figures(rates, {name: median(values) for name, values in first.items()})
