"""Answers as files for other programs: GLB, npz, and the overlay as PNG."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from hmr.mesh_files import glb_bytes
from hmr.render import overlay
from hmr.skeleton import SMPL_JOINT_NAMES
from rayhmr.serve.answered import Answered


def glb(answered: Answered) -> bytes:
    """A scene with the mesh of every person, each a node of its own; y is up, as glTF has it."""
    return glb_bytes(answered.meshes, answered.info.body.faces)


def png(answered: Answered) -> bytes:
    """The upright picture with the meshes over it, seen by the answer's camera."""
    camera = answered.camera
    picture = overlay(
        answered.picture(), answered.meshes, answered.info.body.faces,
        (camera.fx, camera.fy), (camera.cx, camera.cy),
    )  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def columns(answered: Answered) -> dict[str, np.ndarray]:
    """The numbers of the JSON form, a row for each of N people, float32."""
    people = [recovered.person for recovered in answered.recovery.people]
    shapes = {
        "box_xyxy": (4,), "global_orient": (3,), "body_pose": (69,), "betas": (10,),
        "cam_t": (3,), "joints_3d": (24, 3), "joints_2d": (24, 2),
    }  # fmt: skip
    found = {
        name: np.array([getattr(person, name) for person in people], np.float32).reshape(-1, *shape)
        for name, shape in shapes.items()
    }
    found["weak_cam"] = np.array([p.pred_cam for p in people], np.float32).reshape(-1, 3)
    template = answered.info.body.v_template
    found["vertices"] = np.array(answered.meshes, np.float32).reshape(-1, *template.shape)
    return found


def npz(answered: Answered) -> bytes:
    """The names of the JSON form, and poses and trans as AMASS has them; N people a row."""
    arrays = answered.info.body
    rows = columns(answered)
    rows["poses"] = np.concatenate([rows["global_orient"], rows["body_pose"]], axis=1)
    rows["trans"] = rows["cam_t"]
    camera = answered.camera
    facts = {
        "faces": arrays.faces.astype(np.int32),
        "camera": np.array([camera.fx, camera.fy, camera.cx, camera.cy]),
        "image_size": np.array(answered.size),
        "joint_names": np.array(SMPL_JOINT_NAMES),
        "body_model": np.array(answered.info.body_model),
        "axes": np.array("opencv"),
        "units": np.array("m"),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **rows, **facts)  # type: ignore[arg-type]  # stub lacks **kwargs
    return buffer.getvalue()
