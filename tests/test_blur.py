"""How far a patch is out of focus, in microns: whatever its stain, its noise and its resolution."""

import cv2
import numpy as np
import pytest

from benchmarks.blurred import BLURRED_UM, MAX_BLUR_UM, SHARP_UM, measure, pictures, score, squares
from wsi_mil.slide import open_slide
from wsi_mil.tile.quality import MOST_BLUR_UM, SQUARES, blur_of_patch, blur_of_squares

EVEN = np.ones(SQUARES**2, np.float32)


def texture(side: int, seed: int = 0) -> np.ndarray:
    """A picture (side, side) float32 with as much contrast at every scale, mean 0 and deviation 1."""
    waves = np.fft.rfft2(np.random.default_rng(seed).standard_normal((side, side)))
    distance = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    distance[0, 0] = np.inf
    picture = np.fft.irfft2(waves / distance, (side, side)).astype(np.float32)
    return (picture - picture.mean()) / picture.std()


def grey(picture: np.ndarray, contrast: float) -> np.ndarray:
    return np.clip(160 + contrast * picture + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("blur_um", [1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("contrast", [6.0, 40.0])
@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_what_is_measured_is_the_blur_that_was_made(blur_um, contrast, mpp):
    """On the texture that the formula is made for; a Gaussian is a Gaussian at every resolution."""
    picture = cv2.GaussianBlur(texture(512), (0, 0), blur_um / mpp)
    contrast /= picture.std()
    assert np.median(blur_of_squares(grey(picture, contrast), mpp)[0]) == pytest.approx(blur_um, rel=0.15)


def test_contrast_does_not_matter():
    picture = cv2.GaussianBlur(texture(256), (0, 0), 2.0)
    values = [blur_of_patch(grey(picture, contrast), 1.0, EVEN) for contrast in (10, 20, 40, 80)]
    assert np.ptp(values) < 0.1


def test_a_patch_is_as_blurred_as_half_of_its_tissue():
    sharp = texture(256)
    picture = grey(np.hstack([sharp[:, :64], cv2.GaussianBlur(sharp, (0, 0), 4)[:, 64:]]), 40)
    assert blur_of_patch(picture, 1.0, EVEN) > 2
    left = (np.arange(SQUARES**2) % SQUARES == 0).astype(np.float32)
    assert blur_of_patch(picture, 1.0, left) < 1


def test_what_is_empty_says_nothing_unless_all_is():
    """A patch of fat is cells without anything in them, and walls."""
    walls = np.full((256, 256), 240, np.uint8)
    walls[:64] = grey(texture(256), 40)[:64]
    assert blur_of_patch(walls, 1.0, EVEN) < 1
    assert blur_of_patch(np.full((256, 256), 240, np.uint8), 1.0, EVEN) == MOST_BLUR_UM


@pytest.mark.parametrize(("contrast", "least"), [(1.0, 0.95), (0.3, 0.9)])
def test_real_tissue_is_blurred_when_it_was_blurred(real_data, contrast, least):
    """Sharp fields of colon and of nine classes, blurred; also as pale as a counterstain."""
    found = [
        (square, mpp)
        for folder, every, mpp in (("colon_cancer", 13, 0.55), ("tiles/nct_crc_9", 1, 0.5))
        for picture in pictures(real_data / folder, every)
        for square in squares(picture, mpp)
    ]
    assert len(found) > 20
    values = {
        amount: [measure(square, mpp, amount, contrast=contrast)[0] for square, mpp in found]
        for amount in (*SHARP_UM, *BLURRED_UM)
    }
    assert sum(value > MAX_BLUR_UM for value in values[0.0]) <= 0.02 * len(found), "sharp as they came"
    precision, recall = score(values, MAX_BLUR_UM)
    assert precision >= 0.95
    assert recall >= least, "what is both pale and far out of focus is partly noise"


def test_real_fluorescence_is_sharp_until_it_is_blurred(real_slides):
    with open_slide(real_slides / "test3-TRITC 2 (560).ndpi") as slide:
        picture = slide.read(1200, 1600, 512, 0.5)
    light = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    blurred = cv2.GaussianBlur(light, (0, 0), 4 / 0.5)
    assert blur_of_patch(light, 0.5, EVEN) < MAX_BLUR_UM < blur_of_patch(blurred, 0.5, EVEN)
