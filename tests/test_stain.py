"""Stain normalisation: patches mixed from known stains come out in the reference's, glass as it was."""

import numpy as np
import pytest
import torch

from wsi_mil.encoders import PACKAGED, load_encoder
from wsi_mil.encoders import stain as stains

REFERENCE = np.array(stains._MACENKO_STAINS, dtype=float)
OTHER = np.array([[0.66, 0.30], [0.65, 0.90], [0.38, 0.32]])


def mixed(vectors, amounts_2HW, light=240.0):
    """Return (height, width, 3) uint8 of stains in known amounts (Beer and Lambert)."""
    density = np.einsum("cs,shw->hwc", vectors / np.linalg.norm(vectors, axis=0), amounts_2HW)
    return np.clip(light * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)


@pytest.fixture
def amounts():
    """Pixels of one stain, of the other, and of both."""
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.6, 1.2, (2, 64, 64))
    amounts[0, :20] = 0.02
    amounts[1, 44:] = 0.02
    return amounts  # no pixel is so pale in any colour that it counts as glass


def batch(*patches):
    return torch.from_numpy(np.stack(patches)).permute(0, 3, 1, 2)


def test_macenko_gives_two_scanners_of_one_tissue_the_same_colours(amounts):
    one, other = mixed(REFERENCE, amounts), mixed(OTHER, amounts * 1.4)
    assert np.abs(one.astype(int) - other).mean() > 15
    found = stains.Macenko()(batch(one, other))
    # 99th percentiles, 8-bit rounding and dark pixels' cut leave a few grey levels.
    assert (found[0] - found[1]).abs().mean() < 4
    # The reference itself: its vectors stay, its amounts are scaled to the reference's percentiles.
    scale = np.array(stains._MACENKO_MAX) / np.percentile(amounts, 99, axis=(1, 2))
    wanted = mixed(REFERENCE, amounts * scale[:, None, None])
    assert np.abs(found[0].permute(1, 2, 0).numpy() - wanted).mean() < 4


def test_reinhard_gives_the_references_mean_and_spread(amounts):
    patch = batch(mixed(OTHER, amounts)).float()
    reinhard = stains.Reinhard()
    # Before the cut at 0 and 255, which moves the statistics of any picture that reaches them.
    found = reinhard.normalize(patch.flatten(2), patch.flatten(2), patch.flatten(2)[:, 0] > 0)
    lab = reinhard.to_lab @ torch.log(reinhard.to_lms @ found)
    std, mean = torch.std_mean(lab, dim=2)
    torch.testing.assert_close(reinhard(patch.byte()), found.clamp(0, 255).view_as(patch))
    torch.testing.assert_close(mean[0], torch.tensor(stains._REINHARD_MEAN), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(std[0], torch.tensor(stains._REINHARD_STD), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["macenko", "reinhard"])
def test_patches_without_enough_stain_pass_unchanged(name, amounts):
    rng = np.random.default_rng(1)
    white = np.full((64, 64, 3), 255, np.uint8)
    glass = rng.integers(235, 256, (64, 64, 3), dtype=np.uint8)
    black = np.zeros((64, 64, 3), np.uint8)
    flat = np.full((64, 64, 3), (200, 120, 170), np.uint8)
    speck = white.copy()
    speck[:4, :4] = (150, 60, 150)
    tissue = mixed(OTHER, amounts)
    patches = batch(white, glass, black, flat, speck, tissue)
    found = stains.stain_normalizer(name)(patches)
    assert found.isfinite().all()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:5], patches[:5].float(), rtol=0, atol=0)
    assert (found[5] - patches[5]).abs().mean() > 3
    alone = stains.stain_normalizer(name)(patches[5:])
    torch.testing.assert_close(found[5:], alone, rtol=1e-4, atol=1e-2, msg="each patch by itself")


@pytest.mark.parametrize("name", ["macenko", "reinhard"])
def test_the_transform_applies_it_before_the_normalisation_and_in_fp32(name, amounts):
    patches = torch.from_numpy(mixed(OTHER, amounts))[None]
    encoder, plain = load_encoder(PACKAGED, stain=name), load_encoder(PACKAGED)
    assert plain.transform.stain is None
    found = encoder.transform(patches)
    by_hand = stains.stain_normalizer(name)(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert found.shape == (1, 3, 224, 224)
    close = plain.transform(by_hand.round().to(torch.uint8))
    assert ((found - close).abs() * 127.5).mean() < 1.5, "but for rounding to bytes"
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder.transform(patches), found)


def test_none_is_none():
    assert stains.stain_normalizer("none") is None
