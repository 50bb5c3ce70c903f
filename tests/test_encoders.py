import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import nn

from wsi_mil.encoders import (
    PACKAGED,
    Encoder,
    PatchTransform,
    check_fit,
    load_encoder,
    packaged_weights,
    read_weights,
    weights_path,
)
from wsi_mil.errors import ConfigError, FormatError

TINY = "test_resnet"  # a real timm architecture of half a million parameters


@pytest.fixture
def tiny_weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file(timm.create_model(TINY, num_classes=10).state_dict(), path)
    return path


def test_the_packaged_encoder_has_its_imagenet_weights():
    encoder = load_encoder(PACKAGED)
    assert (encoder.dim, encoder.patch_px) == (1280, 224)
    assert encoder.transform.mean.flatten().tolist() == [127.5] * 3
    assert encoder.transform.std.flatten().tolist() == [127.5] * 3
    assert encoder.weights_digest == load_encoder(PACKAGED).weights_digest
    # Real weights: their first filters are smooth and their batch statistics are not those of a fresh model.
    assert encoder.module.bn1.running_var.std() > 0.1
    tensors = packaged_weights(timm.create_model(PACKAGED, num_classes=0))
    assert tensors["blocks.2.0.conv_dw.weight"].shape == (144, 1, 5, 5)


