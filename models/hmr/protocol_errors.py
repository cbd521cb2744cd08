"""Measuring by a protocol: its joints of a body or of labels, and the errors between the two.

    yardstick = Yardstick(body=body, protocol=PROTOCOLS["3dpw"])
    rows, truth = yardstick.truth(batch)
    errors = protocol_errors(yardstick.protocol, yardstick.points(rotmats, betas), truth)

Metres go in; errors have the units of `hmr.protocols.METRIC_UNITS`. Shape letters: B people,
J joints, V vertices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from hmr.body import Body
from hmr.errors import BodyError
from hmr.metric_extras import auc, joint_distances, pa_pve, pck, v2v_l2
from hmr.metrics import MM, pa_mpjpe, pve
from hmr.protocols import PROTOCOLS, Protocol
from hmr.skeleton import (
    H36M17_NAMES,
    H36M_TO_J14,
    H36M_TO_J17,
    J14_FROM_49,
    J17_FROM_49,
    joint49_index,
)
from hmr.structures import Batch, BodyOutput

_REGRESSOR_ROWS = {"h36m14": H36M_TO_J14, "h36m17": H36M_TO_J17}
_LANDMARKS = {"h36m14": J14_FROM_49, "h36m17": J17_FROM_49}
_LANDMARK_PELVIS = joint49_index("gt_pelvis")


@dataclass(frozen=True, kw_only=True)
class Points:
    """What errors are measured on: joints (B, J, 3), root (B, 3) and vertices (B, V, 3) or none,
    all in metres."""

    joints: Tensor
    root: Tensor
    vertices: Tensor | None

    def __getitem__(self, rows: Tensor) -> Points:
        vertices = None if self.vertices is None else self.vertices[rows]
        return Points(joints=self.joints[rows], root=self.root[rows], vertices=vertices)


def body_points(
    protocol: Protocol, body: Body, output: BodyOutput, regressor: Tensor | None = None
) -> Points:
    """The protocol's joints of a body that has been computed.

    regressor: (17, V) Human3.6M joints in the order of H36M17_NAMES. A body without one is scored
    on the joints of the same names among the 49 landmarks, on both sides alike; see
    `Protocol.joints_used`. BodyError when the regressor is for another mesh.
    """
    if protocol.joints == "smpl24":
        joints, root = output.joints, output.joints[:, 0]
    elif regressor is None:
        landmarks = body.landmarks_from(output)
        joints, root = landmarks[:, _LANDMARKS[protocol.joints]], landmarks[:, _LANDMARK_PELVIS]
    else:
        expected = (len(H36M17_NAMES), output.vertices.shape[1])
        if tuple(regressor.shape) != expected:
            raise BodyError(
                f"J_regressor_h36m has the shape {tuple(regressor.shape)}, this body needs "
                f"{expected}; convert the body again with the regressor of its own mesh"
            )
        all17 = regressor.to(output.vertices) @ output.vertices
        joints, root = all17[:, _REGRESSOR_ROWS[protocol.joints]], all17[:, 0]
    return Points(joints=joints, root=root, vertices=output.vertices)


def keypoint_points(protocol: Protocol, keypoints_3d: Tensor) -> tuple[Points, Tensor]:
    """Measured joints (B, 49, 4) as a protocol wants them, and (B,) bool which rows have them all.

    The root is the measured pelvis: SPIN's files are centred on it.
    """
    columns = _LANDMARKS[protocol.joints]
    known = keypoints_3d[:, [*columns, _LANDMARK_PELVIS], 3] > 0
    places_3d = keypoints_3d[..., :3]
    points = Points(
        joints=places_3d[:, columns], root=places_3d[:, _LANDMARK_PELVIS], vertices=None
    )
    return points, known.all(1)


def gendered_output(
    bodies: Mapping[str, Body], body: Body, genders: Sequence[str], rotmats: Tensor, betas: Tensor
) -> BodyOutput:
    """Every person in the body of the own gender; `body` where `bodies` has none for it.

    3DPW's labels are gendered, predictions neutral. BodyError when the meshes differ in size.
    """
    output = body(rotmats, betas)
    for gender, own in bodies.items():
        if own.num_vertices != body.num_vertices:
            raise BodyError(
                f"the {gender} body has {own.num_vertices} vertices, the model's "
                f"{body.num_vertices}; give bodies of one topology"
            )
        rows = [row for row, name in enumerate(genders) if name == gender]
        if rows:
            posed = own(rotmats[rows], betas[rows])
            output.vertices[rows], output.joints[rows] = posed.vertices, posed.joints
    return output


def protocol_errors(protocol: Protocol, pred: Points, truth: Points) -> dict[str, Tensor]:
    """(B,) for each metric of the protocol but `accel_mm`, in the units of METRIC_UNITS."""
    distances = joint_distances(pred.joints, truth.joints, pred.root, truth.root)
    errors = {}
    for name in protocol.metrics:
        if name == "mpjpe_mm":
            errors[name] = MM * distances.mean(-1)
        elif name == "pa_mpjpe_mm":
            errors[name] = MM * pa_mpjpe(pred.joints, truth.joints)
        elif name == "pck_150":
            errors[name] = 100 * pck(distances)
        elif name == "auc_150":
            errors[name] = 100 * auc(distances)
        elif name != "accel_mm":
            errors[name] = _vertex_error(name, pred, truth)
    return errors


def _vertex_error(name: str, pred: Points, truth: Points) -> Tensor:
    assert pred.vertices is not None
    assert truth.vertices is not None
    if name == "pve_mm":
        return MM * pve(pred.vertices, truth.vertices, pred.root, truth.root)
    if name == "pa_pve_mm":
        return MM * pa_pve(pred.vertices, truth.vertices)
    return v2v_l2(pred.vertices, truth.vertices)


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """How a model's answers are measured: a protocol and the bodies it needs.

    regressor: (17, V) Human3.6M joints of the body, none when it has none. truth_bodies: gender to
    the body of such people's labels; without an entry it is the model's.
    """

    body: Body
    protocol: Protocol = PROTOCOLS["synthetic"]
    regressor: Tensor | None = None
    truth_bodies: Mapping[str, Body] = field(default_factory=dict)

    @property
    def joints_used(self) -> tuple[str, str]:
        """Joints and root of the results, in words."""
        return self.protocol.joints_used(with_regressor=self.regressor is not None)

    @property
    def truth_used(self) -> str:
        """Where the truth comes from, in words."""
        if self.protocol.truth == "keypoints":
            return "measured 3D joints"
        genders = " and ".join(sorted(self.truth_bodies))
        return f"SMPL labels, {genders} bodies" if genders else "SMPL labels, the model's body"

    def truth(self, batch: Batch, genders: Sequence[str] = ()) -> tuple[Tensor, Points]:
        """Which rows (n,) of a batch have the labels that count, and their n points."""
        if self.protocol.truth == "keypoints":
            points, known = keypoint_points(self.protocol, batch.keypoints_3d)
            rows = known.nonzero()[:, 0]
            return rows, points[rows]
        rows = batch.has_smpl.nonzero()[:, 0]
        chosen = [genders[row] for row in rows.tolist()] if self.truth_bodies else []
        output = gendered_output(
            self.truth_bodies, self.body, chosen, batch.rotmats[rows], batch.betas[rows]
        )
        return rows, body_points(self.protocol, self.body, output, self.regressor)

    def points(self, rotmats: Tensor, betas: Tensor) -> Points:
        """Points of predicted people."""
        return body_points(self.protocol, self.body, self.body(rotmats, betas), self.regressor)
