"""Where the blocks of one level of a TIFF lie, and how one is decoded.

Comes in: an open slide. Goes out: a ``Table`` of offsets for the level, and pixels of single blocks that
equal OpenSlide's. It says in words why a slide has none: those are read through ``Slide``.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray

from wsi_mil import pulse
from wsi_mil.blocks.source import LocalFile, RemoteFile, Source
from wsi_mil.slide import Slide

PLAIN_VENDORS = ("aperio", "generic-tiff", "philips")
"""What OpenSlide calls formats whose levels are plain grids of blocks; others overlap, shift or hide them."""

_JPEG = 7
_APERIO_YCBCR, _JPEG2000 = 33003, (33003, 33005, 34712)
COMPRESSIONS = {
    1: "none",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32946: "deflate",
    50001: "WebP",
} | dict.fromkeys(_JPEG2000, "JPEG 2000")
_RGB, _YCBCR = 2, 6
_LARGEST_BLOCK = 4096 * 4096  # pixels
_STRUCTURE = 65_536  # bytes of a remote file that are fetched with a directory
# Says that three components are RGB, which a JPEG inside a TIFF often leaves to the TIFF's own tags.
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
# What tifffile and the decoders of imagecodecs raise on damaged input (their own errors are RuntimeErrors).
ERRORS = (
    *(OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, struct.error),
)


class BlockError(Exception):
    """A block that cannot be decoded: ``where`` it is and ``reason``. It ends as a count or a SlideError."""

    def __init__(self, where: str, reason: str) -> None:
        """Keep both parts."""
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class NoTableError(Exception):
    """Why a slide's blocks cannot be read here, in words for the log."""


@dataclass(frozen=True)
class Table:
    """The blocks of one level.

    ``width``, ``height`` of the level and ``block_width``, ``block_height`` in its pixels; ``offsets``,
    ``counts`` in bytes, row by row: a count of 0 is an empty block, of the slide's background. ``to_srgb``
    converts colours, where that was asked for (``Slide.to_srgb``).
    """

    level: int
    width: int
    height: int
    block_width: int
    block_height: int
    rows: int
    columns: int
    offsets: Sequence[int]
    counts: Sequence[int]
    compression: str
    source: Source
    background: tuple[int, int, int]
    to_srgb: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None
    page: Any
    jpeg_head: bytes

    def decode(self, row: int, column: int, out: NDArray[np.uint8]) -> None:
        """Decode a block into ``out`` (block_height, block_width, 3); beyond the level is background.

        Raises:
            BlockError: the block does not lie in the file, or is damaged in the least: what a decoder would
                patch up with grey is not taken for tissue.
        """
        pulse.beat()
        offset, count = self.range_of(row, column)
        try:
            if offset + count > self.source.size:
                raise ValueError(f"ends at byte {offset + count} of a file of {self.source.size}")
            if count > 2 * out.nbytes + 65536:
                raise ValueError(f"claims {count} compressed bytes for {out.nbytes} of pixels")
            data = self.source.read(offset, count)
            if self.compression == "JPEG":
                self._decode_jpeg(data, out)
            else:
                self._decode_other(data, row, column, out)
        except ERRORS as error:
            where = f"level {self.level}, block (row {row}, column {column})"
            raise BlockError(where, str(error) or type(error).__name__) from error
        if self.to_srgb is not None:
            out[...] = self.to_srgb(out)
        if row == self.rows - 1 or column == self.columns - 1:
            self._blank_beyond(row, column, out)

    def holds(self, key: tuple[int, int]) -> bool:
        """Tell whether there is a block at (row, column): not outside of the level, and not empty."""
        row, column = key
        return (
            0 <= row < self.rows
            and 0 <= column < self.columns
            and self.counts[row * self.columns + column] > 0
        )

    def range_of(self, row: int, column: int) -> tuple[int, int]:
        """Return (offset, count) of a block's bytes."""
        place = row * self.columns + column
        return self.offsets[place], self.counts[place]

    def close(self) -> None:
        """Close the file."""
        self.source.close()

    def _decode_jpeg(self, data: bytes, out: NDArray[np.uint8]) -> None:
        # Strict, as OpenSlide is: libjpeg itself fills in for damaged data with no more than a warning.
        if self.jpeg_head:
            data = self.jpeg_head + data[2:]
        pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=out)
        if pixels.shape != out.shape:
            raise ValueError(f"holds {pixels.shape[1]} x {pixels.shape[0]} pixels")

    def _decode_other(self, data: bytes, row: int, column: int, out: NDArray[np.uint8]) -> None:
        if self.compression == "JPEG 2000":
            _check_jpeg2000(data, out.shape)
            pixels = imagecodecs.jpeg2k_decode(data)
            if self.page.compression == _APERIO_YCBCR:
                pixels = _rgb_of_ycbcr(pixels)
        elif self.compression == "WebP":
            pixels = imagecodecs.webp_decode(data, out=out, hasalpha=False)
        else:
            index = row * self.columns + column
            pixels = self.page.decode(data, index)[0][0]
        height = min(self.block_height, self.height - row * self.block_height)
        width = min(self.block_width, self.width - column * self.block_width)
        if pixels.ndim != 3 or pixels.shape[0] < height or pixels.shape[1] < width or pixels.shape[2] != 3:
            raise ValueError(f"holds pixels of shape {pixels.shape}")
        if pixels is not out:
            out[:height, :width] = pixels[:height, :width]

    def _blank_beyond(self, row: int, column: int, out: NDArray[np.uint8]) -> None:
        height = self.height - row * self.block_height
        width = self.width - column * self.block_width
        if height < self.block_height:
            out[height:] = self.background
        if width < self.block_width:
            out[:, width:] = self.background


