"""The body layer: from rotations and shape to joints, landmarks and vertices, differentiable.

Shape letters: B batch, V vertices, N some of the vertices. Lengths are metres; the rest pose has
SMPL's axes (x to the person's left, y up, z forward) and the pelvis near the origin; rotation 0
turns the whole body, into the camera frame where that is what the rotations describe.

    body = Body.embedded()
    output = body(rotmats, betas)              # vertices and joints
    joints = body.joints_only(rotmats, betas)  # far cheaper: no vertices

The formulas are those of SMPL (Loper et al. 2015). Training should ask for `joints_only` and
`landmarks`, which compute no more of the surface than they need.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from hmr.body_arrays import BodyArrays, body_from_path, load_body
from hmr.body_reference import smplx_layer
from hmr.config import BodyConfig
from hmr.errors import ConfigError
from hmr.skeleton import JOINT49_SOURCE
from hmr.structures import BodyOutput

_CPU_BODIES, _CPU_VERTICES = 64, 1024
"""Bodies and vertices that a CPU skins at a time: these fit into its cache. Fewer vertices would
suit large batches better and single bodies worse."""


class _JointTree(nn.Module):
    """Forward kinematics, level by level: joints of equal depth are one product."""

    _order: Tensor  # joints sorted by depth
    _places: Tensor  # where each joint went
    _parents: Tensor  # (24,) parent of each joint, the root its own
    _parent_rows: Tensor  # (23,) row of each sorted joint's parent in the level above

    def __init__(self, parents: np.ndarray) -> None:
        super().__init__()
        depth = np.zeros(len(parents), int)
        for joint, parent in enumerate(parents[1:], start=1):
            depth[joint] = depth[parent] + 1
        levels = [np.flatnonzero(depth == level) for level in range(depth.max() + 1)]
        rows = [
            np.searchsorted(above, parents[level]) for above, level in itertools.pairwise(levels)
        ]
        order = np.concatenate(levels)
        self._sizes = [len(level) for level in levels]
        _buffer(self, "_order", order, torch.int64)
        _buffer(self, "_places", np.argsort(order), torch.int64)
        _buffer(self, "_parents", np.maximum(parents, 0), torch.int64)
        _buffer(self, "_parent_rows", np.concatenate(rows), torch.int64)

    def forward(self, rotmats: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations (B, 24, 3, 3) and positions (B, 24, 3) of the joints in the root's frame.

        rotmats: (B, 24, 3, 3) relative to the parent. rest: (B, 24, 3) joints of the rest pose.
        """
        bones = rest - rest.index_select(1, self._parents)
        local = torch.cat([rotmats, bones[..., None]], dim=3).index_select(1, self._order)
        root, *levels = local.split(self._sizes, dim=1)
        turn, place = root[..., :3], rest[:, :1]
        turns, places = [turn], [place]
        for level, rows in zip(levels, self._parent_rows.split(self._sizes[1:]), strict=True):
            world = turn.index_select(1, rows) @ level
            turn, place = world[..., :3], place.index_select(1, rows) + world[..., 3]
            turns.append(turn)
            places.append(place)
        return (
            torch.cat(turns, dim=1).index_select(1, self._places),
            torch.cat(places, dim=1).index_select(1, self._places),
        )


class _Block(NamedTuple):
    """Some neighbouring vertices with what moves them; what does not is left out."""

    template: Tensor  # (3n,)
    basis: Tensor  # (k, 3n)
    features: Tensor  # (k,) numbers of the coefficients that the rows of `basis` belong to
    weights: Tensor  # (j, n)
    joints: Tensor  # (j,) numbers of the joints that the rows of `weights` belong to


