"""The command line of jobs/convert.py: words in, files and one JSON line out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hmr.body import Body
from hmr.body_arrays import save_body
from hmr.checkpoint import load_bundle
from hmr.config import ModelConfig
from hmr.model import build_model
from hmr.published_layouts import LAYOUTS
from rayhmr.convert import main


def printed(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_body_file_is_converted_and_is_the_same_body(tmp_path, capsys):
    ours = Body.embedded()
    save_body(tmp_path / "given.npz", ours.arrays)
    main(["smpl", "--input", str(tmp_path / "given.npz"), "--output", str(tmp_path / "body.npz")])
    facts = printed(capsys)
    assert (facts["vertices"], facts["faces"]) == (6890, 13776)
    line = (tmp_path / "body.npz.sha256").read_text()
    assert line.split() == [facts["sha256"], "body.npz"]
    theirs = Body.from_file(tmp_path / "body.npz")
    np.testing.assert_allclose(theirs.arrays.v_template, ours.arrays.v_template, atol=1e-7)


def test_published_weights_become_a_bundle_that_predicts(tmp_path, capsys):
    model = build_model(ModelConfig(encoder="resnet18", image_size=224, hidden=32))
    layout = LAYOUTS["spin"]
    state = {layout.theirs(name): value for name, value in model.state_dict().items()}
    torch.save({"model": state, "epoch": 1}, tmp_path / "published.pt")
    main(["checkpoint", "--from", "spin", "--input", str(tmp_path / "published.pt"),
          "--output", str(tmp_path / "bundle")])  # fmt: skip
    facts = printed(capsys)
    assert facts["encoder"] == "resnet18"
    crop = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)
    ours = load_bundle(facts["bundle"]).predict_crops(crop).final
    with torch.inference_mode():
        theirs = model.eval()(torch.from_numpy(crop).permute(0, 3, 1, 2)).final
    torch.testing.assert_close(ours.rotmats, theirs.rotmats, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pred_cam, theirs.pred_cam, atol=1e-5, rtol=0)


# torch asks for another format than the one that this user asked for.
@pytest.mark.filterwarnings("ignore:.*torch.jit.load.* is deprecated:FutureWarning")
def test_an_export_gives_the_bundles_own_numbers(bundle, tmp_path, capsys):
    file = tmp_path / "hmr.pt"
    main(["export", "--to", "torchscript", "--input", str(bundle), "--output", str(file)])
    assert printed(capsys)["file"] == str(file)
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (2, 3, 32, 32), generator=generator).to(torch.uint8)
    rotmats, betas, pred_cam = torch.jit.load(file)(crops)
    ours = load_bundle(bundle).predict_crops(crops.permute(0, 2, 3, 1).numpy()).final
    torch.testing.assert_close(rotmats[:, -1], ours.rotmats, atol=1e-4, rtol=0)
    torch.testing.assert_close(betas[:, -1], ours.betas, atol=1e-4, rtol=0)
    torch.testing.assert_close(pred_cam[:, -1], ours.pred_cam, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "words",
    [
        ["smpl", "--input", "{}/none.pkl", "--output", "{}/out.npz"],
        ["checkpoint", "--from", "spin", "--input", "{}/none.pt", "--output", "{}/bundle"],
        ["export", "--to", "torchscript", "--input", "{}/none", "--output", "{}/out.pt"],
    ],
)
def test_a_missing_file_is_named_and_nothing_is_written(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([word.format(tmp_path) for word in words])
    assert ended.value.code == 1
    caught = capsys.readouterr()
    assert caught.err.startswith("error: ")
    assert f"{tmp_path}/none" in caught.err
    assert caught.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [[], ["smpl"], ["checkpoint", "--from", "vibe"], ["pickle"]])
def test_wrong_words_show_the_usage(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: convert.py" in capsys.readouterr().err
