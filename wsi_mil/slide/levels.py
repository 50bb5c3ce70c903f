"""Whether a small level of a pyramid shows what the finer ones show.

Comes in: an open slide and a picture of it. Goes out: yes or no. Some writers decimate (every fourth pixel of
every fourth row) where others average; a decimated level looks sharper than the tissue is at that
resolution, and its faint or thin parts come and go by chance.
"""

from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from wsi_mil.slide.reading import ReadLevel, Slide

_WINDOWS, _SIDE = 4, 32  # places that are compared, and their sides in pixels of the level
# Of a level by the next finer one averaged, mean difference of neighbouring pixels. Averaged pyramids measure
# 0.93 to 1.07 (JPEG qualities 40 to 90), decimated ones 1.15 to 1.9.
_SHARPNESS = 0.5, 1.12
_COLOUR = 4.0  # grey levels that the mean of a place may differ by


def is_averaged(slide: "Slide", level: int, picture: NDArray[np.uint8], read: "ReadLevel") -> bool:
    """Tell whether a level looks as the next finer one does when that is averaged.

    Compared are the places where ``picture`` (height, width, 3; all of the slide) has most detail: there a
    decimated level is too sharp, one that was blurred or compressed much is too smooth, and one of another
    slide or focal plane has other colours. A picture without any detail tells nothing: no. ``read`` reads
    the levels.
    """
    width, height = slide.level_sizes[level]
    own, finer = slide.level_scale(level), slide.level_scale(level - 1)
    ratio_x, ratio_y = finer[0] / own[0], finer[1] / own[1]
    side_x, side_y = min(_SIDE, width), min(_SIDE, height)
    seen, wanted = [], []
    for across, down in _places_of_detail(picture):
        x = int(np.clip(across * width - side_x / 2, 0, width - side_x))
        y = int(np.clip(down * height - side_y / 2, 0, height - side_y))
        seen.append(read(level, x, y, side_x, side_y).astype(np.float32))
        box = x * ratio_x, y * ratio_y, (x + side_x) * ratio_x, (y + side_y) * ratio_y
        wanted.append(slide.resampled(level - 1, box, (side_x, side_y), read).astype(np.float32))
    if not seen:
        return False
    colours = [np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() for a, b in zip(seen, wanted, strict=True)]
    sharpness = sum(map(_detail, seen)) / max(sum(map(_detail, wanted)), 1e-6)
    return bool(max(colours) <= _COLOUR and _SHARPNESS[0] <= sharpness <= _SHARPNESS[1])


def _places_of_detail(picture: NDArray[np.uint8]) -> list[tuple[float, float]]:
    """Return the centres of the places with most detail, as parts of the width and of the height."""
    height, width = (max(1, side // 2) for side in picture.shape[:2])  # enough to tell tissue from glass
    grey = cv2.cvtColor(
        cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST), cv2.COLOR_RGB2GRAY
    )
    detail = np.abs(np.asarray(cv2.Laplacian(grey, cv2.CV_16S)))
    side = max(3, min(height, width, _SIDE))
    sums = np.asarray(cv2.boxFilter(detail.astype(np.float32), -1, (side, side)))
    places = []
    for _ in range(_WINDOWS):
        row, column = np.unravel_index(int(sums.argmax()), sums.shape)
        if sums[row, column] <= 0:
            break
        places.append(((float(column) + 0.5) / width, (float(row) + 0.5) / height))
        sums[max(0, row - side) : row + side, max(0, column - side) : column + side] = 0
    return places


def _detail(pixels: NDArray[np.float32]) -> float:
    """Return the mean difference of neighbouring pixels."""
    across = np.abs(np.diff(pixels, axis=1)).mean() if pixels.shape[1] > 1 else 0.0
    down = np.abs(np.diff(pixels, axis=0)).mean() if pixels.shape[0] > 1 else 0.0
    return float(across + down)
