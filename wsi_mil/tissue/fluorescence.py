"""Light on black: the brightest channel against the dark background and its noise."""

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.tissue.mask import Mask, above, above_background, blur, brightest

_BLUR_UM = 6.0
_FLOOR = 3  # grey levels above the background
_SIGMAS = 6.0
_BLACK, _DIM = 12, 100


def by_light(thumbnail: NDArray[np.uint8], mpp: float) -> tuple[Mask, int]:
    """Return where there is light, and the value above which a pixel counted.

    Otsu's threshold is an upper bound: a slide that is all tissue has no background to measure.
    """
    light = brightest(blur(thumbnail, _BLUR_UM, mpp))
    otsu, _ = cv2.threshold(light, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    threshold = above_background(light, _SIGMAS, _FLOOR)
    if threshold > otsu >= _BLACK:
        threshold = int(otsu)
    return above(light, threshold), threshold


def is_dark(thumbnail: NDArray[np.uint8]) -> bool:
    """Tell whether a slide is light on black: of what is not black, most is dim.

    Stained tissue on bright glass is never that dark as a whole, and black padding is black.
    """
    light = brightest(np.ascontiguousarray(thumbnail[::2, ::2]))
    seen = light > _BLACK
    if not seen.any():
        return True
    return float(np.mean(light < _DIM / 2)) > 0.2 and float(np.mean(light[seen] < _DIM)) > 0.5
