"""Label files of one row a person: what is not as documented is named, whoever wrote it."""

from __future__ import annotations

import numpy as np
import pytest

from hmr.errors import DataError
from rayhmr.data.sources.columns import Columns, npz_units
from rayhmr.data.sources.record import Unit

NAMES = np.array([f"{n}.png" for n in range(5)])


@pytest.fixture
def table(tmp_path):
    """The rows 1..3 of a file with these columns."""

    def open_file(**columns):
        path = tmp_path / "labels.npz"
        np.savez(path, **({"imgname": NAMES} | columns))
        return Columns(str(path), Unit(split="train", file="labels.npz", start=1, stop=4))

    return open_file


def test_rows_of_the_unit_in_the_shape_that_is_asked_for(table):
    pose = np.arange(5 * 72.0).reshape(5, 24, 3)
    found = table(pose=pose.astype(np.float32), scale=np.arange(5).reshape(5, 1))
    np.testing.assert_array_equal(found.numbers("pose", 72), pose[1:4].reshape(3, 72))
    assert found.numbers("scale").tolist() == [1, 2, 3]
    assert found.texts("imgname") == ["1.png", "2.png", "3.png"]
    assert (found.texts("gender"), len(found)) == (["", "", ""], 3)
    np.testing.assert_array_equal(found.optional("S", 24, 4), np.zeros((3, 24, 4)))


def test_names_in_bytes_and_columns_of_objects_are_read(table):
    objects = np.array([1, 2.5, 3, 4, 5], object)
    found = table(imgname=NAMES.astype("S"), gender=np.array(list("mfmfm"), object), n=objects)
    assert found.texts("imgname") == ["1.png", "2.png", "3.png"]
    assert found.texts("gender") == ["f", "m", "f"]
    assert found.numbers("n").tolist() == [2.5, 3, 4]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"labels\.npz: has no pose, which every file of this kind has"),
        ({"pose": np.zeros((4, 72))}, "pose has 4 rows and imgname has 5"),
        ({"pose": np.zeros((5, 70))}, r"pose has rows of shape \(70,\), \(72,\) expected"),
        ({"pose": np.array(list("abcde"))}, "pose does not hold numbers"),
        ({"pose": np.array(5.0)}, "'pose' cannot be read"),
    ],
)
def test_columns_that_are_not_as_documented(table, columns, message):
    with pytest.raises(DataError, match=message):
        table(**columns).numbers("pose", 72)


def test_files_that_are_none(tmp_path):
    np.savez(tmp_path / "other.npz", images=NAMES)
    with pytest.raises(DataError, match=r"other\.npz: has no imgname, only images; it is no label"):
        npz_units(str(tmp_path / "other.npz"), "train", 10)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    with pytest.raises(DataError, match=r"cut\.npz: .* cannot be read"):
        npz_units(str(tmp_path / "cut.npz"), "train", 10)


def test_units_cover_every_file_of_a_folder_once_in_order(tmp_path):
    for name, count in (("b", 5), ("a", 3), ("empty", 0)):
        np.savez(tmp_path / f"{name}.npz", imgname=NAMES[:count])
    (tmp_path / "notes.txt").touch()
    units = npz_units(str(tmp_path), "val", 2)
    assert [(u.file, u.start, u.stop) for u in units] == [
        ("a.npz", 0, 1), ("a.npz", 1, 3), ("b.npz", 0, 1), ("b.npz", 1, 3), ("b.npz", 3, 5),
    ]  # fmt: skip
    assert {u.split for u in units} == {"val"}
