"""Coloured stains on bright glass, by their chroma and Otsu's threshold."""

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.tissue.mask import Tissue, drop_small

# Chroma is max(R, G, B) - min(R, G, B): 0 for every grey, so glass, black padding and shadows are out.
# Otsu's threshold is trusted between these bounds: below, a blank slide would be cut in its noise; above, a
# dark stain would hide pale tissue.
CHROMA_MIN, CHROMA_MAX = 12, 20
_BLUR_UM = 12.0
_CLOSE_UM = 24.0


def find_tissue(
    thumbnail: NDArray[np.uint8], mpp: float, *, min_area_um2: float, max_hole_um2: float
) -> Tissue:
    """Return the tissue in a thumbnail (height, width, 3) of ``mpp`` microns per pixel.

    Chroma, a light blur, Otsu's threshold (Otsu 1979) kept within bounds, closing; then pieces below
    ``min_area_um2`` are dropped and holes below ``max_hole_um2`` are filled.
    """
    # Blur colours, not chroma: the noise of grey pixels is colourless on average, and its chroma is not.
    blurred = np.asarray(cv2.GaussianBlur(thumbnail, (0, 0), sigmaX=max(_BLUR_UM / mpp / 2, 0.5)))
    chroma = (blurred.max(axis=2) - blurred.min(axis=2)).astype(np.uint8)
    otsu, _ = cv2.threshold(chroma, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = int(np.clip(otsu, CHROMA_MIN, CHROMA_MAX))
    mask = np.where(chroma > threshold, 255, 0).astype(np.uint8)
    side = 2 * round(_CLOSE_UM / mpp / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    closed = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, disc), dtype=np.uint8)
    mask = drop_small(closed, min_area_um2 / mpp**2)
    mask = 255 - drop_small(255 - mask, max_hole_um2 / mpp**2, connectivity=4, keep_at_border=True)
    return Tissue(mask=mask, threshold=threshold)
