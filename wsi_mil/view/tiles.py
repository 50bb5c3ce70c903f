"""The slide as a pyramid of small squares that a page asks for one by one, and a bounded memory of them.

Comes in: an open ``Slide``. Goes out: JPEG bytes. At depth k a square shows ``SIDE * 2**k`` level-0 pixels a
side, exactly, whatever levels the file has: ``Slide.read`` resamples, as it does for patches. It knows no
server and no heatmap.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_mil.geometry import pick_level
from wsi_mil.slide import Slide

SIDE = 256
"""Pixels of a square's side."""

_QUALITY = 85
_MOST_PIXELS = 2048**2  # of a level, decoded for one square: more takes long, and memory in every thread


def depths(width_l0: int, height_l0: int) -> int:
    """Return how many depths there are: at the last one a single square shows the whole slide."""
    depth = 0
    while SIDE * 2**depth < max(width_l0, height_l0):
        depth += 1
    return depth + 1


def coarsest(slide: Slide) -> int:
    """Return the last depth at which a square is quick to read.

    It is the very last where the file has small levels; one without them would be read whole for an overview.
    """
    last = depths(slide.width_l0, slide.height_l0) - 1
    for depth in range(last + 1):
        across, down = slide.level_scale(pick_level(slide.downsamples, float(2**depth)))
        if (SIDE * 2**depth) ** 2 * across * down > _MOST_PIXELS:
            return depth - 1
    return last


def counts(width_l0: int, height_l0: int, depth: int) -> tuple[int, int]:
    """Return how many (columns, rows) of squares a depth has; the last ones may reach over the edge."""
    step = SIDE * 2**depth
    return -(-width_l0 // step), -(-height_l0 // step)


def read_square(slide: Slide, depth: int, column: int, row: int) -> NDArray[np.uint8]:
    """Return the (SIDE, SIDE, 3) pixels of one square; beyond the slide is its background.

    Raises:
        SlideError: the file cannot be read there.
    """
    step = SIDE * 2**depth
    return slide.read(column * step, row * step, SIDE, slide.mpp_l0 * 2**depth)


def to_jpeg(pixels: NDArray[np.uint8]) -> bytes:
    """Return the pixels as a JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)  # the stain's colours count
    return buffer.getvalue()


class Kept:
    """The bytes that were made last, up to ``most`` of them in all. Safe from several threads."""

    def __init__(self, most: int) -> None:
        """Keep up to ``most`` bytes."""
        self.most, self.size = most, 0
        self._items: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """Return what is kept for ``key``, else make it; two threads may make the same at the same time."""
        with self._lock:
            if (found := self._items.get(key)) is not None:
                self._items.move_to_end(key)
                return found
        made = make()
        with self._lock:
            self.size += len(made) - len(self._items.pop(key, b""))
            self._items[key] = made
            while self.size > self.most and self._items:
                self.size -= len(self._items.popitem(last=False)[1])
        return made
