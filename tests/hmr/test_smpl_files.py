"""Official SMPL files: structures made here, in the form of the files, against smplx."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.sparse
import smplx
import torch

from hmr.body import Body
from hmr.body_arrays import BodyArrays, load_body, save_body
from hmr.errors import BodyError
from hmr.rotations import axis_angle_to_matrix
from hmr.skeleton import EXTRA_JOINT_NAMES, H36M17_NAMES, JOINT49_SOURCE, SMPL_PARENTS
from hmr.smpl_files import convert_smpl, read_smpl

H36M_STAND_INS = [f"h36m_{name}" for name in H36M17_NAMES]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes as Python 2 wrote its str."""

    dispatch: ClassVar[Any] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes | str) -> None:
        data = value.encode("latin-1") if isinstance(value, str) else value
        if self.bin:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        else:
            self.write(b"S" + repr(data)[1:].encode() + b"\n")
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_bytes


def python2(value: Any, protocol: int = 2) -> bytes:
    """A pickle as Python 2 with the numpy and scipy of its time wrote it."""
    file = io.BytesIO()
    Python2Pickler(file, protocol).dump(value)
    data = file.getvalue()
    for new, old in (
        (b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"),
        (b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n"),
    ):
        data = data.replace(new, old)
    return data


@pytest.fixture(scope="module")
def chumpy() -> Any:
    """Classes that pickle under chumpy's names; the real package is not there."""
    assert "chumpy" not in sys.modules
    made = types.SimpleNamespace()
    modules = {"chumpy": (), "chumpy.ch": ("Ch",), "chumpy.reordering": ("Select", "Reshape")}

    def init(self: Any, **state: Any) -> None:
        # What chumpy keeps with every object, beside its terms.
        self.__dict__.update(state, _dirty_vars={"x"}, _itr=None, _make_dense=False)

    with pytest.MonkeyPatch.context() as patch:
        for name, classes in modules.items():
            module = types.ModuleType(name)
            for kind in classes:
                made_class = type(kind, (), {"__module__": name, "__init__": init})
                setattr(module, kind, made_class)
                setattr(made, kind, made_class)
            patch.setitem(sys.modules, name, module)
        yield made


def official(arrays: BodyArrays, shapedirs: np.ndarray, posedirs: np.ndarray) -> dict[str, Any]:
    """What is in an official file, used or not, before chumpy comes in."""
    kintree = np.stack([arrays.parents, np.arange(24)]).astype(np.uint32)
    assert kintree[0, 0] == 2**32 - 1
    return {
        "v_template": arrays.v_template,
        "shapedirs": shapedirs,
        "posedirs": posedirs,
        "J_regressor": scipy.sparse.csc_matrix(arrays.J_regressor),
        "J_regressor_prior": scipy.sparse.csc_matrix(arrays.J_regressor),
        "J": arrays.rest_joints,
        "weights": arrays.lbs_weights,
        "weights_prior": arrays.lbs_weights,
        "kintree_table": kintree,
        "f": arrays.faces.astype(np.uint32),
        "vert_sym_idxs": np.arange(arrays.num_vertices),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "pose_training_info": {"data_set": "none", "rate": 0.5},
    }


# Full size, against smplx

OFFICIAL_NAMES = {
    "male": "basicModel_m_lbs_10_207_0_v1.0.0.pkl",
    "female": "basicmodel_f_lbs_10_207_0_v1.1.0.pkl",
    "neutral": "SMPL_NEUTRAL.pkl",
}


def full_size(arrays: BodyArrays, gender: str) -> dict[str, Any]:
    """6890 vertices, 207 pose directions, 10 or 300 shape directions; no two genders alike."""
    rng = np.random.default_rng(list(OFFICIAL_NAMES).index(gender))
    shapedirs = 0.01 * rng.standard_normal((6890, 3, 300 if gender == "female" else 10))
    posedirs = arrays.posedirs.astype(np.float64)
    if gender == "female":
        posedirs = 0.002 * rng.standard_normal(posedirs.shape)
    template = arrays.v_template + 0.01 * rng.standard_normal((6890, 3))
    return official(replace(arrays, v_template=template), shapedirs, posedirs)


def with_chumpy(structure: dict[str, Any], gender: str, chumpy: Any) -> dict[str, Any]:
    """The same with some arrays as chumpy objects; which ones differs between the files."""
    changed = dict(structure)
    if gender == "male":
        flat = structure["shapedirs"].reshape(-1)[::-1].copy()
        changed["shapedirs"] = chumpy.Select(
            a=chumpy.Ch(x=flat), idxs=np.arange(flat.size)[::-1].copy(),
            preferred_shape=structure["shapedirs"].shape,
        )  # fmt: skip
        changed["posedirs"] = np.asfortranarray(structure["posedirs"])
    if gender == "female":
        changed["shapedirs"] = chumpy.Ch(x=structure["shapedirs"])
        changed["v_template"] = chumpy.Reshape(
            a=chumpy.Ch(x=structure["v_template"].ravel()), newshape=(6890, 3)
        )
        changed["J"] = chumpy.Ch(x=structure["J"])
    return changed


@pytest.mark.parametrize("gender", OFFICIAL_NAMES)
def test_a_converted_file_agrees_with_smplx(
    gender: str, embedded_arrays: BodyArrays, chumpy: Any, tmp_path: Path
) -> None:
    structure = full_size(embedded_arrays, gender)
    file = tmp_path / OFFICIAL_NAMES[gender]
    file.write_bytes(python2(with_chumpy(structure, gender, chumpy)))
    facts = convert_smpl(tmp_path, tmp_path / "out" / "body.npz")
    assert (facts["vertices"], facts["faces"], facts["gender"]) == (6890, 13776, gender)
    assert facts["input"] == str(file)

    with contextlib.redirect_stdout(io.StringIO()):
        reference = smplx.SMPL(
            model_path="", data_struct=smplx.utils.Struct(**structure), num_betas=10, batch_size=3
        )
    generator = torch.Generator().manual_seed(1)
    pose = 0.5 * torch.randn(3, 24, 3, generator=generator)
    betas = 1.5 * torch.randn(3, 10, generator=generator)
    with torch.no_grad():
        theirs = reference(betas=betas, global_orient=pose[:, 0], body_pose=pose[:, 1:].flatten(1))
        body = Body.from_file(tmp_path / "out" / "body.npz")
        ours = body(axis_angle_to_matrix(pose), betas)
        landmarks = body.landmarks(axis_angle_to_matrix(pose), betas)
    torch.testing.assert_close(ours.vertices, theirs.vertices, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.joints, theirs.joints[:, :24], atol=1e-5, rtol=0)
    for row, source in enumerate(JOINT49_SOURCE):
        if source < 45:  # the rest belongs to the regressor of extra joints
            torch.testing.assert_close(landmarks[:, row], theirs.joints[:, source],
                                       atol=1e-5, rtol=0)  # fmt: skip


# Small files

Writer = Callable[..., Path]


@pytest.fixture
def write(small_arrays: BodyArrays, tmp_path: Path) -> Writer:
    """Writes a small official .pkl under a name, with some of its values changed."""

    def written(name: str = "SMPL_MALE.pkl", protocol: int = 2, **changes: Any) -> Path:
        posedirs = small_arrays.posedirs.astype(np.float64)
        values = official(small_arrays, small_arrays.shapedirs, posedirs)
        values["landmark_vertices"] = small_arrays.landmark_vertices
        values.update(changes)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(python2({k: v for k, v in values.items() if v is not None}, protocol))
        return path

    return written


def same_body(ours: BodyArrays, theirs: BodyArrays) -> None:
    for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights", "parents",
                 "faces", "landmark_vertices"):  # fmt: skip
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_digit_survives(
    write: Writer, small_arrays: BodyArrays, chumpy: Any, tmp_path: Path, protocol: int
) -> None:
    path = write(protocol=protocol, v_template=chumpy.Ch(x=small_arrays.v_template))
    read = read_smpl(path)
    assert (read.name, read.licence) == ("SMPL_MALE", "user")
    same_body(read, small_arrays)
    facts = convert_smpl(path, tmp_path / "body.npz")
    converted = load_body(tmp_path / "body.npz")
    same_body(converted, small_arrays)
    assert converted.parents.tolist() == list(SMPL_PARENTS)
    assert facts["content_hash"] == converted.content_hash() == read.content_hash()
    # What was converted can be read again, and converted again to the same bytes.
    again = convert_smpl(tmp_path / "body.npz", tmp_path / "again.npz")
    assert again["sha256"] == facts["sha256"]
    assert again["stand_ins"] == facts["stand_ins"]


def test_the_checksum_file_is_what_sha256sum_checks(write: Writer, tmp_path: Path) -> None:
    facts = convert_smpl(write(), tmp_path / "out" / "body.npz")
    folder = tmp_path / "out"
    assert sorted(os.listdir(folder)) == ["body.npz", "body.npz.sha256"]
    assert (folder / "body.npz.sha256").read_text() == f"{facts['sha256']}  body.npz\n"
    check = ["sha256sum", "--check", "--strict", "body.npz.sha256"]
    subprocess.run(check, cwd=folder, check=True, capture_output=True)
    with (folder / "body.npz").open("ab") as file:
        file.write(b"x")
    assert subprocess.run(check, cwd=folder, capture_output=True, check=False).returncode == 1


def test_an_official_npz_may_hold_its_regressor_as_an_object(
    small_arrays: BodyArrays, tmp_path: Path
) -> None:
    values = official(small_arrays, small_arrays.shapedirs, small_arrays.posedirs)
    values["landmark_vertices"] = small_arrays.landmark_vertices
    np.savez(tmp_path / "SMPL_FEMALE.npz", **values)  # the sparse matrix becomes an object array
    same_body(read_smpl(tmp_path / "SMPL_FEMALE.npz"), small_arrays)


# Further regressors


def test_given_regressors_are_used_and_named(
    write: Writer, small_arrays: BodyArrays, tmp_path: Path
) -> None:
    V = small_arrays.num_vertices
    extra, h36m = (np.roll(np.eye(V)[:rows], 7, axis=1) for rows in (9, 17))
    np.save(tmp_path / "J_regressor_extra.npy", extra)
    np.save(tmp_path / "J_regressor_h36m.npy", h36m)
    given = {
        "extra_regressor": tmp_path / "J_regressor_extra.npy",
        "h36m_regressor": tmp_path / "J_regressor_h36m.npy",
    }
    hashes = set()
    for chosen, stand_ins in (
        ((), [*EXTRA_JOINT_NAMES, *H36M_STAND_INS]),
        (("extra_regressor",), H36M_STAND_INS),
        (("h36m_regressor",), list(EXTRA_JOINT_NAMES)),
        (("extra_regressor", "h36m_regressor"), []),
    ):
        facts = convert_smpl(write(), tmp_path / "body.npz", **{key: given[key] for key in chosen})
        body = load_body(tmp_path / "body.npz")
        assert facts["stand_ins"] == list(body.stand_ins) == stand_ins
        assert np.array_equal(body.J_regressor_extra, extra) == ("extra_regressor" in chosen)
        assert np.array_equal(body.h36m_regressor, h36m) == ("h36m_regressor" in chosen)
        assert body.content_hash() == facts["content_hash"]
        hashes.add(body.content_hash())
    assert len(hashes) == 4


def test_a_given_regressor_replaces_the_stand_in_of_a_converted_body(
    write: Writer, small_arrays: BodyArrays, tmp_path: Path
) -> None:
    convert_smpl(write(), tmp_path / "body.npz")
    np.save(tmp_path / "extra.npy", small_arrays.J_regressor_extra)
    facts = convert_smpl(
        tmp_path / "body.npz", tmp_path / "better.npz", extra_regressor=tmp_path / "extra.npy"
    )
    assert facts["stand_ins"] == H36M_STAND_INS
    better = load_body(tmp_path / "better.npz")
    np.testing.assert_array_equal(better.J_regressor_extra, small_arrays.J_regressor_extra)


def test_bodies_without_the_new_regressor_keep_their_hash(
    small_arrays: BodyArrays, embedded_arrays: BodyArrays
) -> None:
    def even(rows: int, columns: int) -> np.ndarray:
        return np.full((rows, columns), 1 / columns)

    V = 40
    body = BodyArrays(
        name="x",
        v_template=np.arange(V * 3.0).reshape(V, 3) / 100,
        shapedirs=np.arange(V * 30.0).reshape(V, 3, 10) / 1000,
        posedirs=np.arange(V * 3 * 207, dtype=np.float32).reshape(V, 3, 207) / 1e6,
        J_regressor=even(24, V),
        J_regressor_extra=even(9, V),
        lbs_weights=even(V, 24),
        parents=np.arange(-1, 23),
        faces=np.arange(6).reshape(2, 3),
        landmark_vertices=np.arange(21),
    )
    # Recorded before there was a place for Human3.6M's regressor.
    known = "ca21305167bdef47a3ab25b66b79035fd65a66920f45f45dee520aeaea3d0fa1"
    assert body.content_hash() == known
    assert replace(body, extra_is_stand_in=True).content_hash() == known
    assert replace(body, J_regressor_h36m=even(17, V)).content_hash() != known
    assert small_arrays.stand_ins == tuple(H36M_STAND_INS)
    assert embedded_arrays.stand_ins == (*EXTRA_JOINT_NAMES, *H36M_STAND_INS)


@pytest.mark.parametrize(
    ("regressor", "value", "message"),
    [
        ("extra_regressor", np.eye(300)[:8], r"J_regressor_extra has the shape \(8, 300\)"),
        ("h36m_regressor", np.eye(300)[:14], r"J_regressor_h36m has the shape \(14, 300\)"),
        ("h36m_regressor", 2 * np.eye(300)[:17], "row 0 of J_regressor_h36m sums to 2"),
        ("h36m_regressor", np.full((17, 300), np.nan), "J_regressor_h36m holds NaN"),
        ("h36m_regressor", np.array([{}], dtype=object), r"r\.npy: not a plain \.npy of numbers"),
        ("h36m_regressor", b"text", r"r\.npy: not a plain \.npy of numbers"),
        ("h36m_regressor", None, r"r\.npy: not a plain \.npy of numbers .*No such file"),
    ],
)
def test_regressors_that_do_not_fit_are_refused(
    write: Writer, tmp_path: Path, regressor: str, value: Any, message: str
) -> None:
    file = tmp_path / "r.npy"
    if isinstance(value, np.ndarray):
        np.save(file, value)
    elif value is not None:
        file.write_bytes(value)
    with pytest.raises(BodyError, match=message):
        convert_smpl(write(), tmp_path / "body.npz", **{regressor: file})
    assert not (tmp_path / "body.npz").exists()


# Which file


@pytest.mark.parametrize(
    ("name", "gender"),
    [
        ("SMPL_MALE.pkl", "male"),
        ("SMPL_FEMALE.pkl", "female"),
        ("SMPL_NEUTRAL.PKL", "neutral"),
        ("basicModel_f_lbs_10_207_0_v1.0.0.pkl", "female"),
        ("basicModel_m_lbs_10_207_0_v1.0.0.pkl", "male"),
        ("basicmodel_m_lbs_10_207_0_v1.1.0.pkl", "male"),
        ("basicModel_neutral_lbs_10_207_0_v1.0.0.pkl", "neutral"),
        ("mine.pkl", "unknown"),
    ],
)
def test_the_name_tells_the_gender(write: Writer, tmp_path: Path, name: str, gender: str) -> None:
    path = write(name)
    assert convert_smpl(path, tmp_path / "body.npz")["gender"] == gender
    if gender == "unknown":
        facts = convert_smpl(path, tmp_path / "body.npz", gender="female")
        assert facts["gender"] == "female"
    else:
        wrong = "male" if gender != "male" else "neutral"
        with pytest.raises(BodyError, match=f"the {gender} body, but gender is '{wrong}'"):
            convert_smpl(path, tmp_path / "body.npz", gender=wrong)


def test_a_folder_gives_the_file_of_the_gender(
    write: Writer, small_arrays: BodyArrays, tmp_path: Path
) -> None:
    folder = tmp_path / "SMPL_python_v.1.1.0"
    names = {
        "female": "smpl/models/basicmodel_f_lbs_10_207_0_v1.1.0.pkl",
        "male": "smpl/models/basicmodel_m_lbs_10_207_0_v1.1.0.pkl",
    }
    for factor, name in enumerate(names.values(), start=1):
        write(f"{folder.name}/{name}", v_template=small_arrays.v_template * factor / 2)
    (folder / "smpl" / "labels.pkl").write_bytes(b"not asked for")
    for factor, gender in enumerate(names, start=1):
        body = read_smpl(folder, gender=gender)
        np.testing.assert_array_equal(body.v_template, small_arrays.v_template * factor / 2)
    both = r"basicmodel_f_\S+ \(female\), smpl/models/basicmodel_m_\S+ \(male\)"
    with pytest.raises(BodyError, match=rf"2 SMPL files in it \(found: .*{both}\)\. Choose with"):
        read_smpl(folder)
    with pytest.raises(BodyError, match=rf"no neutral SMPL files in it \(found: .*{both}\)"):
        read_smpl(folder, gender="neutral")
    write(f"{folder.name}/SMPL_MALE.pkl")
    with pytest.raises(BodyError, match="2 male SMPL files in it"):
        read_smpl(folder, gender="male")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BodyError, match=r"found: nothing named SMPL_\*\.pkl"):
        read_smpl(tmp_path / "empty")


