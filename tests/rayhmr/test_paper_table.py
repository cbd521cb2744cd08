"""The printed table, cell by cell."""

from __future__ import annotations

from rayhmr.paper_table import markdown, metric_rows


def results(**changes):
    metrics = {
        "v2v_l2": {"value": 0.02094, "low": 0.0195, "high": 0.0225, "unit": "m²", "count": 40,
                   "groups": 8},
        "mpjpe_mm": {"value": 99.04, "low": 90.0, "high": 108.26, "unit": "mm", "count": 40,
                     "groups": 8},
    }  # fmt: skip
    return {
        "protocol": "eth", "split": "test", "model": "hmr@1", "n_iter": 1, "count": 40,
        "joints": "smpl24", "joint_names": ["pelvis", "left_hip"], "root": "the pelvis",
        "truth": "SMPL labels, the model's body", "baseline_mpjpe_mm": 188.0,
        "by_iteration": [
            {"n_iter": 0, "v2v_l2": 0.1, "mpjpe_mm": 200.0},
            {"n_iter": 1, "v2v_l2": 0.02094, "mpjpe_mm": 99.04},
        ],
        "metrics": metrics,
    } | changes  # fmt: skip


def test_the_table_has_the_mean_pose_every_iteration_and_the_interval_of_the_last():
    lines = markdown(results()).splitlines()
    assert lines[:5] == [
        "|  | v2v_l2 ↓ (m²) | MPJPE ↓ (mm) |",
        "| --- | --- | --- |",
        "| mean pose of the training people | – | 188.0 |",
        "| model, T = 0 | 0.10000 | 200.0 |",
        "| model, T = 1 | 0.02094 [0.01950, 0.02250] | 99.0 [90.0, 108.3] |",
    ]
    caption = "\n".join(lines[5:])
    for fact in ("hmr@1 on 40 people of the test split", "protocol eth", "over 8 videos",
                 "smpl24 (pelvis, left_hip)", "Aligned at: the pelvis",
                 "SMPL labels, the model's body"):  # fmt: skip
        assert fact in caption


def test_what_is_not_known_is_a_dash_and_more_can_be_better():
    nothing = {"value": None, "low": None, "high": None, "unit": "mm", "count": 0, "groups": 0}
    pck = nothing | {"value": 81.26, "unit": "%", "count": 9, "groups": 1}
    steps = [{"n_iter": 0, "pck_150": 3.0}, {"n_iter": 1, "pck_150": 81.26}]
    changed = results(metrics={"pck_150": pck, "accel_mm": nothing}, by_iteration=steps)
    del changed["baseline_mpjpe_mm"]
    lines = markdown(changed).splitlines()
    assert lines[0] == "|  | PCK@150mm ↑ (%) | Accel ↓ (mm/frame²) |"
    assert lines[2:4] == ["| model, T = 0 | 3.0 | – |", "| model, T = 1 | 81.3 | – |"]
    assert "no interval" in lines[5]


def test_a_row_of_the_csv_says_all_that_tells_it_apart():
    first, second = metric_rows(results())
    assert first["metric"] == "v2v_l2"
    assert list(first) == list(second)
    assert second == {
        "protocol": "eth", "split": "test", "model": "hmr@1", "n_iter": 1, "metric": "mpjpe_mm",
        "label": "MPJPE", "value": 99.04, "low": 90.0, "high": 108.26, "unit": "mm", "count": 40,
        "groups": 8, "joints": "smpl24", "root": "the pelvis",
        "truth": "SMPL labels, the model's body",
    }  # fmt: skip
