"""Every preset is built, without a network and without its real weights, and is what its record says."""

import dataclasses
import functools

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from wsi_mil.encoders import LEFT_OUT, PACKAGED, PRESETS, load_encoder
from wsi_mil.encoders.build import from_preset
from wsi_mil.errors import FormatError

NAMES = list(PRESETS)
SMALL = [each.name for each in PRESETS.values() if each.parameters < 10e6]


@functools.cache
def built(name):
    """The preset's architecture, without memory for its tensors."""
    return from_preset(PRESETS[name], None)


def shallow(preset):
    """The preset with as few layers as can be: ViT-g and the rest in a second."""
    if "vit" in preset.architecture:
        return dataclasses.replace(preset, arguments={**preset.arguments, "depth": 1})
    block = {"resnet50": {"layers": (1, 1, 1, 1)}, "convnext_tiny": {"depths": (1, 1, 1, 1)}}
    return dataclasses.replace(preset, arguments={**preset.arguments, **block[preset.architecture]})


@pytest.mark.parametrize("name", NAMES)
def test_dimension_and_parameters_are_what_is_built(name):
    preset = PRESETS[name]
    skeleton = built(name)
    module = skeleton.pooled().eval()
    assert sum(each.numel() for each in module.parameters()) == preset.parameters
    assert not any(each._non_persistent_buffers_set for each in module.modules()), "a file has all of it"
    image = torch.zeros(2, 3, preset.input_px, preset.input_px, device="meta")
    assert tuple(module(image).shape) == (2, preset.dim)
    tokens = getattr(skeleton.module, "num_prefix_tokens", None)
    if tokens is None:
        assert (preset.pooling, preset.registers) == ("average", 0)
    else:
        assert tokens == 1 + preset.registers
    if preset.pooling == "class token":
        assert skeleton.module.global_pool == "token"
    transform = skeleton.transform
    found = transform.size_px, transform.mode, transform.mean.shape
    assert found == (preset.input_px, preset.interpolation, (1, 3, 1, 1))


@pytest.mark.parametrize("name", [each.name for each in PRESETS.values() if each.repo.startswith("timm/")])
def test_the_facts_of_timms_models_are_timms(name):
    preset = PRESETS[name]
    stated = timm.get_pretrained_cfg(preset.repo.removeprefix("timm/"))
    assert (stated.hf_hub_id, stated.mean, stated.std) == (preset.repo, preset.mean, preset.std)
    assert (stated.interpolation, stated.input_size[1]) == (preset.interpolation, preset.input_px)
    assert stated.license.lower() == preset.licence.lower()


def random_tensors(module):
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for key, each in module.state_dict().items():
        if each.is_floating_point():
            tensors[key] = torch.empty(each.shape).uniform_(0.01, 0.05, generator=generator)
            if "weight" in key and each.ndim > 1:
                tensors[key] -= 0.03
        else:
            tensors[key] = torch.zeros(each.shape, dtype=each.dtype)
    return tensors


def random_file(preset, path):
    """Write random weights under the names that the module has; return the architecture with them."""
    skeleton = from_preset(preset, None)
    tensors = random_tensors(skeleton.module)
    safetensors.torch.save_file(tensors, path)
    skeleton.module.load_state_dict(tensors, assign=True)
    return skeleton


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_same_shape_load(name, tmp_path, monkeypatch):
    preset = PRESETS[name] if name in SMALL else shallow(PRESETS[name])
    monkeypatch.setitem(PRESETS, name, preset)
    path = tmp_path / "weights.safetensors"
    skeleton = random_file(preset, path)
    encoder = load_encoder(name, path)
    assert (encoder.name, encoder.dim, encoder.mpps) == (name, preset.dim, preset.mpps)
    assert encoder.mpp == (preset.mpps[0] if preset.mpps else None)
    loaded = encoder.module.model if hasattr(encoder.module, "model") else encoder.module
    for (key, one), (_, other) in zip(
        loaded.state_dict().items(), skeleton.module.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), key


