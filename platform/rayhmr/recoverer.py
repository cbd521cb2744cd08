"""What the processes of a batch prediction do: tasks that read, actors that recover people.

Encoded bytes travel, never decoded pixels; whatever is wrong with one picture becomes its result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from hmr.crops import Frame, decode_frame, decode_image, encode_jpeg
from hmr.errors import DataError, HmrError, ImageError
from hmr.person_crops import box_problem, shortest_box
from hmr.structures import Person
from rayhmr.people_table import ITERATIONS_SCHEMA, PEOPLE_SCHEMA, person_row, result_schema
from rayhmr.pictures import LISTING, Pictures
from rayhmr.pinned_model import PinnedModel

MAX_DECODED_PIXELS = 64_000_000
"""An actor that holds this many decoded pixels recovers their people before it decodes more."""
DECODE_THREADS = 4


def read_batch(batch: pa.Table, images: Pictures) -> Iterator[pa.Table]:
    """Rows of the listing to rows number, path, content, boxes, focal, known, reason, detail; one
    at a time, so that blocks stay small."""
    kinds = {"number": pa.int64(), "path": pa.string(), "content": pa.binary(),
             "boxes": LISTING.field("boxes").type, "focal": pa.float64(),
             "known": pa.list_(pa.float64()), "reason": pa.string(),
             "detail": pa.string()}  # fmt: skip
    rows = batch.to_pylist()
    good = [row for row in rows if row["reason"] is None]
    contents = images.contents(good) if good else iter(())
    for row in rows:
        row = {name: row.get(name) for name in kinds}
        try:
            if row["reason"] is None:
                content = next(contents)
                if isinstance(content, ImageError):
                    raise content
                row |= {"content": content, "known": images.known(row["path"])}
        except ImageError as error:
            row |= {"reason": error.reason, "detail": str(error)}
        yield pa.Table.from_pylist([row], pa.schema(kinds))


class Recoverer:
    """One process with the model: encoded images in, rows of `result_schema` out."""

    def __init__(
        self, model: PinnedModel, device: str, n_iter: int | None, *, overlays: bool,
        iterations: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.n_iter, self.overlays = model, n_iter, overlays
        self.iterations = iterations
        self.schema = result_schema(ITERATIONS_SCHEMA if iterations else PEOPLE_SCHEMA)
        self.predictor = model.load(device)
        self.pool = ThreadPoolExecutor(DECODE_THREADS)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A row for every row of `read_batch`."""
        rows = batch.to_pylist()
        results = [
            {name: row.get(name) for name in ("number", "path", "reason", "detail")}
            for row in rows
            if row["reason"] is not None
        ]
        readable = [row for row in rows if row["reason"] is None]
        for group in self._decoded(readable):
            results += self._recover(group)
        return pa.Table.from_pylist(results, self.schema)

    def _decoded(self, rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
        """Rows with `image`, an array or an ImageError, in groups that fit into memory."""
        group: list[dict[str, Any]] = []
        pixels = 0
        for start in range(0, len(rows), DECODE_THREADS):
            window = rows[start : start + DECODE_THREADS]
            for row, image in zip(window, self.pool.map(self._decode, window), strict=True):
                group.append(row | {"image": image})
                pixels += 0 if isinstance(image, ImageError) else image.pixels.size // 3
            if pixels >= MAX_DECODED_PIXELS:
                yield group
                group, pixels = [], 0
        if group:
            yield group

    def _recover(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            row["refused"] = [] if isinstance(row["image"], ImageError) else self._refused(row)
        good = [row for row in rows if not isinstance(row["image"], ImageError)]
        found = self.predictor.predict_many(
            [row["image"] for row in good], [self._boxes(row) for row in good], self.n_iter,
            [row["known"][3] if row["known"] else row.get("focal") for row in good],
            mesh=self.overlays,  # the table has parameters and joints
        )  # fmt: skip
        answers = {row["path"]: people for row, people in zip(good, found, strict=True)}
        drawn = {}
        if self.overlays:
            jobs = [(r, answers[r["path"]]) for r in good]
            pictures = self.pool.map(lambda job: self._draw(*job), jobs)
            drawn = {row["path"]: picture for row, picture in zip(good, pictures, strict=True)}
        results = []
        for row in rows:
            path, answer = row["path"], answers.get(row["path"], row["image"])
            result = {"number": row.get("number"), "path": path}
            if isinstance(answer, HmrError):
                result |= {"reason": _reason(answer), "detail": str(answer)}
            else:
                result |= {
                    "people": self._people(row, answer), "refused": row["refused"],
                    "overlay": drawn.get(path),
                }  # fmt: skip
            results.append(result)
        return results

    def _refused(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The listed boxes that are none of this picture; when all are, the picture is refused."""
        boxes = self._boxes(row)
        if boxes is None or row["known"] is not None:
            return []
        rules = [box_problem(box, *row["image"].size) for box in boxes]
        refused = [
            {"person": number, "detail": f"box {number} {box.tolist()}: {rule}"}
            for number, (box, rule) in enumerate(zip(boxes, rules, strict=True))
            if rule is not None
        ]
        return refused if len(refused) < len(boxes) else []

    def _numbers(self, row: dict[str, Any]) -> list[int]:
        """Places, in the list of boxes, of those that are not refused."""
        refused = {one["person"] for one in row.get("refused", [])}
        return [n for n in range(len(row["boxes"]) // 4) if n not in refused]

    def _boxes(self, row: dict[str, Any]) -> np.ndarray | None:
        """The listed boxes but the refused ones, or the box that the predictor pads to the known
        square."""
        if row["known"] is None:
            if row.get("boxes") is None:
                return None
            return np.array(row["boxes"]).reshape(-1, 4)[self._numbers(row)]
        x, y, side = row["known"][:3]
        half = side / self.predictor.box_padding / 2
        return np.array([[x - half, y - half, x + half, y + half]])

    def _people(self, row: dict[str, Any], people: Sequence[Person]) -> list[dict[str, Any]]:
        width, height = row["image"].size
        path, padding = row["path"], self.predictor.box_padding
        shared = {
            "image": path, "image_width": width, "image_height": height,
            "image_size": [width, height], "model": self.model.name,
            "model_version": self.model.version, "model_sha256": self.model.sha256,
        }  # fmt: skip
        whole = self._boxes(row) is None
        listed = row["known"] is None and not whole
        numbers = self._numbers(row) if listed else range(len(people))
        return [
            person_row(person, None if whole else padding, iterations=self.iterations)
            | shared
            | {"person": number, "sample_id": f"{path}/{number}"}
            for number, person in zip(numbers, people, strict=True)
        ]

    def _decode(self, row: dict[str, Any]) -> Frame | ImageError:
        boxes = self._boxes(row)
        side = None if boxes is None or not len(boxes) else shortest_box(boxes)
        try:
            return decode_frame(row["content"], self.predictor.image_size, side)
        except ImageError as error:
            return error

    def _draw(self, row: dict[str, Any], people: Sequence[Person] | HmrError) -> bytes | None:
        from hmr.render import overlay

        if isinstance(people, HmrError) or not people:
            return None
        vertices = [person.vertices + person.cam_t for person in people]
        frame = row["image"]
        photo = frame.pixels if frame.shrink == 1 else decode_image(row["content"])
        drawn = overlay(
            photo, vertices, self.predictor.body.arrays.faces,
            people[0].focal_length, people[0].principal_point,
        )  # fmt: skip
        return encode_jpeg(drawn, 90)


def _reason(error: HmrError) -> str:
    if isinstance(error, ImageError):
        return error.reason
    return "bad_box" if isinstance(error, DataError) else "not_recovered"
