"""A tissue mask and what is done to it, whatever found the tissue."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
"""(height, width), 255 or 0, on the raster of the thumbnail."""


@dataclass(frozen=True)
class Tissue:
    """What a thumbnail shows, as masks (height, width) uint8, 255 or 0, on its raster.

    ``mask`` is tissue, ``pen`` ink, which is never tissue: nobody knows what is below it. ``kind`` is how the
    tissue was found; ``threshold`` the value above which a pixel counted, in that kind's own unit.
    """

    mask: Mask
    threshold: float
    kind: str
    pen: Mask

    @property
    def fraction(self) -> float:
        """Part of the slide's area that is tissue."""
        return cv2.countNonZero(self.mask) / self.mask.size


def clean(mask: Mask, mpp: float, *, min_area_um2: float, max_hole_um2: float, closing_um: float) -> Mask:
    """Return a mask, its gaps below twice ``closing_um`` closed, without small pieces and small holes."""
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc(closing_um / mpp)), dtype=np.uint8)
    return fill_holes(drop_pieces(closed, min_area_um2 / mpp**2), max_hole_um2 / mpp**2)


def disc(radius_px: float) -> NDArray[np.uint8]:
    """Return the structuring element of a disc."""
    side = 2 * round(radius_px) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), dtype=np.uint8)


def drop_pieces(mask: Mask, min_pixels: float) -> Mask:
    """Return the mask without its pieces (8-connected) of fewer than ``min_pixels`` pixels."""
    left = mask.copy()
    outlines, pixels, is_hole = _regions(mask)
    for index in np.flatnonzero(~is_hole & (pixels < min_pixels)).tolist():
        _flood(left, outlines[index], outlines[index][0, 0], 0, connectivity=8)
    return left


def fill_holes(mask: Mask, min_pixels: float) -> Mask:
    """Return the mask without its holes (4-connected) of fewer than ``min_pixels`` pixels.

    A bay that opens to the slide's border is no hole, however small.
    """
    left = mask.copy()
    outlines, pixels, is_hole = _regions(mask)
    for index in np.flatnonzero(is_hole & (pixels < min_pixels)).tolist():
        # The outline runs through the pixels around the hole, and begins at the left of one of its own.
        _flood(left, outlines[index], outlines[index][0, 0] + (1, 0), 255, connectivity=4)
    return left


def _regions(mask: Mask) -> tuple[Sequence[NDArray[Any]], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the outlines of pieces and holes, the pixels of each, and which are holes.

    Pixels are counted by Pick's theorem: a polygon through pixel centres, of area A and with B steps from
    pixel to pixel, holds A + B / 2 + 1 of them, and A - B / 2 + 1 inside of itself. A piece lacks its holes,
    and a hole the pieces in it. Labelling all pixels to count them takes twenty times as long on smooth
    tissue.
    """
    outlines, tree = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return [], np.empty(0), np.empty(0, bool)
    parents: list[int] = tree[0][:, 3].tolist()
    is_hole = np.zeros(len(outlines), bool)
    pixels, enclosed = np.empty(len(outlines)), np.zeros(len(outlines))
    for index, (outline, parent) in enumerate(zip(outlines, parents, strict=True)):  # a parent comes first
        is_hole[index] = parent >= 0 and not is_hole[parent]
        half = len(outline) / 2 if len(outline) > 1 else 0.0
        pixels[index] = cv2.contourArea(outline) + (1 - half if is_hole[index] else 1 + half)
        if parent >= 0:
            enclosed[parent] += pixels[index]
    return outlines, pixels - enclosed, is_hole


def _flood(mask: Mask, outline: NDArray[Any], seed_xy: NDArray[Any], value: int, connectivity: int) -> None:
    """Paint what is connected to a pixel, and lies within the box of ``outline``."""
    x, y, width, height = cv2.boundingRect(outline)
    seed = int(seed_xy[0]) - x, int(seed_xy[1]) - y
    cv2.floodFill(mask[y : y + height, x : x + width], None, seed, value, flags=connectivity)


def picked(labels: Any, keep: NDArray[np.bool_]) -> Mask:
    """Return the mask of the labelled pieces that are to be kept, a bool for each."""
    return np.asarray(np.where(keep, np.uint8(255), np.uint8(0))[labels], dtype=np.uint8)


def above(values: NDArray[np.uint8], threshold: float) -> Mask:
    """Return where ``values`` are above the threshold."""
    return np.asarray(cv2.threshold(values, threshold, 255, cv2.THRESH_BINARY)[1], dtype=np.uint8)


def blur(thumbnail: NDArray[np.uint8], radius_um: float, mpp: float) -> NDArray[np.uint8]:
    """Return the thumbnail blurred by a Gaussian of deviation ``radius_um``, at least half a pixel."""
    # Colours are blurred, not what is computed of them: the noise of grey pixels is colourless on average.
    return np.asarray(cv2.GaussianBlur(thumbnail, (0, 0), sigmaX=max(radius_um / mpp, 0.5)), dtype=np.uint8)


def chroma(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return max(R, G, B) - min(R, G, B): 0 for every grey, so for glass, black padding and shadows."""
    highest, lowest = extremes(picture)
    return np.asarray(cv2.subtract(highest, lowest), dtype=np.uint8)


def brightest(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return max(R, G, B)."""
    return extremes(picture)[0]


def extremes(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the largest and the smallest of R, G and B."""
    red, green, blue = cv2.split(picture)
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    return np.asarray(highest, dtype=np.uint8), np.asarray(lowest, dtype=np.uint8)


def above_background(values: NDArray[np.uint8], sigmas: float, floor: int, seen: Mask | None = None) -> int:
    """Return the value up to which pixels are background, by the peak of the histogram at its lower end.

    Of the peak only the lower half is looked at: the upper one may hold faint tissue. ``floor`` is the least
    distance from the peak, ``sigmas`` the distance in deviations of its noise. ``seen`` are the pixels that
    count; default: all.
    """
    counts = np.asarray(cv2.calcHist([values], [0], seen, [256], [0, 256]), dtype=np.float64).ravel()
    if not counts.sum():
        return 255
    # The first peak that holds a twentieth of the pixels within three values: background may be the smaller
    # part of a slide, but it is never a speck.
    near = np.convolve(counts, np.ones(3), mode="same")
    enough = np.flatnonzero(near >= 0.05 * counts.sum())
    first = int(enough[0]) if len(enough) else int(near.argmax())
    peak = first
    while (
        near[peak + 1 : peak + 3].max(initial=0) > near[peak]
    ):  # up the first hill, and not over to the next
        peak += 1
    below = np.arange(peak + 1)
    weights = counts[: peak + 1].copy()
    weights[peak] /= 2
    sigma = float(np.sqrt((weights * (below - peak) ** 2).sum() / max(weights.sum(), 1)))
    return peak + max(floor, int(np.ceil(sigmas * sigma)))
