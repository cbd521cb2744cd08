"""The page about a data set, predictions and an evaluation: its counts are those of the files, and
what was planted is what it finds."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from hmr.body_arrays import body_from_path
from hmr.crops import decode_image, encode_jpeg
from hmr.errors import ConfigError, DataError
from rayhmr.browse import browse, sample
from rayhmr.browse_people import angles_from_rest, facing
from rayhmr.browse_shards import read_people
from rayhmr.config import BrowseJob, EvaluateJob, SyntheticConfig
from rayhmr.data import schema
from rayhmr.data.schema import read_info
from rayhmr.data.sources.synthetic import SyntheticSource
from rayhmr.data.statistics import means, sums_of
from rayhmr.evaluate import evaluate
from rayhmr.people_table import PEOPLE_SCHEMA, RESULT_SCHEMA
from rayhmr.pictures import table_of
from rayhmr.prediction_files import write_people
from rayhmr.prediction_parts import MANIFEST, PredictionParts

COUNTS = {"train": 40, "val": 12, "test": 16}
REJECTED = [("a/<1>", "decode_failed", "no JPEG & no PNG"), ("a/2", "label_missing", "2 joints"),
            ("b/3", "decode_failed", "cut off")]  # fmt: skip


def write_shards(folder: Path, people: dict) -> str:
    """A data set as jobs/prepare.py writes it, without Ray."""
    body = body_from_path("embedded")
    files = {}
    for split, rows in people.items():
        name = schema.shard_name(split, 0, 1)
        content = schema.encode_shard([person.row(92) for person in rows])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        files[split] = [{"name": name, "rows": len(rows), "bytes": len(content),
                         "sha256": hashlib.sha256(content).hexdigest()}]  # fmt: skip
    (folder / "rejected").mkdir()
    with (folder / schema.REJECTED).open("w", newline="") as file:
        csv.writer(file).writerows([("id", "reason", "detail"), *REJECTED])
    facts = {"schema_version": 1, "source": "synthetic", "image_size": 64, "files": files,
             "rejected": {"decode_failed": 2, "label_missing": 1},
             "statistics": means(sums_of(people["train"], body)),
             "fingerprint": schema.fingerprint(files),
             "body": {"name": body.name, "hash": body.content_hash()}}  # fmt: skip
    (folder / schema.MANIFEST).write_text(json.dumps(facts))
    return str(folder)


@pytest.fixture(scope="module")
def made():
    config = SyntheticConfig(preset="medium", image_size=64, seed=4)
    source = SyntheticSource(config, "embedded")
    return {split: list(source.people(split, 0, n)) for split, n in COUNTS.items()}


@pytest.fixture(scope="module")
def clean(made, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("clean") / "shards", made)


@pytest.fixture(scope="module")
def planted(made, tmp_path_factory):
    """Test person 3 has the picture of training person 5, training person 7 that of 6 in another
    encoding, and validation person 2 is training person 1's subject."""
    people = {split: list(rows) for split, rows in made.items()}

    def plant(split, row, **changes):
        people[split][row] = replace(people[split][row], **changes)

    plant("test", 3, image=made["train"][5].image)
    plant("train", 7, image=decode_image(encode_jpeg(made["train"][6].image, 60)))
    plant("val", 2, subject=made["train"][1].subject)
    plant("val", 4, source="other")
    return write_shards(tmp_path_factory.mktemp("planted") / "shards", people)


@pytest.fixture(scope="module")
def page(planted, bundle, tmp_path_factory):
    """Path, results and text of the page with a model."""
    path = tmp_path_factory.mktemp("page") / "a page.html"
    job = BrowseJob(input=planted, output=str(path), model=str(bundle), sheet=30, worst=5, side=64)
    results = browse(job)
    return path, results, path.read_text("utf-8")


def bars(text, key):
    found = re.findall(rf'data-tag="{key}-(\d+)" data-label="[^"]*" data-count="(\d+)"', text)
    return sum(int(count) for _, count in found)


def test_the_counts_in_the_page_are_those_of_the_shards(page, planted):
    _, results, text = page
    total = sum(COUNTS.values())
    assert results["people"] == total
    assert f"<li>{total} people</li>" in text
    for key in ("box", "heading", "lean", "bend"):
        assert bars(text, key) == total
    assert bars(text, "error") == COUNTS["test"], "of the measured split alone"
    table = re.search(r"<table><tr><th>source.*?</table>", text, re.DOTALL)[0]
    rows = re.findall(r"<tr><td>(\w+)</td><td>(\w+)</td><td>(\d+)</td><td>(\d+)</td>", table)
    assert sorted(rows) == [
        ("other", "val", "1", "1"), ("synthetic", "test", "16", "16"),
        ("synthetic", "train", "40", "40"), ("synthetic", "val", "11", "11"),
    ]  # fmt: skip


