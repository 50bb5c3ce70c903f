"""What is known of every patch beside where it lies: columns, and which of them leave a patch out.

Tissue, pen, saturation, black and white are means over the thumbnail on which the tissue was found, and cost
nothing. Focus needs the pixels of the patch itself, which are read once, through ``blocks``.
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

REASONS = ("tissue", "pen", "focus")
"""Why a patch is left out, in the order in which it is asked: too little tissue, too much pen, blurred."""

UNKNOWN = -1.0
WHITE, BLACK = 225, 40
SQUARES = 4  # a patch is looked at in this many by this many squares: half of it may be sharp
_BATCH = 64


def of_thumbnail(
    thumbnail: NDArray[np.uint8], tissue: Tissue, boxes: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """Return the columns that a thumbnail (height, width, 3) shows, for boxes (N, 4) of its pixels.

    ``pen_fraction``, ``whiteness`` and ``blackness`` are parts of a patch's area: ink, no channel below
    ``WHITE``, no channel above ``BLACK``. ``saturation`` is the mean of (max - min) / max, 0 to 1.
    """
    channels = cv2.split(thumbnail)
    highest = np.asarray(cv2.max(cv2.max(channels[0], channels[1]), channels[2]), dtype=np.uint8)
    lowest = np.asarray(cv2.min(cv2.min(channels[0], channels[1]), channels[2]), dtype=np.uint8)
    spread = np.asarray(cv2.subtract(highest, lowest), dtype=np.uint8)
    saturation = np.asarray(cv2.divide(spread, np.maximum(highest, 1), scale=255), dtype=np.uint8)
    rasters = {
        "pen_fraction": tissue.pen,
        "saturation": saturation,
        "whiteness": np.where(lowest >= WHITE, np.uint8(255), np.uint8(0)),
        "blackness": np.where(highest <= BLACK, np.uint8(255), np.uint8(0)),
    }
    return {name: fractions(raster, boxes) for name, raster in rasters.items()}


def fractions(raster: NDArray[np.uint8], boxes: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the means of a raster of 0 to 255 in boxes, as 0 to 1."""
    if not raster.any():
        return np.zeros(len(boxes), np.float32)
    return (geometry.box_means(raster, boxes) / 255).astype(np.float32)


def measure_focus(
    slide: Slide,
    coords: NDArray[np.int64],
    plan: PatchGeometry,
    tissue: Tissue,
    note: Callable[[str], None] | None = None,
) -> NDArray[np.float32]:
    """Return the focus of each patch (N,): the variance of the Laplacian of its grey values.

    It is taken in ``SQUARES`` by ``SQUARES`` squares, and the patch has their median, weighted by their
    tissue: a fold or a sharp edge in a corner does not hide that the rest is blurred, and glass is no blur.
    Patches that cannot be read have ``UNKNOWN``.
    """
    found = np.full(len(coords), UNKNOWN, np.float32)
    weights = _tissue_of_squares(coords, plan, tissue)
    order = blocks.sweep_order(slide, coords, plan)
    stream = blocks.stream(
        slide, coords[order], plan, batch_size=_BATCH, workers=1, max_broken=1.0, note=note
    )
    for batch in stream:
        for patch, row in zip(batch.patches, order[batch.index].tolist(), strict=True):
            found[row] = _weighted_median(focus_of_squares(patch), weights[row])
    return found


def focus_of_squares(patch: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the variance of the Laplacian in each square of a patch (size, size, 3), row-major."""
    grey = np.asarray(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    laplacian = np.asarray(cv2.Laplacian(grey, cv2.CV_32F, borderType=cv2.BORDER_REPLICATE), dtype=np.float32)
    edges = np.linspace(0, len(patch), SQUARES + 1).round().astype(int)
    values = [
        cv2.meanStdDev(laplacian[top:bottom, left:right])[1].item() ** 2
        for top, bottom in itertools.pairwise(edges)
        for left, right in itertools.pairwise(edges)
    ]
    return np.array(values)


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
