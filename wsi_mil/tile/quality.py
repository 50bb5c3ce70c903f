"""What is known of every patch beside where it lies: columns, and which of them leave a patch out.

Tissue, pen, saturation, black and white are means over the thumbnail on which the tissue was found, and cost
nothing. Focus and blur need the pixels of the patch itself, which are read once, through ``blocks``.
"""

import itertools
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil import blocks, geometry
from wsi_mil.geometry import PatchGeometry
from wsi_mil.slide import Slide
from wsi_mil.tissue import Tissue
from wsi_mil.tissue.mask import above, extremes

REASONS = ("tissue", "pen", "focus")
"""Why a patch is left out, in the order in which it is asked: too little tissue, too much pen, blurred."""

OF_PIXELS = ("focus", "blur_um")
"""Columns for which every patch is read."""

UNKNOWN = -1.0
WHITE, BLACK = 225, 40
SQUARES = 4  # a patch is looked at in this many by this many squares: half of it may be sharp
MOST_BLUR_UM = 10.0
_PIXEL_UM = 1.0  # blur is measured at this resolution, or at the patch's own where that is coarser
_LEAST_PX = 32  # eight pixels a square
_FINE, _COARSE = 0.7, 2.0  # pixels: finer is the noise's and the compression's, coarser is the tissue's
_FLAT = 0.02  # squared grey values per pixel: the noise of a camera has half of this left at _COARSE
_BATCH = 64