def test_planted_doubles_and_subjects_are_found_and_nothing_else(page, clean, tmp_path):
    _, results, text = page
    assert results["pictures_in_several_splits"] == 1
    assert results["pictures_again"] == 1
    assert results["subjects_in_several_splits"] == 1
    across = re.search(r"in several splits: 1 groups</h3>(.*?)<h3>", text, re.DOTALL)[1]
    named = re.findall(r"<figcaption>(\S+) <b>", across)
    assert named == ["synthetic-medium-4/train/0000005/0", "synthetic-medium-4/test/0000003/0"]
    job = BrowseJob(input=clean, output=str(tmp_path / "x.html"), sheet=5, worst=2, side=64)
    nothing = browse(job)
    assert not any(nothing[key] for key in results if key.endswith(("splits", "again")))
    assert "No picture is in two splits" in (tmp_path / "x.html").read_text()


def test_every_rejected_row_appears_as_it_was_written(page):
    _, results, text = page
    rows = re.findall(
        r'<tr data-reason="(.*?)"><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>', text
    )
    assert [tuple(map(html.unescape, row[1:])) for row in rows] == REJECTED
    assert results["rejected"] == 3


def test_every_bar_and_every_finding_leads_to_a_picture(page):
    _, _, text = page
    cards = {tag for tags in re.findall(r'data-tags="([^"]*)"', text) for tag in tags.split()}
    links = set(re.findall(r'data-tag="([^"]*)"', text))
    assert links <= cards
    assert {"across-0", "within-0", "subject"} <= links


def test_the_worst_are_those_with_the_largest_error(page, planted, bundle, tmp_path):
    _, _, text = page
    evaluate(EvaluateJob(model=str(bundle), data=planted, output=str(tmp_path / "evaluation")))
    with (tmp_path / "evaluation/people.csv").open() as file:
        errors = {row["sample_id"]: float(row["pa_mpjpe_mm"]) for row in csv.DictReader(file)}
    assert len(errors) == COUNTS["test"]
    order = sorted(errors, key=errors.get, reverse=True)
    shown = re.findall(r"<li><h3>\d+\. <a [^>]*>(.*?)</a>", text)
    assert shown == order[:5]
    job = BrowseJob(input=str(tmp_path / "evaluation"), output=str(tmp_path / "y.html"), sheet=30,
                    worst=5, side=64)  # fmt: skip
    browse(job)
    again = (tmp_path / "y.html").read_text()
    assert re.findall(r"<li><h3>\d+\. <a [^>]*>(.*?)</a>", again) == shown


def test_the_page_asks_for_nothing_from_outside(page):
    _, _, text = page
    text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
    text = re.sub(r"base64,[^\"]*", "", text)
    assert not re.findall(r"https?:|(?<!\w)//\w|url\(|@import|<link", text)


def test_a_person_who_turns_changes_heading_and_one_who_lies_leans():
    upright = np.array([np.pi, 0, 0])  # camera axes point down and away
    heading, lean = facing(upright[None])
    assert heading == pytest.approx(0, abs=1e-5)
    assert lean == pytest.approx(0, abs=1e-4)
    away, _ = facing(np.array([[0, 0, np.pi]]))
    assert abs(away[0]) == pytest.approx(180, abs=1e-4)
    _, upside_down = facing(np.zeros((1, 3)))
    assert upside_down == pytest.approx(180, abs=1e-4)


def test_angles_are_the_shorter_way_round():
    pose = np.zeros((1, 72))
    pose[0, 3], pose[0, 7] = np.deg2rad(350), -np.deg2rad(30)
    angles = angles_from_rest(pose)[0]
    assert angles[:3] == pytest.approx([10, 30, 0], abs=1e-4)


def test_a_sample_is_even_over_sources_and_splits(planted):
    people = read_people(read_info(planted))
    chosen = sample(people, 13, seed=0)
    assert chosen == sorted(set(chosen))
    found = [(people.sources[row], people.splits[row]) for row in chosen]
    assert {group: found.count(group) for group in found} == {
        ("other", "val"): 1, ("synthetic", "train"): 4, ("synthetic", "val"): 4,
        ("synthetic", "test"): 4,
    }  # fmt: skip
    assert sample(people, 10_000, seed=0) == list(range(len(people)))


