"""Full frames and boxes in, people out: batches, boxes, cameras, steps, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hmr.body import Body
from hmr.camera import default_focal, project_weak
from hmr.config import ModelConfig
from hmr.crops import apply_affine, box_to_affine, box_xyxy_to_square, crop_image
from hmr.errors import DataError, HmrError
from hmr.model import HMR, build_model
from hmr.predictor import BATCH_SIZE, MAX_ITERATIONS, Predictor
from hmr.rotations import axis_angle_to_matrix
from hmr.structures import Person

SIZE = 32
CONFIG = ModelConfig(encoder_width=4, image_size=SIZE, hidden=16, n_iter=3, dropout=0.5)


def new_model() -> HMR:
    torch.manual_seed(0)
    model = build_model(CONFIG)
    # New heads are close to zero; open them, so that pictures and steps differ visibly.
    regressor = model.regressor
    for head, std in ((regressor.decpose, 0.2), (regressor.decshape, 0.2), (regressor.deccam, 0.1)):
        nn.init.normal_(head.weight, std=std)
    return model


@pytest.fixture(scope="module")
def predictor(small_body: Body) -> Predictor:
    """Read only: all tests share it."""
    return Predictor(new_model(), small_body)


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Coloured tiles: no two crops of it look alike, however much they shrink it."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return tiles.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].copy()


def rotations(person: Person | dict[str, np.ndarray]) -> Tensor:
    """(24, 3, 3): an axis-angle near pi may flip its sign, its matrix does not."""
    values = person if isinstance(person, dict) else vars_of(person)
    pose = np.concatenate([values["global_orient"], values["body_pose"]])
    return axis_angle_to_matrix(torch.from_numpy(pose).reshape(24, 3))


def vars_of(person: Person) -> dict[str, Any]:
    return {field.name: getattr(person, field.name) for field in fields(person)}


def assert_same(one: Person, other: Person, *, skip: Sequence[str] = ()) -> None:
    """Every field agrees but for rounding."""
    ours, theirs = vars_of(one), vars_of(other)
    for name in set(ours) - {"iterations", "global_orient", "body_pose", *skip}:
        # Pixels and, far from the camera, metres are hundreds: rounding grows with them.
        np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5, rtol=1e-5, err_msg=name)
    assert len(one.iterations) == len(other.iterations)
    for step, same in zip(one.iterations, other.iterations, strict=True):
        torch.testing.assert_close(rotations(step), rotations(same), atol=2e-5, rtol=0)
        for name in ("betas", "pred_cam"):
            np.testing.assert_allclose(step[name], same[name], atol=2e-5, err_msg=name)


def people(answer: list[Person] | HmrError) -> list[Person]:
    assert not isinstance(answer, HmrError), answer
    return answer


# Batches


def test_a_person_does_not_depend_on_the_batch(predictor: Predictor) -> None:
    """The people fill one batch and reach into the next, across the border of an image."""
    images = [picture(90, 70), picture(64, 120, 1), picture(33, 40, 2), picture(50, 50, 3)]
    rng = np.random.default_rng(4)
    corners = rng.uniform(0, 40, (BATCH_SIZE - 1, 2))
    boxes: list[Any] = [
        np.concatenate([corners, corners + rng.uniform(8, 45, corners.shape)], axis=1),
        [[5, 10, 45, 100], [-8, 0, 30, 60.5]],
        [],
        None,
    ]
    focals = [None, 300.0, None, 80.0]
    answers = [people(answer) for answer in predictor.predict_many(images, boxes, None, focals)]
    assert [len(answer) for answer in answers] == [BATCH_SIZE - 1, 2, 0, 1]
    for image, of_image, focal, answer in zip(images, boxes, focals, answers, strict=True):
        for row, person in enumerate(answer):
            box = None if of_image is None else of_image[row : row + 1]
            (alone,) = predictor.predict(image, box, focal=focal)
            assert_same(person, alone)
    # Else the comparison above would prove nothing.
    shapes = np.stack([person.betas for answer in answers for person in answer])
    assert np.ptp(shapes, axis=0).min() > 1e-2


def test_without_a_mesh_everything_else_is_the_same(predictor: Predictor) -> None:
    images, boxes = [picture(90, 70)] * 2, [[[5, 10, 45, 60], [-8, 0, 30, 60.5]], None]
    full = [people(answer) for answer in predictor.predict_many(images, boxes)]
    bare = [people(answer) for answer in predictor.predict_many(images, boxes, mesh=False)]
    assert [len(answer) for answer in bare] == [2, 1]
    for one, other in zip(itertools.chain(*full), itertools.chain(*bare), strict=True):
        assert one.vertices.shape == predictor.body.arrays.v_template.shape
        assert other.vertices.shape == (0, 3)
        assert_same(replace(one, vertices=other.vertices), other)


def test_several_threads_get_their_own_answers(predictor: Predictor) -> None:
    images = [picture(60, 50, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(predictor.predict, images))
    for image, answer in zip(images, answers, strict=True):
        assert_same(answer[0], predictor.predict(image)[0])


def test_predicting_neither_drops_out_nor_trains(small_body: Body) -> None:
    model = new_model().train()
    predictor = Predictor(model, small_body)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = (predictor.predict(picture(50, 60))[0] for _ in range(2))
    assert np.array_equal(first.vertices, again.vertices)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_person_does_not_keep_its_batch_in_memory(predictor: Predictor) -> None:
    boxes = [[0, 0, 20, 20], [20, 0, 40, 20], [0, 20, 20, 40]]
    for person in predictor.predict(picture(40, 40), boxes):
        for name in ("vertices", "joints_3d", "joints_2d", "cam_t"):
            array = getattr(person, name)
            assert array.base is None or array.base.size == array.size, name


# Boxes


def test_the_model_sees_the_square_around_the_padded_box(small_body: Body) -> None:
    predictor = Predictor(new_model(), small_body, box_padding=1.5)
    image, box = picture(100, 80), np.array([20.0, 8.0, 40.0, 60.0])
    (person,) = predictor.predict(image, box[None])
    affine = box_to_affine((30, 34), 1.5 * 52, SIZE)
    crop = crop_image(image, affine, SIZE)
    steps = predictor.predict_crops(crop[None]).iterations
    assert len(steps) == len(person.iterations)
    for step, of_person in zip(steps, person.iterations, strict=True):
        torch.testing.assert_close(rotations(of_person), step.rotmats[0], atol=2e-5, rtol=0)
        np.testing.assert_allclose(of_person["betas"], step.betas[0], atol=1e-6)
        np.testing.assert_allclose(of_person["pred_cam"], step.pred_cam[0], atol=1e-6)
    assert person.box_xyxy.tolist() == box.tolist()


@pytest.mark.parametrize(("width", "height"), [(70, 50), (50, 70)])
def test_no_box_is_the_whole_picture_without_padding(
    predictor: Predictor, small_body: Body, width: int, height: int
) -> None:
    image = picture(width, height)
    (whole,) = predictor.predict(image)
    unpadded = Predictor(predictor.model, small_body, box_padding=1.0)
    (same,) = unpadded.predict(image, [[0, 0, width, height]])
    assert_same(whole, same)
    assert whole.box_xyxy.tolist() == [0, 0, width, height]


def test_people_come_in_the_order_of_their_boxes(predictor: Predictor) -> None:
    image = picture(120, 60)
    boxes = np.array([[0, 0, 30, 50], [40, 10, 90, 60], [80, 0, 120, 40]])
    order = [2, 0, 1]
    straight, shuffled = predictor.predict(image, boxes), predictor.predict(image, boxes[order])
    for row, person in zip(order, shuffled, strict=True):
        assert_same(person, straight[row])
        assert person.box_xyxy.tolist() == boxes[row].tolist()


@pytest.mark.parametrize(
    "box", [[20, 15, 40, 30], [-6, -4, 10, 16], [48, 38, 70, 52]], ids=["in", "over", "beyond"]
)
def test_a_black_frame_around_the_picture_moves_everything_by_its_width(
    predictor: Predictor, box: list[float]
) -> None:
    """What lies outside a picture is black anyway, and the camera's centre moves along."""
    image, frame = picture(60, 45), 13
    framed = np.pad(image, ((frame, frame), (frame, frame), (0, 0)))
    (before,) = predictor.predict(image, [box], focal=90.0)
    (after,) = predictor.predict(framed, np.array([box]) + frame, focal=90.0)
    moving = ("box_xyxy", "joints_2d", "principal_point")
    assert_same(after, before, skip=moving)
    for name in moving:
        np.testing.assert_allclose(
            getattr(after, name), getattr(before, name) + frame, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize("focal", [None, 1e6], ids=["diagonal", "long lens"])
def test_a_person_who_stands_elsewhere_is_found_there(
    small_body: Body, focal: float | None
) -> None:
    """By as many pixels at the pelvis' depth; nearer parts of the body move by more."""
    # Half the resolution, in powers of two: both crops are the same to the last bit.
    predictor = Predictor(new_model(), small_body, box_padding=2.0)
    person_picture, shift = picture(24, 32), np.array([90, 55])

    def seen_at(x: int, y: int) -> Person:
        image = np.zeros((140, 170, 3), np.uint8)
        image[y : y + 32, x : x + 24] = person_picture
        return predictor.predict(image, [[x, y, x + 24, y + 32]], focal=focal)[0]

    before, after = seen_at(30, 28), seen_at(30 + shift[0], 28 + shift[1])
    np.testing.assert_allclose(after.joints_3d, before.joints_3d, atol=1e-6)
    np.testing.assert_allclose(after.pred_cam, before.pred_cam, atol=1e-6)
    depth = before.cam_t[2]
    nearness = depth / (depth + before.joints_3d[:, 2:])
    moved = after.joints_2d - before.joints_2d
    np.testing.assert_allclose(moved, shift * nearness, atol=0.01)
    if focal is not None:
        np.testing.assert_allclose(moved, np.broadcast_to(shift, (24, 2)), atol=0.02)
    else:
        assert np.abs(moved - shift).max() > 1


def test_a_larger_picture_of_the_same_scene_scales_the_pixels_only(predictor: Predictor) -> None:
    """In one colour, so that resampling changes nothing."""
    small, large = (np.full((h, w, 3), (200, 90, 40), np.uint8) for h, w in ((60, 80), (180, 240)))
    box = np.array([[20, 10, 45, 48]])
    (before,) = predictor.predict(small, box)
    (after,) = predictor.predict(large, 3 * box)
    scaling = ("box_xyxy", "joints_2d", "principal_point", "focal_length")
    assert_same(after, before, skip=scaling)
    for name in scaling:
        np.testing.assert_allclose(
            getattr(after, name), 3 * getattr(before, name), rtol=1e-5, atol=1e-3, err_msg=name
        )


# Cameras


@pytest.mark.parametrize("focal", [None, 55.0, 4000.0])
def test_joints_2d_are_the_projected_joints_3d(predictor: Predictor, focal: float | None) -> None:
    image = picture(130, 90)
    boxes = [[0, 0, 30, 50], [60, 20, 128, 88], [100, -5, 140, 30]]
    for person in predictor.predict(image, boxes, focal=focal):
        expected = default_focal(130, 90) if focal is None else focal
        np.testing.assert_allclose(person.focal_length, [expected, expected], rtol=1e-6)
        assert person.principal_point.tolist() == [65, 45]
        placed = person.joints_3d.astype(np.float64) + person.cam_t
        pixels = person.focal_length * placed[:, :2] / placed[:, 2:] + person.principal_point
        np.testing.assert_allclose(person.joints_2d, pixels, atol=1e-3)


def test_the_full_camera_agrees_with_the_camera_of_the_crop(predictor: Predictor) -> None:
    """Exactly so in the middle of the frame and at the focal length that crops assume."""
    image, box = picture(120, 100), np.array([45.0, 25.0, 75.0, 75.0])
    center, side = box_xyxy_to_square(box, predictor.box_padding)
    (person,) = predictor.predict(image, [box], focal=5000 * side / SIZE)
    in_crop = project_weak(
        torch.from_numpy(person.joints_3d[None]), torch.from_numpy(person.pred_cam[None]), SIZE
    )[0]
    from_full = apply_affine(box_to_affine(center, side, SIZE), person.joints_2d)
    np.testing.assert_allclose(2 * from_full / SIZE - 1, in_crop, atol=1e-4)


def test_vertices_and_joints_are_those_of_the_pose_and_shape(
    predictor: Predictor, small_body: Body
) -> None:
    (person,) = predictor.predict(picture(60, 60))
    output = small_body(rotations(person)[None], torch.from_numpy(person.betas[None]))
    np.testing.assert_allclose(person.vertices, output.vertices[0], atol=2e-5)
    np.testing.assert_allclose(person.joints_3d, output.joints[0], atol=2e-5)


# Steps


def test_fewer_steps_are_the_beginning_of_more(predictor: Predictor) -> None:
    image = picture(64, 48)
    by_default, one, five = (predictor.predict(image, None, n)[0] for n in (None, 1, 5))
    assert predictor.n_iter == 3
    assert [len(p.iterations) for p in (by_default, one, five)] == [4, 2, 6]
    for person in (by_default, one):
        for step, same in zip(person.iterations, five.iterations, strict=False):
            torch.testing.assert_close(rotations(step), rotations(same), atol=2e-5, rtol=0)
            np.testing.assert_allclose(step["betas"], same["betas"], atol=1e-6)
            np.testing.assert_allclose(step["pred_cam"], same["pred_cam"], atol=1e-6)
    assert np.abs(by_default.vertices - five.vertices).max() > 1e-3


def test_a_person_is_the_last_of_its_steps(predictor: Predictor) -> None:
    for n_iter in (1, np.int64(2), MAX_ITERATIONS):
        (person,) = predictor.predict(picture(40, 50), None, n_iter)
        for name, value in person.iterations[-1].items():
            assert np.array_equal(getattr(person, name), value), name
        start, first = person.iterations[:2]
        np.testing.assert_allclose(start["pred_cam"], [0.9, 0, 0], atol=1e-7)
        assert not start["betas"].any()
        assert np.abs(first["betas"]).max() > 1e-3


@pytest.mark.parametrize("n_iter", [0, -1, 17, 2.0, "3"])
def test_an_impossible_number_of_steps_is_refused(predictor: Predictor, n_iter: Any) -> None:
    with pytest.raises(DataError, match=rf"n_iter={n_iter}: must be a whole number from 1 to 16"):
        predictor.predict(picture(40, 40), None, n_iter)
    with pytest.raises(DataError, match=rf"n_iter={n_iter}: must be a whole number from 1 to 16"):
        predictor.predict_crops(np.zeros((1, SIZE, SIZE, 3), np.uint8), n_iter)


# Crops


def test_arrays_and_tensors_of_crops_give_the_same(predictor: Predictor) -> None:
    crops = np.stack([picture(SIZE, SIZE, seed) for seed in range(3)])
    array = predictor.predict_crops(crops).final
    tensor = predictor.predict_crops(torch.from_numpy(crops).permute(0, 3, 1, 2)).final
    columnwise = predictor.predict_crops(np.asfortranarray(crops)).final
    for other in (tensor, columnwise):
        torch.testing.assert_close(other.betas, array.betas, atol=1e-6, rtol=0)
        torch.testing.assert_close(other.rotmats, array.rotmats, atol=1e-5, rtol=0)
    assert (array.betas[0] - array.betas[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("crops", "value"),
    [
        (np.zeros((2, 64, 64, 3), np.uint8), r"uint8 \(2, 64, 64, 3\)"),
        (np.zeros((2, SIZE, SIZE, 3), np.float32), r"float32 \(2, 32, 32, 3\)"),
        (np.zeros((2, 3, SIZE, SIZE), np.uint8), r"uint8 \(2, 3, 32, 32\)"),
        (np.zeros((SIZE, SIZE, 3), np.uint8), r"uint8 \(32, 32, 3\)"),
    ],
    ids=["size", "float", "channels first", "no batch"],
)
def test_wrong_crops_are_refused(predictor: Predictor, crops: np.ndarray, value: str) -> None:
    with pytest.raises(
        DataError, match=rf"{value}; this model takes uint8 \(B, 32, 32, 3\): crop with hmr\.crops"
    ):
        predictor.predict_crops(crops)


# Precision


def test_a_bfloat16_model_answers_in_float32_and_nearly_the_same(
    predictor: Predictor, small_body: Body
) -> None:
    half = Predictor(new_model().bfloat16(), small_body)
    image = picture(60, 50)
    (exact,), (rounded,) = predictor.predict(image, None, 1), half.predict(image, None, 1)
    for name in ("vertices", "joints_3d", "joints_2d", "cam_t", "betas", "global_orient"):
        assert getattr(rounded, name).dtype == np.float32, name
    assert not np.array_equal(rounded.betas, exact.betas)
    np.testing.assert_allclose(rounded.betas, exact.betas, atol=0.01)
    np.testing.assert_allclose(rounded.pred_cam, exact.pred_cam, atol=0.01)
    torch.testing.assert_close(rotations(rounded), rotations(exact), atol=0.01, rtol=0)
    for step in half.predict_crops(picture(SIZE, SIZE)[None]).iterations:
        # Rotations are made in float32, else they would be rotations to two digits only.
        identity = step.rotmats @ step.rotmats.mT
        torch.testing.assert_close(identity, torch.eye(3).expand_as(identity), atol=1e-5, rtol=0)


# What is refused

BAD_IMAGES = {
    "float": (np.zeros((40, 50, 3), np.float32), r"float32 \(40, 50, 3\)"),
    "gray": (np.zeros((40, 50), np.uint8), r"uint8 \(40, 50\)"),
    "transparent": (np.zeros((40, 50, 4), np.uint8), r"uint8 \(40, 50, 4\)"),
    "channels first": (np.zeros((3, 40, 50), np.uint8), r"uint8 \(3, 40, 50\)"),
    "empty": (np.zeros((0, 50, 3), np.uint8), r"uint8 \(0, 50, 3\)"),
    "path": ("photo.jpg", "str"),
    "nothing": (None, "NoneType"),
}
BAD_BOXES: dict[str, tuple[Any, str]] = {
    "no numbers": ([["a", 0, 9, 9]], r"boxes=\[\['a', 0, 9, 9\]\]: give rows of 4 numbers"),
    "ragged": ([[0, 0, 9, 9], [1, 2]], "give rows of 4 numbers, x1, y1, x2, y2"),
    "one box without brackets": ([0, 0, 9, 9], r"the shape \(4,\); give \(N, 4\) as x1, y1"),
    "five numbers": ([[0, 0, 9, 9, 1]], r"the shape \(1, 5\); give \(N, 4\) as x1, y1"),
    "nan": ([[0, 0, np.nan, 9]], r"box 0 \[0\.0, 0\.0, nan, 9\.0\]: every coordinate must be"),
    "infinite": ([[0, 0, np.inf, 9]], "every coordinate must be finite"),
    "minus infinite": ([[0, -np.inf, 9, 9]], "every coordinate must be finite"),
    "width and height": ([[30, 30, 10, 10]], "give corners, not width and height"),
    "upside down": ([[0, 20, 10, 10]], "x2 must be above x1 and y2 above y1"),
    "no area": ([[5, 5, 5, 9]], "x2 must be above x1 and y2 above y1"),
    "thin": ([[5, 5, 5.9, 9]], "it must overlap the 50 x 40 image by 1 pixel or more"),
    "right of it": ([[50, 0, 60, 9]], "it must overlap the 50 x 40 image by 1 pixel or more"),
    "below it": ([[0, 39.5, 9, 60]], "it must overlap the 50 x 40 image by 1 pixel or more"),
    "left of it": ([[-9, 0, 0.5, 9]], "it must overlap the 50 x 40 image by 1 pixel or more"),
    "huge": ([[-3000, 0, 2100, 9]], "no side may be above 100 times the 50 x 40 image's"),
    "second": ([[0, 0, 9, 9], [7, 7, 3, 9]], r"box 1 \[7\.0, 7\.0, 3\.0, 9\.0\]: x2 must"),
}


@pytest.mark.parametrize(("image", "value"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_what_is_no_rgb_picture_is_refused(predictor: Predictor, image: Any, value: str) -> None:
    with pytest.raises(
        DataError,
        match=rf"image is (a )?{value}; it must be uint8 \(H, W, 3\), RGB: read it with hmr\.crops",
    ):
        predictor.predict(image)


@pytest.mark.parametrize(("boxes", "message"), BAD_BOXES.values(), ids=BAD_BOXES)
def test_bad_boxes_are_named(predictor: Predictor, boxes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        predictor.predict(picture(50, 40), boxes)


@pytest.mark.parametrize(
    "box",
    [[49, 39, 60, 60], [-9, -9, 1, 1], [10, 10, 11, 11], [-2000, 0, 3000, 9], [-90, -90, 90, 90]],
)
def test_boxes_at_the_limits_are_taken(predictor: Predictor, box: list[float]) -> None:
    (person,) = predictor.predict(picture(50, 40), [box])
    assert all(np.isfinite(getattr(person, name)).all() for name in ("vertices", "joints_2d"))
    assert person.box_xyxy.tolist() == box


@pytest.mark.parametrize("focal", [0.0, -5.0, float("nan"), float("inf")])
def test_an_impossible_focal_length_is_refused(predictor: Predictor, focal: float) -> None:
    with pytest.raises(DataError, match=rf"focal={focal}: must be a finite number of pixels above"):
        predictor.predict(picture(50, 40), focal=focal)


def test_lists_of_different_lengths_are_refused(predictor: Predictor) -> None:
    images = [picture(40, 40)] * 2
    with pytest.raises(DataError, match="2 images, 1 sets of boxes and 2 focal lengths: give one"):
        predictor.predict_many(images, [None])
    with pytest.raises(DataError, match="2 images, 2 sets of boxes and 3 focal lengths: give one"):
        predictor.predict_many(images, focals=[None] * 3)


def test_nothing_asked_is_nothing_answered(predictor: Predictor) -> None:
    assert predictor.predict_many([]) == []
    assert predictor.predict(picture(40, 40), []) == []
    assert predictor.predict(picture(40, 40), np.zeros((0, 4))) == []


def test_a_bad_image_leaves_its_neighbours_alone(predictor: Predictor) -> None:
    good = [picture(60, 50, 1), picture(50, 60, 2)]
    boxes = [[5, 5, 40, 45], [20, 0, 60, 50]]
    bad = [(image, None, None) for image, _ in BAD_IMAGES.values()]
    bad += [(picture(50, 40), of_image, None) for of_image, _ in BAD_BOXES.values()]
    bad += [(picture(50, 40), None, -1.0)]
    requests = [(good[0], boxes, None), *bad, (good[1], None, 70.0)]
    images, all_boxes, focals = zip(*requests, strict=True)
    first, *errors, last = predictor.predict_many(images, all_boxes, None, focals)
    assert len(errors) == len(bad)
    for (image, of_image, focal), error in zip(bad, errors, strict=True):
        assert isinstance(error, DataError)
        with pytest.raises(DataError) as alone:
            predictor.predict(image, of_image, focal=focal)
        assert str(alone.value) == str(error)
    for answer, expected in (
        (first, predictor.predict(good[0], boxes)),
        (last, predictor.predict(good[1], focal=70.0)),
    ):
        for person, same in zip(people(answer), expected, strict=True):
            assert_same(person, same)


def test_numbers_that_are_not_finite_are_an_error_of_their_image_alone(small_body: Body) -> None:
    model = new_model()

    def spoil_white(_: nn.Module, inputs: tuple[Tensor], features: Tensor) -> Tensor:
        white = inputs[0].flatten(1).min(1).values > 2  # pixels as the model normalises them
        return torch.where(white[:, None], torch.nan, features)

    model.encoder.register_forward_hook(spoil_white)
    predictor = Predictor(model, small_body)
    half_white = picture(80, 40)
    half_white[:, 40:] = 255
    left, right = [8, 8, 32, 32], [48, 8, 72, 32]
    images = [picture(40, 40, 1), half_white, picture(40, 40, 2)]
    before, spoiled, after = predictor.predict_many(images, [None, [left, right, left], None])
    assert isinstance(spoiled, HmrError)
    assert str(spoiled).startswith(
        "box [48.0, 8.0, 72.0, 32.0]: the model's numbers are not finite"
    )
    assert "try another picture" in str(spoiled)
    for answer, image in ((before, images[0]), (after, images[2])):
        assert_same(people(answer)[0], predictor.predict(image)[0])
    assert len(predictor.predict(half_white, [left])) == 1
    with pytest.raises(HmrError, match="not finite"):
        predictor.predict(half_white, [left, right])


def test_views_of_pictures_are_as_good_as_copies(predictor: Predictor) -> None:
    """Such as a BGR picture read backwards, which has a negative stride."""
    image = picture(60, 50)
    image.flags.writeable = False
    for view in (image[..., ::-1], image[::-1], image[5:45, 10:50], image.transpose(1, 0, 2)):
        (one,), (other,) = predictor.predict(view), predictor.predict(np.ascontiguousarray(view))
        assert_same(one, other)