def of_thumbnail(
    thumbnail: NDArray[np.uint8], tissue: Tissue, boxes: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """Return the columns that a thumbnail (height, width, 3) shows, for boxes (N, 4) of its pixels.

    ``pen_fraction``, ``whiteness`` and ``blackness`` are parts of a patch's area: ink, no channel below
    ``WHITE``, no channel above ``BLACK``. ``saturation`` is the mean of (max - min) / max, 0 to 1.
    """
    highest, lowest = extremes(thumbnail)
    saturation = cv2.divide(cv2.subtract(highest, lowest), highest, scale=255)  # black has none: x / 0 is 0
    rasters = {
        "pen_fraction": tissue.pen,
        "saturation": np.asarray(saturation, dtype=np.uint8),
        "whiteness": above(lowest, WHITE - 1),
        "blackness": ~above(highest, BLACK),
    }
    return {name: fractions(raster, boxes) for name, raster in rasters.items()}


def fractions(raster: NDArray[np.uint8], boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the means of a raster of 0 to 255 in boxes, as 0 to 1."""
    if not cv2.countNonZero(raster):
        return np.zeros(len(boxes), np.float32)
    return (geometry.box_means(raster, boxes) / 255).astype(np.float32)


def of_pixels(
    slide: Slide,
    coords: NDArray[np.int64],
    plan: PatchGeometry,
    tissue: Tissue,
    note: Callable[[str], None] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return the columns (N,) that the patches' own pixels show: ``focus`` and ``blur_um``.

    Both are taken in ``SQUARES`` by ``SQUARES`` squares, and the patch has their median, weighted by their
    tissue: a fold or a sharp edge in a corner does not hide that the rest is blurred, and glass is no blur.
    Patches that cannot be read have ``UNKNOWN``.
    """
    found = {name: np.full(len(coords), UNKNOWN, np.float32) for name in OF_PIXELS}
    weights = _tissue_of_squares(coords, plan, tissue)
    order = blocks.sweep_order(slide, coords, plan)
    stream = blocks.stream(
        slide, coords[order], plan, batch_size=_BATCH, workers=1, max_broken=1.0, note=note
    )
    for batch in stream:
        for patch, row in zip(batch.patches, order[batch.index].tolist(), strict=True):
            grey = np.asarray(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
            found["focus"][row] = _weighted_median(focus_of_squares(grey), weights[row])
            found["blur_um"][row] = blur_of_patch(grey, plan.mpp, weights[row])
    return found


def out_of_focus(
    measured: dict[str, NDArray[np.float32]], min_focus: float | None, max_blur_um: float | None
) -> NDArray[np.bool_]:
    """Return which patches (N,) are blurred by what was measured; what is not known is none."""
    focus, blur = (measured[name] for name in OF_PIXELS)
    found: NDArray[np.bool_] = np.zeros(len(focus), bool)
    if min_focus is not None:
        found |= focus < min_focus
    if max_blur_um is not None:
        found |= blur > max_blur_um
    return np.asarray(found & (focus != UNKNOWN), dtype=bool)


def focus_of_squares(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the variance of the Laplacian in each square of a patch (size, size), row-major."""
    laplacian = np.asarray(cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE), dtype=np.float32)
    return np.array([cv2.meanStdDev(square)[1].item() ** 2 for square in _squares(laplacian)])


def blur_of_patch(grey: NDArray[np.uint8], mpp: float, weights: NDArray[np.float32]) -> float:
    """Return the blur of a patch (size, size), in microns: of half of its tissue, by ``weights`` of squares.

    Squares without detail (an empty fat cell, a lumen) say nothing, unless all of them are such.
    """
    blurs, detail = blur_of_squares(grey, mpp)
    seen = weights * (detail > _FLAT)
    return _weighted_median(blurs, seen if seen.any() else weights)


def blur_of_squares(grey: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far out of focus each square of a patch (size, size) is, in microns, and its detail.

    Blur is the deviation of the Gaussian that would make a sharp picture as soft. Blurring once more tells:
    it takes much of a sharp picture's gradients and little of a soft one's, and the part that it takes does
    not depend on how strong the stain is. Where a picture has as much contrast at every scale (a spectrum of
    1/f^2: Field, J Opt Soc Am A 4, 1987), the gradients' energy after a blur by s is in proportion to 1/s^2,
    so that of the energies E(a) and E(b) after blurring by a and by b
    ``E(a) / E(b) = (s^2 + b^2) / (s^2 + a^2)``, which is solved for s. (Reblurring: Crete et al., SPIE 6492,
    2007; solved for s as Zhuo & Sim do with gradients at edges, Pattern Recognition 44, 2011.)
    Detail is E(b), squared grey values per pixel; where it is no more than noise, blur means nothing.
    """
    size = min(len(grey), max(round(len(grey) * mpp / _PIXEL_UM), _LEAST_PX))
    pixel_um = mpp * len(grey) / size
    if size < len(grey):
        grey = np.asarray(cv2.resize(grey, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    fine, coarse = (_gradient_energy(grey, each) for each in (_FINE, _COARSE))
    ratio = fine / np.maximum(coarse, 1e-9)
    apart = np.maximum(ratio - 1, 1e-9)
    variance = np.maximum(_COARSE**2 - ratio * _FINE**2, 0) / apart
    return np.minimum(np.sqrt(variance) * pixel_um, MOST_BLUR_UM), coarse


def _gradient_energy(grey: NDArray[np.uint8], sigma: float) -> NDArray[np.float64]:
    """Return the mean squared gradient in each square of a patch blurred by ``sigma`` pixels."""
    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), sigma)
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=1, scale=0.5)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=1, scale=0.5)
    energy = np.asarray(across * across + down * down, dtype=np.float32)
    return np.array([float(square.mean()) for square in _squares(energy)])


def _squares(picture: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    edges = np.linspace(0, len(picture), SQUARES + 1).round().astype(int)
    return [
        picture[top:bottom, left:right]
        for top, bottom in itertools.pairwise(edges)
        for left, right in itertools.pairwise(edges)
    ]


def _tissue_of_squares(coords: NDArray[np.int64], plan: PatchGeometry, tissue: Tissue) -> NDArray[np.float32]:
    """Return (N, squares) how much of each square is tissue."""
    boxes = geometry.boxes_rc(coords, plan, tissue.mask.shape)
    side = (boxes[:, 2:] - boxes[:, :2]) / SQUARES
    rows, columns = np.divmod(np.arange(SQUARES**2), SQUARES)
    corner = boxes[:, None, :2] + np.stack([rows, columns], axis=1)[None] * side[:, None]
    squares = np.concatenate([corner, corner + side[:, None]], axis=2).reshape(-1, 4)
    return fractions(tissue.mask, squares).reshape(len(coords), SQUARES**2)


def _weighted_median(values: NDArray[np.float64], weights: NDArray[np.float32]) -> float:
    if not weights.any():  # --min-tissue 0 keeps patches without tissue
        return float(np.median(values))
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, total[-1] / 2)])
