"""One patch at the target mpp: put together from decoded blocks, or read through ``Slide``.

Both readers place a patch as ``Slide.read`` does (same level, same whole-number averages, same filter), so
that it does not matter which one a slide takes.
"""

import threading
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_mil.blocks.cache import BlockCache, Key, ScratchMemory
from wsi_mil.blocks.resample import reduce_area, resample
from wsi_mil.blocks.table import BlockError, Table
from wsi_mil.errors import SlideError
from wsi_mil.geometry import PatchGeometry, is_whole, pick_level
from wsi_mil.slide import Slide, open_slide


class PatchReader(Protocol):
    """Reads patches, which it is told of in chunks. ``read`` may be called from several threads.

    ``level`` is the one that it reads.
    """

    level: int

    def expect(self, first: int, last: int) -> "Chunk":
        """Make ready to read the patches ``first`` to ``last`` (not included), each once."""

    def fetch(self, chunk: "Chunk", first: int, last: int) -> None:
        """Begin to fetch the bytes of the patches ``first`` to ``last`` of a chunk from a remote store."""

    def read(self, chunk: "Chunk", k: int, out: NDArray[np.uint8]) -> None:
        """Write patch k of a chunk into ``out`` (patch_px, patch_px, 3); raises BlockError."""

    def close(self) -> None:
        """Give files back."""


@dataclass(frozen=True)
class Placement:
    """Where patches lie on the level they are read from.

    ``left``, ``top`` (N,) level pixels, fractional; ``ratio_x``, ``ratio_y`` level pixels per output pixel;
    ``whole`` (N,) whether a patch is an average of whole pixels (``factor_x`` by ``factor_y`` of them each).
    """

    level: int
    left: NDArray[np.float64]
    top: NDArray[np.float64]
    ratio_x: float
    ratio_y: float
    whole: NDArray[np.bool_]

    @property
    def factor_x(self) -> int:
        """Level pixels averaged across."""
        return round(self.ratio_x)

    @property
    def factor_y(self) -> int:
        """Level pixels averaged down."""
        return round(self.ratio_y)


def place(slide: Slide, coords: NDArray[np.int64], geometry: PatchGeometry) -> Placement:
    """Return where patches at level-0 (x, y) ``coords`` lie on the level that ``Slide.read`` would take."""
    level = pick_level(slide.downsamples, geometry.mpp / slide.mpp_l0)
    across, down = slide.level_scale(level)
    side_l0, size = geometry.patch_size_l0, geometry.patch_px
    left: NDArray[np.float64] = (coords[:, 0] * across).astype(np.float64)
    top: NDArray[np.float64] = (coords[:, 1] * down).astype(np.float64)
    ratio_x, ratio_y = side_l0 * across / size, side_l0 * down / size
    whole = np.asarray(is_whole(left, ratio_x, size)) & np.asarray(is_whole(top, ratio_y, size))
    return Placement(level, left, top, ratio_x, ratio_y, whole)


@dataclass(frozen=True)
class Chunk:
    """The windows of some thousand patches: the whole level pixels that each is made from.

    Lists, because they are read one by one. ``start_xy``: where in the window a resampled patch starts, less
    than a pixel; ``first_rc``, ``last_rc``: the (row, column) of its first and last block.
    """

    x: list[int]
    y: list[int]
    width: list[int]
    height: list[int]
    whole: list[bool]
    start_xy: list[tuple[float, float]]
    first_rc: list[Key]
    last_rc: list[Key]

    def keys(self, k: int) -> list[Key]:
        """Return the (row, column) of the blocks under patch k."""
        (top, left), (bottom, right) = self.first_rc[k], self.last_rc[k]
        return [(row, column) for row in range(top, bottom + 1) for column in range(left, right + 1)]


def _chunk(placement: Placement, first: int, last: int, size: int, block_rc: tuple[int, int]) -> Chunk:
    left, top = placement.left[first:last], placement.top[first:last]
    whole = placement.whole[first:last]
    exact_rc = np.stack([top, left], axis=1)
    end_rc = exact_rc + np.array([size * placement.ratio_y, size * placement.ratio_x])
    corner_rc = np.where(whole[:, None], np.rint(exact_rc), np.floor(exact_rc)).astype(np.int64)
    whole_rc = size * placement.factor_y, size * placement.factor_x
    extent_rc = np.where(whole[:, None], whole_rc, np.ceil(end_rc) - corner_rc).astype(np.int64)
    start_xy = [(x, y) for y, x in (exact_rc - corner_rc).tolist()]
    first_rc, last_rc = corner_rc // block_rc, (corner_rc + extent_rc - 1) // block_rc
    (y, x), (height, width) = corner_rc.T.tolist(), extent_rc.T.tolist()
    return Chunk(x, y, width, height, whole.tolist(), start_xy, first_rc.tolist(), last_rc.tolist())


