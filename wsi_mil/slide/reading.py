"""Read an open slide's pixels at a resolution, whatever the scanner.

Comes in: a handle of OpenSlide or tiffslide. Goes out: a ``Slide`` with its size, its microns per pixel (and
where that number came from) and RGB pixels at any mpp. It knows nothing of tissue or patches.
"""

import math
import struct
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image, ImageColor

from wsi_mil import pulse
from wsi_mil.config import Icc, Location
from wsi_mil.errors import SlideError
from wsi_mil.geometry import is_whole, pick_level
from wsi_mil.slide import colour, levels, resolution, vendors

Reader = Literal["auto", "openslide", "tiffslide"]
Box = tuple[float, float, float, float]
ReadLevel = Callable[[int, int, int, int, int], NDArray[np.uint8]]
"""What reads whole pixels of a level, as ``Slide.read_level`` does."""

# What tiffslide, tifffile, zarr and imagecodecs raise on files they cannot make sense of.
TIFF_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, struct.error),
)
_STRIP_PIXELS = 16_000_000  # a thumbnail is read in strips of so many pixels: bounded memory on any slide
_THUMBNAIL_PIXELS = 64_000_000  # two seconds of reading, where a coarser level cannot be trusted
_SMALL_PIXELS = 4_000_000  # a slide this small is read whole


