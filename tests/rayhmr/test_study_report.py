"""The page of a study: its numbers are those of the records, and it claims no more than they do."""

from __future__ import annotations

import html
import io
import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from rayhmr.config import TrainJob, TuneJob
from rayhmr.data.schema import DatasetInfo
from rayhmr.storage import Folder
from rayhmr.study import TrialRecord, trial_id
from rayhmr.study_report import Measured, best_yaml, write_report
from rayhmr.study_sections import (
    CrossIteration,
    cost,
    cost_section,
    curves_section,
    effects_section,
    iterations,
    iterations_section,
    settings_section,
)
from rayhmr.study_statistics import best_record
from rayhmr.study_table import table_rows, trials_table
from rayhmr.study_words import summary

PA, MPJPE = "val/pa_mpjpe_mm", "val/mpjpe_mm"
SPACE = {
    "model.n_iter": {"choice": [1, 2, 3, 4]},
    "train.losses.pose": {"low": 0.1, "high": 10.0, "log": True},
}
GRID = {"model.n_iter": {"choice": [1, 2, 3]}, "train.seed": {"choice": [0, 1, 2]}}
INFO = DatasetInfo(
    location="shards", fingerprint="ab" * 32, source="synthetic", image_size=64,
    files={"val": [{"name": "v", "rows": 321, "bytes": 1, "sha256": "0"}]}, statistics={},
    rejected={}, body={},
)  # fmt: skip


def study(space=SPACE, trials=24, epochs=4, **more):
    trial = {"train": {"epochs": epochs}} | more.pop("trial", {})
    return TuneJob.model_validate({"name": "s", "trials": trials, "space": space,
                                   "compare_default": True, "trial": trial, **more})  # fmt: skip


def record(number, settings, errors, status="finished", **more):
    history = tuple({"epoch": float(e + 1), PA: v, MPJPE: 1.5 * v, "seconds": 10.0 * (e + 1)}
                    for e, v in enumerate(errors))  # fmt: skip
    return TrialRecord(number=number, trial=trial_id(number), settings=settings, status=status,
                       history=history, seconds=10.0 * len(errors), **more)  # fmt: skip


def chosen(n_iter, pose):
    return {"model.n_iter": n_iter, "train.losses.pose": pose}


RECORDS = [
    record(0, {}, [120.0, 100.0, 90.0, 80.25]),
    record(1, chosen(2, 0.5), [125.0], "stopped", reason="rung of epoch 1: <too> high & late"),
    record(2, chosen(4, 3.0), [110.0, 90.0, 80.0, 70.5]),
    record(3, chosen(4, 0.2), [115.0, 95.0, 85.0, 75.75]),
    record(4, chosen(1, 9.0), [130.0, 700.0], "failed", reason="the loss was not finite"),
    record(5, chosen(3, 1.5), [60.0, 50.0], "stopped", reason="rung of epoch 2"),
]  # fmt: skip


