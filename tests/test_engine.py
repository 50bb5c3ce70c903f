import dataclasses

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from wsi_mil.embed import precision
from wsi_mil.embed.engine import Engine
from wsi_mil.embed.precision import choose, drawn_patches, in_precision
from wsi_mil.encoders import PACKAGED, load_encoder
from wsi_mil.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    safetensors.torch.save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), path)
    return load_encoder("test_resnet", path)


@pytest.fixture(scope="module")
def patches():
    return np.random.default_rng(0).integers(0, 256, (21, 160, 160, 3), dtype=np.uint8)


def run(engine, patches, size):
    done = []
    for k in range(0, len(patches), size):
        engine.submit(patches[k : k + size])
        done.append(engine.result()[0])
    return np.concatenate(done)


def test_a_patch_has_the_same_features_in_whatever_company(encoder, patches):
    """Bit for bit: a run that was killed and resumed has other batches than one that was not."""
    features = [
        run(Engine(encoder, CPU, p, batch_size=b), patches, b) for p in ("fp32", "bf16") for b in (21, 8, 1)
    ]
    for first, *others in (features[:3], features[3:]):
        for other in others:
            assert (first == other).all()


class OutOfMemory(nn.Module):
    """A module that cannot take more than ``most`` patches at a time, as a small GPU."""

    def __init__(self, module, most):
        super().__init__()
        self.module, self.most, self.sizes = module, most, []

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.sizes.append(len(x))
        return self.module(x)


def test_batches_are_halved_until_they_fit_and_it_is_said(encoder, patches):
    small, said = OutOfMemory(encoder.module, 3), []
    engine = Engine(dataclasses.replace(encoder, module=small), CPU, "fp32", batch_size=16, say=said.append)
    features = run(engine, patches, 16)
    assert (features == run(Engine(encoder, CPU, "fp32", batch_size=16), patches, 16)).all()
    assert engine.batch_size == 2, "remembered"
    assert said == [f"out of memory on cpu: going on with batches of {n}" for n in (8, 4, 2)]
    assert max(small.sizes) <= 3


def test_memory_for_not_even_one_patch_is_an_error(encoder, patches):
    engine = Engine(
        dataclasses.replace(encoder, module=OutOfMemory(encoder.module, 0)), CPU, "fp32", batch_size=2
    )
    with pytest.raises(ConfigError, match="out of memory with a single patch and test_resnet"):
        engine.submit(patches[:2])


def test_bf16_is_chosen_where_it_is_fast_and_the_features_stay(monkeypatch):
    encoder = load_encoder(PACKAGED)
    monkeypatch.setattr(precision, "bf16_is_fast", lambda device: True)
    chosen = choose("auto", encoder, CPU)
    assert chosen.name == "bf16"
    assert chosen.fp32_layers > 0, "the first layers of this network do not stand bf16"
    x = encoder.transform(torch.from_numpy(drawn_patches(224)))
    with torch.inference_mode():
        all_bf16, chosen_bf16 = (in_precision(encoder, "bf16", n)(x).float() for n in (0, chosen.fp32_layers))
        fp32 = in_precision(encoder, "fp32", 0)(x)
    worst = [float(nn.functional.cosine_similarity(each, fp32).min()) for each in (all_bf16, chosen_bf16)]
    assert worst[0] < 0.999 < precision.WANTED <= worst[1]
    monkeypatch.setattr(precision, "WANTED", 1.1)
    assert choose("auto", encoder, CPU).name == "fp32", "rather slow than another result"
    monkeypatch.setattr(precision, "bf16_is_fast", lambda device: False)
    assert choose("auto", encoder, CPU) == precision.Precision("fp32")


def test_bf16_is_taken_at_its_word_and_refused_where_it_cannot_be(encoder):
    assert choose("bf16", encoder, CPU) == precision.Precision("bf16")
    assert choose("fp32", encoder, CPU) == precision.Precision("fp32")
    fixed = dataclasses.replace(encoder, castable=False)
    assert choose("auto", fixed, CPU) == precision.Precision("fp32")
    with pytest.raises(ConfigError, match="--precision bf16: test_resnet cannot be cast"):
        choose("bf16", fixed, CPU)


def test_the_encoder_is_as_before_after_a_choice(encoder, patches, monkeypatch):
    monkeypatch.setattr(precision, "bf16_is_fast", lambda device: True)
    before = run(Engine(encoder, CPU, "fp32", batch_size=8), patches, 8)
    monkeypatch.setattr(precision, "WANTED", 1.1)
    choose("auto", encoder, CPU)
    assert (run(Engine(encoder, CPU, "fp32", batch_size=8), patches, 8) == before).all()
    assert all("forward" not in vars(each) for each in encoder.module.modules())


def test_drawn_patches_go_from_glass_to_tissue():
    drawn = drawn_patches(96)
    assert drawn.shape == (16, 96, 96, 3)
    darkness = 255 - drawn.mean(axis=(1, 2, 3))
    assert darkness[0] < 25
    assert darkness[-1] > 60
    assert (drawn == drawn_patches(96)).all()


@pytest.mark.slow
def test_compiled_features_are_close_and_need_a_castable_encoder(encoder, patches):
    said = []
    compiled = run(Engine(encoder, CPU, "fp32", batch_size=8, compiled=True, say=said.append), patches, 8)
    plain = run(Engine(encoder, CPU, "fp32", batch_size=8), patches, 8)
    assert np.abs(compiled.astype(float) - plain.astype(float)).max() < 1e-2
    assert "compiling test_resnet" in said[0]
    with pytest.raises(ConfigError, match="--compile: test_resnet is no torch module"):
        Engine(dataclasses.replace(encoder, castable=False), CPU, "fp32", compiled=True)
