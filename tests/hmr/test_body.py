"""The body layer against smplx, against skinning written out in float64, and its own laws."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable

import numpy as np
import pytest
import smplx
import torch
from torch import Tensor

from hmr.body import Body, _pose_features, _skin
from hmr.body_arrays import BodyArrays, landmarks_numpy, lbs_numpy
from hmr.config import BodyConfig
from hmr.errors import ConfigError
from hmr.rotations import axis_angle_to_matrix
from hmr.skeleton import JOINT49_NAMES, JOINT49_SOURCE, SMPL_PARENTS, joint49_index, smpl_index


@pytest.fixture(scope="module", params=["embedded", "random"])
def arrays(request: pytest.FixtureRequest) -> BodyArrays:
    name = "embedded_arrays" if request.param == "embedded" else "small_arrays"
    return request.getfixturevalue(name)


@pytest.fixture(scope="module")
def native(arrays: BodyArrays) -> Body:
    return Body(arrays)


@pytest.fixture(scope="module")
def reference(arrays: BodyArrays) -> Body:
    return Body(arrays, backend="smplx")


def random_people(count: int, seed: int = 0, spread: float = 0.6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    turns = spread * torch.randn(count, 24, 3, generator=generator, dtype=torch.float64)
    betas = 1.5 * torch.randn(count, 10, generator=generator)
    return axis_angle_to_matrix(turns).float(), betas


def skinned_by_hand(
    arrays: BodyArrays, rotmats: np.ndarray, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """One person: SMPL's formula with homogeneous 4x4 matrices, bone after bone, in float64."""
    shaped = arrays.v_template + np.einsum("vck,k->vc", arrays.shapedirs, betas)
    rest = arrays.J_regressor @ shaped
    offsets = arrays.posedirs.astype(np.float64) @ (rotmats[1:] - np.eye(3)).reshape(207)
    world: list[np.ndarray] = []
    for joint, parent in enumerate(SMPL_PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotmats[joint]
        local[:3, 3] = rest[joint] - (rest[parent] if parent >= 0 else 0)
        world.append(local if parent < 0 else world[parent] @ local)
    from_rest = []
    for joint, matrix in enumerate(world):
        to_joint = np.eye(4)
        to_joint[:3, 3] = -rest[joint]
        from_rest.append(matrix @ to_joint)
    blended = np.einsum("vj,jrc->vrc", arrays.lbs_weights, np.stack(from_rest))
    points = np.concatenate([shaped + offsets, np.ones((len(shaped), 1))], axis=1)
    vertices = np.einsum("vrc,vc->vr", blended, points)[:, :3]
    return vertices, np.stack([matrix[:3, 3] for matrix in world])


# Agreement


def test_values_equal_smplx_and_float64(arrays: BodyArrays, native: Body, reference: Body) -> None:
    rotmats, betas = random_people(4)
    ours, theirs = native(rotmats, betas), reference(rotmats, betas)
    numpy_vertices, numpy_joints = lbs_numpy(arrays, rotmats.numpy(), betas.numpy())
    for row in range(4):
        vertices, joints = skinned_by_hand(
            arrays, rotmats[row].double().numpy(), betas[row].double().numpy()
        )
        for output in (ours, theirs):
            np.testing.assert_allclose(output.vertices[row], vertices, atol=1e-5)
            np.testing.assert_allclose(output.joints[row], joints, atol=1e-5)
        assert numpy_vertices is not None
        np.testing.assert_allclose(numpy_vertices[row], vertices, atol=1e-5)
        np.testing.assert_allclose(numpy_joints[row], joints, atol=1e-5)


def gradients(body: Body, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
    """Of a random weighting of all vertices and joints."""
    rotmats, betas = rotmats.clone().requires_grad_(), betas.clone().requires_grad_()
    output = body(rotmats, betas)
    generator = torch.Generator().manual_seed(3)
    loss = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part)).sum()
        for part in (output.vertices, output.joints)
    )
    return torch.autograd.grad(loss, (rotmats, betas))


def test_gradients_equal_smplx_and_float64(
    arrays: BodyArrays, native: Body, reference: Body
) -> None:
    rotmats, betas = random_people(3, seed=1)
    exact = gradients(Body(arrays).double(), rotmats.double(), betas.double())
    ours, theirs = (gradients(body, rotmats, betas) for body in (native, reference))
    for true, one, other in zip(exact, ours, theirs, strict=True):
        scale = float(true.norm())
        assert float((one.double() - true).norm()) < 1e-4 * scale
        assert float((one - other).norm()) < 1e-4 * scale


