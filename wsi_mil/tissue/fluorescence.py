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
    size = max(1, thumbnail.shape[1] // 2), max(1, thumbnail.shape[0] // 2)
    few = np.asarray(cv2.resize(thumbnail, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    light = brightest(few)
    counts = np.asarray(cv2.calcHist([light], [0], None, [256], [0, 256])).ravel()
    seen = counts[_BLACK + 1 :].sum()
    if not seen:
        return True
    return bool(counts[: _DIM // 2].sum() > 0.2 * light.size and counts[_BLACK + 1 : _DIM].sum() > 0.5 * seen)