@pytest.mark.parametrize(("name", "size"), [(PACKAGED, 256), (TINY, 160), (TINY, 300)])
def test_the_transform_is_timms_without_the_crop(name, size, tiny_weights):
    encoder = load_encoder(name, None if name == PACKAGED else tiny_weights)
    patch = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    patch = np.array(Image.fromarray(patch).resize((size // 8, size // 8)).resize((size, size)))
    data = timm.data.resolve_model_data_config(encoder.module) | {"crop_pct": 1.0}
    theirs = create_transform(**data)(Image.fromarray(patch))
    ours = encoder.transform(torch.from_numpy(patch)[None])[0]
    assert ours.shape == theirs.shape
    grey_levels = (ours - theirs).abs() * encoder.transform.std.max()
    assert grey_levels.max() <= 2.01, "rounding between the two passes of the resize"
    assert grey_levels.mean() < 0.01


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_local_weights_load_with_or_without_a_classifier(tmp_path, tiny_weights, suffix):
    tensors = read_weights(tiny_weights)
    path = tmp_path / f"copy{suffix}"
    bare = {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}
    if suffix == ".safetensors":
        safetensors.torch.save_file(bare, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in bare.items()}}, path)
    encoder, whole = load_encoder(TINY, path), load_encoder(TINY, tiny_weights)
    assert encoder.weights_digest == whole.weights_digest, "the digest is of the tensors, not of the file"
    assert torch.equal(encoder.module.conv1[0].weight, tensors["conv1.0.weight"])


def test_weights_of_another_architecture_name_the_first_tensor(tiny_weights):
    with pytest.raises(
        FormatError, match=r"no tensor 'conv1.weight', which resnet18 has.*another architecture"
    ):
        load_encoder("resnet18", tiny_weights)


def test_a_tensor_too_many_or_of_another_shape_is_refused(tmp_path, tiny_weights):
    tensors = read_weights(tiny_weights)
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors | {"extra.weight": torch.zeros(3)}, path)
    with pytest.raises(FormatError, match=r"'extra.weight' has no place"):
        load_encoder(TINY, path)
    safetensors.torch.save_file(tensors | {"conv1.0.weight": torch.zeros(3)}, path)
    with pytest.raises(FormatError, match=r"'conv1.0.weight' has shape \(3,\), test_resnet has"):
        load_encoder(TINY, path)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"state_dict": Evil(str(tmp_path / "ran"))}))
    with pytest.raises(FormatError, match="a pickle can run code and is refused"):
        load_encoder(TINY, path)
    torch.save({"state_dict": Evil(str(tmp_path / "ran"))}, path)
    with pytest.raises(FormatError, match="a pickle can run code and is refused"):
        load_encoder(TINY, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_weights_are_refused(tmp_path, tiny_weights, suffix):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pt":
        torch.save(read_weights(tiny_weights), path)
        path.write_bytes(path.read_bytes()[:20_000])
    else:
        path.write_bytes(tiny_weights.read_bytes()[:20_000])
    with pytest.raises(FormatError, match="damaged or not a weights file"):
        load_encoder(TINY, path)
    with pytest.raises(FormatError, match="no such file"):
        load_encoder(TINY, tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FormatError, match="holds no state dict"):
        load_encoder(TINY, tmp_path / "list.pt")


def test_an_unknown_name_suggests_close_ones():
    with pytest.raises(ConfigError, match=r"timm has no such model.*Close: .*resnet50"):
        load_encoder("resnet5O")


def test_tensors_that_are_no_weights_are_refused(tmp_path, tiny_weights):
    tensors = read_weights(tiny_weights)
    path = tmp_path / "x.safetensors"
    name = "conv1.0.weight"
    for value in (float("nan"), float("inf")):
        broken = tensors[name].clone()
        broken[3, 0, 1, 1] = value
        safetensors.torch.save_file(tensors | {name: broken}, path)
        with pytest.raises(FormatError, match=f"'{name}' holds NaN or infinite values; the file is damaged"):
            load_encoder(TINY, path)
    safetensors.torch.save_file(tensors | {name: tensors[name].to(torch.int8)}, path)
    with pytest.raises(FormatError, match=r"'conv1.0.weight' is torch.int8, test_resnet has torch.float32"):
        load_encoder(TINY, path)


def test_half_precision_weights_are_run_in_fp32(tmp_path, tiny_weights):
    half = {
        name: each.half() if each.is_floating_point() else each
        for name, each in read_weights(tiny_weights).items()
    }
    path = tmp_path / "half.safetensors"
    safetensors.torch.save_file(half, path)
    encoder = load_encoder(TINY, path)
    assert {each.dtype for each in encoder.module.parameters()} == {torch.float32}
    assert torch.equal(encoder.module.conv1[0].weight, half["conv1.0.weight"].float())


def seen_by(mpps, px=224):
    """An encoder's record with nothing behind it: all that check_fit looks at."""
    transform = PatchTransform(px, (0.5,) * 3, (0.5,) * 3, "bicubic")
    return Encoder("x", nn.Identity(), transform, 3, px, mpps[0] if mpps else None, "", mpps)


@pytest.mark.parametrize(
    ("mpps", "mpp", "patch_px", "fits"),
    [
        ((), 4.0, 1024, True),  # its authors name none
        ((0.5,), 0.5, 224, True),
        ((0.5,), 0.5, 256, True),  # 0.571: what most tools do
        ((0.5,), 0.45, 224, True),  # a scanner's own 20x
        ((0.5,), 0.25, 448, True),  # the same tissue, resized
        ((0.5,), 0.25, 224, False),
        ((0.5,), 0.25, 256, False),
        ((0.5,), 1.0, 224, False),
        ((0.5,), 0.5, 512, False),
        ((0.5,), 1.0, 112, False),  # enlarged: the detail of 0.5 is not there
        ((0.571,), 0.25, 512, True),  # as GPFM's authors do
        ((0.5, 0.25, 1.0, 2.0), 2.0, 224, True),
        ((0.5, 0.25, 1.0, 2.0), 0.7, 224, False),
    ],
)
def test_an_encoder_at_another_mpp_is_refused_or_noted(mpps, mpp, patch_px, fits):
    encoder = seen_by(mpps)
    if fits:
        assert check_fit(encoder, mpp, patch_px, allow_mismatch=False) == ""
        assert check_fit(encoder, mpp, patch_px, allow_mismatch=True) == ""
        return
    with pytest.raises(ConfigError, match=r"--encoder x: sees .*Tile with --mpp .*or pass --allow-mismatch"):
        check_fit(encoder, mpp, patch_px, allow_mismatch=False)
    assert check_fit(encoder, mpp, patch_px, allow_mismatch=True).startswith("x sees ")


def test_an_unknown_prefix_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"before the colon is not known; known: timm:NAME, hf-hub:"):
        load_encoder("torchvision:resnet50")


def test_names_of_files_in_a_weights_folder(tmp_path):
    names = ("uni", "timm:resnet50.a1_in1k", "hf-hub:MahmoodLab/UNI", "../x")
    found = [weights_path(tmp_path, name).name for name in names]
    assert found == [
        "uni.safetensors",
        "resnet50.a1_in1k.safetensors",
        "hf-hub_MahmoodLab_UNI.safetensors",
        ".._x.safetensors",
    ]


@pytest.mark.parametrize("name", ["resnet18", "hf-hub:MahmoodLab/UNI"])
def test_without_a_network_a_hub_model_fails_in_one_line(name, monkeypatch, tmp_path):
    import huggingface_hub.constants

    # The hub's own switch for machines without a network: the same error, without its half minute of retries.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"weights are not on this machine.*--weights FILE") as error:
        load_encoder(name)
    assert "\n" not in str(error.value)


def test_a_hub_name_with_a_file_asks_for_the_architecture(tiny_weights):
    with pytest.raises(ConfigError, match="Name the timm architecture instead"):
        load_encoder("hf-hub:MahmoodLab/UNI", tiny_weights)
