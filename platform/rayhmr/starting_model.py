"""The model as a training starts with it: new, or with the encoder of a trained one."""

from __future__ import annotations

import torch

from hmr.checkpoint import load_network
from hmr.config import BodyConfig, ModelConfig, TrainConfig
from hmr.errors import ConfigError
from hmr.features import encoder_identity, frozen_features
from hmr.manifest import read_json
from hmr.model import HMR, build_model
from hmr.training import reduced_precision
from hmr.weights import load_weights
from rayhmr.config import TrainJob
from rayhmr.data.cache import Encoding
from rayhmr.data.schema import DatasetInfo
from rayhmr.pinned_model import PinnedModel
from rayhmr.registry import resolve
from rayhmr.run_bundle import mean_parameters

ENCODER_SETTINGS = ("encoder", "encoder_width", "image_size")


def pinned_encoder(reference: str, model: ModelConfig) -> str:
    """A name of the same trained model for every process, whatever an alias comes to mean later.

    BundleError when there is no such model, ConfigError when its encoder is another than the
    configured one.
    """
    pinned = PinnedModel.of(reference, BodyConfig()).reference
    stored = ModelConfig.model_validate(
        read_json(resolve(pinned) / "config.json", required=("model",))["model"]
    )
    unlike = [
        f"model.{name}={getattr(model, name)} (there: {getattr(stored, name)})"
        for name in ENCODER_SETTINGS
        if getattr(model, name) != getattr(stored, name)
        and (name != "encoder_width" or model.encoder == "small")
    ]
    if unlike:
        raise ConfigError(
            f"encoder_from={reference}: its encoder is another than {', '.join(unlike)}; set them "
            "as they are there, or name another model"
        )
    return pinned


def starting_model(job: TrainJob, info: DatasetInfo) -> HMR:
    """A new model as the seed and the settings say, with the encoder of `job.encoder_from` where
    that is given; the regressor is the same either way."""
    torch.manual_seed(job.train.seed)
    model = build_model(job.model, mean_parameters(info))
    if job.encoder_from is not None:
        folder = resolve(job.encoder_from)
        load_weights(model.encoder, load_network(folder).encoder.state_dict(), folder)
    return model


def encoding_of(model: HMR, config: TrainConfig, *, batch_size: int) -> Encoding:
    """The model's encoder as a training with a frozen encoder runs it, on the model's device.
    batch_size: of that training's worker."""
    device = model.image_scale.device
    reduced = reduced_precision(config.precision, device)
    return Encoding(
        identity=f"{encoder_identity(model)} {device.type} {'bfloat16' if reduced else 'float32'}",
        width=model.encoder.out_features, batch_size=batch_size,
        features=lambda images: frozen_features(model, images, reduced=reduced),
    )  # fmt: skip
