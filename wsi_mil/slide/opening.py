"""Open a slide's file: OpenSlide, else tiffslide; refuse what would harm us before it is read.

Comes in: a path or URL. Goes out: a ``Slide``. It knows what damaged headers ask for, and nothing of pixels.
"""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import fsspec
import openslide
import tiffslide

from wsi_mil import pulse
from wsi_mil.config import Icc, Location
from wsi_mil.errors import SlideError, SlideMissingError
from wsi_mil.slide.reading import TIFF_ERRORS, Reader, Slide

# tifffile logs every oddity of a damaged file; ours says what matters of it in one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".dcm", ".scn", ".bif", ".vms", ".vmu", ".svslide"),
    *(".czi", ".vsi", ".qptiff", ".isyntax", ".sdpc"),
)
"""A file with such a suffix claims to be a slide: that it cannot be opened is a failure to report."""

_LARGEST_BLOCK = 200_000_000  # values (three a pixel)
_LARGEST_SIDE = 8_000_000  # pixels: two metres


def open_slide(
    path: Location,
    reader: Reader = "auto",
    mpp: float | None = None,
    icc: Icc = "none",
    *,
    read_ahead: int | None = None,
) -> Slide:
    """Open a slide with OpenSlide, or with tiffslide where OpenSlide cannot (``reader`` "auto").

    ``path`` may be a URL that fsspec knows (https://, s3://, gs://, ...): tiffslide then reads ranges of it.
    ``mpp`` overrides the level-0 microns per pixel that the file states. ``icc`` "srgb" brings all colours
    that are read to sRGB, through the profile in the file. ``read_ahead``: bytes that are fetched from a URL
    at a time, beside what is asked for; None leaves it to the store (megabytes).

    Raises:
        SlideMissingError: there is no such file.
        SlideError: no reader opens it, its mpp is missing, impossible or contradicted
            (``resolution.decide``), or there is no ICC profile to convert through.
    """
    if path == Path():
        raise SlideMissingError(
            "where the slide lies is not known: its patches were imported without --slides."
        )
    if isinstance(path, Path) and not path.exists():
        raise SlideMissingError(f"{path}: no such file.")
    pulse.at(f"opening {path}")
    readers: tuple[Reader, ...] = ("openslide", "tiffslide") if isinstance(path, Path) else ("tiffslide",)
    if reader != "auto" and reader not in readers:
        raise SlideError(f"{path}: OpenSlide reads local files only; leave --reader auto.")
    reasons = []
    for name in readers if reader == "auto" else (reader,):
        try:
            handle = _open_handle(path, name, read_ahead)
        except (openslide.OpenSlideError, *TIFF_ERRORS) as error:
            reasons.append(f"{name}: {error}")
            continue
        note = f"{reasons[0]}; read by {name}" if reasons else ""
        try:
            return Slide(handle, path, name, mpp, icc, note)
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


def _open_handle(path: Location, reader: Reader, read_ahead: int | None) -> Any:
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
    source, options = _source(path, read_ahead)
    with warnings.catch_warnings():
        # tiffslide warns that it reads some vendors' metadata in part; what matters of it is checked here.
        warnings.simplefilter("ignore")
        handle = tiffslide.TiffSlide(source, tifffile_options=options)
        try:
            _ = handle.properties  # parsed on first use, with the warnings
            _check_blocks(handle)
        except BaseException:
            handle.close()
            raise
        return handle


def _source(path: Location, read_ahead: int | None) -> tuple[Any, dict[str, str]]:
    """Return what tiffslide opens, and with which options."""
    if isinstance(path, Path) or read_ahead is None:
        return str(path), {}
    store, where = fsspec.core.url_to_fs(path)
    return store.open(where, "rb", block_size=read_ahead), {"name": where.rsplit("/", 1)[-1]}


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
    """Raise ValueError where a block of a tiffslide would fill the memory, or blocks are not listed.

    tiffslide shows black where a block is not listed, as if that had been scanned.
    """
    if max(handle.dimensions) > _LARGEST_SIDE:
        raise ValueError(f"says it is {handle.dimensions[0]} x {handle.dimensions[1]} pixels; damaged")
    for page in handle.ts_tifffile.pages:
        pixels = math.prod(getattr(page, "chunks", ()))
        if pixels > _LARGEST_BLOCK:
            raise ValueError(
                f"a single block of {pixels} values, more than any scanner writes: damaged, or not tiled"
            )
        if getattr(page, "is_tiled", False):
            planes = page.samplesperpixel if page.planarconfig == 2 else 1
            rows, columns = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
            wanted = rows * columns * planes * page.imagedepth
            if len(page.dataoffsets) != wanted:
                raise ValueError(f"lists {len(page.dataoffsets)} blocks, not {wanted}: cut off, or damaged")


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
