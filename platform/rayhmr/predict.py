"""Pictures to people: Parquet, overlays, and every picture that was refused, with why.

    listing ──read (tasks)──▶ bytes ──decode, recover, draw (actors)──▶ rows ──one writer──▶ folder

Encoded bytes travel, never decoded pixels. Whatever is wrong with one picture becomes a row of
`rejected/rejected.csv`: predicted + rejected is always the number of pictures that were listed. A
listed box that is none of its picture becomes a row too, and its neighbours are recovered.
Results are kept in parts, so that a killed job goes on where it was; the output folder appears,
complete, with one rename at the end.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from hmr.errors import ConfigError
from rayhmr.cluster import connect
from rayhmr.config import PredictJob
from rayhmr.eth_submission import EthFrames, write_submission
from rayhmr.inputs import open_pictures
from rayhmr.people_table import ITERATIONS_SCHEMA, PEOPLE_SCHEMA, result_schema
from rayhmr.people_tracks import write_tracks
from rayhmr.pictures import LISTING, Pictures
from rayhmr.pinned_model import PinnedModel
from rayhmr.prediction_files import (
    PEOPLE,
    REJECTED,
    write_coco,
    write_meshes,
    write_npz,
    write_people,
)
from rayhmr.prediction_parts import MANIFEST, PredictionParts, identity, publish, unfinished
from rayhmr.prediction_place import written_to
from rayhmr.recoverer import Recoverer, read_batch
from rayhmr.storage import Folder
from rayhmr.telemetry import say
from rayhmr.video_frames import DEFAULT_FPS

SHOWN_EVERY_S = 5.0
MAX_BLOCKS = 1000
FORM = 2
"""Of the parts; those of another form are not gone on with."""
_NEED_A_BODY = {"npz": write_npz, "coco": write_coco}


def checked(listing: pa.Table) -> pa.Table:
    """The listing with every name once and inside its folder: what is not, is refused."""
    rows, seen = listing.to_pylist(), Counter[str]()
    for row in rows:
        path = row["path"]
        seen[path] += 1
        if row["reason"] is None and (path.startswith("/") or ".." in path.split("/")):
            row |= {"reason": "path_escape", "detail": "the name points out of its folder"}
        if seen[path] > 1:
            row |= {
                "path": f"{path}/duplicate-{row['number']}", "reason": "duplicate_id",
                "detail": f"{path} is there already",
            }  # fmt: skip
    return pa.Table.from_pylist(rows, LISTING)


def _progress(parts: PredictionParts, seconds: float) -> str:
    rate = (parts.done - parts.found) / max(seconds, 1e-9)
    minutes, rest = divmod(round((parts.total - parts.done) / max(rate, 1e-9)), 60)
    return (
        f"predicted {parts.predicted} of {parts.total} images, rejected {parts.reasons.total()}, "
        f"{rate:.1f} images/s, eta {minutes}m{rest:02d}s"
    )


def _actors(job: PredictJob) -> int:
    """One for each GPU, or for each CPU but that of the reading tasks."""
    import ray

    if job.num_actors is not None:
        return job.num_actors
    total = ray.cluster_resources()
    return max(1, int(total.get("GPU", 0) if job.use_gpu else total.get("CPU", 0) - 1))


def _stream(
    job: PredictJob, images: Pictures, listing: pa.Table, model: PinnedModel
) -> Iterator[pa.Table]:
    """Tables of `result_schema` in any order, from a connected cluster."""
    import ray.data

    rows = max(images.block_rows or job.batch_size, math.ceil(len(listing) / MAX_BLOCKS))
    data = ray.data.from_arrow(
        [listing.slice(start, rows) for start in range(0, len(listing), rows)]
    )
    data.context.enable_progress_bars = False
    results = data.map_batches(
        read_batch, fn_kwargs={"images": images.reader()}, batch_size=None, batch_format="pyarrow"
    ).map_batches(
        Recoverer,
        fn_constructor_args=(model, "cuda" if job.use_gpu else "cpu", job.n_iter),
        fn_constructor_kwargs={"overlays": job.overlays, "iterations": job.output.iterations},
        batch_size=job.batch_size, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=_actors(job)),
        num_cpus=1, num_gpus=1 if job.use_gpu else None,
    )  # fmt: skip
    yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def _recover_all(
    job: PredictJob, images: Pictures, listing: pa.Table, model: PinnedModel,
    parts: PredictionParts,
) -> dict[str, float]:  # fmt: skip
    """Do what is missing; how long it took, without the start of the cluster, how long until the
    first results, and how fast it went from then on."""
    missing = parts.missing(listing)
    if not len(missing):
        return {"seconds": 0.0, "first_result_s": 0.0, "steady_images_per_s": 0.0}
    with connect(
        job.cluster, cpus_needed=(job.num_actors or 1) + 1,
        gpus_needed=(job.num_actors or 1) if job.use_gpu else 0,
    ):  # fmt: skip
        start = shown = time.perf_counter()
        first, counted = 0.0, 0
        for table in _stream(job, images, missing, model):
            parts.add(table)
            if not first:
                first, counted = time.perf_counter() - start, parts.done
            if time.perf_counter() - shown > SHOWN_EVERY_S:
                shown = time.perf_counter()
                say(_progress(parts, shown - start))
        seconds = time.perf_counter() - start
        steady = (parts.done - counted) / max(seconds - first, 1e-3)
        return {"seconds": seconds, "first_result_s": first, "steady_images_per_s": steady}


def _write(
    job: PredictJob, images: Pictures, listing: pa.Table, model: PinnedModel,
    parts: PredictionParts, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Every file of the output but the manifest. Returns what is known about the tracks."""
    write_people(parts, folder, ITERATIONS_SCHEMA if job.output.iterations else PEOPLE_SCHEMA)
    if isinstance(images, EthFrames):
        write_submission(folder, images)
    formats = set(job.output.format) - {"parquet", "eth_csv"}
    if not formats and not job.track:
        return {}
    say(f"writing {', '.join(sorted(formats | ({'tracks'} if job.track else set())))}")
    body = model.load("cpu").body
    for name in sorted(formats - {"amass"}):
        if name in ("glb", "obj"):
            write_meshes(folder, body, listing, name)
        else:
            _NEED_A_BODY[name](folder, body, listing)
    if not job.track and "amass" not in formats:
        return {}
    fps = job.fps or images.fps or DEFAULT_FPS
    return write_tracks(folder, body, listing, job.tracking, fps, amass="amass" in formats)


