"""A data set, a prediction or an evaluation as one page for the eye, which opens without a network.

Everybody is counted; pictures are drawn of a sample, of the worst, of doubles, and of whoever a bar
of a chart needs so that it leads to a picture.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hmr.body import Body
from hmr.errors import ConfigError, DataError
from hmr.predictor import Predictor
from rayhmr import browse_predictions, browse_shards
from rayhmr.browse_charts import Measure, Rows, measures, row_charts
from rayhmr.browse_contents import Contents, encoded, link
from rayhmr.browse_drawn import Pictured, panels
from rayhmr.browse_overlap import one_of_each_split, overlaps
from rayhmr.browse_page import browser_page
from rayhmr.browse_people import People, Progress
from rayhmr.browse_shards import Rejected, ShardPictures, read_rejected
from rayhmr.config import BrowseJob, EvaluateJob
from rayhmr.data import schema
from rayhmr.data.schema import DatasetInfo, read_info
from rayhmr.evaluate import EVALUATION, PEOPLE_ERRORS, measure, open_model
from rayhmr.prediction_parts import MANIFEST as PREDICTIONS
from rayhmr.storage import Folder
from rayhmr.telemetry import say

GROUPS, OF_A_GROUP = 40, 6
"""Groups of doubles of each kind, and members of each, that are pictured."""
RARE = 0.1
"""A twelfth of the circle is a gap when it holds less than this share of what evenness gives."""


class Pictures(Protocol):
    """Where pictures of chosen people come from."""

    body: Body

    def of(self, rows: Sequence[int]) -> Iterator[tuple[int, Pictured]]:
        """Row and pictures, in rising order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a page is made of."""

    what: str
    people: People
    rejected: Sequence[Rejected]
    pictures: Pictures


def _with_errors(people: People, errors: dict[str, dict[str, float]]) -> People:
    """errors: metric to id to value."""
    found = {
        name: np.array([values.get(i, np.nan) for i in people.ids])
        for name, values in errors.items()
    }
    return replace(people, errors=found)


def _measured(
    predictor: Predictor, info: DatasetInfo, job: BrowseJob
) -> dict[str, dict[str, float]]:
    """Errors of everybody of the job's splits, by metric and id."""
    found: dict[str, dict[str, float]] = {}
    for split in [s for s in browse_shards.splits_of(info) if s in job.measure]:
        say(f"measuring {info.rows(split)} people of the {split} split")
        errors = measure(predictor, info, split, batch_size=job.batch_size)
        for name, values in errors.by_iteration.items():
            pairs = zip(errors.sample_ids, values[-1].tolist(), strict=True)
            found.setdefault(name, {}).update(pairs)
    return found


def _open_shards(
    job: BrowseJob, location: str, model: str | None,
    errors: dict[str, dict[str, float]] | None = None,
) -> Opened:  # fmt: skip
    info = read_info(location)
    predictor = None
    if model is not None:
        settings = EvaluateJob(model=model, data=location, body=job.body)
        _, predictor = open_model(settings, info)
        if errors is None:
            errors = _measured(predictor, info, job)
    body = predictor.body if predictor else Body.from_config(job.body)
    if (ours := body.arrays.content_hash()) != info.body["hash"]:
        raise DataError(
            f"{location}: its labels belong to the body {info.body['name']!r} "
            f"({info.body['hash'][:12]}…), body.path names {body.arrays.name!r} ({ours[:12]}…); "
            "set body.path to the body it was prepared with"
        )
    people = browse_shards.read_people(info)
    return Opened(
        what=f"Data set {location} (fingerprint {info.fingerprint[:12]})"
        + (f" with the model {model}" if model else ""),
        people=_with_errors(people, errors or {}),
        rejected=read_rejected(Folder(location)), pictures=ShardPictures(info, body, predictor),
    )  # fmt: skip


