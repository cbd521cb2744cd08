"""Published checkpoints: SPIN's numbers from SPIN's equations written out, every kind's names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50

from hmr.body import Body
from hmr.body_arrays import BodyArrays
from hmr.checkpoint import load_bundle
from hmr.errors import BundleError, ConfigError
from hmr.predictor import Predictor
from hmr.published import convert_checkpoint

State = dict[str, Tensor]


def randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_resnet(build: Callable[..., nn.Module]) -> nn.Module:
    """A feature extractor whose batch norms have seen something, and whose features stay small."""
    torch.manual_seed(0)
    net = build(weights=None)
    net.fc = nn.Identity()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, std=0.1)
    return net.eval()


def random_start() -> State:
    turns = Rotation.from_rotvec(randn(24, 3, seed=1).numpy()).as_matrix()
    return {
        "init_pose": torch.from_numpy(turns[:, :, :2].reshape(1, 144)).float(),
        "init_shape": randn(1, 10, seed=2),
        "init_cam": torch.tensor([[0.9, 0.0, 0.0]]),
    }


def random_regressor(features: int, hidden: int) -> State:
    """SPIN's names, with heads large enough to move every step visibly."""
    sizes = {
        "fc1": (features + 157, hidden), "fc2": (hidden, hidden), "decpose": (hidden, 144),
        "decshape": (hidden, 10), "deccam": (hidden, 3),
    }  # fmt: skip
    state: State = {}
    for number, (name, (inputs, outputs)) in enumerate(sizes.items()):
        state[f"{name}.weight"] = randn(outputs, inputs, seed=10 + number, scale=inputs**-0.5 / 2)
        state[f"{name}.bias"] = randn(outputs, seed=20 + number, scale=0.1)
    return state | random_start()


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def crops(size: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def normalised(images: Tensor) -> Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (images / 255 - mean[:, None, None]) / std[:, None, None]


# --- SPIN, at its own size ------------------------------------------------------------------------


@dataclass
class Spin:
    """A SPIN checkpoint, the features its ResNet makes of one crop, and the converted bundle."""

    state: State
    images: Tensor
    features: Tensor
    predictor: Predictor


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory, small_body: Body) -> Spin:
    folder = tmp_path_factory.mktemp("spin")
    net = random_resnet(resnet50)
    state = net.state_dict() | random_regressor(2048, 1024)
    path = saved(folder / "spin.pt", {"model": state, "epoch": 3, "dataset_perm": [2, 0, 1]})
    convert_checkpoint("spin", path, folder / "bundle", body=small_body)
    net.avgpool = nn.AvgPool2d(7, stride=1)  # SPIN's fixed window
    images = crops(224)
    with torch.inference_mode():
        features = net(normalised(images))
    return Spin(state, images, features, load_bundle(folder / "bundle", body=small_body))


def spin_loop(state: State, features: Tensor, steps: int) -> tuple[np.ndarray, Tensor, Tensor]:
    """Kolotouros et al. (ICCV 2019), without dropout: rotations (B, 24, 3, 3), betas, camera."""
    pose, shape, cam = (state[f"init_{part}"] for part in ("pose", "shape", "cam"))

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for _ in range(steps):
        x = linear("fc2", linear("fc1", torch.cat([features, pose, shape, cam], 1)))
        pose, shape, cam = (
            pose + linear("decpose", x), shape + linear("decshape", x), cam + linear("deccam", x)
        )  # fmt: skip
    columns = pose.double().numpy().reshape(-1, 24, 3, 2)
    first = columns[..., 0] / np.linalg.norm(columns[..., 0], axis=-1, keepdims=True)
    second = columns[..., 1] - (first * columns[..., 1]).sum(-1, keepdims=True) * first
    second /= np.linalg.norm(second, axis=-1, keepdims=True)
    return np.stack([first, second, np.cross(first, second)], axis=-1), shape, cam