def predict(job: PredictJob) -> dict[str, Any]:
    """Recover the people of every picture of `job.input` into the folder `job.output.path`.

    A job that was killed goes on when it is started again with the same pictures and model.
    ConfigError for a missing or empty input, a foreign output folder, or one that another process
    writes; BundleError for a model that is none. Returns counts, reasons of rejection, speed and
    the output's path.
    """
    images = open_pictures(job)
    target = Folder(job.output.path)
    if images.root is not None and f"{target.root}/".startswith(f"{images.root}/"):
        raise ConfigError(
            f"output={job.output.path}: lies inside input={job.input}, so its pictures would be "
            "read as images next time; choose a folder beside it"
        )
    with written_to(job.output.path) as output:
        results = _predict(job, images, output)
    say(f"wrote {target.at(PEOPLE)}")
    reasons = dict(results["reasons"])
    if results["boxes_rejected"]:
        reasons["boxes"] = results["boxes_rejected"]
    if reasons:
        say(f"rejected: {reasons}; see {target.at(REJECTED)}")
    return results | {"output": target.location}


def _predict(job: PredictJob, images: Pictures, output: Path) -> dict[str, Any]:
    """What `predict` does, into a folder of this machine."""
    model = PinnedModel.of(job.model, job.body)
    listing = checked(images.listing())
    say(f"{len(listing)} pictures in {job.input}; model {model.reference}")
    facts = {
        "form": FORM, "input": job.input, "model": model.sha256,
        "body": job.body.model_dump(mode="json"),
        "n_iter": job.n_iter, "overlays": job.overlays, "iterations": job.output.iterations,
        "eth_labels": job.eth_labels,
    }  # fmt: skip
    schema = result_schema(ITERATIONS_SCHEMA if job.output.iterations else PEOPLE_SCHEMA)
    with unfinished(output, identity(listing, facts), uuid.uuid4().hex) as (work, run):
        parts = PredictionParts(work, listing, schema)
        if parts.found:
            say(f"going on: {parts.found} of {parts.total} pictures are done")
        speed = _recover_all(job, images, listing, model, parts)
        parts.check_complete()
        say(_progress(parts, speed["seconds"]))
        folder = work / "result"
        folder.mkdir(exist_ok=True)
        tracks = _write(job, images, listing, model, parts, folder)
        results = {
            "listed": parts.total, "predicted": parts.predicted,
            "rejected": parts.reasons.total(), "reasons": dict(sorted(parts.reasons.items())),
            "people": parts.people, "boxes_rejected": parts.boxes_rejected,
            "model": model.reference, "model_sha256": model.sha256,
            "done_before": parts.found, **{name: round(v, 3) for name, v in speed.items()},
            "images_per_s": round((parts.done - parts.found) / max(speed["seconds"], 1e-3), 3),
        } | tracks  # fmt: skip
        manifest = results | {
            "format_version": 1, "run": run, "settings": job.model_dump(mode="json"),
        }  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        publish(work, output)
    return results
