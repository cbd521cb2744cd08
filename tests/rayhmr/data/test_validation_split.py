"""A validation split that can measure nothing is refused before anything starts."""

from __future__ import annotations

import pytest

from hmr.errors import DataError
from rayhmr.data.schema import DatasetInfo, encode_shard
from rayhmr.validation import check_validation_split


def split_of(folder, people):
    (folder / "val.parquet").write_bytes(encode_shard([person.row(90) for person in people]))
    return DatasetInfo(
        location=str(folder), fingerprint="", source="made", image_size=32,
        files={"val": [{"name": "val.parquet", "rows": len(people)}]},
        statistics={}, rejected={}, body={},
    )  # fmt: skip


def test_people_without_smpl_labels_are_refused_with_their_number(tmp_path, make_person):
    people = [make_person(number, pose=None, betas=None) for number in range(3)]
    with pytest.raises(DataError, match=r"none of the 3 people of the val split has SMPL labels"):
        check_validation_split(split_of(tmp_path, people))


def test_one_labelled_person_is_enough(tmp_path, make_person):
    people = [make_person(number, pose=None, betas=None) for number in range(3)]
    check_validation_split(split_of(tmp_path, [*people, make_person(3)]))


def test_a_data_set_without_validation_people_is_refused(tmp_path):
    info = split_of(tmp_path, [])
    info.files.clear()
    with pytest.raises(DataError, match="has no val split"):
        check_validation_split(info)