def test_gradients_are_the_derivatives(small_arrays: BodyArrays) -> None:
    body = Body(small_arrays).double()
    rotmats, betas = (x.double().requires_grad_() for x in random_people(1, seed=2))
    assert torch.autograd.gradcheck(body.landmarks, (rotmats, betas), fast_mode=True)
    assert torch.autograd.gradcheck(body.joints_only, (rotmats, betas), fast_mode=True)


def test_stock_smplx_reads_the_landmarks_of_the_embedded_body(embedded_arrays: BodyArrays) -> None:
    structure = smplx.utils.Struct(
        v_template=embedded_arrays.v_template, shapedirs=embedded_arrays.shapedirs,
        posedirs=embedded_arrays.posedirs, J_regressor=embedded_arrays.J_regressor,
        weights=embedded_arrays.lbs_weights, f=embedded_arrays.faces,
        kintree_table=np.stack([embedded_arrays.parents, np.arange(24)]),
    )  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        layer = smplx.SMPLLayer(model_path="", data_struct=structure)
    rotmats, betas = random_people(2, seed=4)
    theirs = layer(betas=betas, global_orient=rotmats[:, :1], body_pose=rotmats[:, 1:]).joints
    assert theirs.shape == (2, 45, 3)
    ours = Body(embedded_arrays).landmarks(rotmats, betas)
    for row, source in enumerate(JOINT49_SOURCE):
        if source < 45:  # the rest belongs to the regressor of extra joints
            torch.testing.assert_close(ours[:, row], theirs[:, source], atol=1e-5, rtol=0)


# The cheap paths


@pytest.mark.parametrize("backend", ["native", "smplx"])
def test_cheap_paths_equal_the_full_forward(
    arrays: BodyArrays, native: Body, reference: Body, backend: str
) -> None:
    body = native if backend == "native" else reference
    rotmats, betas = random_people(5, seed=5)
    full = body(rotmats, betas)
    torch.testing.assert_close(body.joints_only(rotmats, betas), full.joints, atol=1e-6, rtol=0)
    landmarks = body.landmarks(rotmats, betas)
    torch.testing.assert_close(landmarks, body.landmarks_from(full), atol=2e-6, rtol=0)
    by_hand = np.concatenate(
        [
            full.joints,
            full.vertices[:, arrays.landmark_vertices],
            np.einsum("jv,bvc->bjc", arrays.J_regressor_extra, full.vertices.double()),
        ],
        axis=1,
    )[:, list(JOINT49_SOURCE)]
    np.testing.assert_allclose(landmarks, by_hand, atol=5e-6)
    in_numpy = landmarks_numpy(arrays, full.vertices.numpy(), full.joints.numpy())
    np.testing.assert_allclose(in_numpy, by_hand, atol=2e-6)
    without_surface = lbs_numpy(arrays, rotmats.numpy(), betas.numpy(), vertices=False)
    assert without_surface[0] is None
    np.testing.assert_allclose(without_surface[1], full.joints, atol=5e-6)