def test_arguments_that_make_no_sense_are_refused(write: Writer, tmp_path: Path) -> None:
    path = write()
    with pytest.raises(BodyError, match="gender is 'm'; choose female, male, neutral"):
        read_smpl(path, gender="m")
    with pytest.raises(BodyError, match=r"nowhere: there is no such file or folder"):
        read_smpl(tmp_path / "nowhere")
    with pytest.raises(BodyError, match=r"body\.pkl: bodies are written as \.npz"):
        convert_smpl(path, tmp_path / "body.pkl")
    (tmp_path / "models.zip").write_bytes(b"PK")
    with pytest.raises(BodyError, match=r"models\.zip: SMPL files end in .* Unpack the archive"):
        read_smpl(tmp_path / "models.zip")
    convert_smpl(path, tmp_path / "body.npz")
    before = (tmp_path / "body.npz").read_bytes()
    with pytest.raises(BodyError, match="the input cannot be its own output"):
        convert_smpl(tmp_path / "body.npz", tmp_path / "body.npz")
    assert (tmp_path / "body.npz").read_bytes() == before


# Files that are something else


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posedirs": None}, "the key 'posedirs' is missing"),
        ({"landmark_vertices": None}, "landmark_vertices runs from 0 to 6787"),
        ({"weights": [1.0, 2.0]}, "weights is a list, it must be an array"),
        (
            {"kintree_table": np.zeros((2, 55), np.uint32)},
            r"kintree_table has .* not SMPL\+H",
        ),
        ({"shapedirs": np.zeros((300, 3, 8))}, "shapedirs has the shape"),
        ({"v_template": np.full((300, 3), np.nan)}, "v_template or J_regressor holds NaN"),
    ],
)
def test_broken_structures_are_refused(
    write: Writer, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BodyError, match=rf"SMPL_MALE\.pkl: {message}"):
        convert_smpl(write(**changes), tmp_path / "body.npz")
    assert not (tmp_path / "body.npz").exists()


