"""Pictures of whole slides from their blocks: what ``Slide.thumbnail`` shows, several times as fast.

Each block is decoded straight to where it belongs. Levels whose blocks are not known here, and regions with a
block that is damaged, are read through the slide, which says what is wrong with them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from numpy.typing import NDArray

from wsi_mil.blocks.table import BlockError, NoTableError, Table, open_table
from wsi_mil.slide import ReadLevel, Slide


def thumbnail(slide: Slide, mpp: float) -> NDArray[np.uint8]:
    """Return the whole slide at about ``mpp`` as (height, width, 3) RGB; see ``Slide.thumbnail``.

    Raises:
        SlideError: the file cannot be read.
    """
    with region_reader(slide) as read:
        return slide.thumbnail(mpp, read)


@contextmanager
def region_reader(slide: Slide) -> Iterator[ReadLevel]:
    """Yield what reads whole pixels of a level as ``Slide.read_level`` does, from one thread."""
    tables: dict[int, Table | None] = {}
    with ExitStack() as stack:

        def read(level: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
            if level not in tables:
                tables[level] = _table(slide, level, stack)
            table = tables[level]
            if table is not None:
                try:
                    return _region(table, x, y, width, height)
                except BlockError:
                    tables[level] = None  # the slide's own reader decides what is to be said
            return slide.read_level(level, x, y, width, height)

        yield read


def _table(slide: Slide, level: int, stack: ExitStack) -> Table | None:
    try:
        table = open_table(slide, level)
    except NoTableError:
        return None
    stack.callback(table.close)
    return table


def _region(table: Table, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return (height, width, 3) pixels of a level, background beyond it and where blocks are empty."""
    block_width, block_height = table.block_width, table.block_height
    first_row, first_column = y // block_height, x // block_width
    rows = -(-(y + height) // block_height) - first_row
    columns = -(-(x + width) // block_width) - first_column
    canvas = np.empty((rows * block_height, columns * block_width, 3), np.uint8)
    keys = [(first_row + i, first_column + k) for i in range(rows) for k in range(columns)]
    if table.source.remote:
        table.source.expect(table.range_of(*key) for key in keys if table.holds(key))
    block = np.empty((block_height, block_width, 3), np.uint8)
    for row, column in keys:
        top, left = (row - first_row) * block_height, (column - first_column) * block_width
        if table.holds((row, column)):
            table.decode(row, column, block)
            canvas[top : top + block_height, left : left + block_width] = block
        else:
            canvas[top : top + block_height, left : left + block_width] = table.background
    top, left = y - first_row * block_height, x - first_column * block_width
    return canvas[top : top + height, left : left + width]