def _open_evaluation(job: BrowseJob, folder: Folder) -> Opened:
    try:
        facts = folder.read_json(EVALUATION)
        table = csv.DictReader(io.StringIO(folder.read(PEOPLE_ERRORS).decode(), newline=""))
        errors: dict[str, dict[str, float]] = {}
        for row in table:
            sample = row.pop("sample_id")
            for name, value in row.items():
                errors.setdefault(name, {})[sample] = float(value)
        data, model = job.data or facts["data"], job.model or facts["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"input={job.input}: holds no {EVALUATION} with {PEOPLE_ERRORS} beside it ({error!r}); "
            f"evaluate again with `python jobs/evaluate.py output={job.input}`"
        ) from error
    info = read_info(data)
    if info.fingerprint != facts["data_fingerprint"]:
        raise DataError(
            f"input={job.input}: was measured on other data ({facts['data_fingerprint'][:12]}…) "
            f"than {data} holds ({info.fingerprint[:12]}…); set data= to those, or evaluate again"
        )
    return _open_shards(job, data, model, errors)


def opened(job: BrowseJob) -> Opened:
    """What `job.input` is; ConfigError for a folder that is none of the three."""
    folder = Folder(job.input)
    if folder.exists(schema.MANIFEST):
        return _open_shards(job, job.input, job.model)
    if folder.exists(EVALUATION):
        return _open_evaluation(job, folder)
    if folder.exists(PREDICTIONS):
        found = browse_predictions.open_predictions(job.input, job.images)
        return Opened(
            what=f"Predictions {job.input} of {found.model}",
            people=browse_predictions.read_people(found), rejected=read_rejected(folder),
            pictures=browse_predictions.PredictionPictures(found, Body.from_config(job.body)),
        )  # fmt: skip
    raise ConfigError(
        f"input={job.input}: has neither {schema.MANIFEST} nor {EVALUATION} nor {PREDICTIONS}; "
        "give a folder that jobs/prepare.py, jobs/evaluate.py or jobs/predict.py wrote"
    )


def sample(people: People, count: int, seed: int) -> list[int]:
    """At most `count` rows, as evenly from each source and split as they allow, rising."""
    rng = np.random.default_rng(seed)
    keys = np.array([f"{a}\0{b}" for a, b in zip(people.sources, people.splits, strict=True)])
    places, order = np.empty(len(people), int), rng.permutation(len(people))
    for key in np.unique(keys):
        here = order[keys[order] == key]
        places[here] = np.arange(len(here))
    chosen = order[np.argsort(places[order], kind="stable")][:count]
    return [int(row) for row in np.sort(chosen)]


def worst(people: People, count: int) -> list[int]:
    """Rows from the largest error; without errors those that are bent most."""
    values = people.error if people.ranked_by is not None else people.bend
    known = np.flatnonzero(np.isfinite(values))
    return [int(row) for row in known[np.argsort(-values[known], kind="stable")][:count]]


def _tagged(
    found: Sequence[Measure], rows: Sequence[Rows], sheet: set[int]
) -> dict[int, list[str]]:
    """The tags of bars for every row of the sheet, which grows until each bar has a picture."""
    tags: dict[int, list[str]] = {}
    bars = []
    for one in found:
        bins = one.bins
        bars += [(f"{one.key}-{n}", np.flatnonzero(bins == n)) for n in np.unique(bins) if n >= 0]
    for several in rows:
        bars += [(tag, members) for tag, _, members in several.far()]
    for _, members in bars:
        if not sheet.intersection(members.tolist()):
            sheet.add(int(members[0]))
    for tag, members in bars:
        for row in sheet.intersection(members.tolist()):
            tags.setdefault(row, []).append(tag)
    return tags


def _findings(contents: Contents, unreadable: int) -> list[str]:
    """Sentences, each with a way to what it tells of."""
    found, people = contents.overlaps, contents.people
    said = [f"{len(people):,} people"]
    if (people.splits != "").any():
        across = f"{len(found.across)} pictures are in several splits"
        said.append(link("across", across, across) if found.across
                    else "No picture is in two splits")  # fmt: skip
        subjects = f"{len(found.subjects)} subjects are in several splits"
        said.append(link("subject", subjects, subjects) if found.subjects
                    else "No subject is in two splits")  # fmt: skip
    if found.within:
        again = f"{len(found.within)} pictures are there more than once"
        said.append(link("within", again, again))
    if contents.rejected:
        said.append(f'<a href="#rejections">{len(contents.rejected)} rows were rejected</a>')
    if unreadable:
        said.append(f"{unreadable} pictures could not be read")
    if contents.worst:
        row, by = contents.worst[0], people.ranked_by
        value = people.bend[row] if by is None else people.error[row]
        unit = "° mean joint angle" if by is None else " mm"
        said.append(f'<a href="#worst">The {"most unusual" if by is None else "worst"} has '
                    f"{value:.0f}{unit}</a>")  # fmt: skip
    headings = people.heading[np.isfinite(people.heading)]
    counts, edges = np.histogram(headings, 12, (-180, 180))
    few = counts < RARE * len(headings) / 12
    if len(headings) >= 120 and few.any():
        gaps = ", ".join(f"{a:.0f}° to {b:.0f}°" for a, b in _joined(edges[:-1][few], 30.0))
        said.append(html.escape(f"Almost nobody has a heading of {gaps}"))
    return said


