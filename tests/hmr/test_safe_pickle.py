"""Pickles of strangers: the same values as an ordinary unpickler, and never any of their code."""

from __future__ import annotations

import codecs
import os
import pickle
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from hmr import pickle_child
from hmr.errors import DataError
from hmr.safe_pickle import read_object_npz, read_pickle


def same(found: Any, expected: Any) -> None:
    """Equal in value, type, dtype and order of keys."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


# What is read


@pytest.mark.parametrize("protocol", range(6))
def test_labels_come_back_as_they_were(protocol: int) -> None:
    rng = np.random.default_rng(0)
    people = [
        {
            "keypoints_2d": rng.random((44, 3), dtype=np.float32),
            "center": np.array([12.5, 7.25]),
            "has_betas": True,
            "extra_info": {"fitting_loss": {"reprojection_loss": 1.5}, "nothing": None},
        },
        {"genders": ["m", "f"], "frames": list(range(3)), 3: -(2**70), "empty": np.zeros((0, 3))},
        {
            "columns first": np.asfortranarray(rng.random((3, 4))),
            "text": np.array(["a", "bcd"]),
            "bytes": np.array([b"a", b"bcd"]),
            "mask": np.array([[True, False]]),
            "name": "caf\u00e9 \u4eba",
        },
    ]
    found = read_pickle(pickle.dumps(people, protocol))
    same(found, people)
    found[2]["columns first"][0, 0] = 5  # the arrays are the caller's own


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_what_has_no_plain_form_becomes_the_nearest_one(protocol: int) -> None:
    objects = np.empty((2, 2), dtype=object)
    objects[0, 0], objects[1, 1] = np.arange(3), "a"
    values = {
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("m")],
        "tuple": (1, (2.0,)),
        "set": {7},
        "bytes": b"\x00\xff",
        "no bytes": b"",
        "objects": objects,
        "one object": np.array({"height": 3}, dtype=object),
        "big endian": np.arange(3, dtype=">i4"),
    }
    expected = {
        "scalars": [1.5, -3, True, "m"],
        "tuple": [1, [2.0]],
        "set": [7],
        "bytes": "\x00\xff",
        "no bytes": "",
        "objects": [[np.arange(3), None], [None, "a"]],
        "one object": {"height": 3},
        "big endian": np.arange(3, dtype=np.int32),
    }
    same(read_pickle(pickle.dumps(values, protocol)), expected)


def test_a_python_2_file_reads_as_latin_1(tmp_path: Path) -> None:
    """A text pickle as Python 2 and an old numpy wrote it; no newer one spells it this way."""
    text = (
        b"(dp0\nS'poses'\np1\n(lp2\ncnumpy.core.multiarray\n_reconstruct\np3\n(cnumpy\nndarray\np4\n"
        b"(I0\ntS'b'\ntRp5\n(I1\n(I2\nI2\ntcnumpy\ndtype\np6\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\n"
        b"I-1\nI0\ntbI01\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@\\x00\\x00@@\\x00\\x00\\x80\\xc0'\ntba"
        b"sS'sequence'\np7\nS'caf\\xe9'\np8\nsS'count'\nL30L\nsS'valid'\nI00\ns."
    )
    (tmp_path / "sequence.pkl").write_bytes(text)
    same(
        read_pickle(tmp_path / "sequence.pkl"),
        {
            # Stored column by column.
            "poses": [np.array([[1, 3], [2, -4]], np.float32)],
            "sequence": "caf\u00e9",
            "count": 30,
            "valid": False,
        },
    )


@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
@pytest.mark.parametrize("form", ["matrix", "array"])
def test_sparse_matrices_become_dense(kind: str, form: str) -> None:
    rows, columns, numbers = [0, 2, 2, 2], [1, 0, 3, 3], [1.5, -2.0, 4.0, 0.25]
    coo = scipy.sparse.coo_array((numbers, (rows, columns)), shape=(3, 5))
    matrix = getattr(scipy.sparse, f"{kind}_{form}")(coo)
    for protocol in (0, 2, 4):
        data = pickle.dumps(matrix, protocol)
        same(read_pickle(data), matrix.toarray())
        if protocol < 4:
            old = data.replace(f"scipy.sparse._{kind}".encode(), f"scipy.sparse.{kind}".encode())
            assert old != data
            same(read_pickle(old), matrix.toarray())


def test_old_coo_matrices_name_rows_and_columns() -> None:
    state = {"_shape": (2, 3), "row": np.array([1]), "col": np.array([2]), "data": np.array([5])}
    data = b"\x80\x02cscipy.sparse.coo\ncoo_matrix\n)\x81" + pickle.dumps(state, 2)[2:-1] + b"b."
    same(read_pickle(data), np.array([[0, 0, 0], [0, 0, 5]]))


def test_reading_imports_neither_scipy_nor_torch() -> None:
    data = pickle.dumps(scipy.sparse.csc_matrix(np.eye(2)))
    code = (
        f"import sys; from hmr.safe_pickle import read_pickle; print(read_pickle({data!r}).sum(),"
        "[name for name in ('scipy', 'torch', 'chumpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2.0 []"


# What is refused


class Runs:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function: Any, *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self._call


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that every malicious pickle below tries to make."""
    return tmp_path / "executed"


