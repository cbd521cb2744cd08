"""The course's submission: its frames, its boxes, its columns."""

from __future__ import annotations

import ast
import csv

import cv2
import numpy as np
import pytest
import torch

from hmr.checkpoint import load_bundle
from hmr.crops import box_to_affine, crop_image, encode_jpeg
from hmr.errors import ConfigError, ImageError
from hmr.rotations import axis_angle_to_matrix
from rayhmr import command_line
from rayhmr.config import PredictJob
from rayhmr.eth_submission import EthFrames
from rayhmr.predict import predict

FRAMES = {  # number -> centre and scale
    1: ([500.0, 480.0], 2.0), 10: ([430.0, 520.0], 2.5), 2: ([600.0, 400.0], 1.5)
}  # fmt: skip
FOLDER = "Walking.54138969"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three frames of S9 without labels, and one of S11 whose picture is missing."""
    root = tmp_path_factory.mktemp("eth")
    rng = np.random.default_rng(0)
    for subject, number in (("S9", 1), ("S9", 10), ("S9", 2), ("S11", 1)):
        center, scale = FRAMES[number]
        label = root / "labels" / subject / FOLDER / f"{number}.npz"
        label.parent.mkdir(parents=True, exist_ok=True)
        np.savez(label, root_loc=[0.1, 0.2, 4 + number], center_img=center, scale_img=scale)
        if subject == "S9":
            picture = root / "images/S9/Images" / FOLDER / f"{number + 1:06d}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            picture.write_bytes(encode_jpeg(cv2.resize(coarse, (1000, 1002)), 95))
    return root


def job_for(tree, bundle, output):
    return command_line.load(
        PredictJob, [],
        [f"model={bundle}", f"input={tree}/images", f"output.path={output}",
         "output.format=eth_csv", f"eth_labels={tree}/labels", "overlays=false", "num_actors=1"],
    )  # fmt: skip


@pytest.mark.ray
def test_each_frame_gets_its_line_in_the_courses_form(local_cluster, tree, bundle, tmp_path):
    results = predict(job_for(tree, bundle, tmp_path / "out"))
    assert (results["predicted"], results["reasons"]) == (3, {"unreadable": 1})
    with (tmp_path / "out/results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["id", "root_loc", "root_orient", "betas", "pose_body", "pose_hand"]
    assert [line["id"] for line in lines] == [f"S9/{FOLDER}/{n}.npz" for n in (1, 2, 10)]
    predictor = load_bundle(bundle)
    for line, number in zip(lines, (1, 2, 10), strict=True):
        values = {name: ast.literal_eval(text) for name, text in line.items() if name != "id"}
        sizes = {name: len(vector) for name, vector in values.items()}
        assert sizes == {
            "root_loc": 3, "root_orient": 3, "betas": 10, "pose_body": 63, "pose_hand": 6
        }  # fmt: skip
        assert values["root_loc"] == pytest.approx([0.1, 0.2, 4 + number])
        # The course's crop: side 200 x scale around the given centre.
        center, scale = FRAMES[number]
        path = tree / "images/S9/Images" / FOLDER / f"{number + 1:06d}.jpg"
        image = cv2.imread(str(path))[..., ::-1]
        size = predictor.image_size
        crop = crop_image(image, box_to_affine(np.array(center), 200 * scale, size), size)
        expected = predictor.predict_crops(crop[None]).final
        pose = values["root_orient"] + values["pose_body"] + values["pose_hand"]
        rotmats = axis_angle_to_matrix(torch.tensor(pose).view(1, 24, 3))
        torch.testing.assert_close(rotmats.float(), expected.rotmats, atol=2e-3, rtol=0)
        np.testing.assert_allclose(values["betas"], expected.betas[0], atol=2e-3)


def test_frames_are_listed_by_number_and_know_their_square(tree):
    frames = EthFrames(str(tree / "images"), str(tree / "labels"))
    assert frames.paths == [
        f"S11/{FOLDER}/1.npz", *(f"S9/{FOLDER}/{number}.npz" for number in (1, 2, 10))
    ]  # fmt: skip
    known = frames.known(f"S9/{FOLDER}/10.npz")
    assert known == pytest.approx([430, 520, 500, (1145.0494384765625 + 1143.7811279296875) / 2])
    with pytest.raises(ImageError, match=r"S11/Images/.*/000002\.jpg"):
        frames.read(f"S11/{FOLDER}/1.npz")


def test_a_folder_without_subjects_and_half_a_setting_are_refused(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"eth_labels=.*holds no folders of subjects"):
        EthFrames(str(tree / "images"), str(tmp_path / "empty"))
    for words in (["output.format=eth_csv"], ["eth_labels=labels"]):
        with pytest.raises(ConfigError, match="go together: set both or none"):
            command_line.load(PredictJob, [], words)
    short = command_line.load(PredictJob, [], ["output=there"])
    assert (short.output.path, short.output.format) == ("there", ("parquet",))
