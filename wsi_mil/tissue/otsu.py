"""Coloured stains on bright glass, by their chroma and Otsu's threshold (Otsu 1979)."""

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.tissue.mask import Mask, above, blur, chroma

# Otsu's threshold is trusted between these bounds: below, a blank slide would be cut in its noise; above, a
# dark stain would hide pale tissue.
CHROMA_MIN, CHROMA_MAX = 12, 20
_BLUR_UM = 6.0


def by_otsu(thumbnail: NDArray[np.uint8], mpp: float, unseen: Mask) -> tuple[Mask, int]:
    """Return where there is stain, and the chroma above which a pixel counted; ``unseen`` is left out."""
    colours = chroma(blur(thumbnail, _BLUR_UM, mpp))
    colours[unseen > 0] = 0
    otsu, _ = cv2.threshold(colours, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = int(np.clip(otsu, CHROMA_MIN, CHROMA_MAX))
    return above(colours, threshold), threshold
