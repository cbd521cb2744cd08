"""The simulated cluster: every row of the order is somebody's, every trial ends, and so do the
figures."""

from __future__ import annotations

import pytest

from rayhmr.benchmark_scale import scale_rates


@pytest.mark.chaos
def test_a_training_and_a_search_without_steps_end_on_logical_nodes():
    rows, figures = scale_rates((1, 3), 6)
    assert [row["run"] for row in rows] == [
        "training, 1 workers", "training, 3 workers", "search, 6 trials",
    ]  # fmt: skip
    assert (figures["workers"], figures["trials"]) == (3, 6)
    assert figures["start_s"] > 0
    # A line through two runs goes through both.
    added = rows[1]["report ms"] - rows[0]["report ms"]
    assert figures["report_ms_per_worker"] == pytest.approx(added / 2)
    assert 0 < figures["driver_cpu_s_per_trial"] < figures["seconds_per_trial"] * 2
