"""Settings compared, and settings that no job accepts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from rayhmr import config
from rayhmr.config import (
    BrowseJob,
    ClusterConfig,
    DataConfig,
    DemoJob,
    Dimension,
    FiguresJob,
    TrainJob,
    TuneJob,
    differences,
    with_defaults,
)

JOBS = [
    job for name, job in vars(config).items()
    if name.endswith("Job") and issubclass(job, BaseModel)
]  # fmt: skip
TREES = st.recursive(
    st.none() | st.integers(0, 3) | st.lists(st.integers(0, 3), max_size=2),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)


def test_differences_name_path_and_both_values():
    stored = {"name": "a", "train": {"lr": 0.1, "seed": 0, "layers": [1, 2]}, "old": 5}
    wanted = {"name": "a", "train": {"lr": 0.2, "seed": 0, "layers": [1, 3]}, "new": "x"}
    assert list(differences(stored, wanted)) == [
        "new is None there and 'x' now",
        "old is 5 there and None now",
        "train.layers is [1, 2] there and [1, 3] now",
        "train.lr is 0.1 there and 0.2 now",
    ]


def test_a_section_against_a_value_is_one_difference():
    assert list(differences({"a": {"b": 1}}, {"a": "b"})) == ["a is {'b': 1} there and 'b' now"]


def test_a_setting_newer_than_the_run_has_its_default_there():
    stored = {"train": {"lr": 0.1}, "space": {"a": 1}}
    defaults = {"train": {"lr": 0.5, "ema": 0.0}, "space": {}, "seed": 3}
    filled = with_defaults(stored, defaults)
    assert filled == {"train": {"lr": 0.1, "ema": 0.0}, "space": {"a": 1}, "seed": 3}
    unchanged = {"train": {"lr": 0.1, "ema": 0.0}, "space": {"a": 1}, "seed": 3}
    assert not list(differences(filled, unchanged))
    changed = {"train": {"lr": 0.1, "ema": 0.9}, "space": {"a": 1}, "seed": 3}
    assert list(differences(filled, changed)) == ["train.ema is 0.0 there and 0.9 now"]


@given(TREES)
def test_nothing_differs_from_itself(tree):
    assert list(differences(tree, tree)) == []


@given(
    st.dictionaries(st.sampled_from("abc"), TREES),
    st.dictionaries(st.sampled_from("abc"), TREES),
)
def test_differences_are_the_same_paths_in_both_directions(one, other):
    def paths(a, b):
        return [text.partition(" is ")[0] for text in differences(a, b)]

    assert paths(one, other) == paths(other, one)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_settings_of_a_job_cannot_be_changed_and_survive_json(job):
    settings = job()
    field = next(iter(job.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, field, getattr(settings, field))
    assert job.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError, match="no_such_setting"):
        job.model_validate({"no_such_setting": 1})


@pytest.mark.parametrize(
    ("section", "values", "rule"),
    [
        (DataConfig, {"train_fraction": 0}, "train_fraction\n.*greater than 0"),
        (DataConfig, {"train_fraction": 1.01}, "less than or equal to 1"),
        (DataConfig, {"decode_threads": 0}, "greater than or equal to 1"),
        (ClusterConfig, {"object_store_mb": 79}, "greater than or equal to 80"),
        (ClusterConfig, {"start_timeout_s": 0}, "greater than 0"),
        # A name becomes a folder below runs/ and registry/.
        (TrainJob, {"name": ""}, "name\n.*match pattern"),
        (TrainJob, {"name": ".hidden"}, "match pattern"),
        (TrainJob, {"name": ".."}, "match pattern"),
        (TuneJob, {"name": "a/b"}, "match pattern"),
        (TrainJob, {"name": "a\n"}, "match pattern"),
        (TrainJob, {"max_failures": -1}, "greater than or equal to 0"),
        (Dimension, {}, "give either `choice`, or both `low` and `high`"),
        (Dimension, {"choice": []}, "at least 1 item"),
        (Dimension, {"high": 1}, "give either"),
        (Dimension, {"choice": [1], "low": 0, "high": 1}, "give either"),
        (Dimension, {"low": 1, "high": 1}, r"low \(1.0\) must be below high \(1.0\)"),
        (Dimension, {"low": -1, "high": 1, "log": True}, "a logarithmic range needs low > 0"),
    ],
)
def test_values_out_of_range_are_refused_with_the_rule(section, values, rule):
    with pytest.raises(ValidationError, match=rule):
        section.model_validate(values)


def test_a_dimension_is_a_choice_or_a_range():
    assert Dimension(choice=[1, 0.5, "a", True]).choice == [1, 0.5, "a", True]
    found = Dimension(low=1e-4, high=1e-2, log=True)
    assert (found.low, found.high, found.log) == (1e-4, 1e-2, True)


@pytest.mark.parametrize("job", [BrowseJob, DemoJob, FiguresJob])
def test_what_is_written_as_plain_files_goes_nowhere_else(job):
    """Else `s3://bucket/out` would silently become a folder called `s3:`."""
    with pytest.raises(ValidationError, match="must be a path of this machine"):
        job(output="s3://bucket/out")
