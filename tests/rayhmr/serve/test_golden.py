"""What a model must make of the golden picture before anybody is answered by it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.checkpoint import load_bundle, save_bundle
from hmr.config import ModelConfig
from hmr.errors import BundleError, ConfigError
from hmr.model import build_model
from hmr.predictor import Predictor
from rayhmr.config import PromoteJob
from rayhmr.promote import promote
from rayhmr.registry import Registry
from rayhmr.serve.golden import RECORD, check_golden, golden_answer, golden_work


def with_provenance(predictor, **provenance):
    info = {"provenance": provenance}
    return Predictor(
        predictor.model, predictor.body, box_padding=predictor.box_padding, info=info
    )  # fmt: skip


def test_the_record_is_the_predictors_answer_and_the_model_agrees_with_it(bundle):
    predictor = load_bundle(bundle)
    record = golden_answer(predictor)
    (person,) = predictor.predict(golden_work().image)
    expected = person.joints_3d - person.joints_3d[0]
    np.testing.assert_allclose(np.array(record) / 1e4, expected, atol=6e-5)
    check_golden(with_provenance(predictor, **{RECORD: record}), name="tiny@1")


def test_an_answer_beside_the_record_is_refused_beyond_the_tolerance_of_the_backend(bundle):
    predictor = load_bundle(bundle)
    record = golden_answer(predictor)
    record[7][1] += 100  # 1 cm
    changed = with_provenance(predictor, **{RECORD: record})
    with pytest.raises(BundleError, match=r"tiny@1: failed the check.*a joint is 0\.01 m from"):
        check_golden(changed, name="tiny@1")
    check_golden(changed, name="tiny@1", backend="compiled")


def test_bodies_that_no_person_has_are_refused(bundle):
    predictor = load_bundle(bundle)
    arrays = predictor.body.arrays
    large = Body(replace(arrays, v_template=10 * arrays.v_template))
    with pytest.raises(BundleError, match=r"the body is 1\d\.?\d* m long, people are between 0\.2"):
        check_golden(Predictor(predictor.model, large), name="tiny@1")


def nan_bundle(folder):
    config = ModelConfig(image_size=32, encoder_width=4, hidden=32)
    model = build_model(config)
    with torch.no_grad():
        model.regressor.decshape.bias.fill_(float("nan"))
    return save_bundle(
        folder, model=model, model_config=config, body=Body.embedded(), metrics={}, provenance={}
    )  # fmt: skip


def test_promote_moves_the_alias_back_again_and_leaves_it_where_a_model_is_wrong(bundle, tmp_path):
    registry = Registry(str(tmp_path / "registry"))
    for folder in (bundle, bundle, nan_bundle(tmp_path / "nan"), bundle):
        registry.register("tiny", folder)
    model = f"{tmp_path}/registry/tiny"

    def best():
        return registry.aliases("tiny")["best"]

    assert promote(PromoteJob(model=model, version=1)) == {
        "model": "tiny", "alias": "best", "version": 1, "before": None,
    }  # fmt: skip
    promote(PromoteJob(model=model, version="2"))
    with pytest.raises(BundleError, match=r"tiny@3: failed the check.*finite"):
        promote(PromoteJob(model=model, version="3"))
    shutil.copy(tmp_path / "nan" / "model.safetensors", f"{model}/4/model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors: sha256 is"):
        promote(PromoteJob(model=model))  # the latest, changed after it was registered
    assert best() == 2
    assert promote(PromoteJob(model=model, version="previous"))["version"] == best() == 1
    with pytest.raises(BundleError, match="has pointed at no other version yet"):
        promote(PromoteJob(model=model, version="previous"))
    with pytest.raises(ConfigError, match="give the model's name alone, as registry/hmr"):
        promote(PromoteJob(model=f"{model}@2"))


def test_a_model_without_finite_answers_has_no_record(tmp_path):
    assert golden_answer(load_bundle(nan_bundle(tmp_path / "nan"))) is None
