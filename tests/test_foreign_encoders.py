"""Encoders that a user brings: ONNX, TorchScript, and a module of their own."""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from wsi_mil import encoders
from wsi_mil.encoders import check_fit, load_encoder
from wsi_mil.errors import ConfigError, FormatError

MEAN, STD = [0.7, 0.5, 0.6], [0.2, 0.25, 0.2]
FACTS = {"mean": MEAN, "std": STD}
WEIGHT = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)


def onnx_model(path, *, batch="n", size=64, metadata=None, flat=False, kind=TensorProto.FLOAT):
    """Write a model that averages the image and multiplies by WEIGHT: (N, 3, size, size) to (N, 5)."""
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["pooled"])]
    if not flat:
        nodes += [
            helper.make_node("Flatten", ["pooled"], ["vector"]),
            helper.make_node("MatMul", ["vector", "weight"], ["features"]),
        ]
    name, shape = ("pooled", [batch, 3, 1, 1]) if flat else ("features", [batch, 5])
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("image", kind, [batch, 3, size, size])],
        [helper.make_tensor_value_info(name, kind, shape)],
        [numpy_helper.from_array(WEIGHT, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.save(model, path)
    return f"onnx:{path}"


class Mean(nn.Module):
    """The same in torch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHT))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) @ self.weight


def torchscript_model(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # making such files is deprecated; users have them
        torch.jit.save(torch.jit.script(Mean()), str(path))
    return f"torchscript:{path}"


def expected(patches, size_px=64):
    """What Mean gives, by numpy alone, for patches of the input's size."""
    assert patches.shape[1] == size_px
    normalised = (patches.numpy() / 255 - np.array(MEAN)) / np.array(STD)
    return normalised.mean((1, 2)) @ WEIGHT


def patches_of(count, size_px=64):
    return torch.from_numpy(
        np.random.default_rng(1).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize("batch", ["n", 1, 3])
def test_onnx_takes_its_facts_from_its_own_metadata(tmp_path, batch):
    name = onnx_model(tmp_path / "m.onnx", batch=batch, metadata=FACTS | {"mpp": 0.5})
    encoder = load_encoder(name)
    found = encoder.name, encoder.dim, encoder.patch_px, encoder.mpp, encoder.castable
    assert found == ("onnx:m.onnx", 5, 64, 0.5, False)
    patches = patches_of(7)
    features = encoder.module(encoder.transform(patches))
    np.testing.assert_allclose(features.numpy(), expected(patches), rtol=1e-4, atol=1e-4)


def test_onnx_takes_a_json_beside_it_and_the_digest_is_the_files(tmp_path):
    name = onnx_model(tmp_path / "m.onnx", size="h")
    (tmp_path / "m.json").write_text(json.dumps(FACTS | {"input_px": 64, "interpolation": "bilinear"}))
    encoder = load_encoder(name)
    assert (encoder.patch_px, encoder.transform.mode, encoder.mpp) == (64, "bilinear", None)
    other = onnx_model(tmp_path / "n.onnx", metadata=FACTS)
    assert load_encoder(other).weights_digest != encoder.weights_digest


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (None, "how patches are normalised is not said: .*m.json is not there, nor .* metadata"),
        ("{", "is not JSON"),
        ({"mean": MEAN}, "'std'"),
        ({"mean": [123, 116, 103], "std": [58, 57, 57]}, "not those of RGB in 0..1"),
        (FACTS | {"input_px": 224}, "input_px is 224, and the model takes 64"),
        (FACTS | {"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ([1], "indices must be integers"),
    ],
)
def test_nothing_is_guessed_about_the_normalisation(tmp_path, facts, words):
    name = onnx_model(tmp_path / "m.onnx")
    if facts is not None:
        (tmp_path / "m.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    with pytest.raises(ConfigError, match=words) as error:
        load_encoder(name)
    assert 'wanted {"mean": [r, g, b]' in str(error.value)
    assert "\n" not in str(error.value)


def test_an_onnx_model_of_any_size_must_be_told_one(tmp_path):
    with pytest.raises(ConfigError, match="input_px is missing, and the model takes any size"):
        load_encoder(onnx_model(tmp_path / "m.onnx", size="h", metadata=FACTS))


def test_onnx_files_that_are_no_encoder_are_refused_in_one_line(tmp_path):
    flat = onnx_model(tmp_path / "flat.onnx", flat=True, metadata=FACTS)
    with pytest.raises(FormatError, match=r"gives \(2, 3, 1, 1\) for two patches; wanted one vector each"):
        load_encoder(flat)
    half = onnx_model(tmp_path / "half.onnx", flat=True, kind=TensorProto.FLOAT16, metadata=FACTS)
    with pytest.raises(FormatError, match=r"takes image tensor\(float16\) .*wanted one float \(N, 3"):
        load_encoder(half)
    whole = (tmp_path / "flat.onnx").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no model"):
        (tmp_path / "cut.onnx").write_bytes(content)
        with pytest.raises(FormatError, match="damaged or not such a file") as error:
            load_encoder(f"onnx:{tmp_path / 'cut.onnx'}")
        assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="no such file"):
        load_encoder("onnx:nowhere.onnx")
    with pytest.raises(ConfigError, match="the file holds its weights"):
        load_encoder(flat, tmp_path / "flat.onnx")


def test_onnx_without_onnxruntime_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'wsi-mil\[onnx\]'"):
        load_encoder(onnx_model(tmp_path / "m.onnx", metadata=FACTS))


def test_torchscript_as_wsinfer_publishes_it(tmp_path):
    name = torchscript_model(tmp_path / "torchscript_model.pt")
    config = {
        "spec_version": "1.0",
        "architecture": "mean",
        "num_classes": 5,
        "class_names": list("abcde"),
        "name": "x",
        "patch_size_pixels": 128,
        "spacing_um_px": 0.25,
        "transform": [
            {"name": "Resize", "arguments": {"size": 64}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": MEAN, "std": STD}},
        ],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(name)
    found = encoder.name, encoder.dim, encoder.patch_px, encoder.mpp, encoder.castable
    assert found == ("torchscript:torchscript_model.pt", 5, 64, 0.5, False)
    patches = patches_of(2)
    with torch.inference_mode():
        features = encoder.module(encoder.transform(patches)).numpy()
    np.testing.assert_allclose(features, expected(patches), rtol=1e-4, atol=1e-4)
    assert check_fit(encoder, 0.25, 128) == ""
    config["transform"].append({"name": "CenterCrop", "arguments": {"size": 32}})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="the transform 'CenterCrop' is not known here"):
        load_encoder(name)


def test_torchscript_refuses_pickles_and_damage(tmp_path):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "m.pt"
    (tmp_path / "m.json").write_text(json.dumps(FACTS | {"input_px": 64}))
    torchscript_model(path)
    whole = path.read_bytes()
    for content in (pickle.dumps(Evil()), whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="damaged or not such a file") as error:
            load_encoder(f"torchscript:{path}")
        assert "\n" not in str(error.value)
    torch.save(Evil(), path)
    with pytest.raises(FormatError, match="damaged or not such a file"):
        load_encoder(f"torchscript:{path}")
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def own(monkeypatch):
    """Register a name for this test only."""
    from wsi_mil.encoders import registry

    monkeypatch.setattr(registry, "_OWN", {})
    encoders.register("mine", Mean, input_px=64, mean=tuple(MEAN), std=tuple(STD), mpp=0.5)
    return "mine"


def test_an_encoder_of_ones_own_in_three_lines(own):
    encoder = load_encoder(own)
    assert (encoder.name, encoder.dim, encoder.mpp, encoder.castable) == ("mine", 5, 0.5, True)
    patches = patches_of(2)
    found = encoder.module(encoder.transform(patches)).numpy()
    np.testing.assert_allclose(found, expected(patches), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"mine: sees 1 microns per pixel, its authors prescribe 0\.5"):
        check_fit(encoder, 1.0, 64)


def test_the_readmes_three_lines(own):
    from tests.test_docs import block

    lines = block("register")
    assert len([line for line in lines.splitlines() if line]) == 3
    exec(compile(lines, "README.md", "exec"), {"MyNetwork": Mean})
    encoder = load_encoder("mine")
    assert (encoder.patch_px, encoder.dim, encoder.mpp) == (224, 5, 0.5)


def test_an_encoder_of_ones_own_runs_in_embed(own, make_slide, tmp_path):
    from wsi_mil import embed, store, tile
    from wsi_mil.config import EmbedConfig, TileConfig

    make_slide("a.svs")
    run = tmp_path / "run"
    tile.run(TileConfig(slides=tmp_path / "slides", run=run, patch_px=64, workers=1))
    embed.run(EmbedConfig(run=run, encoder="mine", device="cpu"))
    features = store.read_features(run / "features" / "mine" / "a.h5")
    assert features.features.shape == (len(features.coords), 5)
    assert len(features.coords) > 10


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("uni", {}, "a name without a colon that no preset has"),
        ("my:own", {}, "a name without a colon"),
        ("x", {"std": (0.0, 1.0, 1.0)}, "three positive stds"),
        ("x", {"interpolation": "nearest"}, "wanted bicubic or bilinear"),
    ],
)
def test_what_cannot_be_registered(own, name, values, words):
    settings = {"input_px": 64, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)} | values
    with pytest.raises(ConfigError, match=words):
        encoders.register(name, Mean, **settings)


def test_what_is_registered_must_give_vectors(own):
    encoders.register("map", nn.Identity, input_px=64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"gives \(1, 3, 64, 64\) for one patch; wanted one vector"):
        load_encoder("map")
