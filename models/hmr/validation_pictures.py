"""Pictures of the same people again and again while a model trains: crop, true mesh, prediction."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from hmr.body import Body
from hmr.camera import FOCAL_LENGTH, weak_to_translation
from hmr.camera_fit import fit_weak_camera
from hmr.metrics import MM, pa_mpjpe
from hmr.render import grid, overlay, person_color
from hmr.structures import Batch, BodyOutput, Parameters

TRUTH_COLOR = (0.72, 0.78, 0.70)
PREDICTION_COLOR = person_color(0)
MIN_SIDE = 192
"""Pixels; smaller crops are shown this large."""
CAPTION_HEIGHT = 18
CAPTION_LETTERS = 26
"""What fits below the smallest picture."""


class ValidationPictures:
    """A sheet with a row for each person of a batch; all but the prediction is drawn only once.

    batch: a few people, with names. The true mesh stands where it fits the 2D keypoints best; a
    person without SMPL labels, or without two keypoints to fit, has none.
    """

    def __init__(self, batch: Batch, body: Body) -> None:
        self.batch, self.body = batch, body
        self._faces = body.arrays.faces
        device = next(body.buffers()).device
        on_device = batch.to(device)
        self._truth = _computed(body, on_device.rotmats, on_device.betas)
        crops = batch.images.permute(0, 2, 3, 1).cpu().numpy()
        self._crop_size = int(crops.shape[1])
        side = max(MIN_SIDE, self._crop_size)
        self._crops = [cv2.resize(c, (side, side), interpolation=cv2.INTER_CUBIC) for c in crops]
        self._left = self._first_columns(on_device)

    def _first_columns(self, batch: Batch) -> list[list[np.ndarray]]:
        """Crop and true mesh of each person."""
        landmarks = self.body.landmarks_from(self._truth)
        keypoints = batch.keypoints_2d
        cameras = fit_weak_camera(
            landmarks, keypoints[..., :2], keypoints[..., 2], self._crop_size
        ).cpu()  # fmt: skip
        meshes = self._placed(self._truth.vertices, cameras)
        rows = []
        for number, (crop, mesh) in enumerate(zip(self._crops, meshes, strict=True)):
            name = self.batch.sample_ids[number] if self.batch.sample_ids else f"person {number}"
            caption = "truth"
            if not self.batch.has_smpl[number]:
                mesh, caption = None, "no label"
            elif mesh is None:
                caption = "truth: no keypoints"
            rows.append(
                [captioned(crop, name), captioned(self._drawn(crop, mesh, TRUTH_COLOR), caption)]
            )
        return rows

    def _placed(self, vertices: Tensor, cameras: Tensor) -> list[np.ndarray | None]:
        """(V, 3) before the camera for each person; none where a number is missing. cameras: (B, 3)
        on the CPU."""
        moved = vertices.cpu() + weak_to_translation(cameras, self._crop_size)[:, None]
        return [mesh.numpy() if mesh.isfinite().all() else None for mesh in moved]

    def _drawn(
        self, crop: np.ndarray, mesh: np.ndarray | None, color: tuple[float, float, float]
    ) -> np.ndarray:
        if mesh is None:
            return crop
        side = len(crop)
        focal, middle = FOCAL_LENGTH * side / self._crop_size, side / 2
        return overlay(
            crop, [mesh], self._faces, (focal, focal), (middle, middle), colors=[color]
        )  # fmt: skip

    def sheet(self, prediction: Parameters) -> np.ndarray:
        """(H, W, 3) uint8: a row for each person with its crop, the true and the predicted mesh.

        prediction: for the same people, in the same order, on the body's device. Below a predicted
        mesh stands its PA-MPJPE in mm where there are labels.
        """
        output = _computed(self.body, prediction.rotmats.float(), prediction.betas.float())
        meshes = self._placed(output.vertices, prediction.pred_cam.detach().float().cpu())
        rows = []
        for number, mesh in enumerate(meshes):
            caption = "prediction"
            if mesh is None:
                caption = "prediction: not finite"
            elif self.batch.has_smpl[number]:
                one = slice(number, number + 1)
                error = MM * float(pa_mpjpe(output.joints[one], self._truth.joints[one]))
                caption = f"prediction, pa {error:.1f} mm"
            picture = self._drawn(self._crops[number], mesh, PREDICTION_COLOR)
            rows.append([*self._left[number], captioned(picture, caption)])
        return grid(rows)


def picture_grid(batch: Batch, prediction: Parameters, body: Body) -> np.ndarray:
    """One sheet of one batch; see `ValidationPictures`, which draws several faster."""
    return ValidationPictures(batch, body).sheet(prediction)


@torch.no_grad()
def _computed(body: Body, rotmats: Tensor, betas: Tensor) -> BodyOutput:
    output: BodyOutput = body(rotmats, betas)
    return output


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """A picture (H, W, 3) uint8 with a line of text on a white strip below it."""
    if len(text) > CAPTION_LETTERS:  # the end tells names apart
        text = ".." + text[-(CAPTION_LETTERS - 2) :]
    strip = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(
        strip, text, (4, CAPTION_HEIGHT - 5), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (40, 40, 40), 1,
        cv2.LINE_AA,
    )  # fmt: skip
    return np.concatenate([picture, strip])


def to_png(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 RGB as a PNG file."""
    written, encoded = cv2.imencode(".png", picture[..., ::-1])
    assert written
    return encoded.tobytes()
