"""The three figures: whom they show, that their numbers are right, and that they can be read."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from hmr.checkpoint import load_bundle
from hmr.crops import apply_affine, box_to_affine, box_xyxy_to_square
from hmr.errors import ConfigError, DataError, ImageError
from hmr.metrics import person_errors
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Parameters
from hmr.synthetic import Generator
from rayhmr import figure_subject
from rayhmr.config import FiguresJob
from rayhmr.drawing import text_width
from rayhmr.figure_subject import SHOWN_PX, subject_of, synthetic_subject
from rayhmr.figures import drawings, figures

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("pipeline", "regressor", "mesh")
SEED = 5


@pytest.fixture(scope="module")
def predictor(bundle):
    return load_bundle(bundle)


@pytest.fixture(scope="module")
def photo():
    """Coloured tiles, higher than wide."""
    tiles = np.random.default_rng(2).integers(0, 256, (30, 20, 3), np.uint8)
    return tiles.repeat(10, 0).repeat(10, 1)


@pytest.fixture(scope="module")
def written(bundle, tmp_path_factory):
    """What the job returns for one synthetic person, and its folder."""
    folder = tmp_path_factory.mktemp("figures")
    job = FiguresJob(model=str(bundle), output=str(folder / "new"), person=3, seed=SEED)
    return figures(job), folder / "new"


@pytest.fixture(scope="module")
def drawn_photo(photo, predictor):
    subject = subject_of(photo, predictor, box=(20, 30, 180, 280), n_iter=9)
    return {name: draw() for name, draw in drawings(subject, predictor).items()}


def errors_of(predictor, person, sample):
    """By the metrics of the evaluation, for every iteration."""
    pose = torch.tensor(np.stack([
        np.concatenate([step["global_orient"], step["body_pose"]]) for step in person.iterations
    ])).unflatten(1, (24, 3))  # fmt: skip
    count = len(pose)
    estimate = Parameters(
        rotmats=axis_angle_to_matrix(pose),
        betas=torch.tensor(np.stack([step["betas"] for step in person.iterations])),
        pred_cam=torch.zeros(count, 3),
    )  # fmt: skip
    rotmats = axis_angle_to_matrix(torch.tensor(sample.pose).view(1, 24, 3)).expand(count, -1, 3, 3)
    betas = torch.tensor(sample.betas).expand(count, 10)
    return person_errors(estimate, rotmats, betas, predictor.body)


def test_three_figures_are_written_as_png_and_svg(written):
    results, folder = written
    expected = {f"{name}.{ending}" for name in NAMES for ending in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == expected
    assert {Path(file).name for file in results["files"]} == expected
    for name in NAMES:
        tree = ElementTree.parse(folder / f"{name}.svg").getroot()
        size = (int(tree.attrib["width"]), int(tree.attrib["height"]))
        with Image.open(folder / f"{name}.png") as image:
            assert image.size == size
            assert image.width == 1280
        assert (folder / f"{name}.png").stat().st_size < 400_000


def test_errors_are_those_of_the_evaluation(written, predictor):
    results, folder = written
    arrays = predictor.body.arrays
    (sample,) = Generator(arrays, "easy", SHOWN_PX, SEED, "test").samples([3])
    (person,) = predictor.predict(sample.image, focal=sample.focal)
    errors = errors_of(predictor, person, sample)
    assert len(results["errors_mm"]) == predictor.n_iter + 1
    shown = [e.text for e in ElementTree.parse(folder / "regressor.svg").iter(f"{SVG}text")]
    for step, found in enumerate(results["errors_mm"]):
        assert found["MPJPE"] == pytest.approx(float(errors["mpjpe_mm"][step]), abs=0.02)
        assert found["PA-MPJPE"] == pytest.approx(float(errors["pa_mpjpe_mm"][step]), abs=0.02)
        assert f"{found['MPJPE']:.0f} mm" in shown
        assert f"{found['PA-MPJPE']:.0f} mm" in shown
    of_mesh = [e.text for e in ElementTree.parse(folder / "mesh.svg").iter(f"{SVG}text")]
    assert f"mean {float(errors['pve_mm'][-1]):.0f} mm" in of_mesh


def test_the_person_shown_has_the_median_error(predictor, bundle, monkeypatch):
    monkeypatch.setattr(figure_subject, "SHOWN_PX", 96)
    monkeypatch.setattr(figure_subject, "CANDIDATES", 7)
    job = FiguresJob(model=str(bundle), seed=SEED)
    _, number = synthetic_subject(job, predictor)
    samples = Generator(predictor.body.arrays, "easy", 96, SEED, "test").samples(range(7))
    errors = []
    for sample in samples:
        (person,) = predictor.predict(sample.image, focal=sample.focal)
        errors.append(float(errors_of(predictor, person, sample)["pa_mpjpe_mm"][-1]))
    assert sorted(errors)[3] == errors[number]


def test_what_is_shown_of_a_photo_is_the_square_of_the_box_with_its_camera(photo, predictor):
    box = (20, 30, 180, 280)
    subject = subject_of(photo, predictor, box=box)
    (person,) = predictor.predict(photo, [box])
    last = subject.steps[-1]
    np.testing.assert_allclose(last.vertices, person.vertices + person.cam_t, atol=2e-4)
    square = box_xyxy_to_square(np.array(box, float), predictor.box_padding)
    to_shown = box_to_affine(*square, SHOWN_PX)
    pixels = last.joints[:, :2] / last.joints[:, 2:] * subject.focal + subject.principal
    np.testing.assert_allclose(pixels, apply_affine(to_shown, person.joints_2d), atol=0.05)
    assert subject.truth is None
    assert subject.photo.shape == (SHOWN_PX, SHOWN_PX, 3)
    assert len(subject.steps) == predictor.n_iter + 1


def test_without_a_truth_there_are_no_errors_but_a_skeleton(drawn_photo):
    texts = [e.text for e in ElementTree.fromstring(drawn_photo["mesh"].svg()).iter(f"{SVG}text")]
    assert "skeleton" in texts
    assert "vertex error" not in texts
    for drawing in drawn_photo.values():
        assert " mm" not in drawing.svg()


def test_of_many_steps_the_first_the_last_and_some_between_are_shown(drawn_photo):
    tree = ElementTree.fromstring(drawn_photo["regressor"].svg())
    steps = [e.text for e in tree.iter(f"{SVG}text")]
    assert steps == ["start", "step 2", "step 4", "step 7", "step 9"]


def test_what_cannot_be_drawn_is_said(bundle, photo, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(photo).save(file)
    options = {"model": str(bundle), "image": str(file)}
    with pytest.raises(ImageError, match="no image here"):
        figures(FiguresJob(model=str(bundle), image="no image here", output=str(tmp_path / "new")))
    with pytest.raises(DataError, match="must overlap the 200 x 300 image"):
        figures(FiguresJob(**options, box=(500, 0, 600, 9), output=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match=r"output=.*photo\.png: cannot be made a folder"):
        figures(FiguresJob(**options, output=str(file)))


def boxes(tree):
    """Left, top, right, bottom of every text."""
    for text in tree.iter(f"{SVG}text"):
        size, width = float(text.attrib["font-size"]), float(text.attrib["textLength"])
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        left = x - {"start": 0, "middle": 0.5, "end": 1}[text.attrib["text-anchor"]] * width
        assert width == pytest.approx(text_width(text.text, size), abs=0.1)
        assert size >= 25, f"{text.text}: smaller than 8 pixels in 400"
        yield text.text, np.array([left, y - 0.75 * size, left + width, y + 0.22 * size])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["synthetic", "photo"])
def test_no_text_is_clipped_or_covers_another(written, drawn_photo, name, kind):
    if kind == "photo":
        tree = ElementTree.fromstring(drawn_photo[name].svg())
    else:
        tree = ElementTree.parse(written[1] / f"{name}.svg").getroot()
    found = list(boxes(tree))
    assert len(found) >= 4
    for number, (text, box) in enumerate(found):
        assert (box >= 0).all(), text
        assert box[2] <= float(tree.attrib["width"]), text
        assert box[3] <= float(tree.attrib["height"]), text
        for other, place in found[:number]:
            apart = (box[2:] <= place[:2]) | (place[2:] <= box[:2])
            assert apart.any(), f"{text} and {other}"
    pictures = [
        np.array([float(e.attrib[k]) for k in ("x", "y", "width", "height")])
        for e in tree.iter(f"{SVG}image")
    ]
    for text, box in found:
        for x, y, width, height in pictures:
            outside = box[2] <= x or box[0] >= x + width or box[3] <= y or box[1] >= y + height
            assert outside, f"{text} lies on a picture"
