"""`wsi-mil embed` with other encoders: what is refused before any slide, and what is written."""

import json

import numpy as np
import pytest

from tests.test_foreign_encoders import FACTS, Mean, onnx_model
from wsi_mil import embed, encoders, store
from wsi_mil.config import EmbedConfig
from wsi_mil.encoders import registry
from wsi_mil.errors import ConfigError


@pytest.fixture
def run(wsi, make_slide, tmp_path):
    """A run with one slide, tiled at 0.5 microns per pixel in patches of 64."""
    make_slide("a.svs")
    folder = tmp_path / "run"
    code = wsi("tile", "--slides", tmp_path / "slides", "--run", folder, "--patch-px", 64, "--workers", 1)[0]
    assert code == 0
    return folder


def features_of(run, encoder):
    return store.read_features(run / "features" / encoder / "a.h5")


def test_an_onnx_file_embeds_a_slide(wsi, run, tmp_path):
    name = onnx_model(tmp_path / "mean.onnx", metadata=FACTS)
    code, out, err = wsi("embed", "--run", run, "--encoder", name, "--device", "cpu")
    assert (code, "1 done" in out) == (0, True), err
    found = features_of(run, "onnx_mean.onnx")
    assert found.features.shape == (len(found.coords), 5)
    assert found.encoder == "onnx:mean.onnx"
    again = wsi("embed", "--run", run, "--encoder", name, "--device", "cpu")
    assert "1 skipped" in again[1]


def test_missing_weights_are_named_before_any_slide_is_opened(wsi, run, tmp_path):
    (tmp_path / "slides" / "a.svs").unlink()
    code, _, err = wsi("embed", "--run", run, "--encoder", "uni", "--weights-dir", tmp_path / "w")
    assert code == 2
    assert "uni.safetensors is missing, the weights of --encoder uni" in err
    assert "a.svs" not in err
    assert not (run / "features").exists()


def test_a_mismatch_is_refused_and_recorded_when_it_is_allowed(run, monkeypatch):
    monkeypatch.setattr(registry, "_OWN", {})
    encoders.register("mine", Mean, input_px=64, mean=(0.5,) * 3, std=(0.5,) * 3, mpp=0.25)
    with pytest.raises(ConfigError, match=r"mine: sees 0.5 microns per pixel, its authors prescribe 0.25"):
        embed.run(EmbedConfig(run=run, encoder="mine", device="cpu"))
    assert (
        embed.run(EmbedConfig(run=run, encoder="mine", device="cpu", allow_mismatch=True)).count("done") == 1
    )
    notes = json.dumps(features_of(run, "mine").notes)
    assert "mine sees 0.5 microns per pixel, its authors prescribe 0.25" in notes


def test_stain_normalisation_changes_features_and_is_part_of_the_record(wsi, run, tmp_path):
    name = onnx_model(tmp_path / "mean.onnx", metadata=FACTS)
    base = ("embed", "--run", run, "--encoder", name, "--device", "cpu")
    assert wsi(*base)[0] == 0
    plain = features_of(run, "onnx_mean.onnx").features
    code, _, err = wsi(*base, "--stain", "reinhard")
    assert code == 1
    assert "stain was none and is now reinhard" in err.replace("'", "")
    assert wsi(*base, "--stain", "reinhard", "--overwrite")[0] == 0
    stained = features_of(run, "onnx_mean.onnx").features
    assert np.isfinite(stained).all()
    assert np.abs(stained.astype(float) - plain).max() > 0.05