def skinned(arrays: BodyArrays, rotmats: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """Loper et al. (2015), one person at a time: shape, pose correctives, blended transforms."""
    shaped = arrays.v_template + arrays.shapedirs @ betas
    joints = arrays.J_regressor @ shaped
    posed = shaped + arrays.posedirs @ (rotmats[1:] - np.eye(3)).ravel()
    world = np.zeros((24, 4, 4))
    for joint, parent in enumerate(arrays.parents):
        local = np.eye(4)
        local[:3, :3] = rotmats[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if joint else 0)
        world[joint] = world[parent] @ local if joint else local
    world[:, :3, 3] -= np.einsum("jrc,jc->jr", world[:, :3, :3], joints)
    blended = np.einsum("vj,jrc->vrc", arrays.lbs_weights, world[:, :3])
    return np.einsum("vrc,vc->vr", blended[..., :3], posed) + blended[..., 3]


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_spins_weights_give_spins_numbers(spin: Spin, small_arrays: BodyArrays, steps: int) -> None:
    rotmats, betas, cam = spin_loop(spin.state, spin.features, steps)
    prediction = spin.predictor.predict_crops(spin.images, steps)
    ours = prediction.final
    assert prediction.n_iter == steps
    np.testing.assert_allclose(ours.rotmats.numpy(), rotmats, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours.betas.numpy(), betas.numpy(), atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours.pred_cam.numpy(), cam.numpy(), atol=1e-5, rtol=0)
    vertices = spin.predictor.body(ours.rotmats, ours.betas).vertices[0]
    expected = skinned(small_arrays, rotmats[0], betas[0].double().numpy())
    np.testing.assert_allclose(vertices.numpy(), expected, atol=1e-5, rtol=0)


def test_steps_of_the_random_checkpoint_differ(spin: Spin) -> None:
    """Else the comparison above would compare the start with itself."""
    steps = spin.predictor.predict_crops(spin.images, 5).iterations
    for before, after in itertools.pairwise(steps):
        assert (after.rotmats - before.rotmats).abs().max() > 0.02
        assert (after.betas - before.betas).abs().max() > 0.02


def test_spins_architecture_is_recognised(spin: Spin) -> None:
    info = spin.predictor.info
    model = info["config"]["model"]
    assert (model["encoder"], model["hidden"], model["n_iter"]) == ("resnet50", 1024, 3)
    assert (model["dropout"], model["activation"], model["image_size"]) == (0.5, False, 224)
    assert info["provenance"]["converted_from"] == "spin"
    assert info["provenance"]["file"] == "spin.pt"


# --- other layouts, with a smaller ResNet ---------------------------------------------------------


@pytest.fixture(scope="module")
def small_net() -> nn.Module:
    """Read only: all tests share it."""
    return random_resnet(resnet18)


@pytest.fixture(scope="module")
def plain(small_net: nn.Module) -> State:
    """Weights under SPIN's names; copy before a change."""
    return dict(small_net.state_dict() | random_regressor(512, 40))


def convert(
    folder: Path, kind: str, content: Any, body: Body, **options: Any
) -> tuple[State, dict[str, Any]]:
    """The tensors of the bundle, and what the conversion reports."""
    path = saved(folder / f"{kind}.pt", content)
    report = convert_checkpoint(kind, path, folder / kind, body=body, **options)
    return load_file(Path(report["bundle"]) / "model.safetensors"), report


def ours(plain: State) -> State:
    """Where SPIN's names go."""
    regressor = ("fc1", "fc2", "dec", "init")
    return {
        ("regressor." if name.startswith(regressor) else "encoder.net.") + name: value
        for name, value in plain.items()
    }


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_mmhuman3ds_names(tmp_path: Path, plain: State, small_body: Body) -> None:
    state = {
        name.replace("encoder.net.", "backbone.").replace("regressor.", "head."): value
        for name, value in ours(plain).items()
    }
    state |= {"body_model_train.v_template": torch.zeros(5, 3), "disc.fc.weight": torch.ones(2)}
    content = {
        "meta": {"epoch": 7, "best": np.float64(0.5)},
        "state_dict": {f"module.{name}": value for name, value in state.items()},
    }
    found, report = convert(tmp_path, "mmhuman3d", content, small_body)
    assert_same(found, ours(plain))
    assert report["left_out"] == ["body_model_train.v_template", "disc.fc.weight"]
    assert report["encoder"] == "resnet18"
    assert report["tensors"] == len(plain)


def test_old_checkpoints_without_counts_are_complete(
    tmp_path: Path, plain: State, small_body: Body
) -> None:
    """From before torch 0.4.1 and numpy 2, in the format before torch 1.6."""
    old = {name: v.double() for name, v in plain.items() if not name.endswith("_tracked")}
    path = tmp_path / "old.pt"
    content = {"model": old, "best": np.float64(0.5)}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    written = path.read_bytes()
    assert written.count(b"numpy._core.multiarray") == 1
    path.write_bytes(written.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    report = convert_checkpoint("spin", path, tmp_path / "bundle", body=small_body)
    assert_same(load_file(tmp_path / "bundle/model.safetensors"), ours(plain))
    assert report["bundle"] == str(tmp_path / "bundle")


def test_weights_without_anything_around_them(
    tmp_path: Path, plain: State, small_body: Body
) -> None:
    found, _ = convert(tmp_path, "spin", plain, small_body)
    assert_same(found, ours(plain))


def test_a_block_6d_head_becomes_interleaved(
    tmp_path: Path, plain: State, small_body: Body
) -> None:
    def to_block(poses: np.ndarray) -> Tensor:
        """(..., 144): of every joint first the first column, then the second."""
        columns = poses.reshape(*poses.shape[:-1], 24, 3, 2)
        return torch.from_numpy(columns.swapaxes(-1, -2).reshape(poses.shape).copy())

    block = dict(plain)
    block["init_pose"] = to_block(plain["init_pose"].numpy())
    block["decpose.bias"] = to_block(plain["decpose.bias"].numpy())
    block["decpose.weight"] = to_block(plain["decpose.weight"].numpy().T).T.contiguous()
    block["fc1.weight"] = plain["fc1.weight"].clone()
    block["fc1.weight"][:, 512:656] = to_block(plain["fc1.weight"][:, 512:656].numpy())
    found, report = convert(tmp_path, "spin", {"model": block}, small_body)
    assert report["turned_from_block_6d"] is True
    assert_same(found, ours(plain))


def test_a_start_can_come_from_its_file(tmp_path: Path, plain: State, small_body: Body) -> None:
    names = {"init_pose": "pose", "init_shape": "shape", "init_cam": "cam"}
    path = tmp_path / "smpl_mean_params.npz"
    np.savez(path, **{names[name]: value[0].numpy() for name, value in random_start().items()})
    startless = {name: value for name, value in plain.items() if name not in names}
    with pytest.raises(BundleError, match=r"lacks \(3\): .*mean_params=smpl_mean_params\.npz"):
        convert(tmp_path, "spin", {"model": startless}, small_body)
    found, _ = convert(tmp_path, "spin", {"model": startless}, small_body, mean_params=path)
    assert_same(found, ours(plain))
    with pytest.raises(BundleError, match=r"own start \(init_pose\); leave mean_params"):
        convert(tmp_path, "spin", {"model": plain}, small_body, mean_params=path)
    with pytest.raises(ConfigError, match="brings its start"):
        convert(tmp_path, "hmr_eth", {"model": plain}, small_body, mean_params=path)


# --- the course project ---------------------------------------------------------------------------


def course_state(net: nn.Module, batch: int) -> State:
    """Its names: three layers in a Sequential, four linear maps, a start for every row."""
    sizes = {
        "regressor.fc_blocks.regressor_fc_0": (512 + 82, 40),
        "regressor.fc_blocks.regressor_fc_1": (40, 40),
        "regressor.fc_blocks.regressor_fc_2": (40, 82),
        "nn_root_orient": (82, 3), "nn_betas": (82, 10),
        "nn_pose_body": (82, 63), "nn_pose_hand": (82, 6),
    }  # fmt: skip
    state = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    for number, (name, (inputs, outputs)) in enumerate(sizes.items()):
        state[f"{name}.weight"] = randn(outputs, inputs, seed=30 + number, scale=inputs**-0.5)
        state[f"{name}.bias"] = randn(outputs, seed=40 + number, scale=0.3)
    return state | {
        "regressor.init_theta": randn(1, 82, seed=50).expand(batch, 82).clone(),
        "body_model.trans": torch.zeros(batch, 3),
    }


def test_the_course_projects_weights_give_its_numbers(
    tmp_path: Path, small_net: nn.Module, small_body: Body
) -> None:
    state = course_state(small_net, batch=64)
    content = {"model": state, "epoch_it": 3, "it": 40000, "loss_val_best": np.float64(0.02)}
    _, report = convert(tmp_path, "hmr_eth", content, small_body)
    assert report["left_out"] == ["body_model.trans"]
    predictor = load_bundle(report["bundle"], body=small_body)
    assert predictor.image_size == 512

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    images = crops(512)
    with torch.inference_mode():
        features = small_net(normalised(images))
    theta = state["regressor.init_theta"][:1]
    steps = predictor.predict_crops(images).iterations
    assert len(steps) == 4
    for step in steps:
        heads = [linear(f"nn_{name}", theta) for name in ("root_orient", "pose_body", "pose_hand")]
        rotmats = Rotation.from_rotvec(torch.cat(heads, 1).view(24, 3).double()).as_matrix()
        np.testing.assert_allclose(step.rotmats[0].numpy(), rotmats, atol=1e-5, rtol=0)
        torch.testing.assert_close(step.betas, linear("nn_betas", theta), atol=1e-5, rtol=0)
        assert step.pred_cam.tolist() == [pytest.approx([0.9, 0.0, 0.0])]
        x = torch.cat([features, theta], 1)
        for number in range(3):
            x = linear(f"regressor.fc_blocks.regressor_fc_{number}", x if number == 0 else x.relu())
        theta = theta + x


# --- what is refused ------------------------------------------------------------------------------


def test_difference_shows_both_sides(tmp_path: Path, plain: State, small_body: Body) -> None:
    changed = plain | {"fc.bias": torch.zeros(1000), "deccam.bias": torch.zeros(4)}
    for name in ("conv1.weight", "decpose.bias"):
        del changed[name]
    with pytest.raises(BundleError) as caught:
        convert(tmp_path, "spin", {"model": changed}, small_body)
    text = str(caught.value)
    assert "It lacks (2): conv1.weight (64, 3, 7, 7), decpose.bias (144,)." in text
    assert "It has left over (1): fc.bias (1000,)." in text
    assert "It has in another shape (1): deccam.bias is (4,), must be (3,)." in text
    assert "spin, mmhuman3d, hmr_eth" in text
    assert not (tmp_path / "spin").exists()


def test_another_kinds_file_shows_the_first_ten_names(
    tmp_path: Path, plain: State, small_body: Body
) -> None:
    other = {f"backbone.{name}": value for name, value in plain.items()}
    with pytest.raises(BundleError) as caught:
        convert(tmp_path, "spin", {"model": other}, small_body)
    text = str(caught.value)
    left_over = text.partition("left over")[2].partition(" Cure:")[0]
    assert left_over.startswith(f" ({len(plain)}): backbone.conv1.weight (64, 3, 7, 7), ")
    assert left_over.count("backbone.") == 10
    assert left_over.endswith(f", and {len(plain) - 10} more.")


class Program:
    """What a hostile checkpoint would run."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_file_with_code_in_it_is_refused(tmp_path: Path, plain: State, small_body: Body) -> None:
    program = Program(str(tmp_path / "executed"))
    with pytest.raises(BundleError, match=r"refers to posix\.mkdir.*checkpoint\['model'\]"):
        convert(tmp_path, "spin", {"model": plain, "extra": program}, small_body)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds no weights; expected them under 'model'"),
        ({"model": {}}, "holds no weights"),
        ({"model": {"fc1.weight": 3.0}}, "found 'fc1.weight' with a float"),
        ({"epoch": 3}, "found 'epoch' with a int"),
        ({"fc1.bias": torch.tensor([np.nan])}, "fc1.bias has values that are not finite"),
        ({"fc1.bias": torch.zeros(2).to_sparse()}, "found 'fc1.bias' with a Tensor"),
    ],
    ids=["list", "empty", "number", "no weights", "nan", "sparse"],
)
def test_what_holds_no_weights_is_refused(
    tmp_path: Path, small_body: Body, content: Any, words: str
) -> None:
    with pytest.raises(BundleError, match=words):
        convert(tmp_path, "spin", content, small_body)


def test_damaged_and_absent_files_are_refused(tmp_path: Path, small_body: Body) -> None:
    path = saved(tmp_path / "whole.pt", {"model": {"fc1.bias": torch.zeros(300)}})
    whole = path.read_bytes()
    for number, damaged in enumerate((b"", b"no checkpoint", whole[:400], whole[200:])):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=f"{number}.pt: "):
            convert_checkpoint("spin", path, tmp_path / "out", body=small_body)
    with pytest.raises(BundleError, match="no such file"):
        convert_checkpoint("spin", tmp_path / "absent.pt", tmp_path / "out", body=small_body)
    assert not (tmp_path / "out").exists()


def test_unknown_kind_is_refused(tmp_path: Path, small_body: Body) -> None:
    with pytest.raises(ConfigError, match=r"from=vibe: .*one of spin, mmhuman3d, hmr_eth"):
        convert_checkpoint("vibe", tmp_path / "x.pt", tmp_path / "out", body=small_body)