def test_cheap_paths_have_the_same_gradient(native: Body) -> None:
    rotmats, betas = (x.requires_grad_() for x in random_people(3, seed=6))
    weights = torch.randn(3, 49, 3, generator=torch.Generator().manual_seed(7))
    cheap = torch.autograd.grad((native.landmarks(rotmats, betas) * weights).sum(),
                                (rotmats, betas))  # fmt: skip
    full = torch.autograd.grad((native.landmarks_from(native(rotmats, betas)) * weights).sum(),
                               (rotmats, betas))  # fmt: skip
    for one, other in zip(cheap, full, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_landmarks_carry_the_joints_of_their_names(native: Body) -> None:
    rotmats, betas = random_people(2, seed=8)
    joints, landmarks = native.joints_only(rotmats, betas), native.landmarks(rotmats, betas)
    pairs = {"op_mid_hip": "pelvis", "op_neck": "neck"} | {
        name: name.partition("_")[2]
        for name in JOINT49_NAMES
        if name.rpartition("_")[2] in ("knee", "ankle", "shoulder", "elbow", "wrist")
    }
    assert len(pairs) == 2 + 2 * 10
    for landmark, joint in pairs.items():
        torch.testing.assert_close(
            landmarks[:, joint49_index(landmark)], joints[:, smpl_index(joint)], atol=1e-6, rtol=0
        )


# Laws


def test_zero_pose_gives_the_shaped_template(arrays: BodyArrays, native: Body) -> None:
    rotmats, betas = torch.eye(3).expand(3, 24, 3, 3), random_people(3)[1]
    output = native(rotmats, betas)
    shaped = arrays.v_template + np.einsum("vck,bk->bvc", arrays.shapedirs, betas.double())
    np.testing.assert_allclose(output.vertices, shaped, atol=1e-6)
    np.testing.assert_allclose(output.joints, arrays.J_regressor @ shaped, atol=1e-6)


def test_turning_the_root_turns_the_body_about_its_pelvis(native: Body) -> None:
    rotmats, betas = random_people(4, seed=9)
    turn = axis_angle_to_matrix(torch.tensor([0.4, -2.0, 1.1]))
    turned_rotmats = torch.cat([turn @ rotmats[:, :1], rotmats[:, 1:]], dim=1)
    before, after = native(rotmats, betas), native(turned_rotmats, betas)
    pelvis = before.joints[:, :1]
    for old, new in ((before.vertices, after.vertices), (before.joints, after.joints)):
        torch.testing.assert_close(new, (old - pelvis) @ turn.T + pelvis, atol=3e-6, rtol=0)
    assert float((after.vertices - before.vertices).norm(dim=-1).max()) > 0.5


def test_a_bone_keeps_its_length_in_every_pose(native: Body) -> None:
    betas = random_people(6)[1][:1].expand(6, -1)
    joints = native.joints_only(random_people(6, seed=10, spread=1.0)[0], betas)
    bones = (joints[:, 1:] - joints[:, list(SMPL_PARENTS[1:])]).norm(dim=-1)
    torch.testing.assert_close(bones, bones[:1].expand_as(bones), atol=2e-6, rtol=0)


def test_turning_a_joint_moves_only_what_hangs_on_it(native: Body) -> None:
    rotmats, betas = random_people(1, seed=11)
    changed = rotmats.clone()
    elbow = smpl_index("left_elbow")
    changed[:, elbow] = changed[:, elbow] @ axis_angle_to_matrix(torch.tensor([0.0, 0.9, 0.3]))
    motion = (native.joints_only(changed, betas) - native.joints_only(rotmats, betas)).norm(dim=-1)
    below = [smpl_index("left_wrist"), smpl_index("left_hand")]
    assert float(motion[0, below].min()) > 1e-3
    assert float(motion.index_fill(1, torch.tensor(below), 0).max()) < 1e-7


@pytest.mark.parametrize("count", [1, 31, 32, 63, 64, 65, 130])
def test_chunks_of_people_leave_no_trace(small_body: Body, count: int) -> None:
    """A CPU skins 64 people at a time, numpy 32."""
    rotmats, betas = random_people(count, seed=12)
    together = small_body(rotmats, betas)
    assert together.vertices.shape == (count, 300, 3)
    for row in {0, count // 2, count - 1, min(63, count - 1), min(64, count - 1)}:
        alone = small_body(rotmats[row : row + 1], betas[row : row + 1])
        torch.testing.assert_close(together.vertices[row], alone.vertices[0], atol=2e-6, rtol=0)
        torch.testing.assert_close(together.joints[row], alone.joints[0], atol=2e-6, rtol=0)
    vertices, _ = lbs_numpy(small_body.arrays, rotmats.numpy(), betas.numpy())
    np.testing.assert_allclose(vertices, together.vertices, atol=5e-6)


def test_blocks_of_vertices_are_the_surface_in_one_piece(embedded_arrays: BodyArrays) -> None:
    """Each block leaves out the joints and features that do not move it; nothing else."""
    body = Body(embedded_arrays)
    rotmats, betas = (t.requires_grad_() for t in random_people(3, seed=13))
    blocked = body(rotmats, betas).vertices
    surface = body._surface
    transforms, _ = body._transforms(rotmats, betas)
    coefficients = torch.cat([betas, _pose_features(rotmats)], dim=1)
    whole = _skin(
        transforms.permute(0, 3, 2, 1), coefficients, surface.template, surface.basis,
        surface.weights,
    ).transpose(1, 2)  # fmt: skip
    torch.testing.assert_close(blocked, whole, atol=2e-6, rtol=0)
    towards = torch.randn(blocked.shape, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(
        torch.autograd.grad((blocked * towards).sum(), (rotmats, betas), retain_graph=True),
        torch.autograd.grad((whole * towards).sum(), (rotmats, betas)), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    blocks = surface._blocks
    assert sum(block.weights.shape[1] for block in blocks) == 6890
    assert sum(len(block.joints) for block in blocks) < 0.9 * 24 * len(blocks), "some are left out"


def test_a_body_of_another_precision_computes_in_it(small_arrays: BodyArrays) -> None:
    body = Body(small_arrays)
    rotmats, betas = random_people(2)
    single = body(rotmats, betas).vertices
    double = body.double()(rotmats, betas).vertices
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, atol=2e-6, rtol=0)


def test_a_body_without_pose_directions_pays_nothing_for_them(small_arrays: BodyArrays) -> None:
    from dataclasses import replace

    plain = replace(small_arrays, posedirs=np.zeros_like(small_arrays.posedirs))
    body, dense = Body(plain), Body(small_arrays)
    assert len(body._surface.basis) == 10
    assert len(dense._surface.basis) == 217
    rotmats, betas = random_people(2)
    vertices, _ = skinned_by_hand(plain, rotmats[1].double().numpy(), betas[1].double().numpy())
    np.testing.assert_allclose(body(rotmats, betas).vertices[1], vertices, atol=1e-5)
    in_numpy, _ = lbs_numpy(plain, rotmats.numpy(), betas.numpy())
    np.testing.assert_allclose(body(rotmats, betas).vertices, in_numpy, atol=1e-5)


# Precision


@pytest.mark.parametrize("path", ["forward", "joints_only", "landmarks"])
@pytest.mark.parametrize("backend", ["native", "smplx"])
def test_autocast_changes_nothing(small_arrays: BodyArrays, backend: str, path: str) -> None:
    body = Body(small_arrays, backend=backend)
    rotmats, betas = random_people(2)

    def run() -> tuple[Tensor, ...]:
        output = getattr(body, path)(rotmats, betas)
        return (output,) if path != "forward" else (output.vertices, body.landmarks_from(output))

    exact = run()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = run()
    for one, other in zip(exact, under_autocast, strict=True):
        assert other.dtype == torch.float32
        assert torch.equal(one, other)


def test_half_precision_input_is_computed_in_float32(small_body: Body) -> None:
    rotmats, betas = (x.bfloat16() for x in random_people(2))
    rounded = small_body(rotmats, betas)
    exact = small_body(rotmats.float(), betas.float())
    assert torch.equal(rounded.vertices, exact.vertices)
    assert torch.equal(small_body.landmarks(rotmats, betas), small_body.landmarks_from(exact)) or (
        (small_body.landmarks(rotmats, betas) - small_body.landmarks_from(exact)).abs().max() < 1e-5
    )


# The module


@pytest.mark.parametrize("backend", ["native", "smplx"])
def test_a_body_has_nothing_to_learn_and_nothing_to_save(
    small_arrays: BodyArrays, backend: str
) -> None:
    body = Body(small_arrays, backend=backend)
    assert list(body.parameters()) == []
    assert body.state_dict() == {}
    assert torch.equal(body.faces, torch.from_numpy(small_arrays.faces))
    assert body.num_vertices == len(small_arrays.v_template)


def test_the_embedded_body_is_the_default_of_a_configuration(embedded_arrays: BodyArrays) -> None:
    body = Body.from_config(BodyConfig())
    assert body.backend == "native"
    assert body.arrays.content_hash() == embedded_arrays.content_hash()
    assert body.num_vertices == 6890


Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@pytest.mark.parametrize(
    "change",
    [
        lambda r, b: (r, b[:1]),
        lambda r, b: (r[:, :23], b),
        lambda r, b: (r, b[:, :9]),
        lambda r, b: (r.flatten(2), b),
        lambda r, b: (r[0], b),
        lambda r, b: (r, b[0]),
    ],
    ids=["other batch", "23 joints", "9 betas", "flat", "no batch", "betas without batch"],
)
@pytest.mark.parametrize("path", ["forward", "joints_only", "landmarks"])
def test_wrong_shapes_are_named(small_body: Body, change: Change, path: str) -> None:
    rotmats, betas = change(*random_people(2))
    with pytest.raises(
        ValueError, match=r"must have the shapes \(B, 24, 3, 3\) and \(B, 10\)"
    ) as e:
        getattr(small_body, path)(rotmats, betas)
    assert str(tuple(rotmats.shape)) in str(e.value)
    assert str(tuple(betas.shape)) in str(e.value)


def test_an_unknown_backend_is_refused(small_arrays: BodyArrays) -> None:
    with pytest.raises(ConfigError, match=r"body\.backend is 'fast'; choose 'native' or 'smplx'"):
        Body(small_arrays, backend="fast")


def test_without_smplx_its_backend_says_how_to_get_it(
    small_arrays: BodyArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "smplx", None)
    with pytest.raises(ConfigError, match=r"not installed\. Choose 'native', or run `pip install"):
        Body(small_arrays, backend="smplx")
    Body(small_arrays)  # needs no smplx
