"""What the blocks of a slide are like, level by level, without decoding one.

Comes in: an open slide. Goes out: for each level its compression, how many blocks it has, how many of them
are empty or lie beyond the end of the file, and whether the fast path reads them, or why not.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import tifffile

from wsi_mil.blocks.table import (
    COMPRESSIONS,
    ERRORS,
    NoTableError,
    check_page,
    check_vendor,
    find_page,
    open_bytes,
)
from wsi_mil.slide import Slide


@dataclass(frozen=True, kw_only=True)
class LevelBlocks:
    """The blocks of a level.

    ``compression`` is "", ``block`` (width, height) 0 and ``blocks`` None where they are not known.
    ``empty``: blocks without data; ``beyond``: blocks that end after the file does. ``reason``: why the fast
    path does not read them, or "".
    """

    compression: str = ""
    block: tuple[int, int] = (0, 0)
    blocks: int | None = None
    empty: int = 0
    beyond: int = 0
    reason: str = ""


def survey(slide: Slide) -> list[LevelBlocks]:
    """Return what each level's blocks are like; the TIFF structure is read once, and no pixel."""
    unknown = _vendor_reason(slide)
    try:
        size = _size(slide.path)
        with open_bytes(slide.path) as file, tifffile.TiffFile(file) as tiff:
            return [_look(slide, level, tiff, size, unknown) for level in range(len(slide.level_sizes))]
    except ERRORS as error:
        reason = unknown or f"its TIFF structure cannot be read ({error})"
        return [LevelBlocks(compression=slide.compression, reason=reason) for _ in slide.level_sizes]


def _look(slide: Slide, level: int, tiff: tifffile.TiffFile, size: int, unknown: str) -> LevelBlocks:
    width, height = slide.level_sizes[level]
    try:
        page = find_page(tiff, width, height)
    except NoTableError as error:
        largest = _largest(tiff) if level == 0 else None  # some formats scatter a level over several images
        return LevelBlocks(
            compression=_name(largest) if largest else slide.compression,
            block=(largest.tilewidth, largest.tilelength) if largest else (0, 0),
            reason=unknown or str(error),
        )
    reason = unknown
    try:
        check_page(slide, level, page)
    except NoTableError as error:
        reason = unknown or str(error)
    offsets, counts = (np.array(each, np.int64) for each in (page.dataoffsets, page.databytecounts))
    return LevelBlocks(
        compression=_name(page),
        block=(page.tilewidth, page.tilelength),
        blocks=len(counts),
        empty=int((counts == 0).sum()),
        beyond=int(((counts > 0) & (offsets + counts > size)).sum()),
        reason=reason,
    )


def _largest(tiff: tifffile.TiffFile) -> Any:
    """Return the largest image of blocks in a file, or None."""
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.is_tiled]
    return max(pages, key=lambda page: page.imagewidth * page.imagelength, default=None)


def _vendor_reason(slide: Slide) -> str:
    try:
        check_vendor(slide)
    except NoTableError as error:
        return str(error)
    return ""


def _name(page: Any) -> str:
    """Return a word for a page's compression; that of TIFF's registry where we have none of our own."""
    number = int(page.compression)
    return COMPRESSIONS.get(number) or str(getattr(page.compression, "name", number))


def _size(path: Path | str) -> int:
    if isinstance(path, Path):
        return path.stat().st_size
    store, where = fsspec.core.url_to_fs(path)
    return int(store.size(where) or 0)