def _joined(starts: np.ndarray, width: float) -> list[tuple[float, float]]:
    """Ranges of one width as fewer ranges: neighbours become one."""
    ranges: list[tuple[float, float]] = []
    for start in starts.tolist():
        first = ranges.pop()[0] if ranges and ranges[-1][1] == start else start
        ranges.append((first, start + width))
    return ranges


def gathered(source: Opened, job: BrowseJob) -> Contents:
    """The page's contents, pictures included."""
    people = source.people
    say(f"looking for doubles among {len(people.prints)} pictures")
    found, lines, rows = overlaps(people), measures(people), row_charts(people)
    last = worst(people, job.worst)
    sheet = set(sample(people, job.sheet, job.seed)) | set(last)
    extra: dict[int, list[str]] = {row: ["worst", f"row-{row}"] for row in last}
    shown: dict[str, list[tuple[str, Sequence[int]]]] = {"across": [], "within": []}
    for kind, groups in (("across", found.across), ("within", found.within)):
        for number, group in enumerate(groups[:GROUPS]):
            tag = f"{kind}-{number}"
            shown[kind].append((tag, group))
            members = sorted({*one_of_each_split(people, group), *group[:OF_A_GROUP]})
            for row in members:
                extra.setdefault(row, []).extend([kind, tag])
    for members in list(found.subjects.values())[:GROUPS]:
        for row in one_of_each_split(people, members):
            extra.setdefault(row, []).append("subject")
    sheet |= set(extra)
    tags = _tagged(lines, rows, sheet)
    for row, more in extra.items():
        tags.setdefault(row, []).extend(more)
    pictures = _drawn(source.pictures, sorted(sheet), set(last), job.side)
    contents = Contents(
        title="People to look at", lead=source.what, people=people, rejected=source.rejected,
        overlaps=found, measures=lines, rows=rows, sheet=sorted(sheet), worst=last, tags=tags,
        pictures=pictures, across=shown["across"], within=shown["within"],
    )  # fmt: skip
    return replace(contents, findings=_findings(contents, int((people.pictures < 0).sum())))


def _drawn(
    pictures: Pictures, rows: Sequence[int], whole: set[int], side: int
) -> dict[int, dict[str, bytes]]:
    faces, progress = pictures.body.arrays.faces, Progress("drew", len(rows))
    drawn = {}
    for row, pictured in pictures.of(rows):
        drawn[row] = encoded(panels(pictured, faces, side, whole=row in whole))
        progress.add(1)
    return drawn


def browse(job: BrowseJob) -> dict[str, Any]:
    """Write the page about `job.input` to `job.output`.

    ConfigError for an input that is none, DataError for a damaged one or a body that does not fit,
    BundleError for a model that is none. Returns counts and the page's path.
    """

    contents = gathered(opened(job), job)
    output = Path(job.output).expanduser().absolute()
    text = browser_page(contents)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = output.with_name(f".{output.name}.partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(output)
    except OSError as error:
        raise ConfigError(
            f"output={job.output}: cannot be written ({error}); choose another file"
        ) from error
    say(f"wrote {output} ({len(text) / 1e6:.1f} MB)")
    people = contents.people
    return {
        "output": str(output), "people": len(people), "pictured": len(contents.sheet),
        "worst": len(contents.worst), "rejected": len(contents.rejected),
        "pictures_in_several_splits": len(contents.overlaps.across),
        "pictures_again": len(contents.overlaps.within),
        "subjects_in_several_splits": len(contents.overlaps.subjects),
        "error_mm": None if people.ranked_by is None else float(np.nanmean(people.error)),
    }  # fmt: skip