def write_predictions(folder: Path, images: Path, made) -> None:
    """What jobs/predict.py writes, of the true parameters; one file cannot be read any more."""
    names = [f"{kind}/{n}.jpg" for kind in ("x", "y") for n in range(4)]
    results = []
    for number, (name, person) in enumerate(zip(names, made["test"], strict=False)):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(encode_jpeg(person.image))
        pose, place = person.pose.tolist(), person.transl.tolist()
        camera = person.intrinsics.tolist()
        row = {
            "sample_id": f"{name}/0", "image": name, "image_width": 64, "image_height": 64,
            "image_size": [64, 64], "person": 0, "box_xyxy": [4.0, 4.0, 60.0, 60.0],
            "global_orient": pose[:3], "body_pose": pose[3:], "pose": pose,
            "betas": person.betas.tolist(), "pred_cam": [0.9, 0, 0], "cam_t": place,
            "transl": place, "focal_length": camera[:2], "principal_point": camera[2:],
            "intrinsics": camera, "center": [32.0, 32.0], "scale": 0.3, "joints_2d": [0.0] * 48,
            "joints_3d": [0.0] * 72, "n_iter": 3, "model": "m", "model_version": 1,
            "model_sha256": "0",
        }  # fmt: skip
        assert set(row) == set(PEOPLE_SCHEMA.names)
        results.append({"number": number, "path": name, "people": [row]})
    bad = {"number": len(names), "path": "broken.jpg", "reason": "decode_failed", "detail": "cut"}
    results.append(bad)
    parts = PredictionParts(make(folder), table_of([{"path": r["path"]} for r in results]),
                            RESULT_SCHEMA)  # fmt: skip
    parts.add(pa.Table.from_pylist(results, RESULT_SCHEMA))
    write_people(parts, folder, PEOPLE_SCHEMA)
    facts = {"model": "m@1", "settings": {"input": str(images)}}
    (folder / MANIFEST).write_text(json.dumps(facts))


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_predictions_show_their_photos_and_what_was_refused(made, tmp_path):
    write_predictions(tmp_path / "predictions", tmp_path / "images", made)
    (tmp_path / "images/y/0.jpg").unlink()
    job = BrowseJob(input=str(tmp_path / "predictions"), output=str(tmp_path / "p.html"), side=64)
    results = browse(job)
    assert (results["people"], results["rejected"], results["pictured"]) == (8, 1, 8)
    text = (tmp_path / "p.html").read_text()
    assert "1 pictures could not be read" in text
    assert "<td>broken.jpg</td><td>decode_failed</td><td>cut</td>" in text
    assert set(re.findall(r'data-source="(\w)"', text)) == {"x", "y"}
    assert "several splits" not in text
    shutil.move(tmp_path / "images", tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="set images= to the folder"):
        browse(job)
    browse(job.model_copy(update={"images": str(tmp_path / "elsewhere")}))


def test_what_cannot_be_browsed_is_told_with_its_cure(clean, planted, bundle, tmp_path):
    with pytest.raises(ConfigError, match=r"give a folder that jobs/prepare\.py"):
        browse(BrowseJob(input=str(tmp_path)))
    folder = tmp_path / "evaluation"
    evaluate(EvaluateJob(model=str(bundle), data=planted, output=str(folder)))
    with pytest.raises(DataError, match="was measured on other data"):
        browse(BrowseJob(input=str(folder), data=clean))
    (folder / "people.csv").unlink()
    with pytest.raises(DataError, match="evaluate again with"):
        browse(BrowseJob(input=str(folder)))
    copy = Path(shutil.copytree(clean, tmp_path / "copy"))
    facts = json.loads((copy / "dataset.json").read_text())
    facts["body"]["hash"] = "0" * 64
    (copy / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"set body\.path"):
        browse(BrowseJob(input=str(copy)))
    with pytest.raises(ConfigError, match="choose another file"):
        browse(BrowseJob(input=clean, output=str(tmp_path), sheet=1, worst=0))


@pytest.mark.browser
def test_a_browser_without_network_opens_it_and_every_filter_works(page, open_offline):
    from playwright.sync_api import expect

    window = open_offline(page[0])
    seen = window.locator("#cards > li:visible")
    every = seen.count()
    assert every >= 30
    window.select_option("[name=split]", "val")
    expect(window.locator("#count")).to_contain_text(f" of {every} pictures")
    assert set(seen.evaluate_all("all => all.map(i => i.dataset.split)")) == {"val"}
    window.select_option("[name=source]", "other")
    expect(seen).to_have_count(1)
    window.click("#clear")
    expect(seen).to_have_count(every)
    window.select_option("[name=sort]", "error")
    shown = seen.evaluate_all("all => all.map(i => Number(i.dataset.error || -1))")
    assert shown == sorted(shown, reverse=True)
    window.locator("[name=error]").fill(str(int(shown[0])))
    assert 1 <= seen.count() < 16
    window.click("#clear")
    window.fill("[name=words]", "test/0000003")
    expect(seen).to_have_count(1)
    window.click("#clear")
    window.click("text=1 pictures are in several splits")
    expect(seen).to_have_count(2)
    window.locator("a.bin[data-tag^=heading]").first.focus()
    window.keyboard.press("ArrowRight")
    window.keyboard.press("Enter")
    assert 1 <= seen.count() < every
    window.select_option("[name=layer]", "joints")
    assert "joints" in seen.first.locator("img.shown").get_attribute("class")
    window.click("#clear")
    seen.first.locator(".card").press("Enter")
    name = window.locator("#name").inner_text()
    window.keyboard.press("ArrowRight")
    assert window.locator("#name").inner_text() != name
    window.keyboard.press("Escape")
    expect(window.locator("#large")).not_to_be_visible()
    window.select_option("#reason", "decode_failed")
    expect(window.locator("#rejections tbody tr:visible")).to_have_count(2)
    widths = "[document.documentElement.scrollWidth, window.innerWidth]"
    whole, inner = window.evaluate(widths)
    assert whole <= inner
