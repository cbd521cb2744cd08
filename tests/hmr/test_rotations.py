"""Rotations: group laws, totality at the identity and at half turns, and scipy as reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from hmr.rotations import (
    IDENTITY_6D,
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_to_rot6d,
    nearest_rotation,
    rot6d_to_matrix,
    rotation_angle,
)

DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}
# Angles where formulas break: nothing, almost nothing, both sides of every switch, half turns.
ANGLES = [0.0, 1e-12, 1e-7, 9e-5, 1.1e-4, 9.9e-3, 1.01e-2, 0.5, 2.0, 3.0,
          math.pi - 1e-3, math.pi - 1e-7, math.pi]  # fmt: skip


def random_axes(count: int) -> np.ndarray:
    """Unit axes, the coordinate axes and their negatives among them."""
    axes = np.random.default_rng(count).normal(size=(count, 3))
    axes = np.concatenate([axes, np.eye(3), -np.eye(3), [[1, 1, 0]]])
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)


def hard_axis_angles(dtype: torch.dtype) -> Tensor:
    """Random axes with every angle of ANGLES, (N, 3)."""
    vectors = np.concatenate([angle * random_axes(40) for angle in ANGLES])
    return torch.tensor(vectors, dtype=dtype)


def random_rotations(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    matrices = Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix()
    return torch.tensor(matrices, dtype=dtype)


def assert_rotations(matrices: Tensor, tolerance: float) -> None:
    identity = torch.eye(3, dtype=matrices.dtype).expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.mT, identity, atol=tolerance, rtol=0)
    determinants = torch.linalg.det(matrices)
    torch.testing.assert_close(
        determinants, torch.ones_like(determinants), atol=2 * tolerance, rtol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_axis_angle_to_matrix_agrees_with_scipy(dtype: torch.dtype) -> None:
    vectors = hard_axis_angles(dtype)
    ours = axis_angle_to_matrix(vectors)
    reference = Rotation.from_rotvec(vectors.double().numpy()).as_matrix()
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.numpy(), reference, atol=TOLERANCE[dtype], rtol=0)
    assert_rotations(ours, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrix_to_axis_angle_agrees_with_scipy(dtype: torch.dtype) -> None:
    matrices = axis_angle_to_matrix(hard_axis_angles(dtype))
    ours = matrix_to_axis_angle(matrices)
    angles = torch.linalg.vector_norm(ours, dim=-1)
    assert ours.dtype == dtype
    assert bool((angles <= math.pi + TOLERANCE[dtype]).all())
    reference = Rotation.from_matrix(matrices.double().numpy())
    difference = reference * Rotation.from_rotvec(ours.double().numpy()).inv()
    np.testing.assert_allclose(difference.magnitude(), 0, atol=4 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", [a for a in ANGLES if a < math.pi - 1e-6])
def test_axis_angles_survive_the_round_trip(dtype: torch.dtype, angle: float) -> None:
    vectors = torch.tensor(angle * random_axes(20), dtype=dtype)
    back = matrix_to_axis_angle(axis_angle_to_matrix(vectors))
    torch.testing.assert_close(back, vectors, atol=8 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tiny_rotation_keeps_its_relative_precision(dtype: torch.dtype) -> None:
    vectors = torch.tensor(1e-7 * random_axes(20), dtype=dtype)
    back = matrix_to_axis_angle(axis_angle_to_matrix(vectors))
    torch.testing.assert_close(back, vectors, rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
def test_half_turns_give_the_axis_up_to_its_sign(dtype: torch.dtype) -> None:
    axes = torch.tensor(random_axes(40), dtype=dtype)
    matrices = 2 * axes[:, :, None] * axes[:, None] - torch.eye(3, dtype=dtype)
    found = matrix_to_axis_angle(matrices)
    cosines = (found / math.pi * axes).sum(-1).abs()
    torch.testing.assert_close(cosines, torch.ones_like(cosines), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("angle", ANGLES)
def test_gradients_are_finite_at_every_angle(dtype: torch.dtype, angle: float) -> None:
    vectors = torch.tensor(angle * random_axes(20), dtype=dtype, requires_grad=True)
    matrices = axis_angle_to_matrix(vectors)
    back = matrix_to_axis_angle(matrices)
    geodesic = rotation_angle(matrices, torch.eye(3, dtype=dtype))
    torch.manual_seed(0)
    mixed = (back * torch.randn_like(back)).sum() + geodesic.sum()
    mixed = mixed + (matrices * torch.randn_like(matrices)).sum()
    (gradient,) = torch.autograd.grad(mixed, vectors)
    assert bool(torch.isfinite(gradient).all())
    assert float(gradient.abs().max()) < 100


@pytest.mark.parametrize("angle", [0.0, 1e-7, 9.9e-3, 1.01e-2, 1.0, 3.0])
def test_gradients_are_those_of_finite_differences(angle: float) -> None:
    vectors = torch.tensor(angle * random_axes(1), requires_grad=True)
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (vectors,), atol=1e-6)
    sixes = matrix_to_rot6d(axis_angle_to_matrix(vectors)).detach().requires_grad_()
    assert torch.autograd.gradcheck(rot6d_to_matrix, (sixes,), atol=1e-6)

    def there_and_back(v: Tensor) -> Tensor:
        return matrix_to_axis_angle(axis_angle_to_matrix(v))

    assert torch.autograd.gradcheck(there_and_back, (vectors,), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotations_about_one_axis_form_a_group(dtype: torch.dtype) -> None:
    axes = torch.tensor(random_axes(30), dtype=dtype)
    first, second = 0.7, -2.9
    product = axis_angle_to_matrix(first * axes) @ axis_angle_to_matrix(second * axes)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        product, axis_angle_to_matrix((first + second) * axes), atol=tolerance, rtol=0
    )
    inverse = axis_angle_to_matrix(-first * axes)
    torch.testing.assert_close(
        inverse, axis_angle_to_matrix(first * axes).mT, atol=tolerance, rtol=0
    )
    rotated = axis_angle_to_matrix(first * axes) @ axes[..., None]
    torch.testing.assert_close(rotated[..., 0], axes, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_identity_composition_adds_the_vectors(dtype: torch.dtype) -> None:
    first, second = (torch.tensor(1e-7 * random_axes(n)[:20], dtype=dtype) for n in (20, 21))
    product = axis_angle_to_matrix(first) @ axis_angle_to_matrix(second)
    torch.testing.assert_close(matrix_to_axis_angle(product), first + second, rtol=1e-5, atol=1e-13)


def test_rotation_angle_is_a_metric_and_agrees_with_scipy() -> None:
    a, b, c = (random_rotations(50, seed=seed) for seed in range(3))
    reference = (
        Rotation.from_matrix(a.numpy()).inv() * Rotation.from_matrix(b.numpy())
    ).magnitude()
    np.testing.assert_allclose(rotation_angle(a, b).numpy(), reference, atol=1e-12)
    torch.testing.assert_close(rotation_angle(a, b), rotation_angle(b, a))
    assert bool((rotation_angle(a, c) <= rotation_angle(a, b) + rotation_angle(b, c) + 1e-12).all())
    torch.testing.assert_close(rotation_angle(c @ a, c @ b), rotation_angle(a, b))
    assert float(rotation_angle(a, a).max()) < 1e-14


def test_quaternions_agree_with_scipy_whichever_component_is_largest() -> None:
    matrices = torch.cat([random_rotations(200), axis_angle_to_matrix(hard_axis_angles(DTYPES[1]))])
    ours = matrix_to_quaternion(matrices).numpy()
    reference = Rotation.from_matrix(matrices.numpy()).as_quat(scalar_first=True)
    assert set(np.abs(ours).argmax(1)) == {0, 1, 2, 3}
    assert (ours[:, 0] >= 0).all()
    np.testing.assert_allclose(np.abs((ours * reference).sum(1)), 1, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
def test_6d_round_trip_is_exact_for_rotations(dtype: torch.dtype) -> None:
    matrices = random_rotations(100, dtype)
    back = rot6d_to_matrix(matrix_to_rot6d(matrices))
    torch.testing.assert_close(back, matrices, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_six_numbers_become_a_rotation(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    six = 3 * torch.randn(500, 6, generator=generator, dtype=dtype)
    assert_rotations(rot6d_to_matrix(six), 20 * TOLERANCE[dtype])


def test_6d_ignores_length_and_the_part_of_the_second_column_along_the_first() -> None:
    columns = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    changed = torch.stack(
        [5 * columns[..., 0], 0.2 * columns[..., 1] - 3 * columns[..., 0]], dim=-1
    )
    torch.testing.assert_close(
        rot6d_to_matrix(changed.flatten(-2)), rot6d_to_matrix(columns.flatten(-2))
    )


def test_the_layout_is_interleaved() -> None:
    identity = torch.tensor(IDENTITY_6D)
    assert IDENTITY_6D == (1, 0, 0, 1, 0, 0)
    torch.testing.assert_close(rot6d_to_matrix(identity), torch.eye(3))
    # x to y, y to -x: the columns are (0, 1, 0) and (-1, 0, 0), read row by row.
    quarter_turn = axis_angle_to_matrix(torch.tensor([0, 0, math.pi / 2]))
    torch.testing.assert_close(
        matrix_to_rot6d(quarter_turn), torch.tensor([0.0, -1, 1, 0, 0, 0]), atol=1e-6, rtol=0
    )
    numbers = torch.arange(9.0).view(3, 3)
    assert matrix_to_rot6d(numbers).tolist() == [0, 1, 3, 4, 6, 7]


def test_the_two_6d_layouts_cannot_be_exchanged() -> None:
    def as_block(six: Tensor) -> Tensor:
        return six.view(2, 3).T.reshape(6)

    identity = torch.tensor(IDENTITY_6D, dtype=torch.float64)
    block_columns = as_block(identity).view(3, 2)
    # The interleaved identity in a block reader: both columns are the same vector.
    assert torch.equal(block_columns[:, 0], block_columns[:, 1])
    assert float(torch.linalg.det(rot6d_to_matrix(as_block(identity)))) == 0
    # The block identity in our reader: the second column is zero.
    block_identity = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64)
    assert float(torch.linalg.det(rot6d_to_matrix(block_identity))) == 0


def test_degenerate_6d_stays_finite_with_its_gradient() -> None:
    six = torch.tensor(
        [[0.0] * 6, [1.0, 1, 0, 0, 0, 0], [1.0, -2, 2, -4, 3, -6], [0, 1.0, 0, 0, 0, 0]],
        requires_grad=True,
    )
    matrices = rot6d_to_matrix(six)
    matrices.square().sum().backward()
    assert bool(torch.isfinite(matrices).all())
    assert six.grad is not None
    assert bool(torch.isfinite(six.grad).all())


@pytest.mark.parametrize("leading", [(), (7,), (2, 0), (2, 3, 4)])
def test_any_leading_shape_gives_the_same_numbers_as_a_flat_batch(leading: tuple[int, ...]) -> None:
    vectors = torch.randn(*leading, 3, generator=torch.Generator().manual_seed(2))
    flat = vectors.reshape(-1, 3)
    matrices = axis_angle_to_matrix(vectors)
    assert torch.equal(matrices, axis_angle_to_matrix(flat).view(*leading, 3, 3))
    assert torch.equal(
        matrix_to_axis_angle(matrices),
        matrix_to_axis_angle(matrices.reshape(-1, 3, 3)).view(*leading, 3),
    )
    sixes = matrix_to_rot6d(matrices)
    assert torch.equal(
        rot6d_to_matrix(sixes), rot6d_to_matrix(sixes.reshape(-1, 6)).view(*leading, 3, 3)
    )


def test_nearest_rotation_undoes_noise_and_refuses_reflections() -> None:
    matrices = random_rotations(50)
    torch.testing.assert_close(nearest_rotation(3 * matrices), matrices)
    mirrored = matrices * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    assert_rotations(nearest_rotation(mirrored), 1e-13)
    noisy = matrices + 0.3 * torch.randn(
        50, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    nearest = nearest_rotation(noisy)
    for seed in range(5):
        small = torch.tensor(0.1 * random_axes(50 + seed)[:50])
        other = axis_angle_to_matrix(small) @ nearest
        assert bool(((noisy - nearest).norm(dim=(1, 2)) < (noisy - other).norm(dim=(1, 2))).all())


def test_the_mean_of_half_turns_in_opposite_spelling_is_the_half_turn() -> None:
    turns = torch.tensor([[math.pi - 0.1, 0, 0], [-math.pi + 0.1, 0, 0]], dtype=torch.float64)
    mean = nearest_rotation(axis_angle_to_matrix(turns).mean(0))
    torch.testing.assert_close(mean, torch.diag(torch.tensor([1.0, -1, -1], dtype=torch.float64)))
