"""A few pixels of a slide, read where files break: the corners, and the last block of every level.

Comes in: an open slide. Goes out: what could be read. A file that was cut off has lost its end; one that
opens may have nothing in it that decodes.
"""

from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from wsi_mil import blocks
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry
from wsi_mil.inspect.facts import Probe
from wsi_mil.slide import Slide

_SIDE = 64  # pixels that are read of a block: the whole of it is decoded
_LOOK = 512  # pixels of the smallest level across and down that are looked at, from its middle
_DARK = 64  # of 255: glass is above 200, fluorescence and empty scans are below this


def probe(slide: Slide, again: Callable[[], Slide]) -> tuple[Probe, ...]:
    """Return what became of reading the corners of level 0 and the last block of every level.

    ``again`` opens the slide anew: after an error OpenSlide's handle reads nothing any more.
    """
    done, fresh = [], slide
    try:
        for name, level, x, y, width, height in _places(slide):
            reason = ""
            try:
                fresh.read_level(level, x, y, width, height)
            except SlideError as error:
                reason = str(error).removeprefix(f"{slide.path}: ")
                if fresh is not slide:
                    fresh.close()
                fresh = again()
            done.append(Probe(name=name, level=level, x=x, y=y, width=width, height=height, reason=reason))
    finally:
        if fresh is not slide:
            fresh.close()
    return tuple(done)


def fast_path_reason(slide: Slide) -> str:
    """Return why the fast path does not read this slide as ``slide`` does, or "": corners are compared."""
    side = max(1, min(_SIDE, slide.width_l0, slide.height_l0))
    x, y, width, height = slide.bounds or (0, 0, slide.width_l0, slide.height_l0)
    right, lower = max(x, x + width - side), max(y, y + height - side)
    coords = np.unique(np.array([(x, y), (right, y), (x, lower), (right, lower)], np.int64), axis=0)
    plan = PatchGeometry.plan(
        width_l0=slide.width_l0,
        height_l0=slide.height_l0,
        mpp_l0=slide.mpp_l0,
        mpp=slide.mpp_l0,
        patch_px=side,
    )
    notes: list[str] = []
    batches = blocks.stream(slide, coords, plan, workers=1, max_broken=1.0, note=notes.append)
    with closing(batches):
        next(batches, None)  # before the first batch the blocks are compared with what the reader gives
    return notes[0].removeprefix(f"read through {slide.reader}: ") if notes else ""


def is_dark(slide: Slide) -> bool:
    """Tell whether most of a slide is black, from the middle of its smallest level (most often all of it)."""
    level = len(slide.level_sizes) - 1
    width, height = slide.level_sizes[level]
    across, down = min(width, _LOOK), min(height, _LOOK)
    pixels: NDArray[np.uint8] = slide.read_level(
        level, (width - across) // 2, (height - down) // 2, across, down
    )
    return float(np.median(pixels[::4, ::4].max(axis=2))) < _DARK


def _places(slide: Slide) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Yield (name, level, x, y, width, height) of what to read; no place twice."""
    seen = set()
    left, top, width, height = slide.bounds or (0, 0, slide.width_l0, slide.height_l0)
    side = max(1, min(_SIDE, width, height))
    right, lower = left + width - side, top + height - side
    corners = [
        ("top left", left, top), ("top right", right, top), ("bottom left", left, lower),
        ("bottom right", right, lower),
    ]  # fmt: skip
    for name, x, y in corners:
        if (0, x, y) not in seen:
            seen.add((0, x, y))
            yield name, 0, x, y, side, side
    for level, (level_width, level_height) in enumerate(slide.level_sizes):
        side = max(1, min(_SIDE, level_width, level_height))
        x, y = level_width - side, level_height - side
        if (level, x, y) not in seen:
            seen.add((level, x, y))
            yield "last block", level, x, y, side, side