@pytest.mark.parametrize(
    "name",
    ["resnet50", "convnext-tiny", "kaiko-vitb8", "kaiko-vitl14", "uni2-h", "virchow", "virchow2", "h0-mini"],
)
def test_the_pooling_is_what_the_record_says(name):
    preset = shallow(PRESETS[name])
    skeleton = from_preset(preset, None)
    skeleton.module.load_state_dict(random_tensors(skeleton.module), assign=True)
    module = skeleton.pooled().eval()
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        features = module(x)
        tokens = skeleton.module.forward_features(x)
    if preset.pooling == "average":
        expected = tokens.mean((2, 3))
        if preset.architecture == "convnext_tiny":
            expected = skeleton.module.head.norm(expected[:, :, None, None])[:, :, 0, 0]
    elif preset.pooling == "class token":
        expected = tokens[:, 0]
    else:
        patches = tokens[:, 1 + preset.registers :]
        assert patches.shape[1] == (224 // 14) ** 2, "registers and class token are no patches"
        expected = torch.cat([tokens[:, 0], patches.mean(1)], 1)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet50-trunc", "densenet121", "uni"])
def test_a_file_of_another_architecture_names_the_first_tensor(name, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "uni", shallow(PRESETS["uni"]))
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    first = next(iter(from_preset(PRESETS[name], None).module.state_dict()))
    with pytest.raises(FormatError, match=f"no tensor {first!r}, which {name} has .*another architecture"):
        load_encoder(name, path)


def test_every_file_of_another_preset_is_refused():
    """Without memory: no two architectures have the same names and shapes, but those of the same family."""
    shapes = {}
    for preset in PRESETS.values():
        state = built(preset.name).module.state_dict()
        shapes[preset.name] = tuple((key, tuple(each.shape)) for key, each in state.items())
    families = {}
    for name, shape in shapes.items():
        families.setdefault(shape, set()).add(PRESETS[name].architecture)
    assert all(len(each) == 1 for each in families.values())
    same = {frozenset(name for name in NAMES if shapes[name] == shape) for shape in families}
    assert frozenset({"h-optimus-0", "h-optimus-1"}) in same
    assert frozenset({"uni", "phikon-v2"}) in same, (
        "ViT-L/16 with layer scale: only the digest tells them apart"
    )
    assert shapes["virchow"] != shapes["virchow2"], "the registers"
    assert shapes["uni"] != shapes["gpfm"], "patches of 16 and of 14"


def test_the_truncated_resnet_is_the_third_stage_of_the_whole_one(tmp_path, monkeypatch):
    layers = {"layers": (1, 1, 1, 1)}  # fewer blocks, the same four stages
    monkeypatch.setitem(PRESETS, "resnet50-trunc", shallow(PRESETS["resnet50-trunc"]))
    torch.manual_seed(0)
    whole = timm.create_model("resnet50", num_classes=1000, **layers).eval()
    path = tmp_path / "resnet50.safetensors"
    safetensors.torch.save_file(whole.state_dict(), path)
    encoder = load_encoder("resnet50-trunc", path)
    x = torch.randn(1, 3, 224, 224)
    stage = timm.create_model("resnet50", features_only=True, out_indices=[3], **layers).eval()
    stage.load_state_dict(whole.state_dict(), strict=False)
    with torch.inference_mode():
        expected = nn.functional.adaptive_avg_pool2d(stage(x)[0], 1).flatten(1)
        torch.testing.assert_close(encoder.module(x), expected, rtol=1e-3, atol=1e-4)


def as_transformers(tensors):
    """The names that transformers 4's Dinov2Model gives the same tensors, written down independently."""
    found = {
        "embeddings.cls_token": tensors["cls_token"],
        "embeddings.mask_token": torch.zeros(1, tensors["cls_token"].shape[-1]),
        "embeddings.position_embeddings": tensors["pos_embed"],
    }
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{kind}"] = tensors[f"patch_embed.proj.{kind}"]
        found[f"layernorm.{kind}"] = tensors[f"norm.{kind}"]
        for block in {key.split(".")[1] for key in tensors if key.startswith("blocks.")}:
            ours, theirs = f"blocks.{block}", f"encoder.layer.{block}"
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{theirs}.{name}.{kind}"] = tensors[f"{ours}.{name}.{kind}"]
            found[f"{theirs}.attention.output.dense.{kind}"] = tensors[f"{ours}.attn.proj.{kind}"]
            parts = tensors[f"{ours}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                found[f"{theirs}.attention.attention.{name}.{kind}"] = part.clone()
            for number in (1, 2):
                found[f"{theirs}.layer_scale{number}.lambda1"] = tensors[f"{ours}.ls{number}.gamma"]
    return found


def test_weights_of_transformers_load_under_their_own_names_and_under_timms(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "phikon-v2", shallow(PRESETS["phikon-v2"]))
    path = tmp_path / "timm.safetensors"
    tensors = random_file(PRESETS["phikon-v2"], path).module.state_dict()
    theirs = tmp_path / "model.safetensors"
    safetensors.torch.save_file(as_transformers(tensors), theirs)
    digest = load_encoder("phikon-v2", path).weights_digest
    assert load_encoder("phikon-v2", theirs).weights_digest == digest
    incomplete = as_transformers(tensors)
    del incomplete["encoder.layer.0.attention.attention.key.bias"]
    safetensors.torch.save_file(incomplete, theirs)
    with pytest.raises(FormatError, match=r"no tensor 'blocks.0.attn.qkv.bias', which phikon-v2 has"):
        load_encoder("phikon-v2", theirs)


def test_records_are_complete_and_name_no_encoder_twice():
    for preset in PRESETS.values():
        assert preset.reference, preset.name
        assert preset.licence, preset.name
        assert all(0.05 < each < 5 for each in preset.mpps)
        assert min(preset.std) > 0
        assert np.all(np.abs(np.array(preset.mean) - 0.5) < 0.3)
        assert preset.repo.count("/") == (preset.name != PACKAGED)
    left_out = {name for names in LEFT_OUT for name in names.split(", ")}
    assert not left_out & set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lunit-resnet50-bt", "kaiko-vitb16", "h0-mini", "uni"])
def test_a_whole_one_runs(name, tmp_path):
    path = tmp_path / "weights.safetensors"
    random_file(PRESETS[name], path)
    encoder = load_encoder(name, path)
    features = encoder.module(encoder.transform(torch.zeros(1, 224, 224, 3, dtype=torch.uint8)))
    assert tuple(features.shape) == (1, PRESETS[name].dim)
