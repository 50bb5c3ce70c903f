"""Faint hematoxylin and DAB on bright glass: immunohistochemistry, by optical density against the glass.

A counterstain may darken the glass by two hundredths, where a shadow darkens it by three tenths. What tells
them apart is that a shadow is grey: of the optical density only what the channels do not have in common
counts. The glass's own tint is taken off first, and the threshold is that of its own noise.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.tissue.mask import Mask, above, above_background, blur, brightest, chroma

_BLUR_UM = 10.0
_UNITS = 500.0  # of an optical density (natural logarithm) of 1
_FLOOR = 5  # units above the glass: 1 % of the light; real glass varies by half of that
_SIGMAS = 6.0
_SEEN = 50_000  # pixels are enough for the glass's colour
_DARKEST = 25  # a pixel without a channel above this is padding, whose colour is noise


def by_density(thumbnail: NDArray[np.uint8], mpp: float, unseen: Mask) -> tuple[Mask, int]:
    """Return where there is stain, and the density above which a pixel counted; ``unseen`` is left out."""
    smooth = blur(thumbnail, _BLUR_UM, mpp)
    glass = _glass(smooth)
    densities = [
        cv2.LUT(channel, _density_of(white))
        for channel, white in zip(cv2.split(smooth), glass.tolist(), strict=True)
    ]
    stain = chroma(np.asarray(cv2.merge(densities), dtype=np.uint8))
    seen = above(brightest(smooth), _DARKEST) & ~unseen
    threshold = above_background(stain, _SIGMAS, _FLOOR, seen)
    return above(stain, threshold) & seen, threshold


def _glass(picture: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the colour of the glass: the median of the brighter half of what is bright and nearly grey."""
    step = max(1, round(math.sqrt(picture.shape[0] * picture.shape[1] / _SEEN)))  # glass is everywhere
    picture = np.ascontiguousarray(picture[::step, ::step])
    green = picture[..., 1]
    grey = (chroma(picture) < 12) & (picture.min(axis=2) > 160) & (picture.max(axis=2) < 254)
    if grey.mean() < 0.005:  # a slide that is all tissue, or all padding
        return np.array([245.0, 245.0, 245.0])
    brighter = grey & (green >= np.median(green[grey]))
    return np.asarray(np.median(picture[brighter], axis=0), dtype=np.float64)


def _density_of(white: float) -> NDArray[np.uint8]:
    """Return the optical density of each of 256 values against ``white``, in units from 20 on (clipped)."""
    light = np.maximum(np.arange(256), 1) / max(white, 1)
    return np.clip(np.rint(20 - _UNITS * np.log(light)), 0, 255).astype(np.uint8)
