"""Open a slide and read its pixels at a resolution, whatever the scanner: OpenSlide, else tiffslide.

Comes in: a path. Goes out: a ``Slide`` with its size, its microns per pixel (and where that number came from)
and RGB pixels at any mpp. It refuses to guess a resolution, and it knows nothing of tissue or patches.
"""

import logging
import math
import struct
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import fsspec
import numpy as np
import openslide
import tiffslide
from numpy.typing import NDArray
from PIL import Image, ImageColor

from wsi_mil.config import MPP_MAX, MPP_MIN, Location
from wsi_mil.errors import SlideError
from wsi_mil.geometry import is_whole, pick_level

# tifffile logs every oddity of a damaged file; ours says what matters of it in one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

Reader = Literal["auto", "openslide", "tiffslide"]
Box = tuple[float, float, float, float]

SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".dcm", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    *(".czi", ".vsi", ".qptiff", ".isyntax", ".sdpc"),
)
"""A file with such a suffix claims to be a slide: that it cannot be opened is a failure to report."""

# What tiffslide, tifffile, zarr and imagecodecs raise on files they cannot make sense of.
_TIFF_ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, struct.error),
)
_STRIP_PIXELS = 16_000_000  # a thumbnail is read in strips of so many pixels: bounded memory on any slide
_THUMBNAIL_PIXELS = 64_000_000  # about a second of reading
_ANISOTROPY = 0.01
_LARGEST_BLOCK = 200_000_000  # values (three a pixel)
_LARGEST_SIDE = 8_000_000  # pixels: two metres


