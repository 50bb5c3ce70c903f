"""Rows of features on their way to a file: they come in any order, and leave in the order of the patches.

Comes in: blocks of rows with their numbers. Goes out: blocks of rows in order. Few rows are held in memory,
many in a file without a name, which vanishes with the process: nothing is left of it after a crash.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from wsi_mil.store.disk import disk_errors

IN_MEMORY = 32 * 2**20
"""Up to this many bytes are held in memory."""
_BLOCK = 8 * 2**20


class Spool:
    """(count, dim) float16, written by rows. A context manager."""

    def __init__(self, folder: Path, count: int, dim: int) -> None:
        """Make room for ``count`` rows; those that memory is not for go to a file in ``folder``."""
        self._folder, self._shape, self._row = folder, (count, dim), 2 * dim
        self._size = count * self._row
        self._array: NDArray[np.float16] | None = None
        self._file = -1
        self._stack = ExitStack()

    def __enter__(self) -> "Spool":
        """Reserve the room.

        Raises:
            StoreError: the disk has none.
        """
        if self._size <= IN_MEMORY:
            self._array = np.zeros(self._shape, np.float16)
            return self
        with disk_errors(self._folder / "spool", self._size):
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._stack.enter_context(tempfile.TemporaryFile(dir=self._folder, buffering=0))
        self._file = file.fileno()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the room back."""
        self._array = None
        self._stack.close()

    def put(self, index: NDArray[np.int64], rows: NDArray[np.float16]) -> None:
        """Take rows (n, D) with their numbers (n,), in any order.

        Raises:
            StoreError: the disk is full.
        """
        if self._array is not None:
            self._array[index] = rows
            return
        order = np.argsort(index, kind="stable")
        index, rows = index[order], rows[order]
        runs = np.split(np.arange(len(index)), np.flatnonzero(np.diff(index) != 1) + 1)
        with disk_errors(self._folder / "spool", self._size):
            for run in runs:
                if len(run):
                    self._write(rows[run[0] : run[-1] + 1], int(index[run[0]]) * self._row)

    def _write(self, rows: NDArray[np.float16], offset: int) -> None:
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        while data:
            count = os.pwrite(self._file, data, offset)
            data, offset = data[count:], offset + count

    def blocks(self, kept: NDArray[np.int64]) -> Iterator[NDArray[np.float16]]:
        """Yield the rows numbered ``kept`` (rising) in blocks of a few MiB."""
        step = max(1, _BLOCK // max(1, self._row))
        for start in range(0, self._shape[0], step):
            stop = min(start + step, self._shape[0])
            first, last = np.searchsorted(kept, [start, stop])
            if first < last:
                block = self._read(start, stop)
                yield block if last - first == stop - start else block[kept[first:last] - start]

    def _read(self, start: int, stop: int) -> NDArray[np.float16]:
        if self._array is not None:
            return self._array[start:stop]
        block = np.zeros((stop - start, self._shape[1]), np.float16)
        data = block.reshape(-1).view(np.uint8).data
        offset = start * self._row
        while data:
            count = os.preadv(self._file, [data], offset)
            if not count:
                break  # the last rows were left out and never written
            data, offset = data[count:], offset + count
        return block