def test_a_body_with_other_vertices_must_say_where_its_landmarks_are(
    embedded_arrays: BodyArrays, tmp_path: Path
) -> None:
    one_more = replace(
        embedded_arrays,
        **{key: np.concatenate([getattr(embedded_arrays, key)[:1], getattr(embedded_arrays, key)])
           for key in ("v_template", "shapedirs", "lbs_weights")},
        posedirs=np.zeros((6891, 3, 207), np.float32),
        J_regressor=np.pad(embedded_arrays.J_regressor, ((0, 0), (1, 0))),
        J_regressor_extra=np.pad(embedded_arrays.J_regressor_extra, ((0, 0), (1, 0))),
    )  # fmt: skip
    save_body(tmp_path / "known.npz", one_more)
    assert read_smpl(tmp_path / "known.npz").num_vertices == 6891
    with np.load(tmp_path / "known.npz") as values:
        np.savez(tmp_path / "unknown.npz", **{k: values[k] for k in values if k[:4] != "land"})
    with pytest.raises(BodyError, match=r"6891 vertices, SMPL has 6890"):
        read_smpl(tmp_path / "unknown.npz")


def test_jobs_that_get_an_unconverted_file_say_how_to_convert_it(write: Writer) -> None:
    with pytest.raises(BodyError, match=r"SMPL_MALE\.pkl: .* jobs/convert\.py smpl --input"):
        load_body(write())


def test_a_pickle_that_is_no_body_is_refused(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    file = tmp_path / "SMPL_MALE.pkl"
    file.write_bytes(pickle.dumps({"v_template": Malicious()}))
    with pytest.raises(BodyError, match=r"SMPL_MALE\.pkl: refused: posix\.system"):
        convert_smpl(file, tmp_path / "body.npz")
    file.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(BodyError, match="it holds a list, an SMPL file is a dict of arrays"):
        convert_smpl(file, tmp_path / "body.npz")
    (tmp_path / "SMPL_MALE.npz").write_bytes(b"no zip")
    with pytest.raises(BodyError, match=r"SMPL_MALE\.npz: not a readable \.npz"):
        convert_smpl(tmp_path / "SMPL_MALE.npz", tmp_path / "body.npz")
    assert sorted(os.listdir(tmp_path)) == ["SMPL_MALE.npz", "SMPL_MALE.pkl"]