def malicious(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that make the file when they are loaded, and the name they are refused by."""
    command = f"touch {marker}"
    code = f"str(open({str(marker)!r}, 'w').close())"
    text = command.encode()
    hidden = np.empty(2, dtype=object)
    hidden[1] = {"deep": [(Runs(eval, code),)]}
    return {
        "text": (b"cos\nsystem\n(S'" + text + b"'\ntR.", "os.system"),
        "reduce": (pickle.dumps(Runs(os.system, command)), "posix.system"),
        "eval": (pickle.dumps(Runs(eval, code)), "builtins.eval"),
        "eval of Python 2": (pickle.dumps(Runs(eval, code), 2), "__builtin__.eval"),
        "exec": (pickle.dumps(Runs(exec, code)), "builtins.exec"),
        "nested": (pickle.dumps(Runs(codecs.encode, Runs(eval, code), "latin1")), "builtins.eval"),
        "in an array": (pickle.dumps({"a": hidden}, 2), "__builtin__.eval"),
        "instance": (b"(S'" + text + b"'\nios\nsystem\n.", "os.system"),
        "object": (b"(cos\nsystem\nS'" + text + b"'\no.", "os.system"),
        "dotted": (
            b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93\x8c"
            + bytes([len(text)]) + text + b"\x85R.",
            "numpy.f2py.os.system",
        ),
        "process": (pickle.dumps(Runs(subprocess.Popen, ["touch", str(marker)])), "subprocess.P"),
    }  # fmt: skip


@pytest.mark.parametrize("name", malicious(Path("x")))
def test_code_is_refused_by_name_and_never_runs(name: str, marker: Path) -> None:
    data, refused = malicious(marker)[name]
    for source in (data, marker.with_name("file.pkl")):
        if isinstance(source, Path):
            source.write_bytes(data)
        with pytest.raises(DataError, match=f"refused: .*{refused}") as error:
            read_pickle(source)
        assert ("file.pkl" in str(error.value)) == isinstance(source, Path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["text", "nested", "eval of Python 2", "in an array"])
def test_an_ordinary_unpickler_would_run_it(name: str, marker: Path) -> None:
    """The control: these pickles are armed."""
    pickle.loads(malicious(marker)[name][0])
    assert marker.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"cnumpy\nndarray\n}b.", "TypeError"),  # changing a stand-in itself
        (b"cnumpy\ndtype\n.", "an object of the type type"),
        (b"ccopy_reg\n_reconstructor\n(cnumpy\ndtype\nc__builtin__\nobject\nNtR.", "no known"),
        (b"ccollections\nOrderedDict\n.", "collections.OrderedDict"),
        (b"\x82\x01.", "extension code 1"),
        (b"Pa\n.", "persistent"),
        (b"\x80\x05\x97.", "buffer"),
        (b"\x80\x03}K\x01K\x02\x86N s.".replace(b" ", b""), "a dict key of the type tuple"),
        (pickle.dumps(3 + 4j, 2), "__builtin__.complex"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f8")]), 2), "structured"),
        (pickle.dumps(np.zeros(2, complex), 2), "'<c16' is not one of numbers or text"),
        (pickle.dumps(np.zeros(2, "M8[s]"), 2), "M8"),
        (b"]q\x00h\x00a.", "nested deeper than 60"),  # a list that holds itself
    ],
)
def test_other_instructions_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pickle(data)


# What would exhaust the reader

LAUGHS = b"]q\x00K\x01a" + b"".join(
    b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) * 1 + b"h" + bytes([i - 1]) + b"e"
    for i in range(1, 50)
) + b"."  # fmt: skip


def sparse(**state: Any) -> bytes:
    body = pickle.dumps(state, 2)[2:-1]
    return b"\x80\x02cscipy.sparse.csc\ncsc_matrix\n)\x81" + body + b"b."


ONE = np.zeros(1, np.int32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x", "truncated|memory"),
        (b"\x80\x04\x96" + struct.pack("<Q", 1 << 62) + b"x", "memory|broken"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memory"),  # a memo of 2 ** 31 places
        (b"c__builtin__\nbytes\n(L1000000000000L\ntR.", "broken|argument"),
        (b"c__builtin__\nbytearray\n(L1000000000000L\ntR.", "__builtin__.bytearray"),
        (LAUGHS, "more than 1000000 values"),
        (pickle.dumps(np.zeros(4), 2).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"), "32 bytes"),
        (sparse(shape=(10**6, 10**6), data=ONE, indices=ONE, indptr=ONE), "indptr|more bytes"),
        (
            sparse(shape=(1, 1), data=ONE, indices=ONE, indptr=np.array([0, 10**13])),
            "another indptr",
        ),
        (
            sparse(shape=(1, 1), data=ONE, indices=ONE - 1, indptr=np.array([0, 1])),
            "negative indices",
        ),
        (sparse(shape=(1, 1), data=ONE, indices=ONE + 1, indptr=np.array([0, 1])), "IndexError"),
        (sparse(shape=(10**5, 10**5), data=ONE[:0], indices=ONE[:0], indptr=ONE), "more bytes"),
        (sparse(data=ONE), "KeyError"),
        (sparse(shape=(1, 1), data=[1], indices=ONE, indptr=np.arange(2)), "AttributeError"),
    ],
)
def test_small_pickles_do_not_fill_the_memory(data: bytes, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(DataError, match=message):
        read_pickle(data)
    assert time.monotonic() - started < 30


def test_an_endless_computation_is_ended() -> None:
    """Hashing tuples of tuples doubles with every level: this key takes some thousand years."""
    levels = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1])
                      for i in range(60))  # fmt: skip
    bomb = b"\x80\x02}K\x01q\x00" + b"0" + levels + b"0}" + b"h\x3cNs."
    started = time.monotonic()
    with pytest.raises(DataError, match="more than 1 seconds"):
        read_pickle(bomb, max_seconds=1)
    assert time.monotonic() - started < 60


def test_the_reading_process_may_neither_open_files_nor_take_memory(tmp_path: Path) -> None:
    target = tmp_path / "written"
    code = f"""
import os, sys
sys.path.insert(0, {str(Path(pickle_child.__file__).parent.parent)!r})
from hmr import pickle_child
already = open({str(target)!r}, "w")
pickle_child._limit(256 << 20, 5)
def refused(action):
    try: action()
    except (OSError, MemoryError) as error: return type(error).__name__
def grow():
    already.write("x")
    already.flush()
print(refused(lambda: open(sys.executable)), refused(grow), refused(lambda: bytearray(1 << 30)),
      refused(os.pipe))
os._exit(0)
"""
    command = [sys.executable, "-u", "-I", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OSError", "OSError", "MemoryError", "OSError"], done.stderr
    assert target.read_bytes() == b""


def test_sizes_are_limited() -> None:
    numbers = pickle.dumps(np.zeros(1000))
    with pytest.raises(DataError, match=f"{len(numbers)} bytes, at most 500 are read"):
        read_pickle(numbers, max_bytes=500)
    twice = pickle.dumps([a := np.zeros(1000), a, a[::1]], 2)
    with pytest.raises(DataError, match="more bytes of arrays and text than allowed"):
        read_pickle(twice, max_bytes=len(twice))
    assert len(read_pickle(twice, max_bytes=24_000)) == 3


# Damaged files


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_cut_pickle_is_refused(protocol: int) -> None:
    data = pickle.dumps({"a": np.arange(20.0), "b": ["x"] * 3}, protocol)
    for kept in (0, 1, 2, len(data) // 3, len(data) // 2, len(data) - 1):
        with pytest.raises(DataError, match="refused: a broken pickle"):
            read_pickle(data[:kept])


def test_a_damaged_pickle_is_read_or_refused() -> None:
    data = pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": ["x", 1.5]}, 2)
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(15):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] = rng.integers(256)
        try:
            read_pickle(bytes(damaged))
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_no_file_no_value(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.pkl: there is no such file"):
        read_pickle(tmp_path / "nowhere.pkl")
    with pytest.raises(DataError, match="there is no such file"):
        read_pickle(tmp_path)


# .npz with objects


def test_an_npz_may_hold_objects(tmp_path: Path) -> None:
    path = tmp_path / "humandata.npz"
    smpl = {"betas": np.arange(10.0), "meta": {"gender": ["male", "female"]}}
    names = np.array(["a.jpg", None], dtype=object)
    plain = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    np.savez_compressed(path, smpl=np.array(smpl, dtype=object), image_path=names, keypoints=plain)
    expected = {"smpl": smpl, "image_path": ["a.jpg", None], "keypoints": plain}
    same(read_object_npz(path), expected)
    same(read_object_npz(path, {"keypoints", "other"}), {"keypoints": plain})


def test_a_malicious_member_is_refused_unless_it_is_not_asked_for(
    tmp_path: Path, marker: Path
) -> None:
    path = tmp_path / "labels.npz"
    code = f"open({str(marker)!r}, 'w').close()"
    np.savez(path, good=np.eye(2), bad=np.array([Runs(eval, code)], dtype=object))
    with pytest.raises(DataError, match=r"labels\.npz: bad: .*refused: builtins\.eval"):
        read_object_npz(path)
    assert not marker.exists()
    same(read_object_npz(path, {"good"}), {"good": np.eye(2)})
    np.load(path, allow_pickle=True)["bad"]
    assert marker.exists()  # the control


def test_files_that_are_no_npz_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(100.0))
    data = path.read_bytes()
    with pytest.raises(DataError, match="a: 928 bytes, at most 500 are read"):
        read_object_npz(path, max_bytes=500)
    for broken in (b"", b"no zip", data[:-50], data[:400] + b"?" + data[401:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.npz: not a readable \.npz"):
            read_object_npz(path)
    with pytest.raises(DataError, match="there is no such file"):
        read_object_npz(tmp_path / "nowhere.npz")