def written(tmp_path, records, job=None, measured=None):
    folder = Folder(str(tmp_path / "study"))
    place = write_report(folder, records, job or study(), INFO, measured)
    assert place == f"{folder.location}/report.html"
    return folder.read("report.html").decode()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The page of RECORDS."""
    return written(tmp_path_factory.mktemp("usual"), RECORDS)


def words(text):
    """What a reader sees, without scripts, styles and hints for the pointer."""
    text = re.sub(r"<(script|style|title)>.*?</\1>", " ", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text.replace("<wbr>", ""))).split())


def part(text, heading):
    """One section of the page."""
    (found,) = re.findall(rf"<h2>{heading}</h2>(.*?)</section>", text, re.S)
    return found


def cells(section):
    """Rows of the first table as text."""
    table = re.search(r"<table.*?</table>", section, re.S)[0]
    return [[words(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
            for row in re.findall(r"<tr[^>]*>(.*?)</tr>", table, re.S)]  # fmt: skip


def test_the_best_is_a_finished_trial_and_the_early_one_below_it_is_not(usual):
    said = words(part(usual, "Summary"))
    assert "6 of 24 trials: 3 trained to the end, 2 stopped early, 1 failed." in said
    assert "not complete" in said
    assert "Best trial: t0002, PA-MPJPE 70.5 mm" in said
    assert "after 4 epochs, with model.n_iter = 4, train.losses.pose = 3." in said
    assert "There is no interval" in said
    assert "9.8 mm below that of the default settings (80.2 mm)" in said
    assert "not shown that the settings are better" in said


def test_a_better_epoch_before_the_last_is_named(tmp_path):
    dipped = [*RECORDS, record(6, chosen(2, 2.0), [99.0, 61.5, 62.0, 63.0])]
    said = words(part(written(tmp_path, dipped), "Summary"))
    assert "PA-MPJPE 63.0 mm on the validation split after 4 epochs" in said
    assert "Its lowest was 61.5 mm after epoch 2" in said


@pytest.mark.parametrize(
    ("shift", "phrase"),
    [
        (-4.0, "beat the default ones by more than the interval: by"),
        (0.0, "It is not shown that the best settings beat"),
        (4.0, "The best settings are worse than the default ones, by"),
    ],
)
def test_the_verdict_rests_on_the_people_of_the_test_split(tmp_path, shift, phrase):
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 15, 250)
    ours = base + shift + rng.normal(0, 2, 250)
    people = {"t0000": base.tolist(), "t0002": ours.tolist()}
    said = words(part(written(tmp_path, RECORDS, measured=Measured(people=people)), "Summary"))
    assert phrase in said
    assert "paired bootstrap over 250 people of the test split" in said
    assert f"{ours.mean():.1f} mm against {base.mean():.1f} mm" in said
    assert "another seed" in said
    low, high = map(float, re.search(r"interval (-?[\d.]+) to (-?[\d.]+); paired", said).groups())
    spread = stats.sem(base - ours)
    assert low == pytest.approx((base - ours).mean() - 1.96 * spread, abs=0.15)
    assert high == pytest.approx((base - ours).mean() + 1.96 * spread, abs=0.15)


def test_over_seeds_the_interval_is_students(tmp_path):
    scores = {1: [90.0, 92.0, 91.0], 2: [80.0, 81.5, 82.0], 3: [85.0, 86.0, 84.0]}
    records = [record(i, {"model.n_iter": t, "train.seed": s}, [scores[t][s]])
               for i, (t, s) in enumerate((t, s) for t in scores for s in range(3))]  # fmt: skip
    job = study(GRID, None, 1, searcher="grid", scheduler="none", compare_default=False)
    assert job.trial.model.n_iter == 3
    text = written(tmp_path, records, job)
    said = words(part(text, "Summary"))
    assert said.startswith("9 trials: 9 trained to the end. Best")
    low, high = stats.t.interval(0.95, 2, np.mean(scores[2]), stats.sem(scores[2]))
    assert f"81.2 mm (95 % interval {low:.1f} to {high:.1f}); t interval over 3 seeds" in said
    # The default settings are a point of the grid: the pairs are its seeds.
    paired = stats.ttest_rel(scores[3], scores[2]).confidence_interval(0.95)
    assert f"95 % interval {paired.low:.1f} to {paired.high:.1f}; paired t interval over 3" in said
    section = part(text, "PA-MPJPE against T")
    head, *rows = cells(section)
    assert head == ["T", "n", "stopped", "best, mm", "mean, mm", "95 % interval"]
    assert rows[1] == ["2", "3", "0", "80.0", "81.2", f"{low:.1f} to {high:.1f}"]
    assert "All other settings are the same" in words(section)


def test_where_t_was_sampled_there_are_points_and_no_intervals(usual):
    rows = iterations(RECORDS, study())
    assert [(r.n_iter, list(r.scores.values()), r.interval, r.stopped) for r in rows] == [
        (1, [], None, 0), (2, [], None, 1), (3, [80.25], None, 1), (4, [70.5, 75.75], None, 0),
    ]  # fmt: skip
    section = part(usual, "PA-MPJPE against T")
    assert cells(section)[1:] == [["1", "0", "0", "–"], ["2", "0", "1", "–"],
                                  ["3", "1", "1", "80.2"], ["4", "2", "0", "70.5"]]  # fmt: skip
    assert "no effect of T alone" in words(section)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)".*?<title>(.*?)</title>', section)
    places = {hint: (float(x), float(y)) for x, y, hint in dots}
    assert set(places) == {"t0000: T = 3, 80.2 mm", "t0002: T = 4, 70.5 mm",
                           "t0003: T = 4, 75.8 mm"}  # fmt: skip
    (x3, y80), (x4, y70), (x4_too, y75) = places.values()
    assert x3 < x4 == x4_too
    # One scale: pixels are in proportion to millimetres, less is lower.
    assert (y75 - y80) / (y70 - y80) == pytest.approx((75.75 - 80.25) / (70.5 - 80.25), abs=0.01)
    assert y70 > y80


def test_t_that_was_not_searched_is_named(tmp_path):
    job = study({"train.losses.pose": SPACE["train.losses.pose"]})
    records = [record(0, {}, [80.0])]
    section = part(written(tmp_path, records, job), "PA-MPJPE against T")
    assert f"all trials have T = {job.trial.model.n_iter}" in section
    assert "<svg" not in section


def test_the_matrix_holds_means_and_intervals_of_trainings(tmp_path, usual):
    values = {
        (2, 2): [80.0, 82.0],
        (2, 3): [85.0, 84.0],
        (3, 2): [99.0, 95.0],
        (3, 3): [70.0, 71.0],
    }
    cross = [CrossIteration(trial=f"t{row}{i}", trained=row, evaluated=column, error_mm=value)
             for (row, column), two in values.items() for i, value in enumerate(two)]  # fmt: skip
    text = written(tmp_path, RECORDS, measured=Measured(cross=cross))
    section = part(text, "Other T than trained")
    half = stats.t.ppf(0.975, 1) * stats.sem([80.0, 82.0])
    assert cells(section)[0] == ["trained T", "T = 2", "T = 3", "n"]
    assert cells(section)[1][:2] == ["2", f"81.0 ± {half:.1f}"]
    assert cells(section)[2][0::3] == ["3", "2"]
    drawn = re.findall(r">(\d+\.\d)</text>", section)
    assert drawn == ["81.0", "84.5", "97.0", "70.5"]
    assert "Other T" not in usual


def test_curves_name_the_best_and_the_default_and_grey_the_stopped(usual):
    section = part(usual, "Learning curves")
    lines = {hint: color for color, hint in re.findall(
        r'<polyline [^>]*stroke="([^"]+)" [^>]*><title>(.*?)</title>', section)}  # fmt: skip
    dots = {hint: color for color, hint in re.findall(
        r'<circle [^>]*fill="([^"]+)" [^>]*><title>(.*?)</title>', section)}  # fmt: skip
    looks = lines | dots
    assert set(looks) == {f"{r.trial}, {r.status}" for r in RECORDS}
    grey = {hint for hint, color in looks.items() if color == "var(--mute)"}
    assert grey == {"t0001, stopped", "t0004, failed", "t0005, stopped"}
    assert looks["t0002, finished"] == "var(--s1)"
    assert looks["t0000, finished"] == "var(--s2)"
    assert {"best", "default"} <= set(re.findall(r">(\w+)</text>", section))
    assert "the rungs (epoch 1, 2)" in words(section)
    assert "Errors above 130 mm" not in words(section)
    assert "Errors above 125 mm are drawn at the upper edge" in words(section)


def test_without_halving_there_are_no_rungs(tmp_path):
    section = part(written(tmp_path, RECORDS, study(scheduler="none")), "Learning curves")
    assert "rung" not in words(section)


def test_settings_are_lines_that_end_at_their_error_or_before_it(usual):
    section = part(usual, "Settings")
    lines = {hint[:5]: [tuple(map(float, p.split(","))) for p in points.split()]
             for points, hint in re.findall(
                 r'<polyline points="([^"]*)"[^>]*><title>(.*?)</title>', section)}  # fmt: skip
    assert {t: len(line) for t, line in lines.items()} == {
        "t0000": 3, "t0001": 2, "t0002": 3, "t0003": 3, "t0004": 2, "t0005": 2,
    }  # fmt: skip
    # The logarithm of the weight is even along its axis.
    heights = [lines[trial][1][1] for trial in ("t0001", "t0002", "t0003", "t0004")]
    logs = np.log([0.5, 3.0, 0.2, 9.0])
    slope = np.polyfit(logs, heights, 1)
    np.testing.assert_allclose(np.polyval(slope, logs), heights, atol=0.1)
    assert slope[0] < 0, "larger values stand higher"
    assert lines["t0002"][2][1] > lines["t0003"][2][1] > lines["t0000"][2][1]
    assert list(lines)[-1] == "t0002", "the best lies on top"


@pytest.mark.parametrize(
    ("path", "dimension", "default", "mark"),
    [
        ("train.losses.pose", {"low": 0.1, "high": 10.0, "log": True}, 0.0, "0"),
        ("train.optimizer.grad_clip", {"low": 0.1, "high": 10.0, "log": True}, None, "none"),
        ("train.losses.pose", {"low": 0.1, "high": 10.0}, 40.0, "40"),
    ],
)
def test_a_default_outside_the_searched_range_has_its_place(path, dimension, default, mark):
    job = study({path: dimension}, trial={"train": with_value(path, default)})
    records = [record(0, {}, [80.0]), record(1, {path: 1.0}, [70.0], "stopped")]
    section = settings_section(records, job, None).html()
    assert mark in re.findall(r">([^<>]+)</text>", section)
    heights = [float(points.split()[0].split(",")[1]) for points in
               re.findall(r'<polyline points="([^"]*)"[^>]*><title>t0000', section)]  # fmt: skip
    texts = re.findall(r'y="([\d.]+)"[^>]*>([^<>]+)<', section)
    marks = {text: float(y) for y, text in texts}
    assert heights[0] == pytest.approx(marks[mark] - 4, abs=0.1)


def with_value(path, value):
    """The tree below `train` with one setting."""
    _, section, name = path.split(".")
    return {section: {name: value}, "epochs": 1}


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_study_can_be_shown(data):
    grid = data.draw(st.booleans())
    job = study(GRID if grid else SPACE, 24, 3)
    values = st.floats(1, 500) | st.just(float("nan")) | st.just(float("inf"))
    records = []
    for number in range(data.draw(st.integers(0, 12))):
        status = data.draw(st.sampled_from(["finished", "stopped", "failed", "running"]))
        least, most = (3, 3) if status == "finished" else (0, 2)
        errors = data.draw(st.lists(values, min_size=least, max_size=most))
        n_iter, other = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2))
        drawn = {"model.n_iter": n_iter, "train.seed": other} if grid else chosen(n_iter, other + 1)
        records.append(record(number, drawn if number else {}, errors, status))
    best = best_record(records, PA)
    finite = [r.history[-1][PA] for r in records if r.status == "finished"]
    finite = [value for value in finite if np.isfinite(value)]
    assert (best is None) == (not finite)
    name = best and best.trial
    sections = [
        iterations_section(records, job), effects_section(records, job),
        settings_section(records, job, name), curves_section(records, job, name),
        cost_section(records, job, ""),
    ]  # fmt: skip
    for section in sections:
        assert words(section.html())
        assert "nan" not in section.html()
    if records:
        assert len(cells(trials_table(records, job))) == len(records) + 1
    said = " ".join(summary(records, job, best, {}, "test", 24))
    if best is not None:
        assert f"PA-MPJPE {min(finite):.1f} mm" in said


def test_few_trials_show_no_effects_and_many_show_them_beside_chance(tmp_path):
    section = part(written(tmp_path, RECORDS), "Which settings matter")
    assert "it would rest on 4 trials" in section
    assert "<svg" not in section
    rng = np.random.default_rng(2)
    many = [record(i, chosen(int(rng.integers(1, 5)), float(np.exp(rng.normal()))), [])
            for i in range(1, 25)]  # fmt: skip
    many = [record(r.number, r.settings, [0, 0, 0, 60 + 9 * r.settings["model.n_iter"]])
            for r in many]  # fmt: skip
    said = words(part(written(tmp_path, many), "Which settings matter"))
    assert "rests on 24 trials that ended, which is few" in said
    assert "More than chance: model.n_iter." in said


def test_the_table_holds_every_trial_its_settings_and_its_reason(usual):
    section = part(usual, "All trials")
    head, *rows = cells(section)
    assert head == ["trial", "status", "epochs", "pa_mpjpe_mm", "mpjpe_mm", "model.n_iter",
                    "train.losses.pose", "seconds", "reason"]  # fmt: skip
    assert [row[0] for row in rows] == ["t0002", "t0003", "t0000", "t0005", "t0001", "t0004"]
    assert rows[0] == ["t0002", "finished", "4", "70.5", "105.8", "4", "3", "40", ""]
    assert rows[2][-1] == "the default settings"
    assert rows[4][-1] == "rung of epoch 1: <too> high & late"
    assert rows[5][-1] == "the loss was not finite"
    assert section.count('class="early"') == 2 * 3
    values = [row["train.losses.pose"] for row in table_rows(RECORDS, study())]
    assert values == [3.0, 0.2, study().trial.train.losses.pose, 1.5, 0.5, 9.0]


def test_the_cost_is_set_against_the_full_grid(tmp_path):
    found = cost(RECORDS, study())
    assert (found["epochs"], found["full_epochs"], found["seconds"]) == (17, 24, 170.0)
    assert found["full_seconds"] == pytest.approx(240.0)
    section = part(written(tmp_path, RECORDS, measured=Measured(hardware="2 cores")), "Cost")
    assert cells(section)[1:] == [["trial-epochs", "17", "24", "71 %"],
                                  ["seconds of trials", "170", "about 240", "71 %"]]  # fmt: skip
    assert "Hardware: 2 cores." in words(section)


def test_the_best_settings_are_a_configuration_of_a_training(tmp_path):
    section = part(written(tmp_path, RECORDS), "Best settings")
    assert f"python jobs/train.py --config {tmp_path}/study/best.yaml name=s-best" in section
    shown = html.unescape(re.search(r"</summary><pre><code>(.*?)</code>", section, re.S)[1])
    assert shown == best_yaml(study(), RECORDS[2].settings)
    job = TrainJob.model_validate(yaml.safe_load(shown))
    assert (job.model.n_iter, job.train.losses.pose, job.train.epochs) == (4, 3.0, 4)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [record(0, {}, [], "running")],
        [record(0, {}, [90.0], "running"), record(1, chosen(2, 1.0), [], "running")],
        [record(n, chosen(2, 1.0), [], "failed", reason="no room") for n in range(3)],
        [record(0, {}, [float("nan")] * 4), record(1, chosen(1, 1.0), [float("inf")], "failed")],
        [record(1, chosen(2, 1.0), [90.0], "stopped")],
    ],
)  # fmt: skip
def test_studies_without_a_finished_trial_have_a_page_too(tmp_path, records):
    text = written(tmp_path, records)
    said = words(part(text, "Summary"))
    assert "No trial was trained to its end, so there is no best one" in said
    assert "None yet." in part(text, "Best settings")
    assert "nan" not in words(text).split()


@pytest.mark.parametrize("status", ["failed", "stopped", "running"])
def test_a_default_trial_without_a_final_error_is_no_comparison(tmp_path, status):
    records = [record(0, {}, [90.0], status), *RECORDS[1:]]
    said = words(part(written(tmp_path, records), "Summary"))
    assert f"is not known: the trial with the default ones, t0000, is {status}." in said


def test_a_default_that_nothing_beats_is_called_the_best(tmp_path):
    records = [record(0, {}, [90.0, 80.0, 70.0, 60.0]), *RECORDS[1:]]
    said = words(part(written(tmp_path, records), "Summary"))
    assert "PA-MPJPE 60.0 mm on the validation split after 4 epochs, with the default" in said
    assert "No settings that were tried beat the default ones" in said
    none = words(part(written(tmp_path, RECORDS[1:]), "Summary"))
    assert "no trial had the default ones (compare_default=true adds it)" in none


def test_the_page_asks_for_nothing_from_outside(usual):
    text = usual
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.findall(r"https?:|(?<!\w)//\w|url\(|@import|<link|\ssrc=", text)
    assert text.count("<script>") == 1


def test_the_plots_are_png_files_and_the_same_records_give_the_same_bytes(tmp_path):
    cross = [CrossIteration(trial="t", trained=2, evaluated=2, error_mm=80.0)]
    first = written(tmp_path, RECORDS, measured=Measured(cross=cross))
    folder = tmp_path / "study" / "plots"
    assert sorted(path.name for path in folder.iterdir()) == [
        "cross_iterations.png", "curves.png", "iterations.png", "settings.png",
    ]  # fmt: skip
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for content in before.values():
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert pixels.shape[1] >= 1000
        assert pixels.std() > 5
    assert written(tmp_path, RECORDS, measured=Measured(cross=cross)) == first
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


SORTED = """name => {
  const heads = [...document.querySelectorAll("table.sort th")];
  heads.find(head => head.textContent === name).querySelector("button").click();
  return [...document.querySelectorAll("table.sort tbody tr")].map(r => r.cells[0].textContent);
}"""


@pytest.mark.browser
def test_a_browser_without_network_opens_it_and_sorts_its_table(tmp_path, open_offline):
    written(tmp_path, RECORDS)
    page = open_offline(tmp_path / "study" / "report.html")
    assert page.title() == "Study s"
    by_error = ["t0005", "t0002", "t0003", "t0000", "t0001", "t0004"]
    assert page.evaluate(SORTED, "pa_mpjpe_mm") == by_error
    assert page.evaluate(SORTED, "pa_mpjpe_mm") == by_error[::-1]
    assert page.evaluate(SORTED, "trial") == [r.trial for r in RECORDS]
    whole, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert whole <= inner, "only tables scroll sideways, not the page"
    sizes = "[...document.querySelectorAll('svg')].map(s => s.clientWidth)"
    assert min(page.evaluate(sizes)) > 300