class _Surface(nn.Module):
    """Blend shapes and skinning of some of a body's vertices.

    Vertices are planar inside (all x, all y, all z): every step is a matrix product or a sum over
    long rows. A CPU takes them block by block, for two reasons: a block's intermediate results fit
    into its cache, and neighbouring vertices hang on few joints, so most rows of the products are
    zero and are left out. The result is the same.
    """

    template: Tensor  # (3N,)
    basis: Tensor  # (10 or 217, 3N) betas, then pose features
    weights: Tensor  # (24, N)

    def __init__(self, arrays: BodyArrays, vertices: np.ndarray | slice = slice(None)) -> None:
        super().__init__()
        directions = [arrays.shapedirs[vertices]]
        # A body without pose directions pays nothing for them.
        self.num_pose_features = 207 if arrays.posedirs.any() else 0
        if self.num_pose_features:
            directions.append(arrays.posedirs[vertices])
        basis = np.concatenate(directions, axis=2).transpose(2, 1, 0)
        _buffer(self, "template", arrays.v_template[vertices].T.reshape(-1))
        _buffer(self, "basis", basis.reshape(len(basis), -1))
        _buffer(self, "weights", arrays.lbs_weights[vertices].T)
        self._blocks: list[_Block] = []

    def _apply(self, fn: Any, recurse: bool = True) -> _Surface:
        self._blocks = []  # made again in the new precision
        return cast(_Surface, super()._apply(fn, recurse))

    def forward(self, transforms: Tensor, betas: Tensor, pose_features: Tensor) -> Tensor:
        """transforms: (B, 24, 3, 4), betas: (B, 10), pose_features: (B, 207) -> (B, N, 3)."""
        coefficients = betas
        if self.num_pose_features:
            coefficients = torch.cat([betas, pose_features], dim=1)
        columns = transforms.permute(0, 3, 2, 1)  # (B, 4, 3, 24): column of the 3x4 first
        if transforms.device.type != "cpu":
            posed = _skin(columns, coefficients, self.template, self.basis, self.weights)
            return posed.transpose(1, 2)
        if not self._blocks:
            self._blocks = self._cut()
        bodies = zip(columns.split(_CPU_BODIES), coefficients.split(_CPU_BODIES), strict=True)
        posed = torch.cat([torch.cat(self._skin_blocks(*some), dim=2) for some in bodies])
        return posed.transpose(1, 2)

    def _skin_blocks(self, columns: Tensor, coefficients: Tensor) -> list[Tensor]:
        return [
            _skin(
                columns.index_select(3, block.joints), coefficients.index_select(1, block.features),
                block.template, block.basis, block.weights,
            )
            for block in self._blocks
        ]  # fmt: skip

    def _cut(self) -> list[_Block]:
        template, basis = self.template.view(3, -1), self.basis.unflatten(1, (3, -1))
        blocks = []
        for start in range(0, self.weights.shape[1], _CPU_VERTICES):
            part = slice(start, start + _CPU_VERTICES)
            directions, weights = basis[..., part], self.weights[:, part]
            features = directions.flatten(1).any(1).nonzero()[:, 0]
            joints = weights.any(1).nonzero()[:, 0]
            blocks.append(
                _Block(
                    template[:, part].flatten(), directions[features].flatten(1), features,
                    weights[joints], joints,
                )
            )  # fmt: skip
        return blocks


def _skin(
    columns: Tensor, coefficients: Tensor, template: Tensor, basis: Tensor, weights: Tensor
) -> Tensor:
    """Posed vertices (B, 3, n) of n vertices. columns: (B, 4, 3, j), coefficients: (B, k)."""
    rest = torch.addmm(template, coefficients, basis).unflatten(1, (3, -1))
    column = columns @ weights  # (B, 4, 3, n)
    posed = column[:, 3]
    for axis in range(3):
        posed = torch.addcmul(posed, column[:, axis], rest[:, axis, None])
    return posed