class Slide:
    """One open slide. Use it as a context manager, or call ``close``.

    ``width_l0``, ``height_l0``: level-0 pixels. ``mpp_l0``: microns per level-0 pixel, ``mpp_source`` where
    it comes from, and ``statements`` all that the file says about it. ``downsamples``: of each level against
    level 0, rising from 1; ``level_sizes``: its (width, height); ``block_sizes``: those of its blocks, (0, 0)
    where the reader does not say. ``reader``: the library that reads the file; ``vendor``: what that takes it
    for (such as "aperio"). ``objective``: its nominal magnification, or None. ``bounds``: level-0 (x, y,
    width, height) of what was scanned, or None where the file does not say. ``background``: RGB of where
    nothing was scanned. ``compression``: of its pixels, or "" where the reader does not say. ``profile``: the
    name of its ICC profile, or "". ``icc``: what is done with colours; with "srgb" ``to_srgb`` converts them,
    else it is None. ``note``: what a user should know about how this file is read, or "";
    ``reading_note`` is that without what it says of the resolution. Reading is safe from several threads.
    """

    def __init__(
        self,
        handle: Any,
        path: Location,
        reader: Reader,
        mpp: float | None,
        icc: Icc = "none",
        note: str = "",
    ) -> None:
        """Wrap an open handle; use ``open_slide``."""
        self._handle = handle
        # OpenSlide may be read from many threads; tiffslide shares one file position.
        self._lock = threading.Lock() if reader == "tiffslide" else None
        properties = vendors.properties(handle, reader)
        self.path = path
        self.reader = reader
        self.vendor = str(properties.get(f"{reader}.vendor") or "")
        self.width_l0, self.height_l0 = (int(side) for side in handle.dimensions)
        self.level_sizes = [(int(w), int(h)) for w, h in handle.level_dimensions]
        self.downsamples = tuple(float(each) for each in handle.level_downsamples)
        self.block_sizes = vendors.block_sizes(properties, reader, len(self.level_sizes))
        self.objective = vendors.objective(properties, reader)
        self.bounds = vendors.bounds(properties, reader)
        self.statements = resolution.statements(properties, reader, self.vendor)
        decided = resolution.decide(self.statements, path, mpp)
        self.mpp_l0, self.mpp_source = decided.mpp, decided.source
        self.compression = vendors.compression(properties)
        background = properties.get(f"{reader}.background-color") or "FFFFFF"
        self.background = ImageColor.getrgb(f"#{str(background).lstrip('#')}")[:3]
        profile = vendors.profile(handle)
        self.profile, self.icc = colour.name_of(profile), icc
        self.to_srgb = colour.ToSrgb(profile, path) if icc == "srgb" else None
        self._ycbcr = reader == "openslide" and vendors.is_mislabelled_ycbcr(properties, path)
        ycbcr = "the DICOM header says RGB, its JPEG frames are YCbCr: converted" if self._ycbcr else ""
        self.reading_note = "; ".join(filter(None, [note, ycbcr]))
        self.note = "; ".join(filter(None, [self.reading_note, decided.note]))

    def read(self, x_l0: float, y_l0: float, size_px: int, mpp: float) -> NDArray[np.uint8]:
        """Return the square of ``size_px`` pixels at ``mpp`` whose top-left corner is level-0 (x, y).

        Shape (size, size, 3), RGB. The pixels come from the coarsest level that is fine enough. A
        whole-number reduction averages pixels; any other ratio is resampled (bicubic, widened against
        aliasing, from the square's own pixels), so the mpp is exact. Transparency and whatever lies
        outside the slide have the slide's background colour.

        Raises:
            SlideError: the file cannot be read there.
        """
        side_l0 = size_px * mpp / self.mpp_l0
        level = pick_level(self.downsamples, mpp / self.mpp_l0)
        across, down = self.level_scale(level)
        left, top = x_l0 * across, y_l0 * down
        box = left, top, left + side_l0 * across, top + side_l0 * down
        return self.resampled(level, box, (size_px, size_px), self.read_level)

    def thumbnail(self, mpp: float, read: ReadLevel | None = None) -> NDArray[np.uint8]:
        """Return the whole slide at about ``mpp`` as (height, width, 3) RGB.

        The picture's outer edges are the slide's: its pixels are ``width_l0 / width`` level-0 pixels wide,
        which differs from the ratio of the mpps by less than a pixel over the whole width. ``read`` is what
        reads its levels, if not ``read_level`` (``blocks.thumbnail`` has a faster one).
        """
        read = read or self.read_level
        width = max(1, round(self.width_l0 * self.mpp_l0 / mpp))
        height = max(1, round(self.height_l0 * self.mpp_l0 / mpp))
        picture = np.empty((0, 0, 3), dtype=np.uint8)
        for level, is_last in self._thumbnail_levels(mpp / self.mpp_l0):
            picture = self._whole(level, width, height, read)
            if is_last or levels.is_averaged(self, level, picture, read):
                break
        return picture

    def _whole(self, level: int, width: int, height: int, read: ReadLevel) -> NDArray[np.uint8]:
        """Return the whole slide as (height, width, 3) from a level, whose last pixels may lack a part."""
        across, down = self.level_scale(level)
        right, step = self.width_l0 * across, self.height_l0 * down / height
        rows = max(1, int(_STRIP_PIXELS / right / step))
        picture = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            # A strip may reach over its edges, so that none shows; a patch is made of its own pixels only.
            box = (0.0, top * step, right, bottom * step)
            picture[top:bottom] = self.resampled(level, box, (width, bottom - top), read, beyond=2)
        return picture

    def level_scale(self, level: int) -> tuple[float, float]:
        """Return how many pixels of a level go into one of level 0, across and down.

        A level of ``floor(width / 4)`` pixels was made from squares of 4 pixels, the rest dropped: its scale
        is 1/4 and not the ratio of the widths, which would be off by up to a pixel at the far edge. Of a
        small level several whole numbers may fit: then it is a power of two.
        """
        (width, height), size_l0 = self.level_sizes[level], (self.width_l0, self.height_l0)
        stated = self.downsamples[level]
        halved = 2 ** round(math.log2(stated))
        near = abs(halved - stated) < 0.1 * stated
        for whole in (halved, round(stated)) if near else (round(stated),):
            if all(
                abs(own * whole - full) < whole for own, full in zip((width, height), size_l0, strict=True)
            ):
                return 1 / whole, 1 / whole
        return width / self.width_l0, height / self.height_l0

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def __enter__(self) -> "Slide":
        """Return the slide itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def _thumbnail_levels(self, downsample: float) -> Iterator[tuple[int, bool]]:
        """Yield the levels to read a thumbnail from, and whether that is the last: coarsest first.

        Of levels that are fine enough the coarsest is read fastest, but small levels of real pyramids are
        often decimated instead of averaged, and coarsely compressed: then a finer one shows more truly where
        tissue is. What is small enough is read at level 0 at once.
        """
        coarsest = pick_level(self.downsamples, downsample)
        pixels = [width * height for width, height in self.level_sizes]
        finest = next((i for i, each in enumerate(pixels[:coarsest]) if each <= _THUMBNAIL_PIXELS), coarsest)
        if pixels[0] <= _SMALL_PIXELS:
            coarsest = finest
        for level in range(coarsest, finest - 1, -1):
            yield level, level == finest

    def resampled(
        self, level: int, box: Box, size: tuple[int, int], read: ReadLevel, beyond: int = 0
    ) -> NDArray[np.uint8]:
        """Return a level's box (left, top, right, bottom; fractional) as ``size`` (width, height) pixels.

        The filter may reach ``beyond`` the box by so many output pixels (bicubic needs two).
        """
        left, top, right, bottom = box
        ratios = (right - left) / size[0], (bottom - top) / size[1]
        whole = all(map(is_whole, (left, top), ratios, size))
        if whole:
            factor = round(ratios[0]), round(ratios[1])
            x, y = round(left), round(top)
            pixels = read(level, x, y, size[0] * factor[0], size[1] * factor[1])
            return pixels if factor == (1, 1) else np.asarray(Image.fromarray(pixels).reduce(factor))
        margin_x, margin_y = (math.ceil(beyond * max(ratio, 1)) for ratio in ratios)
        x, y = math.floor(left) - margin_x, math.floor(top) - margin_y
        width, height = math.ceil(right) + margin_x - x, math.ceil(bottom) + margin_y - y
        picture = Image.fromarray(read(level, x, y, width, height))
        inner = (left - x, top - y, right - x, bottom - y)
        return np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=inner, reducing_gap=3))

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return (height, width, 3) RGB of whole pixels of a level; outside the level is background.

        Raises:
            SlideError: the file cannot be read there.
        """
        level_width, level_height = self.level_sizes[level]
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, level_width), min(y + height, level_height)
        if (x1 - x0, y1 - y0) == (width, height):
            return np.array(self._region(level, x, y, width, height))
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[:] = self.background
        if x1 > x0 and y1 > y0:
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = self._region(level, x0, y0, x1 - x0, y1 - y0)
        return pixels

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return RGB pixels that lie wholly inside a level."""
        location = round(x * self.downsamples[level]), round(y * self.downsamples[level])
        pulse.beat()
        try:
            if self._lock is None:
                region = self._handle.read_region(location, level, (width, height))
            else:
                with self._lock:
                    region = self._handle.read_region(location, level, (width, height))
        except (openslide.OpenSlideError, *TIFF_ERRORS) as error:
            raise SlideError(
                f"{self.path}: level {level} cannot be read at level-0 {location} ({error}); "
                "the file is damaged or incomplete, copy it again."
            ) from error
        if region.mode == "RGBA":
            alpha, region = region.getchannel("A"), region.convert("RGB")
            if self._ycbcr:
                region = Image.frombytes("YCbCr", region.size, region.tobytes()).convert("RGB")
            pixels = self._in_srgb(np.asarray(region))
            if alpha.getextrema() == (255, 255):
                return pixels
            # The background is a colour of ours: it is not converted.
            canvas = Image.new("RGB", region.size, self.background)
            canvas.paste(Image.fromarray(pixels), mask=alpha)
            return np.asarray(canvas)
        if region.mode != "RGB":
            raise SlideError(f"{self.path}: pixels are {region.mode}; only 8-bit RGB slides can be read.")
        return self._in_srgb(np.asarray(region))

    def _in_srgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels if self.to_srgb is None else self.to_srgb(pixels)
