"""Decoded blocks, each kept exactly as long as a patch to come needs it, within a budget.

Comes in: how many of the next patches touch each block (``expect``). Goes out: pixels of blocks (``take``),
until every patch that was counted has given them back (``release``). Safe to use from several threads: a
block that one decodes is waited for by the others, not decoded twice.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_mil.blocks.resample import reduce_area
from wsi_mil.blocks.table import BlockError, Table

Key = tuple[int, int]
"""(row, column) of a block."""


class _Entry:
    """One block: taken by the thread that makes it, then its pixels, or why there are none."""

    __slots__ = ("error", "making", "pixels")

    def __init__(self) -> None:
        self.making = threading.Lock()
        self.making.acquire()
        self.pixels: NDArray[np.uint8] | None = None
        self.error: BlockError | None = None


class BlockCache:
    """The decoded blocks of a table, reduced by the whole number ``factor`` each, at most ``budget`` bytes.

    ``decoded`` counts decodings and ``most`` the blocks kept at one time: what tests and benchmarks look at.
    """

    def __init__(self, table: Table, factor: int, budget: int) -> None:
        """Keep no block yet."""
        self.table, self.factor = table, factor
        self.block_width, self.block_height = table.block_width // factor, table.block_height // factor
        self.decoded = self.most = 0
        self._room = budget // (self.block_width * self.block_height * 3)
        self._lock = threading.Lock()
        self._uses = [0] * (table.rows * table.columns)  # row by row; a list is quicker one by one
        self._entries: dict[Key, _Entry] = {}
        self._kept = 0
        self._free: list[NDArray[np.uint8]] = []
        self._full = ScratchMemory()
        self._background = self._new()
        self._background[:] = table.background

    def expect(self, first_rc: NDArray[np.int64], last_rc: NDArray[np.int64]) -> None:
        """Count the blocks of patches to come: (N, 2) first and last (row, column), which may lie outside."""
        rows, columns = self.table.rows, self.table.columns
        top, left = np.clip(first_rc, 0, (rows, columns)).T
        bottom, right = np.clip(last_rc + 1, 0, (rows, columns)).T
        corners = np.zeros((rows + 1, columns + 1), dtype=np.int32)
        for y, x, sign in ((top, left, 1), (bottom, right, 1), (top, right, -1), (bottom, left, -1)):
            np.add.at(corners, (y, x), sign)
        more = corners.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)[:-1, :-1]
        with self._lock:
            self._uses = (np.array(self._uses, dtype=np.int32) + more.ravel()).tolist()

    def take(self, key: Key) -> NDArray[np.uint8]:
        """Return a block's pixels (height, width, 3), to be read until the patch gives it back.

        Raises:
            BlockError: it cannot be decoded.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.pixels is not None:
            return entry.pixels  # counted for this patch: nobody frees it meanwhile
        if not self.table.holds(key):
            return self._background
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.decoded += 1
                if self._kept >= self._room:
                    target = None  # no room: decode for this patch alone
                else:
                    target = self._free.pop() if self._free else self._new()
                    self._kept += 1
                    self.most = max(self.most, self._kept)
                    made = self._entries[key] = _Entry()
        if entry is None:
            if target is None:
                return self._decode(key, self._new())
            return self._make(made, key, target)
        if entry.pixels is None and entry.error is None:
            with entry.making:  # another thread is at it
                pass
        if entry.error is not None:
            raise entry.error
        assert entry.pixels is not None
        return entry.pixels

    def take_whole(self, key: Key, x: int, y: int, out: NDArray[np.uint8]) -> bool:
        """Decode a block straight into a patch at (x, y) that is just this block, and that alone needs it.

        Return False where that does not hold.

        Raises:
            BlockError: it cannot be decoded.
        """
        if out.shape[:2] != (self.block_height, self.block_width) or not self.table.holds(key):
            return False
        if (y, x) != (key[0] * self.block_height, key[1] * self.block_width):
            return False
        with self._lock:
            if self._uses[key[0] * self.table.columns + key[1]] > 1 or key in self._entries:
                return False
            self.decoded += 1
        self._decode(key, out)
        return True

    def has(self, key: Key) -> bool:
        """Tell whether a block is decoded, or being so."""
        return key in self._entries

    def release(self, keys: Sequence[Key]) -> None:
        """Give back the blocks of one patch; the last patch that needed a block frees it."""
        rows, columns = self.table.rows, self.table.columns
        with self._lock:
            uses = self._uses
            for key in keys:
                row, column = key
                if not (0 <= row < rows and 0 <= column < columns):
                    continue
                place = row * columns + column
                uses[place] -= 1
                if uses[place] <= 0:
                    entry = self._entries.pop(key, None)
                    if entry is not None:
                        self._kept -= 1
                        if entry.pixels is not None:
                            self._free.append(entry.pixels)

    def _make(self, entry: _Entry, key: Key, target: NDArray[np.uint8]) -> NDArray[np.uint8]:
        try:
            entry.pixels = self._decode(key, target)
        except BlockError as error:
            entry.error = error
            raise
        except BaseException as error:  # nobody may wait for a block that will not come
            entry.error = BlockError(f"block {key}", f"{type(error).__name__}: {error}")
            raise
        finally:
            entry.making.release()
        return entry.pixels

    def _decode(self, key: Key, out: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.factor == 1:
            self.table.decode(*key, out)
        else:
            full = self._full.take(self.table.block_height, self.table.block_width)
            self.table.decode(*key, full)
            reduce_area(full, out)
        return out

    def _new(self) -> NDArray[np.uint8]:
        return empty_pixels(self.block_height, self.block_width, 3)


def empty_pixels(*shape: int) -> NDArray[np.uint8]:
    """Return a uint8 array with anything in it, whose address is 8 more than a multiple of 32.

    libjpeg-turbo writes rows that start on 32 (or 16) bytes past the caches, and who reads them next waits
    for the memory. Off those addresses a block is decoded a tenth to a fifth faster, and copied faster too.
    """
    memory = np.empty(math.prod(shape) + 64, dtype=np.uint8)
    start = (8 - memory.ctypes.data) % 32
    return memory[start : start + math.prod(shape)].reshape(shape)


class ScratchMemory(threading.local):
    """Memory of each thread for pixels on their way: new memory costs more than the copy into it."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._flat = empty_pixels(0)

    def take(self, height: int, width: int) -> NDArray[np.uint8]:
        """Return (height, width, 3) with anything in it, the thread's until it takes the next."""
        if len(self._flat) < height * width * 3:
            self._flat = empty_pixels(height * width * 3)
        return self._flat[: height * width * 3].reshape(height, width, 3)
