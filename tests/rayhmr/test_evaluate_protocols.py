"""A split of two videos measured by each protocol, with answers that are known."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.body_arrays import save_body
from hmr.crops import encode_jpeg
from hmr.errors import DataError
from hmr.metric_extras import bootstrap_interval
from hmr.pose_prior import rodrigues
from hmr.protocol_errors import Yardstick
from hmr.protocols import PROTOCOLS, places
from hmr.skeleton import joint49_index
from hmr.structures import Batch, Parameters, Prediction
from rayhmr.config import EvaluateJob
from rayhmr.data.schema import MANIFEST, SCHEMA_VERSION, encode_shard, read_info
from rayhmr.data.sources.record import box_id
from rayhmr.evaluate import evaluate, measure, yardstick_of
from rayhmr.people_errors import PeopleErrors, evaluate_samples, intervals, summary

NAMES = [
    *(f"h36m/S9/Walking.60457274/{frame}/0" for frame in range(7)),
    *(f"h36m/S11/Eating.54138969/{frame}/0" for frame in (3, 4, 5, 8, 9)),
    *(f"h36m/S11/Eating.60457274/{frame}/0" for frame in (2, 12)),
]
OFFSET = np.array([0.03, 0.0, 0.04], np.float32)
"""By how much all measured joints but the pelvis are away from those of the labels."""


@pytest.fixture(scope="module")
def body():
    return Body.embedded()


def person(name, pose, betas, joints):
    measured = np.concatenate([joints + OFFSET, np.ones((49, 1), np.float32)], axis=1)
    measured[joint49_index("gt_pelvis"), :3] -= OFFSET
    return {
        "sample_id": name, "image": {"bytes": encode_jpeg(np.zeros((32, 32, 3), np.uint8))},
        "image_size": [32, 32], "crop_to_frame": [1, 0, 0, 0, 1, 0], "center": [16, 16],
        "scale": 0.16, "keypoints_2d": np.zeros(147).tolist(),
        "keypoints_3d": measured.ravel().tolist(), "pose": pose.ravel().tolist(),
        "betas": betas.tolist(), "has_smpl": True, "gender": "female" if "S9" in name else "male",
        "source": "h36m", "split": "test", "subject": name.split("/")[1],
    }  # fmt: skip


@pytest.fixture(scope="module")
def labels(body):
    """Pose (14, 24, 3), betas (14, 10) and landmarks (14, 49, 3)."""
    rng = np.random.default_rng(0)
    pose = rng.normal(0, 0.3, (14, 24, 3)).astype(np.float32)
    betas = rng.normal(size=(14, 10)).astype(np.float32)
    joints = body.landmarks(torch.from_numpy(rodrigues(pose)), torch.from_numpy(betas)).numpy()
    return pose, betas, joints


@pytest.fixture(scope="module")
def shards(tmp_path_factory, body, labels):
    """A folder as `prepare` leaves it, with a test split only."""
    folder = tmp_path_factory.mktemp("data")
    files = []
    for number, rows in enumerate((range(9), range(9, 14))):
        content = encode_shard([person(NAMES[r], *(part[r] for part in labels)) for r in rows])
        name = f"test-{number:05d}-of-00002.parquet"
        (folder / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        files.append({"name": name, "rows": len(rows), "bytes": len(content), "sha256": digest})
    manifest = {
        "schema_version": SCHEMA_VERSION, "fingerprint": "0", "source": "h36m", "image_size": 32,
        "files": {"train": [], "val": [], "test": files}, "statistics": {"labelled": 0},
        "rejected": {}, "body": {"name": "embedded", "hash": body.arrays.content_hash()},
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return str(folder)


class Knows:
    """A predictor that has the answers of the given rows, in order; `change` alters rotations."""

    def __init__(self, body, labels, rows, change=lambda rotmats: rotmats):
        self.body, self.image_size, self.device = body, 32, torch.device("cpu")
        self.labels, self.rows, self.change = labels, list(rows), change

    def predict_crops(self, images):
        rows, self.rows = self.rows[: len(images)], self.rows[len(images) :]
        rotmats = torch.from_numpy(rodrigues(self.labels[0][rows]))
        betas, cam = torch.from_numpy(self.labels[1][rows]), torch.zeros(len(rows), 3)
        start = Parameters(rotmats=torch.eye(3).expand_as(rotmats), betas=betas, pred_cam=cam)
        return Prediction(iterations=(start, replace(start, rotmats=self.change(rotmats))))


def answers(shards, body, labels, name, rows, **changes):
    return measure(
        Knows(body, labels, rows, **changes), read_info(shards), "test", batch_size=4,
        yardstick=Yardstick(body=body, protocol=PROTOCOLS[name]),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["synthetic", "3dpw", "eth"])
def test_true_labels_have_no_error(shards, body, labels, name):
    errors = answers(shards, body, labels, name, range(14))
    assert errors.positions.tolist() == list(range(14))
    assert errors.sample_ids == tuple(NAMES)
    for values in errors.by_iteration.values():
        assert values[1].max() < 0.01
    for facts in intervals(errors, PROTOCOLS[name]).values():
        assert facts["value"] < 0.01
    assert not errors.baseline, "nobody to take a mean pose from"


@pytest.mark.parametrize(
    ("name", "rows"), [("h36m_p1", [0, 5, 7, 10, 12, 13]), ("h36m_p2", [0, 5, 12, 13])]
)
def test_human36m_takes_its_frames_and_finds_the_known_offset(shards, body, labels, name, rows):
    errors = answers(shards, body, labels, name, rows)
    assert errors.positions.tolist() == rows
    np.testing.assert_allclose(errors.by_iteration["mpjpe_mm"][1], 50, atol=0.01)
    assert errors.by_iteration["pa_mpjpe_mm"][1].max() < 0.01


def test_a_known_offset_within_and_beyond_thresholds(shards, body, labels):
    errors = answers(shards, body, labels, "mpi_inf_3dhp", range(14))
    final = {name: float(values[1].mean()) for name, values in errors.by_iteration.items()}
    assert final["mpjpe_mm"] == pytest.approx(50 * 16 / 17, abs=0.01)
    assert final["pck_150"] == 100
    # 16 joints at 50 mm lie inside 55, 60, ..., 150 mm; at 50 mm itself rounding decides.
    assert final["auc_150"] == pytest.approx(100 * (16 * 20 + 30) / 17 / 31, abs=100 / 31)


def test_acceleration_is_that_of_unbroken_stretches(shards, body, labels):
    def change(rotmats):
        turn = torch.from_numpy(rodrigues(np.array([0, 0.4, 0], np.float32)))
        return torch.cat([turn @ rotmats[:, :1], rotmats[:, 1:]], dim=1)

    errors = answers(shards, body, labels, "3dpw", range(14), change=change)
    facts = intervals(errors, PROTOCOLS["3dpw"])["accel_mm"]
    columns = [joint49_index(f"gt_{joint}") for joint in (
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
        "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
        "left_wrist", "neck", "head")]  # fmt: skip
    rotmats = change(torch.from_numpy(rodrigues(labels[0])))
    turned = body.landmarks(rotmats, torch.from_numpy(labels[1])).numpy()
    root = joint49_index("gt_pelvis")
    pred, true = (x[:, columns] - x[:, [root]] for x in (turned, labels[2]))
    bends = [np.diff((pred - true)[rows], n=2, axis=0) for rows in (range(7), range(7, 10))]
    expected = 1000 * np.linalg.norm(np.concatenate(bends), axis=2).mean()
    assert facts["value"] == pytest.approx(expected, rel=1e-3)
    assert (facts["count"], facts["groups"], facts["unit"]) == (6, 2, "mm/frame²")


def test_an_interval_is_over_videos_and_needs_two_of_them():
    numbers = torch.from_numpy(np.random.default_rng(0).gamma(4, 20, 30)).repeat_interleave(10)
    names = tuple(f"a/{video:02d}/{frame}/0" for video in range(30) for frame in range(10))

    def measured(rows):
        metrics = PROTOCOLS["eth"].metrics
        return PeopleErrors(
            positions=torch.arange(300)[rows], baseline={}, sample_ids=names[rows],
            by_iteration={n: torch.stack([0 * numbers, numbers])[:, rows] for n in metrics},
        )  # fmt: skip

    whole = measured(slice(300))
    facts = intervals(whole, PROTOCOLS["eth"])["mpjpe_mm"]
    assert (facts["low"], facts["high"]) == bootstrap_interval(numbers, np.arange(300) // 10)
    assert facts["value"] == summary(whole)["mpjpe_mm"] == float(numbers.mean())
    assert (facts["count"], facts["groups"]) == (300, 30)
    apart = intervals(whole, replace(PROTOCOLS["eth"], video=False))["mpjpe_mm"]
    assert (apart["low"], apart["high"]) == bootstrap_interval(numbers)
    one = intervals(measured(slice(10)), PROTOCOLS["eth"])["mpjpe_mm"]
    assert (one["low"], one["high"], one["groups"]) == (None, None, 1)


def test_labels_of_women_use_their_body_also_when_rows_are_left_out(shards, body, labels):
    wide = Body(replace(body.arrays, v_template=body.arrays.v_template * 1.2))
    mine = replace(PROTOCOLS["3dpw"], cameras=("60457274",))
    rows = [*range(7), 12, 13]
    errors = measure(
        Knows(body, labels, rows), read_info(shards), "test", batch_size=4,
        yardstick=Yardstick(body=body, protocol=mine, truth_bodies={"female": wide}),
    )  # fmt: skip
    assert errors.positions.tolist() == rows
    assert (errors.by_iteration["pve_mm"][1] > 20).tolist() == [True] * 7 + [False] * 2


def test_a_job_writes_the_table_and_says_what_it_measured(shards, body, bundle, tmp_path, capsys):
    arrays = body.arrays
    save_body(tmp_path / "f.npz", replace(arrays, v_template=arrays.v_template * 1.1))
    job = EvaluateJob(
        model=str(bundle), data=shards, protocol="3dpw", output=str(tmp_path / "out"),
        batch_size=5, truth_bodies={"female": str(tmp_path / "f.npz")},
    )  # fmt: skip
    results = evaluate(job)
    assert json.loads((tmp_path / "out/evaluation.json").read_text()) == results
    assert (results["protocol"], results["count"]) == ("3dpw", 14)
    assert results["joints"] == "h36m14-standin"
    assert results["joint_names"][-2:] == ["neck", "head"]
    assert results["truth"] == "SMPL labels, female bodies"
    with (tmp_path / "out/table.csv").open(encoding="utf-8") as file:
        table = {row["metric"]: row for row in csv.DictReader(file)}
    assert list(table) == list(PROTOCOLS["3dpw"].metrics)
    for name, row in table.items():
        facts = results["metrics"][name]
        assert float(row["value"]) == facts["value"]
        assert facts["low"] < facts["value"] < facts["high"]
        if name != "accel_mm":
            assert facts["value"] == results[name] == results["by_iteration"][-1][name]
    printed = capsys.readouterr().err
    assert f"{results['pa_pve_mm']:.1f} [" in printed
    assert "Joints: h36m14-standin (right_ankle, " in printed
    neutral = evaluate(job.model_copy(update={"truth_bodies": {}, "output": None}))
    assert neutral["pve_mm"] != pytest.approx(results["pve_mm"], abs=1)


def test_a_body_with_the_regressor_is_scored_by_it(shards, body, labels):
    regressor = np.random.default_rng(0).random((17, body.num_vertices)) ** 9
    regressor /= regressor.sum(1, keepdims=True)
    own = SimpleNamespace(
        body=Body(replace(body.arrays, J_regressor_h36m=regressor)), device=torch.device("cpu")
    )
    yardstick = yardstick_of(EvaluateJob(protocol="3dpw"), own)
    assert yardstick.joints_used == ("h36m14", "row 0 (pelvis) of J_regressor_h36m")
    rotmats, betas = torch.from_numpy(rodrigues(labels[0])), torch.from_numpy(labels[1])
    vertices = body(rotmats, betas).vertices.numpy()
    np.testing.assert_allclose(
        yardstick.points(rotmats, betas).joints[:, 0],
        np.einsum("v,bvc->bc", regressor[6], vertices), atol=1e-5,
    )  # fmt: skip


def test_a_split_without_the_people_of_the_protocol_is_refused(shards, body, labels):
    info = read_info(shards)
    last = replace(info, files={"test": info.files["test"][1:]})
    assert last.rows("test") == 5
    with pytest.raises(DataError, match="no row takes part in protocol 'mine'"):
        measure(
            Knows(body, labels, []), last, "test", batch_size=4,
            yardstick=Yardstick(
                body=body, protocol=replace(PROTOCOLS["h36m_p2"], name="mine", subjects=("S9",))
            ),
        )  # fmt: skip


def test_people_whose_joints_were_not_measured_are_no_truth(body, labels):
    unknown = Batch(
        images=torch.zeros(3, 3, 8, 8, dtype=torch.uint8),
        keypoints_2d=torch.zeros(3, 49, 3), keypoints_3d=torch.zeros(3, 49, 4),
        rotmats=torch.eye(3).expand(3, 24, 3, 3), betas=torch.zeros(3, 10),
        has_smpl=torch.ones(3, dtype=torch.bool),
    )  # fmt: skip
    yardstick = Yardstick(body=body, protocol=PROTOCOLS["mpi_inf_3dhp"])
    with pytest.raises(DataError, match="none of the 3 people has all the 3D joints"):
        evaluate_samples(Knows(body, labels, []).predict_crops, [unknown], yardstick, None)


def test_names_made_of_boxes_are_understood():
    picture = "walk/image_00012.jpg"
    name = box_id("hmr2_eval", picture, np.array([-3.123, 4567.891]), 1.5)
    videos, tracks, frames = places([f"{name}/7", name, f"hmr2_eval/{picture}/7"])
    assert frames.tolist() == [12, 12, 12]
    assert len(set(videos.tolist())) == 1
    assert tracks[0] == tracks[2] != tracks[1]


def test_the_settings_know_every_protocol():
    choices = get_args(EvaluateJob.model_fields["protocol"].annotation)
    assert set(choices) == set(PROTOCOLS)
    assert EvaluateJob().protocol == "synthetic"
