"""A folder of images to people: Parquet, overlays, and every picture that was refused, with why.

    paths ──read (tasks)──▶ bytes ──decode, recover, draw (actors)──▶ rows ──one writer──▶ folder

Encoded bytes travel, never decoded pixels. Whatever is wrong with one picture becomes a row of
`rejected/rejected.csv`: predicted + rejected is always the number of files that were listed. The
output folder appears, complete, with one rename at the end.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from hmr.crops import decode_image, encode_jpeg
from hmr.errors import ConfigError, HmrError, ImageError
from hmr.structures import Person
from rayhmr.cluster import connect
from rayhmr.config import PredictJob
from rayhmr.eth_submission import EthFrames, write_submission
from rayhmr.people_table import (
    MANIFEST,
    PEOPLE,
    REJECTED,
    RESULT_SCHEMA,
    PeopleWriter,
    finished_folder,
    person_row,
)
from rayhmr.pictures import Images
from rayhmr.pinned_model import PinnedModel
from rayhmr.telemetry import say

SHOWN_EVERY_S = 5.0
MAX_DECODED_PIXELS = 64_000_000
"""An actor that holds this many decoded pixels recovers their people before it decodes more."""
DECODE_THREADS = 4
MAX_BLOCKS = 1000


def read_batch(batch: pa.Table, images: Images) -> Iterator[pa.Table]:
    """Rows path to rows path, content, known, reason, detail; one at a time, so that blocks stay
    small."""
    kinds = {"path": pa.string(), "content": pa.binary(), "known": pa.list_(pa.float64()),
             "reason": pa.string(), "detail": pa.string()}  # fmt: skip
    for path in batch["path"].to_pylist():
        row = {"path": path}
        try:
            row |= {"content": images.read(path), "known": images.known(path)}
        except ImageError as error:
            row |= {"reason": error.reason, "detail": str(error)}
        yield pa.Table.from_pylist([row], pa.schema(kinds))


class Recoverer:
    """One process with the model: encoded images in, rows of RESULT_SCHEMA out."""

    def __init__(
        self, model: PinnedModel, device: str, n_iter: int | None, *, overlays: bool
    ) -> None:
        self.model, self.n_iter, self.overlays = model, n_iter, overlays
        self.predictor = model.load(device)
        self.pool = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row for every row of `read_batch`."""
        rows = batch.to_pylist()
        results = [row for row in rows if row["reason"] is not None]
        readable = [row for row in rows if row["reason"] is None]
        for group in self._decoded(readable):
            results += self._recover(group)
        return pa.Table.from_pylist(results, RESULT_SCHEMA)

    def _decoded(self, rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Rows with `image`, an array or an ImageError, in groups that fit into memory."""
        group: list[dict[str, Any]] = []
        pixels = 0
        for start in range(0, len(rows), DECODE_THREADS):
            window = rows[start : start + DECODE_THREADS]
            contents = [row["content"] for row in window]
            for row, image in zip(window, self.pool.map(_decode, contents), strict=True):
                group.append({"path": row["path"], "image": image, "known": row["known"]})
                pixels += 0 if isinstance(image, ImageError) else image.shape[0] * image.shape[1]
            if pixels >= MAX_DECODED_PIXELS:
                yield group
                group, pixels = [], 0
        if group:
            yield group

    def _recover(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        good = [row for row in rows if not isinstance(row["image"], ImageError)]
        found = self.predictor.predict_many(
            [row["image"] for row in good], [self._boxes(row["known"]) for row in good],
            self.n_iter, [row["known"][3] if row["known"] else None for row in good],
        )  # fmt: skip
        answers = {row["path"]: people for row, people in zip(good, found, strict=True)}
        drawn = {}
        if self.overlays:
            jobs = [(r["image"], answers[r["path"]]) for r in good]
            pictures = self.pool.map(lambda job: self._draw(*job), jobs)
            drawn = {row["path"]: picture for row, picture in zip(good, pictures, strict=True)}
        results = []
        for row in rows:
            path, answer = row["path"], answers.get(row["path"], row["image"])
            if isinstance(answer, HmrError):
                reason = answer.reason if isinstance(answer, ImageError) else "not_recovered"
                results.append({"path": path, "reason": reason, "detail": str(answer)})
            else:
                people = self._people(path, row["image"], answer)
                results.append({"path": path, "people": people, "overlay": drawn.get(path)})
        return results

    def _boxes(self, known: list[float] | None) -> np.ndarray | None:
        """The box that the predictor pads to the known square."""
        if known is None:
            return None
        x, y, side = known[:3]
        half = side / self.predictor.box_padding / 2
        return np.array([[x - half, y - half, x + half, y + half]])

    def _people(
        self, path: str, image: np.ndarray, people: Sequence[Person]
    ) -> list[dict[str, Any]]:
        height, width = image.shape[:2]
        shared = {
            "image": path, "image_width": width, "image_height": height,
            "model": self.model.name, "model_version": self.model.version,
            "model_sha256": self.model.sha256,
        }  # fmt: skip
        return [
            person_row(person) | shared | {"person": number} for number, person in enumerate(people)
        ]

    def _draw(self, image: np.ndarray, people: Sequence[Person] | HmrError) -> bytes | None:
        from hmr.render import overlay

        if isinstance(people, HmrError) or not people:
            return None
        vertices = [person.vertices + person.cam_t for person in people]
        drawn = overlay(
            image, vertices, self.predictor.body.arrays.faces,
            people[0].focal_length, people[0].principal_point,
        )  # fmt: skip
        return encode_jpeg(drawn, 90)


def _decode(content: bytes) -> np.ndarray | ImageError:
    try:
        return decode_image(content)
    except ImageError as error:
        return error


def _images(job: PredictJob) -> Images:
    if job.output.format == "eth_csv":
        assert job.eth_labels is not None  # the job's settings were checked
        return EthFrames(job.input, job.eth_labels)
    return Images(job.input)


def _progress(writer: PeopleWriter, total: int, seconds: float) -> str:
    rate = writer.done / max(seconds, 1e-9)
    minutes, rest = divmod(round((total - writer.done) / max(rate, 1e-9)), 60)
    return (
        f"predicted {writer.predicted} of {total} images, rejected {writer.reasons.total()}, "
        f"{rate:.1f} images/s, eta {minutes}m{rest:02d}s"
    )


def _stream(job: PredictJob, images: Images, model: PinnedModel) -> Iterator[dict[str, Any]]:
    """Rows of RESULT_SCHEMA in any order, from a connected cluster."""
    import ray.data

    blocks = min(MAX_BLOCKS, math.ceil(len(images.paths) / job.batch_size))
    rows = ray.data.from_items(
        [{"path": path} for path in images.paths], override_num_blocks=blocks
    )
    rows.context.enable_progress_bars = False
    results = rows.map_batches(
        read_batch, fn_kwargs={"images": images}, batch_size=job.batch_size, batch_format="pyarrow"
    ).map_batches(
        Recoverer,
        fn_constructor_args=(model, "cuda" if job.use_gpu else "cpu", job.n_iter),
        fn_constructor_kwargs={"overlays": job.overlays},
        batch_size=job.batch_size, batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=job.num_actors),
        num_cpus=1, num_gpus=1 if job.use_gpu else None,
    )  # fmt: skip
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
        yield from batch.to_pylist()


def predict(job: PredictJob) -> dict[str, Any]:
    """Recover the people of every image of `job.input` into the folder `job.output.path`.

    ConfigError for a missing or empty input or a foreign output folder, BundleError for a model
    that is none. Returns counts, reasons of rejection, speed and the output's path.
    """
    images = _images(job)
    output = Path(job.output.path).absolute()
    if output.is_relative_to(images.root):
        raise ConfigError(
            f"output={job.output.path}: lies inside input={job.input}, so its pictures would be "
            "read as images next time; choose a folder beside it"
        )
    model = PinnedModel.of(job.model, job.body)
    say(f"{len(images.paths)} files under {job.input}; model {model.reference}")
    with finished_folder(output) as folder, connect(job.cluster, cpus_needed=job.num_actors + 1):
        writer = PeopleWriter(folder, images.paths)
        start = shown = time.perf_counter()
        for result in _stream(job, images, model):
            writer.add(result)
            if time.perf_counter() - shown > SHOWN_EVERY_S:
                shown = time.perf_counter()
                say(_progress(writer, len(images.paths), shown - start))
        writer.close()
        if isinstance(images, EthFrames):
            write_submission(folder, images)
        seconds = time.perf_counter() - start
        say(_progress(writer, len(images.paths), seconds))
        results = {
            "listed": len(images.paths), "predicted": writer.predicted,
            "rejected": writer.reasons.total(), "reasons": dict(sorted(writer.reasons.items())),
            "people": writer.people, "model": model.reference, "model_sha256": model.sha256,
            "seconds": round(seconds, 3), "images_per_s": round(writer.done / seconds, 3),
        }  # fmt: skip
        facts = results | {"format_version": 1, "settings": job.model_dump(mode="json")}
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {output / PEOPLE}")
    if writer.reasons:
        say(f"rejected: {dict(writer.reasons)}; see {output / REJECTED}")
    return results | {"output": str(output)}
