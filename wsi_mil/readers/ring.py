"""Memory that readers fill and the device's process empties: slots of equal size, seen by both.

Comes in: how many and how large. Goes out: arrays. It is no file in a folder (see ``parallel.memory_file``):
nothing stays when its processes are killed, and a container's small /dev/shm does not matter.
"""

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from wsi_mil import parallel

_OFFSET = 8
"""Where the first slot begins: libjpeg is faster off the addresses that 32 divides (``blocks.cache``)."""


class Ring:
    """``count`` slots of ``slot_bytes`` each; ``descriptor`` is the open file, for others to attach."""

    def __init__(self, count: int, slot_bytes: int, descriptor: int | None = None) -> None:
        """Make the memory, or attach to it: then the descriptor is closed here."""
        self.count, self.slot_bytes = count, slot_bytes
        self._stride = -(-slot_bytes // 32) * 32
        size = _OFFSET + count * self._stride
        self.descriptor = parallel.memory_file("wsi-mil-ring", size) if descriptor is None else descriptor
        self._memory = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        if descriptor is not None:
            os.close(descriptor)

    @property
    def memory(self) -> NDArray[np.uint8]:
        """All of it, one byte after the other."""
        return self._memory

    def patches(self, slot: int, side: int) -> NDArray[np.uint8]:
        """Return a slot as (n, side, side, 3): as many patches as it has room for."""
        start, each = _OFFSET + slot * self._stride, side * side * 3
        room = self.slot_bytes // each
        return self._memory[start : start + room * each].reshape(room, side, side, 3)

    def close(self) -> None:
        """Give the memory back, once nobody holds an array of it."""
        os.close(self.descriptor)
