"""Messages come out as they went in, and lengths that cannot be are not believed."""

from __future__ import annotations

import socket
import struct
import threading

import numpy as np
import pytest

from hmr.body import Body
from hmr.errors import DataError, HmrError
from hmr.person_crops import person_crops
from rayhmr.serve import exchange, wire
from rayhmr.serve.answered import ModelInfo
from rayhmr.serve.exchange import Introduction
from rayhmr.serve.inference import Computed, Prepared


def through_a_socket(tree, arrays):
    """What arrives of a message; the other side writes from a thread, as a pipe may fill."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        writer = threading.Thread(target=wire.send, args=(theirs, tree, arrays))
        writer.start()
        message = wire.receive(ours)
        writer.join()
        theirs.shutdown(socket.SHUT_WR)
        assert wire.receive(ours) is None
    return message


def test_trees_and_arrays_arrive_bit_for_bit():
    rng = np.random.default_rng(0)
    arrays = {
        "pixels": rng.integers(0, 256, (3, 700, 700, 3), dtype=np.uint8),
        "turned": rng.normal(size=(5, 4)).T,
        "nan": np.array([np.nan, np.inf, -0.0], np.float32),
        "nobody": np.zeros((0, 24, 3), np.float32),
        "one": np.array(7, np.int64),
    }
    tree, received = through_a_socket({"a": [1, None, "ü"]}, arrays)
    assert tree == {"a": [1, None, "ü"]}
    assert list(received) == list(arrays)
    for name, array in arrays.items():
        assert (received[name].dtype, received[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(received[name], array)


@pytest.mark.parametrize(
    "prefix", [struct.pack("<IQ", 2**31, 0), struct.pack("<IQ", 10, 2**60)], ids=["head", "arrays"]
)
def test_a_length_that_cannot_be_is_refused_before_memory_is_taken(prefix):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(prefix)
        with pytest.raises(ValueError, match="a message of"):
            wire.receive(ours)


def test_objects_are_no_arrays():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        head = b'[{}, [["evil", "|O", [1]]]]'
        theirs.sendall(struct.pack("<IQ", len(head), 8) + head + bytes(8))
        with pytest.raises(ValueError, match=r"evil of kind '\|O'"):
            wire.receive(ours)


def test_a_batch_arrives_as_its_items():
    image = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    boxes = ([[0, 0, 50, 50], [10, 5, 80, 60]], [], None)
    items = [
        Prepared(
            crops=tuple(person_crops(image, b, image_size=32)),
            n_iter=n_iter,
            mesh=n_iter is None,
            step_meshes=meshes,
        )
        for b, n_iter, meshes in zip(boxes, (None, 2, 5), (False, False, True), strict=True)
    ]
    message = through_a_socket(*exchange.batch_message(items, waiting=3))
    assert message[0]["waiting"] == 3
    received = exchange.read_batch(message)
    assert [(i.n_iter, i.mesh, i.step_meshes, len(i.crops)) for i in received] == [
        (None, True, False, 2), (2, False, False, 0), (5, False, True, 1),
    ]  # fmt: skip
    for sent, got in zip(items, received, strict=True):
        for one, other in zip(sent.crops, got.crops, strict=True):
            assert (one.side, one.size, one.focal) == (other.side, other.size, other.focal)
            for name in ("pixels", "box", "center"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    (nobody,) = exchange.read_batch(through_a_socket(*exchange.batch_message([items[1]], 0)))
    assert nobody.crops == ()


def test_answers_and_errors_keep_their_places_and_kinds():
    columns = {"vertices": np.ones((2, 5, 3), np.float32), "pose": np.zeros((2, 4, 72), np.float32)}
    results = [
        Computed(columns=columns, model_ms=1.5), DataError("a box"), HmrError("not finite"),
        KeyError("ours"), Computed(columns={}, model_ms=0.25),
    ]  # fmt: skip
    received = exchange.read_answer(through_a_socket(*exchange.answer_message(results)))
    assert [type(r) for r in received] == [Computed, DataError, HmrError, RuntimeError, Computed]
    assert (received[0].model_ms, received[4].model_ms) == (1.5, 0.25)
    assert str(received[1]) == "a box"
    assert received[4].columns == {}
    for name, column in columns.items():
        np.testing.assert_array_equal(received[0].columns[name], column)


def test_an_introduction_carries_the_whole_body():
    body = Body.embedded().arrays
    info = ModelInfo(
        name="hmr", version="3", aliases=("best",), body=body, body_hash=body.content_hash(),
        input_size=64, n_iter=3, metrics={"pa_mpjpe_mm": 50.0},
    )  # fmt: skip
    hello = Introduction(info=info, padding=1.2, max_people=16, generation=4)
    received = exchange.read_introduction(
        through_a_socket(*exchange.introduction_message(hello))
    )  # fmt: skip
    assert received.info.as_json() == info.as_json()
    assert received.info.body.content_hash() == body.content_hash()
    assert (received.padding, received.max_people, received.generation) == (1.2, 16, 4)
    np.testing.assert_array_equal(received.info.body.posedirs, body.posedirs)
