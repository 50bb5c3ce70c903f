"""A tissue mask and what is done to it, whatever found the tissue."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tissue:
    """``mask`` (height, width) uint8, 255 where there is tissue, on the raster of the thumbnail.

    ``threshold`` is the chroma above which a pixel counted as tissue.
    """

    mask: NDArray[np.uint8]
    threshold: int

    @property
    def fraction(self) -> float:
        """Part of the slide's area that is tissue."""
        return float(np.mean(self.mask > 0))


def drop_small(
    mask: NDArray[np.uint8], min_pixels: float, connectivity: int = 8, keep_at_border: bool = False
) -> NDArray[np.uint8]:
    """Return the mask without its connected pieces of fewer than ``min_pixels`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    keep = stats[:, cv2.CC_STAT_AREA] >= min_pixels
    if keep_at_border:  # a bay that opens to the slide's border is background, however small
        border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
        keep[np.unique(border)] = True
    keep[0] = False
    return np.where(keep[labels], np.uint8(255), np.uint8(0))