def open_table(slide: Slide, level: int) -> Table:
    """Open the block table of a slide's level.

    Raises:
        NoTableError: its blocks are not of a kind that is known here; the slide itself may be in order.
    """
    check_vendor(slide)
    try:
        source = LocalFile(slide.path) if isinstance(slide.path, Path) else RemoteFile(slide.path)
    except OSError as error:
        raise NoTableError(f"its file cannot be opened ({error})") from error
    try:
        return _read_table(slide, level, source)
    except ERRORS as error:
        source.close()
        raise NoTableError(f"its TIFF structure cannot be read ({error})") from error
    except BaseException:
        source.close()
        raise


def _read_table(slide: Slide, level: int, source: Source) -> Table:
    width, height = slide.level_sizes[level]
    with open_bytes(slide.path) as file, tifffile.TiffFile(file) as tiff:
        page = find_page(tiff, width, height)
        rows, columns = check_page(slide, level, page)
        _ = page.decode  # made now, while the file is open
        return Table(
            level=level,
            width=width,
            height=height,
            block_width=page.tilewidth,
            block_height=page.tilelength,
            rows=rows,
            columns=columns,
            offsets=page.dataoffsets,
            counts=page.databytecounts,
            compression=COMPRESSIONS[int(page.compression)],
            source=source,
            background=slide.background,
            to_srgb=slide.to_srgb,
            page=page,
            jpeg_head=_jpeg_head(page) if page.compression == _JPEG else b"",
        )


def open_bytes(path: Path | str) -> Any:
    """Open a file to read its TIFF structure; of a remote one only what is asked for is fetched."""
    if isinstance(path, Path):
        return path.open("rb")
    store, where = fsspec.core.url_to_fs(path)
    return store.open(where, "rb", block_size=_STRUCTURE)


def find_page(tiff: tifffile.TiffFile, width: int, height: int) -> Any:
    """Return the tiled page of the level's size, as OpenSlide and tiffslide do; two such leave it open."""
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage)]
    pages += [
        below for page in pages[:1] for below in page.pages or () if isinstance(below, tifffile.TiffPage)
    ]
    fitting = [
        each for each in pages if each.is_tiled and (each.imagewidth, each.imagelength) == (width, height)
    ]
    if len(fitting) != 1:
        raise NoTableError(f"{len(fitting)} tiled images in it are {width} x {height} pixels")
    return fitting[0]


def check_vendor(slide: Slide) -> None:
    """Raise NoTableError where a slide's levels are no plain grids of blocks."""
    if slide.reader == "openslide" and slide.vendor not in PLAIN_VENDORS:
        raise NoTableError(f"{slide.vendor or 'unknown'} slides have no plain grid of blocks")


def check_page(slide: Slide, level: int, page: Any) -> tuple[int, int]:
    """Return the (rows, columns) of a level's blocks; raise NoTableError where they are not read here."""
    _check_pixels(page)
    width, height = slide.level_sizes[level]
    rows, columns = -(-height // page.tilelength), -(-width // page.tilewidth)
    offsets, counts = page.dataoffsets, page.databytecounts
    if len(offsets) != rows * columns or len(counts) != rows * columns:
        raise NoTableError(f"its level {level} lists {len(offsets)} blocks, not {rows} x {columns}")
    if 0 in counts and slide.vendor == "aperio" and level > 0:
        raise NoTableError("empty blocks in the lower levels of an Aperio slide need OpenSlide's care")
    return rows, columns


def _check_pixels(page: Any) -> None:
    if int(page.compression) not in COMPRESSIONS:
        raise NoTableError(f"its compression ({page.compression!r}) is not one that is decoded here")
    if (page.samplesperpixel, page.bitspersample, page.planarconfig) != (3, 8, 1) or page.imagedepth != 1:
        raise NoTableError("its pixels are not three interleaved bytes")
    if int(page.photometric) not in {_RGB, _YCBCR}:
        raise NoTableError(f"its colours are {page.photometric!r}")
    if int(page.photometric) == _YCBCR and int(page.compression) in {1, 5, 8, 32946}:
        raise NoTableError("its colours are YCbCr without JPEG")
    if page.tilewidth * page.tilelength > _LARGEST_BLOCK or min(page.tilewidth, page.tilelength) < 1:
        raise NoTableError(f"its blocks are {page.tilewidth} x {page.tilelength} pixels")


def _jpeg_head(page: Any) -> bytes:
    """Return what goes before a block's stream in place of its first two bytes: tables, and "this is RGB"."""
    tables = bytes(page.jpegtables or b"")[2:-2]
    rgb = _ADOBE_RGB if int(page.photometric) == _RGB else b""
    return b"\xff\xd8" + rgb + tables if rgb or tables else b""


def _check_jpeg2000(data: bytes, shape: tuple[int, ...]) -> None:
    """Refuse a codestream whose size marker says another size, before memory is taken for it."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 512)
    if start < 0 or len(data) < start + 24:
        raise ValueError("is no JPEG 2000 codestream")
    right, lower, left, upper = struct.unpack(">4I", data[start + 8 : start + 24])
    if right - left > shape[1] or lower - upper > shape[0]:
        raise ValueError(f"holds {right - left} x {lower - upper} pixels")


def _rgb_of_ycbcr(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert as JFIF says (ITU-R BT.601, full range)."""
    y, cb, cr = (pixels[..., i].astype(np.float32) for i in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    rounded: NDArray[np.uint8] = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return rounded
