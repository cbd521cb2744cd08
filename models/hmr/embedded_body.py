"""The body that comes with the package: computed from a few dozen primitives, no data file.

`embedded_body()` is the way to get it; the first call on a machine takes some seconds, later ones
read the cache. It has SMPL's structure throughout: 6890 vertices, 13776 faces, 24 joints, 10 shape
directions, 207 pose directions, and its nose, eyes, ears, toes and finger tips carry SMPL's vertex
numbers.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from hmr.body_arrays import EMBEDDED_VERSION, BodyArrays, load_body, save_body
from hmr.body_landmarks import extra_joint_regressor
from hmr.embedded_correctives import pose_directions
from hmr.embedded_field import primitives, rest_joints
from hmr.embedded_mesh import build_mesh
from hmr.embedded_rig import joint_regressor, landmark_order, shape_directions, skinning_weights
from hmr.errors import BodyError
from hmr.skeleton import SMPL_PARENTS

NUM_VERTICES = 6890
"""SMPL's number; a closed mesh of genus 0 then has SMPL's 13776 faces."""

log = logging.getLogger(__name__)


def build_embedded_body() -> BodyArrays:
    """Compute the embedded body from its primitives; some seconds, the same on every machine."""
    parts, joints = primitives(), rest_joints()
    vertices, faces = build_mesh(parts, NUM_VERTICES)
    weights = skinning_weights(parts, vertices)
    order = landmark_order(vertices, weights, joints)
    vertices, weights = vertices[order], weights[order]
    return BodyArrays(
        name="embedded",
        v_template=vertices,
        shapedirs=shape_directions(vertices, weights, joints),
        posedirs=pose_directions(vertices, weights, joints).astype(np.float32),
        J_regressor=joint_regressor(vertices, weights, joints),
        J_regressor_extra=extra_joint_regressor(vertices, joints),
        lbs_weights=weights,
        parents=np.array(SMPL_PARENTS, np.int64),
        faces=np.argsort(order)[faces],
        licence="project",
    ).checked()


def embedded_body() -> BodyArrays:
    """The embedded body, from the cache if it is there, else computed and put there.

    The cache is the folder RAYHMR_CACHE, or rayhmr below XDG_CACHE_HOME (default ~/.cache). A
    damaged cache file is replaced. Where nothing can be written the body is computed every time.
    """
    path = _cache_path()
    if os.path.exists(path):  # Path.exists raises where the folder may not be searched
        try:
            return replace(load_body(path), name="embedded", licence="project")
        except BodyError as error:
            log.warning("the cached body is damaged and is computed again: %s", error)
    body = build_embedded_body()
    try:
        save_body(path, body)
    except OSError as error:
        log.warning("the body is not cached, %s cannot be written: %s", path, error)
    return body


def _cache_path() -> Path:
    folder = os.environ.get("RAYHMR_CACHE")
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(base) / "rayhmr")
    return Path(folder) / f"embedded-body-{EMBEDDED_VERSION}.npz"