class BlockPatches:
    """Patches from a ``Table``: every block is decoded once while the budget allows."""

    def __init__(self, table: Table, placement: Placement, size: int, budget: int) -> None:
        """Read patches of ``size`` pixels at ``placement``; keep at most ``budget`` bytes of blocks."""
        self._placement, self._size = placement, size
        self.level = placement.level
        self.cache = BlockCache(table, _block_factor(table, placement), budget)
        self._memory = ScratchMemory()

    def expect(self, first: int, last: int) -> Chunk:
        """Count the blocks under these patches, so that each is kept until the last of them is read."""
        table = self.cache.table
        chunk = _chunk(self._placement, first, last, self._size, (table.block_height, table.block_width))
        self.cache.expect(np.array(chunk.first_rc), np.array(chunk.last_rc))
        return chunk

    def fetch(self, chunk: Chunk, first: int, last: int) -> None:
        """Begin to fetch the blocks under these patches."""
        table = self.cache.table
        if not table.source.remote:
            return
        keys = sorted({key for k in range(first, last) for key in chunk.keys(k)})
        ranges = [table.range_of(*key) for key in keys if table.holds(key) and not self.cache.has(key)]
        table.source.expect(ranges)

    def read(self, chunk: Chunk, k: int, out: NDArray[np.uint8]) -> None:
        """Write patch k of a chunk into ``out``; raises BlockError."""
        keys, cache, factor = chunk.keys(k), self.cache, self.cache.factor
        ready = chunk.whole[k] and (self._placement.factor_x, self._placement.factor_y) == (factor, factor)
        try:
            if ready:
                x, y = chunk.x[k] // factor, chunk.y[k] // factor
                if len(keys) > 1 or not cache.take_whole(keys[0], x, y, out):
                    self._assemble(chunk, k, x, y, out)
                return
            region = self._memory.take(chunk.height[k], chunk.width[k])
            self._assemble(chunk, k, chunk.x[k], chunk.y[k], region)
        finally:
            cache.release(keys)
        _shrink(region, out, chunk, k, self._placement)

    def close(self) -> None:
        """Close the file."""
        self.cache.table.close()

    def _assemble(self, chunk: Chunk, k: int, x: int, y: int, out: NDArray[np.uint8]) -> None:
        """Copy the overlap of each block with the window at (x, y) of the (reduced) level into ``out``.

        One call of OpenCV for a row of blocks: each call lets go of the interpreter's lock and waits for it
        again, which is what two threads lose their time with.
        """
        height, width = out.shape[:2]
        block_width, block_height = self.cache.block_width, self.cache.block_height
        (first_row, first), (last_row, last) = chunk.first_rc[k], chunk.last_rc[k]
        take = self.cache.take
        for row in range(first_row, last_row + 1):
            top = row * block_height - y
            y0, y1 = max(-top, 0), min(height - top, block_height)
            pieces = []
            for column in range(first, last + 1):
                left = column * block_width - x
                pieces.append(take((row, column))[y0:y1, max(-left, 0) : min(width - left, block_width)])
            cv2.hconcat(pieces, dst=out[top + y0 : top + y1])


def _block_factor(table: Table, placement: Placement) -> int:
    """Return by how much every block can be reduced on its own, right after it was decoded; else 1."""
    factor = placement.factor_x
    if factor < 2 or factor != placement.factor_y or not placement.whole.all():
        return 1
    if table.block_width % factor or table.block_height % factor:
        return 1
    aligned = not (np.rint(placement.left) % factor).any() and not (np.rint(placement.top) % factor).any()
    return factor if aligned else 1


def _shrink(
    region: NDArray[np.uint8], out: NDArray[np.uint8], chunk: Chunk, k: int, placement: Placement
) -> None:
    """Bring the window of patch k to the target mpp."""
    if chunk.whole[k]:
        reduce_area(region, out)
    else:
        resample(region, out, chunk.start_xy[k], (placement.ratio_x, placement.ratio_y))


class SlidePatches:
    """Patches through ``Slide``, for slides whose blocks are not known here."""

    def __init__(self, slide: Slide, placement: Placement, size: int) -> None:
        """Read patches of ``size`` pixels at ``placement``."""
        self._slide, self._placement, self._size = slide, placement, size
        self.level = placement.level
        self._alone = threading.Lock()

    def expect(self, first: int, last: int) -> Chunk:
        """Place these patches; OpenSlide and tiffslide keep what they like of their blocks."""
        return _chunk(self._placement, first, last, self._size, (1, 1))

    def fetch(self, chunk: Chunk, first: int, last: int) -> None:
        """Do nothing."""

    def read(self, chunk: Chunk, k: int, out: NDArray[np.uint8]) -> None:
        """Write patch k of a chunk into ``out``; raises BlockError."""
        window = chunk.x[k], chunk.y[k], chunk.width[k], chunk.height[k]
        try:
            region = self._slide.read_level(self._placement.level, *window)
        except SlideError:
            region = self._read_alone(window)
        _shrink(region, out, chunk, k, self._placement)

    def close(self) -> None:
        """Leave the slide open: it is the caller's."""

    def _read_alone(self, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """Read a window through a fresh handle: after its first error OpenSlide's fails for good.

        A handle that still reads is used from then on; the old one closes when no thread holds it.
        """
        slide = self._slide
        with self._alone:
            fresh = open_slide(slide.path, slide.reader, slide.mpp_l0, slide.icc)
            try:
                region = fresh.read_level(self._placement.level, *window)
            except SlideError as error:
                fresh.close()
                raise BlockError(f"level {self._placement.level}", str(error)) from error
            self._slide = fresh
            return region
