"""A tissue mask and what is done to it, whatever found the tissue."""

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
        return float(np.mean(self.mask > 0))


def clean(mask: Mask, mpp: float, *, min_area_um2: float, max_hole_um2: float, closing_um: float) -> Mask:
    """Return a mask, its gaps below twice ``closing_um`` closed, without small pieces and small holes."""
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc(closing_um / mpp)), dtype=np.uint8)
    large = drop_small(closed, min_area_um2 / mpp**2)
    return 255 - drop_small(255 - large, max_hole_um2 / mpp**2, connectivity=4, keep_at_border=True)


def disc(radius_px: float) -> NDArray[np.uint8]:
    """Return the structuring element of a disc."""
    side = 2 * round(radius_px) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), dtype=np.uint8)


def drop_small(mask: Mask, min_pixels: float, connectivity: int = 8, keep_at_border: bool = False) -> Mask:
    """Return the mask without its connected pieces of fewer than ``min_pixels`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    drop = stats[:, cv2.CC_STAT_AREA] < min_pixels
    if keep_at_border:  # a bay that opens to the slide's border is background, however small
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        drop[np.unique(border)] = False
    drop[0] = False
    left, rest = np.array(mask), np.flatnonzero(drop).tolist()
    for piece, (x, y, width, height, _) in zip(rest, stats[rest].tolist(), strict=True):
        box = np.s_[y : y + height, x : x + width]  # small, as the piece is
        left[box][labels[box] == piece] = 0
    return left


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
