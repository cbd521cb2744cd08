"""The three figures of a model, made by code: its pipeline, its regressor, the recovered mesh.

Each is laid out for a width of 1280 pixels and written as PNG and SVG; letters are so large that
they can be read when a page shows the figure in 400 pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hmr.errors import ConfigError
from hmr.predictor import Predictor
from hmr.raster import Light
from hmr.render import GROUND, overlay, person_color, turned, view
from hmr.render_errors import HEAT_LIGHT, color_bar, error_colors, round_above
from hmr.render_lines import skeleton
from rayhmr.config import FiguresJob
from rayhmr.drawing import INK, SOFT, Drawing
from rayhmr.figure_subject import SHOWN_PX, Figure3D, Subject, photo_subject, synthetic_subject
from rayhmr.pinned_model import PinnedModel
from rayhmr.telemetry import say

WIDTH, MARGIN = 1280, 20
LARGE, SMALL = 32, 28
"""Sizes of letters: 10 and 9 pixels when the figure is 400 pixels wide."""
MODEL_COLOR, TRUTH_COLOR = person_color(0), (0.60, 0.85, 0.62)
SAMPLES = 4
MOST_STEPS = 5
"""Columns for estimates; of a longer iteration evenly many are shown."""
FEATURE_CELLS = 24
"""Cells of the picture of the features: each is the mean of its share of them."""


def _over(subject: Subject, body: Figure3D, faces: np.ndarray, **options: Any) -> np.ndarray:
    return overlay(
        subject.photo, [body.vertices], faces, subject.focal, subject.principal,
        supersampling=SAMPLES, **options,
    )  # fmt: skip


def _alone(vertices: np.ndarray, faces: np.ndarray, **options: Any) -> np.ndarray:
    return view([vertices], faces, SHOWN_PX, supersampling=SAMPLES, **options)


def _side_span(bodies: list[Figure3D]) -> float:
    """Metres that show each of the bodies whole from the side, in one scale."""
    return 1.08 * max(float(np.ptp(turned(b.vertices, -90), axis=0)[:2].max()) for b in bodies)


def mesh_figure(subject: Subject, faces: np.ndarray) -> Drawing:
    """Photo, mesh over it, side view; and the error of each vertex, or without a truth the joints
    and bones."""
    final, truth = subject.steps[-1], subject.truth
    side, gap = (264, 14) if truth else (299, 14)
    drawing = Drawing(
        WIDTH, side + 106, "Photo, recovered mesh over it, mesh from the side, and "
        + ("error of each vertex in millimetres" if truth else "joints and bones"),
    )  # fmt: skip
    panels = [
        ("photo", "held-out person" if truth else "", subject.photo),
        ("mesh", "over the photo", _over(subject, final, faces, colors=[MODEL_COLOR])),
        ("mesh", "from the side",
         _alone(final.vertices, faces, degrees=-90, span_m=_side_span([final]))),
    ]  # fmt: skip
    if truth is None:
        bones = skeleton(subject.photo, [final.joints], subject.focal, subject.principal)
        panels.append(("skeleton", "over the photo", bones))
    else:
        errors = final.vertex_errors(truth)
        largest = round_above(float(np.percentile(errors, 99)))
        heat = _over(
            subject, final, faces, colors=[error_colors(errors, largest)], light=HEAT_LIGHT,
            opacity=1.0,
        )  # fmt: skip
        panels.append(("vertex error", f"mean {errors.mean():.0f} mm", heat))
        _bar(drawing, MARGIN + 4 * (side + gap), side, largest)
    for number, (name, more, picture) in enumerate(panels):
        x = MARGIN + number * (side + gap)
        drawing.picture(x, MARGIN, side, picture)
        drawing.text(x + side / 2, MARGIN + side + 36, name, LARGE)
        if more:
            drawing.text(x + side / 2, MARGIN + side + 72, more, SMALL, color=SOFT)
    return drawing


def _bar(drawing: Drawing, x: float, height: float, largest: float) -> None:
    """The colours of errors from 0 to `largest` millimetres, with ticks."""
    drawing.picture(x, MARGIN, 30, color_bar(30, round(height)))
    for share in (0.0, 0.5, 1.0):
        y = MARGIN + (1 - share) * height
        drawing.line([(x + 30, y), (x + 38, y)])
        drawing.text(x + 46, y + 22 - 22 * (1 - share), f"{largest * share:g}", SMALL,
                     anchor="start")  # fmt: skip
    drawing.text(x + 46, MARGIN + height + 36, "mm", SMALL, anchor="start", color=SOFT)


def _shown_steps(count: int) -> list[int]:
    """Of the estimates 0 to count - 1 at most MOST_STEPS, the first and the last among them."""
    places = np.linspace(0, count - 1, min(count, MOST_STEPS))
    return [int(place) for place in places.round()]


def regressor_figure(subject: Subject, faces: np.ndarray) -> Drawing:
    """Every estimate over the photo and from the side, with its errors when the truth is known."""
    shown = _shown_steps(len(subject.steps))
    columns = [
        ("start" if number == 0 else f"step {number}", subject.steps[number], MODEL_COLOR)
        for number in shown
    ]
    truth = subject.truth
    if truth is not None:
        columns.append(("truth", truth, TRUTH_COLOR))
    left, gap = (MARGIN + 164, 34) if truth else (MARGIN, 34)
    side = (WIDTH - MARGIN - left - (len(columns) - 1) * gap) / len(columns)
    top = MARGIN + 44
    drawing = Drawing(
        WIDTH, round(top + 2 * side + 10 + (112 if truth else MARGIN)),
        f"The estimate at the start and after each of {len(subject.steps) - 1} steps of the "
        "regressor, over the photo and from the side",
    )  # fmt: skip
    span = _side_span([body for _, body, _ in columns])
    for number, (name, body, color) in enumerate(columns):
        x = left + number * (side + gap)
        middle = x + side / 2
        drawing.text(middle, MARGIN + 28, name, LARGE)
        drawing.picture(x, top, side, _over(subject, body, faces, colors=[color]))
        drawing.picture(
            x, top + side + 10, side,
            _alone(body.vertices, faces, degrees=-90, span_m=span, colors=[color]),
        )  # fmt: skip
        if body is not truth and number + 1 < len(shown):
            y = top + side + 5
            drawing.arrow([(x + side + 4, y), (x + side + gap - 4, y)])
        if truth is not None and body is not truth:
            errors = body.joint_errors(truth)
            for line, (metric, value) in enumerate(errors.items()):
                y = top + 2 * side + 52 + 40 * line
                last = number + 1 == len(shown)
                drawing.text(middle, y, f"{value:.0f} mm", LARGE, color=INK if last else SOFT)
                if number == 0:
                    drawing.text(MARGIN, y, metric, SMALL, anchor="start")
    if truth is not None:
        for line, words in enumerate((("over the", "photo"), ("from the", "side"))):
            for row, word in enumerate(words):
                y = top + line * (side + 10) + side / 2 + 34 * row - 4
                drawing.text(MARGIN, y, word, SMALL, anchor="start", color=SOFT)
    return drawing


def _feature_strip(features: np.ndarray) -> np.ndarray:
    """A column of grey cells, dark for large values."""
    cells = np.array([part.mean() for part in np.array_split(features, FEATURE_CELLS)])
    span = float(np.ptp(cells)) or 1.0
    grey = 235 - 190 * (cells - cells.min()) / span
    column = np.repeat(grey.round().astype(np.uint8), 8)
    return np.repeat(np.repeat(column[:, None, None], 30, axis=1), 3, axis=2)


def pipeline_figure(
    subject: Subject, faces: np.ndarray, *, encoder: str, vertices: int
) -> Drawing:  # fmt: skip
    """From the crop through encoder, regressor and body model to the mesh in the photo."""
    final, count = subject.steps[-1], len(subject.steps) - 1
    top, side, arrow = 92.0, 184.0, 32.0
    middle, bottom = top + side / 2, top + side
    drawing = Drawing(
        WIDTH, 462, "Crop, encoder, features, iterative regressor, pose with shape and camera, "
        "body model, mesh in the photo",
    )  # fmt: skip

    def caption(x: float, name: str, more: str) -> None:
        drawing.text(x, bottom + 38, name, LARGE)
        drawing.text(x, bottom + 72, more, SMALL, color=SOFT)

    x = float(MARGIN)
    enlarged = max(1, SHOWN_PX // len(subject.crop))  # its pixels stay squares
    drawing.picture(x, top, side, subject.crop.repeat(enlarged, 0).repeat(enlarged, 1))
    caption(x + side / 2, "crop", f"{len(subject.crop)} x {len(subject.crop)}")
    x = _arrow(drawing, x + side, middle, arrow)
    drawing.polygon([(x, top), (x + 140, top + 40), (x + 140, bottom - 40), (x, bottom)])
    drawing.text(x + 70, middle - 6, "encoder", LARGE)
    drawing.text(x + 70, middle + 30, encoder, SMALL, color=SOFT, within=130)
    x = _arrow(drawing, x + 140, middle, arrow)
    strip = _feature_strip(subject.features)
    drawing.picture(x, top, side * strip.shape[1] / strip.shape[0], strip)
    width = side * strip.shape[1] / strip.shape[0]
    caption(x + width / 2, "features", str(len(subject.features)))
    x = _arrow(drawing, x + width, middle, arrow)
    regressor = x
    drawing.box(x, top + 30, 160, side - 60)
    drawing.text(x + 80, middle - 6, "regressor", LARGE)
    drawing.text(x + 80, middle + 30, f"T = {count}", SMALL, color=SOFT)
    x = _arrow(drawing, x + 160, middle, arrow)
    state = x
    for row, text in enumerate(("pose 24 x 3", "shape 10", "camera 3")):
        drawing.box(x, top + row * side / 3, 168, side / 3, fill="#ffffff")
        drawing.text(x + 84, top + (row + 0.5) * side / 3 + 10, text, SMALL)
    x = _arrow(drawing, x + 168, middle, arrow)
    drawing.picture(x, top, side, _alone(final.vertices, faces, degrees=25, background=GROUND))
    caption(x + side / 2, "body model", f"{vertices} vertices")
    x = _arrow(drawing, x + side, middle, arrow)
    drawing.picture(x, top, side, _over(subject, final, faces, colors=[MODEL_COLOR]))
    caption(x + side / 2, "projection", "in the photo")
    _loop(drawing, subject, faces, regressor=regressor + 80, state=state + 84, top=top, side=side)
    return drawing


def _arrow(drawing: Drawing, x: float, y: float, length: float) -> float:
    """An arrow to the right; where the next element begins."""
    drawing.arrow([(x + 4, y), (x + length - 4, y)])
    return x + length


def _loop(
    drawing: Drawing, subject: Subject, faces: np.ndarray, *, regressor: float, state: float,
    top: float, side: float,
) -> None:  # fmt: skip
    """The estimate goes back into the regressor, which begins with the start's."""
    drawing.arrow(
        [(state, top - 4), (state, top - 36), (regressor, top - 36), (regressor, top + 26)]
    )
    middle = (regressor + state) / 2
    drawing.text(middle, top - 48, "correct the estimate, T times", SMALL)
    start = _alone(subject.steps[0].vertices, faces, light=Light(), degrees=25)
    size = 122.0
    y = top + side + 44
    drawing.picture(regressor - size / 2, y, size, start)
    drawing.arrow([(regressor, y - 4), (regressor, top + side - 26)])
    drawing.text(regressor + size / 2 + 14, y + size / 2 - 4, "start:", LARGE, anchor="start")
    drawing.text(
        regressor + size / 2 + 14, y + size / 2 + 30, "mean pose", SMALL, anchor="start", color=SOFT
    )


