"""Each error against numpy or scipy and against its laws; tables that merge; intervals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from hmr.errors import DataError
from hmr.metric_extras import (
    AUC_THRESHOLDS,
    ErrorTable,
    acceleration_errors,
    auc,
    bootstrap_interval,
    joint_distances,
    pa_pve,
    pck,
    v2v_l2,
)
from hmr.metrics import mpjpe, pve


def points(count=4, joints=14, seed=0):
    return torch.randn(count, joints, 3, generator=torch.Generator().manual_seed(seed)).double()


def aligned(source, target):
    """Kabsch with scale, person by person, by scipy: the best turn of the centred points."""
    x, y = source - source.mean(0), target - target.mean(0)
    turn = Rotation.align_vectors(y, x)[0].as_matrix()
    turned = x @ turn.T
    return turned * (turned * y).sum() / (x**2).sum() + target.mean(0)


def test_a_known_offset_of_the_joints_is_their_distance():
    gt, root = points(), points(joints=1, seed=9)[:, 0]
    offset = torch.tensor([0.003, 0.004, 0.012], dtype=torch.float64)
    distances = joint_distances(gt + offset, gt, root, root)
    np.testing.assert_allclose(distances, 0.013, rtol=1e-12)
    np.testing.assert_allclose(joint_distances(gt + offset, gt, root + offset, root), 0, atol=1e-15)


def test_their_mean_is_the_error_with_a_joint_as_root():
    pred, gt = points(seed=1), points()
    distances = joint_distances(pred, gt, pred[:, 3], gt[:, 3])
    np.testing.assert_array_equal(distances.mean(-1), mpjpe(pred, gt, root=3))


def test_aligned_vertices_agree_with_scipy():
    gt = points(joints=200)
    pred = gt + 0.2 * points(joints=200, seed=3)
    expected = [
        np.linalg.norm(aligned(p, g) - g, axis=1).mean()
        for p, g in zip(pred.numpy(), gt.numpy(), strict=True)
    ]
    np.testing.assert_allclose(pa_pve(pred, gt), expected, rtol=1e-6)


def test_alignment_forgives_similarities_and_never_makes_vertices_worse():
    gt = points(joints=200)
    pred = gt + 0.2 * points(joints=200, seed=3)
    turn = torch.tensor(Rotation.random(random_state=0).as_matrix())
    np.testing.assert_allclose(pa_pve(2.5 * (pred @ turn.T) - 3, gt), pa_pve(pred, gt), rtol=1e-9)
    np.testing.assert_allclose(pa_pve(0.4 * (gt @ turn.T) + 1, gt), 0, atol=1e-12)
    roots = pred[:, 0], gt[:, 0]
    assert (pa_pve(pred, gt) < pve(pred, gt, *roots)).all()
    assert (pa_pve(gt * torch.tensor([-1.0, 1, 1]), gt) > 0.1).all(), "a mirror image is no match"


def test_pck_counts_joints_strictly_inside_the_threshold():
    distances = torch.tensor([[0.0, 0.1, 0.25, 0.5], [1.0, 2.0, 3.0, 4.0]])
    np.testing.assert_array_equal(pck(distances, 0.25), [0.5, 0.0])
    np.testing.assert_array_equal(pck(distances), [0.5, 0.0])


def test_pck_grows_with_the_threshold_and_auc_is_its_mean():
    distances = 0.2 * torch.rand(50, 17, generator=torch.Generator().manual_seed(0)).double()
    curve = torch.stack([pck(distances, t) for t in AUC_THRESHOLDS])
    assert (curve.diff(dim=0) >= 0).all()
    assert (curve[0] == 0).all()
    limits = np.arange(0, 151, 5) / 1000
    expected = (distances.numpy()[:, :, None] < limits).mean((1, 2))
    np.testing.assert_allclose(auc(distances), expected, rtol=1e-12)
    assert ((auc(distances) > 0) & (auc(distances) < curve[-1])).all()


def test_auc_of_known_distances():
    np.testing.assert_allclose(auc(torch.full((1, 17), 0.0725)), 16 / 31)
    np.testing.assert_allclose(auc(torch.zeros(1, 17)), 30 / 31)
    np.testing.assert_allclose(auc(torch.ones(1, 17)), 0)


def test_v2v_l2_is_the_mean_square_of_all_coordinates_without_alignment():
    gt = points(joints=50)
    offset = torch.tensor([0.3, 0.0, -0.6], dtype=torch.float64)
    np.testing.assert_allclose(v2v_l2(gt + offset, gt), (0.09 + 0.36) / 3, rtol=1e-12)
    pred = points(joints=50, seed=1)
    expected = [np.mean((p - g) ** 2) for p, g in zip(pred.numpy(), gt.numpy(), strict=True)]
    np.testing.assert_allclose(v2v_l2(pred, gt), expected, rtol=1e-12)


def motion(frames, speed, bend):
    """(F, 2, 3) joints moving with constant acceleration `bend` per frame²."""
    time = torch.arange(frames).double()[:, None, None]
    return torch.tensor(speed).double() * time + torch.tensor(bend).double() * time**2 / 2


def test_steady_motion_has_no_acceleration_and_a_known_one_is_exact():
    still, frames, one = torch.zeros(9, 2, 3), np.arange(9), np.zeros(9)
    steady = motion(9, [1.0, -2, 0.5], [0.0, 0, 0]) + 7
    assert (acceleration_errors(steady, still, one, frames)[1] == 0).all()
    bent = motion(9, [1.0, -2, 0.5], [3.0, 4, 0])
    rows, errors = acceleration_errors(bent, still, one, frames)
    np.testing.assert_array_equal(rows, np.arange(1, 8))
    np.testing.assert_array_equal(errors, np.full(7, 5.0))


def test_acceleration_follows_tracks_and_frames_in_any_order_of_the_rows():
    rng = np.random.default_rng(0)
    lengths = {5: range(10, 17), 2: range(3), 8: range(2), 3: (0, 1, 2, 5, 6, 9, 10, 11)}
    tracks = np.concatenate([np.full(len(f), t) for t, f in lengths.items()])
    frames = np.concatenate([np.array(f) for f in lengths.values()])
    pred, gt = points(len(tracks)), points(len(tracks), seed=1)
    expected = {}
    for track, own in lengths.items():
        at = tracks == track
        bend = np.diff((pred - gt).numpy()[at], n=2, axis=0)
        for frame, (before, after), value in zip(
            own[1:-1], zip(own, own[2:], strict=False), np.linalg.norm(bend, axis=2).mean(1),
            strict=True,
        ):  # fmt: skip
            if after - before == 2:
                expected[track, frame] = value
    mixed = rng.permutation(len(tracks))
    rows, errors = acceleration_errors(
        pred[torch.from_numpy(mixed)], gt[torch.from_numpy(mixed)], tracks[mixed], frames[mixed]
    )
    found = {
        (tracks[mixed][r], frames[mixed][r]): e for r, e in zip(rows, errors.tolist(), strict=True)
    }
    assert found == pytest.approx(expected, rel=1e-12)
    assert len(found) == 5 + 1 + 1 + 1


def test_rows_too_few_for_an_acceleration_have_none():
    for count in (0, 1, 2):
        rows, errors = acceleration_errors(
            points(count), points(count), np.zeros(count), np.arange(count)
        )
        assert (len(rows), len(errors)) == (0, 0)


def parts_of_a_table(cuts, seed):
    """One table for each part of 100 shuffled people."""
    g = torch.Generator().manual_seed(0)
    values = {"a": torch.rand(100, generator=g) * 1e3, "b": torch.rand(100, 3, generator=g)}
    order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
    tables = []
    for rows in order.tensor_split(cuts):
        table = ErrorTable()
        table.update(rows, {name: value[rows] for name, value in values.items()})
        tables.append(table)
    return tables, values


@pytest.mark.parametrize("cuts", [[], [1], [50], [3, 3, 40, 99], list(range(1, 100))])
def test_a_table_in_any_parts_and_order_gives_the_same_bits(cuts):
    tables, values = parts_of_a_table(cuts, seed=len(cuts))
    merged = ErrorTable()
    for table in tables:
        merged.merge(pickle.loads(pickle.dumps(table)))
    keys, found = merged.rows()
    assert keys.tolist() == list(range(100))
    for name, value in values.items():
        assert torch.equal(found[name], value)
    means = merged.compute()
    assert means == {"a": float(values["a"].double().mean()), "count": 100.0}
    assert means["a"] == pytest.approx(np.mean(values["a"].numpy(), dtype=np.float64), rel=1e-12)


def test_a_table_refuses_nobody_the_same_row_twice_and_other_errors():
    table = ErrorTable()
    assert table.empty
    with pytest.raises(DataError, match="nobody was measured"):
        table.compute()
    table.update(torch.tensor([4, 1]), {"a": torch.zeros(2)})
    with pytest.raises(DataError, match=r"have \['b'\], earlier ones \['a'\]"):
        table.update(torch.tensor([2]), {"b": torch.zeros(1)})
    table.update(torch.tensor([1]), {"a": torch.zeros(1)})
    with pytest.raises(DataError, match="row 1 was measured twice"):
        table.rows()


def sample(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).gamma(4, 20, count))


def test_the_interval_agrees_with_scipy_and_holds_the_mean():
    values = sample(150)
    low, high = bootstrap_interval(values, resamples=4000)
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert low < float(values.mean()) < high
    width = theirs.high - theirs.low
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.06 * width)


def test_the_interval_narrows_with_people_and_with_a_lower_level():
    few, many = (np.ptp(bootstrap_interval(sample(n))) for n in (100, 1600))
    assert few / many == pytest.approx(4, rel=0.25)
    assert np.ptp(bootstrap_interval(sample(100), level=0.5)) < 0.5 * few


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    hits = 0
    for seed in range(200):
        low, high = bootstrap_interval(sample(60, seed), resamples=200)
        hits += low < 80 < high
    assert 175 <= hits <= 199


def test_the_interval_depends_on_values_and_seed_only():
    values = sample(80)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    same = bootstrap_interval(torch.full((5,), 7.0))
    assert same == (7.0, 7.0)


def test_frames_of_one_video_are_no_further_evidence():
    videos = sample(40)
    frames, groups = videos.repeat_interleave(25), np.repeat(np.arange(40), 25)
    alone = bootstrap_interval(videos)
    assert bootstrap_interval(frames, groups) == pytest.approx(alone, rel=1e-9)
    mixed = np.random.default_rng(0).permutation(1000)
    shuffled = bootstrap_interval(frames[torch.from_numpy(mixed)], groups[mixed])
    assert shuffled == pytest.approx(alone, rel=1e-9)
    assert np.ptp(bootstrap_interval(frames)) < 0.3 * np.ptp(alone)


def test_long_videos_weigh_more_within_the_interval():
    # The mean of all frames is 4, that of the means of videos 50.
    values = torch.cat([torch.zeros(30 * 24), torch.full((30,), 100.0)])
    groups = np.concatenate([np.repeat(np.arange(30), 24), np.arange(30, 60)])
    low, high = bootstrap_interval(values, groups)
    assert 1 < low < 4 < high < 10


def test_an_interval_needs_two_groups():
    with pytest.raises(DataError, match="1 group of people"):
        bootstrap_interval(sample(100), np.zeros(100))