class Body(nn.Module):
    """A body model as a layer without parameters: its state_dict is empty.

    backend "native" is this module's own code; "smplx" calls the reference package, whose licence
    is non-commercial, and exists for comparison. Inputs of any precision are computed in float32,
    also under autocast, because half precision misplaces joints by centimetres.
    """

    faces: Tensor
    _rest_joints: Tensor
    _joint_shapedirs: Tensor
    _extra_weights: Tensor
    _landmark_vertices: Tensor
    _joint49_source: Tensor

    def __init__(self, arrays: BodyArrays, backend: str = "native") -> None:
        super().__init__()
        if backend not in ("native", "smplx"):
            raise ConfigError(f"body.backend is {backend!r}; choose 'native' or 'smplx'.")
        self.arrays = arrays
        self.num_vertices = arrays.num_vertices
        self.backend = backend
        support = arrays.extra_support
        picked = np.concatenate([arrays.landmark_vertices, support])
        self._reference = smplx_layer(arrays) if backend == "smplx" else None
        self._tree = _JointTree(arrays.parents)
        self._surface = _Surface(arrays)
        self._landmark_surface = _Surface(arrays, picked)
        shapedirs = arrays.joint_shapedirs.transpose(2, 0, 1)
        _buffer(self, "faces", arrays.faces, torch.int64)
        _buffer(self, "_rest_joints", arrays.rest_joints)
        _buffer(self, "_joint_shapedirs", shapedirs.reshape(len(shapedirs), -1))
        _buffer(self, "_extra_weights", arrays.J_regressor_extra[:, support])
        _buffer(self, "_landmark_vertices", picked, torch.int64)
        _buffer(self, "_joint49_source", np.array(JOINT49_SOURCE), torch.int64)

    @classmethod
    def embedded(cls) -> Body:
        """The body that comes with the package; free of third-party data."""
        return cls(body_from_path("embedded"))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Body:
        """A body from an .npz with SMPL arrays; BodyError if it is not one."""
        return cls(load_body(path))

    @classmethod
    def from_config(cls, config: BodyConfig) -> Body:
        """The body that a configuration names."""
        return cls(body_from_path(config.path), backend=config.backend)

    def forward(self, rotmats: Tensor, betas: Tensor) -> BodyOutput:
        """All vertices (B, V, 3) and the 24 joints (B, 24, 3).

        rotmats: (B, 24, 3, 3) relative to the parent, joint 0 the root. betas: (B, 10).
        """
        with torch.autocast(rotmats.device.type, enabled=False):
            rotmats, betas = self._prepared(rotmats, betas)
            if self._reference is not None:
                output = self._reference(
                    betas=betas, global_orient=rotmats[:, :1], body_pose=rotmats[:, 1:]
                )
                return BodyOutput(vertices=output.vertices, joints=output.joints[:, :24])
            transforms, joints = self._transforms(rotmats, betas)
            vertices = self._surface(transforms, betas, _pose_features(rotmats))
            return BodyOutput(vertices=vertices, joints=joints)

    def joints_only(self, rotmats: Tensor, betas: Tensor) -> Tensor:
        """The 24 joints (B, 24, 3), without computing a vertex. Input as in `forward`."""
        if self._reference is not None:
            return self(rotmats, betas).joints
        with torch.autocast(rotmats.device.type, enabled=False):
            rotmats, betas = self._prepared(rotmats, betas)
            joints: Tensor = self._tree(rotmats, self._shaped_joints(betas))[1]
            return joints

    def landmarks(self, rotmats: Tensor, betas: Tensor) -> Tensor:
        """The 49 joints of the training superset (B, 49, 3), in `hmr.skeleton`'s order.

        Computes only the vertices that these joints read. Input as in `forward`.
        """
        if self._reference is not None:
            return self.landmarks_from(self(rotmats, betas))
        with torch.autocast(rotmats.device.type, enabled=False):
            rotmats, betas = self._prepared(rotmats, betas)
            transforms, joints = self._transforms(rotmats, betas)
            picked = self._landmark_surface(transforms, betas, _pose_features(rotmats))
            return self._landmarks(picked, joints)

    def landmarks_from(self, output: BodyOutput) -> Tensor:
        """The same 49 joints (B, 49, 3), read off a body that has been computed already."""
        with torch.autocast(output.vertices.device.type, enabled=False):
            picked = output.vertices.index_select(1, self._landmark_vertices)
            return self._landmarks(picked, output.joints)

    def _landmarks(self, picked: Tensor, joints: Tensor) -> Tensor:
        direct, support = picked.split([21, picked.shape[1] - 21], dim=1)
        all54 = torch.cat([joints, direct, self._extra_weights @ support], dim=1)
        return all54.index_select(1, self._joint49_source)

    def _prepared(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        B = len(rotmats)
        if rotmats.shape != (B, 24, 3, 3) or betas.shape != (B, 10):
            raise ValueError(
                f"rotmats {tuple(rotmats.shape)} and betas {tuple(betas.shape)} must have the "
                "shapes (B, 24, 3, 3) and (B, 10) with the same B."
            )
        dtype = self._rest_joints.dtype
        return rotmats.to(dtype), betas.to(dtype)

    def _transforms(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        """What carries rest points along with each bone, (B, 24, 3, 4), and the posed joints."""
        rest = self._shaped_joints(betas)
        turns, joints = self._tree(rotmats, rest)
        offsets = joints[..., None] - turns @ rest[..., None]
        return torch.cat([turns, offsets], dim=3), joints

    def _shaped_joints(self, betas: Tensor) -> Tensor:
        return self._rest_joints + (betas @ self._joint_shapedirs).view(-1, 24, 3)


def _buffer(
    module: nn.Module, name: str, values: np.ndarray, dtype: torch.dtype = torch.float32
) -> None:
    """A constant that moves with the module but is not saved: bodies are files of their own."""
    tensor = torch.tensor(np.ascontiguousarray(values), dtype=dtype)
    module.register_buffer(name, tensor, persistent=False)


def _pose_features(rotmats: Tensor) -> Tensor:
    """vec(R_1..23 - I), (B, 207)."""
    identity = torch.eye(3, dtype=rotmats.dtype, device=rotmats.device)
    return (rotmats[:, 1:] - identity).flatten(1)