def drawings(subject: Subject, predictor: Predictor) -> dict[str, Callable[[], Drawing]]:
    """Name of each figure and what makes it."""
    faces = predictor.body.arrays.faces
    encoder = str(predictor.info["config"]["model"]["encoder"])
    return {
        "pipeline": lambda: pipeline_figure(
            subject, faces, encoder=encoder, vertices=len(subject.steps[0].vertices)
        ),
        "regressor": lambda: regressor_figure(subject, faces),
        "mesh": lambda: mesh_figure(subject, faces),
    }


def _made_folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output={path}: cannot be made a folder ({error}); choose another"
        ) from error
    return folder


def figures(job: FiguresJob) -> dict[str, Any]:
    """Write pipeline, regressor and mesh into `job.output`, each as .png and .svg.

    ImageError for a photo that cannot be read, DataError for a box outside it, BundleError for a
    model that is none, ConfigError for an output that is no folder. Returns the files, the person
    shown and, where the truth is known, the errors at the start and after each step.
    """
    pinned = PinnedModel.of(job.model, job.body)
    predictor = pinned.load("cuda" if torch.cuda.is_available() else "cpu")
    number = None
    if job.image is None:
        subject, number = synthetic_subject(job, predictor)
    else:
        subject = photo_subject(job, predictor)
    output, files = _made_folder(job.output), []
    for name, draw in drawings(subject, predictor).items():
        drawing = draw()
        for ending, content in ((".svg", drawing.svg().encode()), (".png", drawing.png())):
            path = output / f"{name}{ending}"
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)
            files.append(str(path))
        say(f"wrote {output / name}.png and .svg")
    errors = None
    if subject.truth is not None:
        errors = [
            {metric: round(value, 3) for metric, value in step.joint_errors(subject.truth).items()}
            for step in subject.steps
        ]
    return {
        "files": files, "model": pinned.reference, "model_sha256": pinned.sha256,
        "image": job.image, "person": number, "errors_mm": errors,
    }  # fmt: skip