class Slide:
    """One open slide. Use it as a context manager, or call ``close``.

    ``width_l0``, ``height_l0``: level-0 pixels. ``mpp_l0``: microns per level-0 pixel, and ``mpp_source``
    where it comes from. ``downsamples``: of each level against level 0, rising from 1; ``level_sizes``: its
    (width, height). ``reader``: the library that reads the file; ``vendor``: what that takes it for (such as
    "aperio"). ``background``: RGB of where nothing was scanned. ``note``: what a user should know about how
    this file is read, or "". Reading is safe from several threads.
    """

    def __init__(self, handle: Any, path: Location, reader: Reader, mpp: float | None) -> None:
        """Wrap an open handle; use ``open_slide``."""
        self._handle = handle
        # OpenSlide may be read from many threads; tiffslide shares one file position.
        self._lock = threading.Lock() if reader == "tiffslide" else None
        self.path = path
        self.reader = reader
        self.vendor = str(handle.properties.get(f"{reader}.vendor") or "")
        self.width_l0, self.height_l0 = (int(side) for side in handle.dimensions)
        self.level_sizes = [(int(w), int(h)) for w, h in handle.level_dimensions]
        self.downsamples = tuple(float(each) for each in handle.level_downsamples)
        self.mpp_l0, self.mpp_source = _resolution(handle.properties, path, reader, mpp)
        background = handle.properties.get(f"{reader}.background-color") or "FFFFFF"
        self.background = ImageColor.getrgb(f"#{str(background).lstrip('#')}")[:3]
        self._ycbcr = reader == "openslide" and _is_mislabelled_ycbcr(handle.properties, path)
        self.note = "the DICOM header says RGB, its JPEG frames are YCbCr: converted" if self._ycbcr else ""

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
        return self._resampled(level, box, (size_px, size_px))

    def thumbnail(self, mpp: float) -> NDArray[np.uint8]:
        """Return the whole slide at about ``mpp`` as (height, width, 3) RGB.

        The picture's outer edges are the slide's: its pixels are ``width_l0 / width`` level-0 pixels wide,
        which differs from the ratio of the mpps by less than a pixel over the whole width.
        """
        width = max(1, round(self.width_l0 * self.mpp_l0 / mpp))
        height = max(1, round(self.height_l0 * self.mpp_l0 / mpp))
        level = self._thumbnail_level(mpp / self.mpp_l0)
        level_width, level_height = self.level_sizes[level]
        rows = max(1, int(_STRIP_PIXELS / level_width / (level_height / height)))
        picture = np.empty((height, width, 3), dtype=np.uint8)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            box = (0.0, top * level_height / height, float(level_width), bottom * level_height / height)
            # A strip may reach over its edges, so that none shows; a patch is made of its own pixels only.
            picture[top:bottom] = self._resampled(level, box, (width, bottom - top), beyond=2)
        return picture

    def level_scale(self, level: int) -> tuple[float, float]:
        """Return how many pixels of a level go into one of level 0, across and down.

        A level of ``floor(width / 4)`` pixels was made from squares of 4 pixels, the rest dropped: its scale
        is 1/4 and not the ratio of the widths, which would be off by up to a pixel at the far edge.
        """
        (width, height), size_l0 = self.level_sizes[level], (self.width_l0, self.height_l0)
        whole = round(self.downsamples[level])
        if all(abs(own * whole - full) < whole for own, full in zip((width, height), size_l0, strict=True)):
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

    def _thumbnail_level(self, downsample: float) -> int:
        """Return the finest level, among those fine enough, that is still quick to read whole.

        Small levels of real pyramids are often decimated instead of averaged, and coarsely compressed:
        averaging a finer level shows more truly where tissue is.
        """
        last = pick_level(self.downsamples, downsample)
        pixels = [width * height for width, height in self.level_sizes[: last + 1]]
        return next((i for i, each in enumerate(pixels) if each <= _THUMBNAIL_PIXELS), last)

    def _resampled(self, level: int, box: Box, size: tuple[int, int], beyond: int = 0) -> NDArray[np.uint8]:
        """Return a level's box (left, top, right, bottom; fractional) as ``size`` (width, height) pixels.

        The filter may reach ``beyond`` the box by so many output pixels (bicubic needs two).
        """
        left, top, right, bottom = box
        ratios = (right - left) / size[0], (bottom - top) / size[1]
        whole = all(map(is_whole, (left, top), ratios, size))
        if whole:
            factor = round(ratios[0]), round(ratios[1])
            x, y = round(left), round(top)
            pixels = Image.fromarray(self.read_level(level, x, y, size[0] * factor[0], size[1] * factor[1]))
            return np.asarray(pixels if factor == (1, 1) else pixels.reduce(factor))
        margin_x, margin_y = (math.ceil(beyond * max(ratio, 1)) for ratio in ratios)
        x, y = math.floor(left) - margin_x, math.floor(top) - margin_y
        width, height = math.ceil(right) + margin_x - x, math.ceil(bottom) + margin_y - y
        pixels = Image.fromarray(self.read_level(level, x, y, width, height))
        inner = (left - x, top - y, right - x, bottom - y)
        return np.asarray(pixels.resize(size, Image.Resampling.BICUBIC, box=inner, reducing_gap=3))

    def read_level(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return (height, width, 3) RGB of whole pixels of a level; outside the level is background.

        Raises:
            SlideError: the file cannot be read there.
        """
        level_width, level_height = self.level_sizes[level]
        x0, y0 = max(x, 0), max(y, 0)
        x1, y1 = min(x + width, level_width), min(y + height, level_height)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        pixels[:] = self.background
        if x1 > x0 and y1 > y0:
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = self._region(level, x0, y0, x1 - x0, y1 - y0)
        return pixels

    def _region(self, level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return RGB pixels that lie wholly inside a level."""
        location = round(x * self.downsamples[level]), round(y * self.downsamples[level])
        try:
            if self._lock is None:
                region = self._handle.read_region(location, level, (width, height))
            else:
                with self._lock:
                    region = self._handle.read_region(location, level, (width, height))
        except (openslide.OpenSlideError, *_TIFF_ERRORS) as error:
            raise SlideError(
                f"{self.path}: level {level} cannot be read at level-0 {location} ({error}); "
                "the file is damaged or incomplete, copy it again."
            ) from error
        if region.mode == "RGBA":
            alpha, region = region.getchannel("A"), region.convert("RGB")
            if self._ycbcr:
                region = Image.frombytes("YCbCr", region.size, region.tobytes()).convert("RGB")
            if alpha.getextrema() == (255, 255):
                return np.asarray(region)
            canvas = Image.new("RGB", region.size, self.background)
            canvas.paste(region, mask=alpha)
            return np.asarray(canvas)
        if region.mode != "RGB":
            raise SlideError(f"{self.path}: pixels are {region.mode}; only 8-bit RGB slides can be read.")
        return np.asarray(region)


def open_slide(path: Location, reader: Reader = "auto", mpp: float | None = None) -> Slide:
    """Open a slide with OpenSlide, or with tiffslide where OpenSlide cannot (``reader`` "auto").

    ``path`` may be a URL that fsspec knows (https://, s3://, gs://, ...): tiffslide then reads ranges of it.
    ``mpp`` overrides the level-0 microns per pixel that the file states.

    Raises:
        SlideError: there is no such file, no reader opens it, or its mpp is missing or impossible.
    """
    if path == Path():
        raise SlideError("where the slide lies is not known: its patches were imported without --slides.")
    if isinstance(path, Path) and not path.exists():
        raise SlideError(f"{path}: no such file.")
    readers: tuple[Reader, ...] = ("openslide", "tiffslide") if isinstance(path, Path) else ("tiffslide",)
    if reader != "auto" and reader not in readers:
        raise SlideError(f"{path}: OpenSlide reads local files only; leave --reader auto.")
    reasons = []
    for name in readers if reader == "auto" else (reader,):
        try:
            handle = _open_handle(path, name)
        except (openslide.OpenSlideError, *_TIFF_ERRORS) as error:
            reasons.append(f"{name}: {error}")
            continue
        try:
            return Slide(handle, path, name, mpp)
        except BaseException:
            handle.close()
            raise
    raise SlideError(f"{path}: cannot be opened as a slide ({'; '.join(reasons)}).")


def detect(path: Path) -> str | None:
    """Return a word for what OpenSlide takes the file to be ("aperio", "dicom", ...), or None."""
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
    except openslide.OpenSlideError:
        return None
    return str(vendor) if vendor else None


def dicom_series(path: Path) -> str | None:
    """Return the series that a DICOM file belongs to (its SeriesInstanceUID), or None if it does not open."""
    try:
        with openslide.OpenSlide(str(path)) as handle:
            return str(handle.properties.get("dicom.SeriesInstanceUID", ""))
    except openslide.OpenSlideError:
        return None


def _open_handle(path: Location, reader: Reader) -> Any:
    if reader == "openslide":
        local = openslide.OpenSlide(str(path))
        try:
            _check_sizes(local)
        except BaseException:
            local.close()
            raise
        return local
    if not isinstance(path, Path):
        _check_remote(path)
    with warnings.catch_warnings():
        # tiffslide warns that it reads some vendors' metadata in part; what matters of it is checked here.
        warnings.simplefilter("ignore")
        handle = tiffslide.TiffSlide(str(path))
        try:
            _ = handle.properties  # parsed on first use, with the warnings
            _check_blocks(handle)
        except BaseException:
            handle.close()
            raise
        return handle


def _check_sizes(handle: openslide.OpenSlide) -> None:
    """Raise ValueError where a damaged header asks for more memory than there is: OpenSlide would end us."""
    if max(handle.dimensions) > _LARGEST_SIDE:
        raise ValueError(f"says it is {handle.dimensions[0]} x {handle.dimensions[1]} pixels; damaged")
    for level in range(handle.level_count):
        sides = [
            int(handle.properties.get(f"openslide.level[{level}].tile-{s}", 0)) for s in ("width", "height")
        ]
        if 3 * math.prod(sides) > _LARGEST_BLOCK:
            raise ValueError(f"says its blocks are {sides[0]} x {sides[1]} pixels; damaged")


def _check_blocks(handle: Any) -> None:
    """Raise ValueError where one compressed block of a tiffslide would fill the memory once decoded."""
    if max(handle.dimensions) > _LARGEST_SIDE:
        raise ValueError(f"says it is {handle.dimensions[0]} x {handle.dimensions[1]} pixels; damaged")
    for page in handle.ts_tifffile.pages:
        pixels = math.prod(getattr(page, "chunks", ()))
        if pixels > _LARGEST_BLOCK:
            raise ValueError(
                f"a single block of {pixels} values, more than any scanner writes: damaged, or not tiled"
            )


def _check_remote(url: str) -> None:
    """Raise OSError in words where a URL has nothing behind it, or its store cannot be reached."""
    try:
        store, where = fsspec.core.url_to_fs(url)
        size = store.size(where)
    except FileNotFoundError as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise OSError(f"there is nothing at this URL, or no server answers{cause}") from error
    except ImportError as error:
        raise OSError(f"{error}; pip install 'wsi-mil[remote]'") from error
    except Exception as error:  # every store has errors of its own
        raise OSError(f"the store does not answer ({type(error).__name__}: {error})") from error
    if size is None:
        raise OSError("its server does not tell the size; one that serves ranges of a file is needed")


def _is_mislabelled_ycbcr(properties: Any, path: Location) -> bool:
    """Tell whether a DICOM's JPEG frames are YCbCr although its header says RGB.

    OpenSlide follows the header, so the colours come out wrong. Bio-Formats' converter writes such files
    (libdicom#80). A JFIF marker settles it: the JFIF standard allows YCbCr and grey only.
    """
    jpeg_baseline = "1.2.840.10008.1.2.4.50"
    if (
        properties.get("dicom.PhotometricInterpretation") != "RGB"
        or properties.get("dicom.TransferSyntaxUID") != jpeg_baseline
    ):
        return False
    with Path(path).open("rb") as file:
        head = file.read(4 << 20)
    start = head.find(b"\xff\xd8\xff")
    return (
        start >= 0 and head[start + 2 : start + 4] == b"\xff\xe0" and head[start + 6 : start + 10] == b"JFIF"
    )


def _resolution(properties: Any, path: Location, reader: str, mpp: float | None) -> tuple[float, str]:
    """Return level-0 microns per pixel and its source; refuse what is missing, impossible or anisotropic."""
    advice = "Give the true value with --slide-mpp, or in the mpp column of a manifest."
    if mpp is not None:
        return mpp, "given"
    found = [properties.get(f"{reader}.mpp-{axis}") for axis in "xy"]
    if None in found:
        raise SlideError(f"{path}: the file does not say its microns per pixel. {advice}")
    try:
        across, down = (float(each) for each in found)
    except ValueError as error:
        raise SlideError(f"{path}: microns per pixel read {found}. {advice}") from error
    for each in (across, down):
        if not MPP_MIN <= each <= MPP_MAX:
            raise SlideError(
                f"{path}: the file says {each:g} microns per pixel, which no scanner has "
                f"(wanted {MPP_MIN} to {MPP_MAX}). {advice}"
            )
    if abs(across - down) > _ANISOTROPY * max(across, down):
        raise SlideError(f"{path}: pixels are not square ({across:g} x {down:g} um). {advice}")
    return (across + down) / 2, f"{reader}.mpp-x"
