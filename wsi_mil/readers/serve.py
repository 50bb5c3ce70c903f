"""What runs in a reader: one slide after the other, into slots of the ring.

Comes in through the channel: jobs, slots, word that a job is not wanted any more. Goes out: which rows of
which job lie where, and how each job ended.
"""

import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wsi_mil import parallel, pulse, store
from wsi_mil.blocks import BrokenPatch
from wsi_mil.config import Location
from wsi_mil.locate import SlideFinder
from wsi_mil.parallel import Outcome
from wsi_mil.readers.job import Part, ReadSettings, read_job
from wsi_mil.readers.ring import Ring


@dataclass(frozen=True)
class Order:
    """A job for a reader, which knows it by its number."""

    number: int
    patches: store.Patches
    finder: SlideFinder


@dataclass(frozen=True)
class Drop:
    """The job is not wanted any more."""

    number: int


@dataclass(frozen=True)
class Found:
    """Where the slide of a job lies."""

    number: int
    path: Location


@dataclass(frozen=True)
class Filled:
    """Rows of a job that lie in a slot from ``first`` on: ``rows`` (n,) of its coords, -1 where none is.

    ``closed``: nothing more comes into the slot.
    """

    number: int
    slot: int
    first: int
    side: int
    rows: NDArray[np.int64]
    broken: tuple[BrokenPatch, ...]
    closed: bool


@dataclass(frozen=True)
class Closed:
    """Nothing more comes into a slot, which is not full."""

    slot: int


@dataclass(frozen=True)
class Ended:
    """A job has ended. ``seconds`` it took, of which ``waited`` for a slot."""

    number: int
    failure: Outcome | None
    read_by: str
    seconds: float
    waited: float


FromReader = Found | Filled | Closed | Ended | Literal["over"]
ToReader = Order | Drop | int | Literal["over"]
"""A number is that of a slot to fill."""


@dataclass(frozen=True)
class Session:
    """Asks a child to be a reader until it is told that it is over."""

    slots: int
    slot_bytes: int
    settings: ReadSettings

    def __call__(self, channel: Connection) -> None:
        """Read what comes."""
        ring = Ring(self.slots, self.slot_bytes, recv_handle(channel))
        _Reader(channel, ring, self.settings).run()


class _Reader:
    def __init__(self, channel: Connection, ring: Ring, settings: ReadSettings) -> None:
        self._channel, self._ring, self._settings = channel, ring, settings
        self._orders: deque[Order] = deque()
        self._free: deque[int] = deque()
        self._dropped: set[int] = set()
        self._over = False
        self._slot: int | None = None
        self._used = 0  # bytes of the slot
        self._given: deque[tuple[int, int, bool]] = deque()  # slot, place in it, whether it was full then
        self._side = 0
        self._waited = 0.0

    def run(self) -> None:
        while True:
            self._hear()
            if not self._orders:
                self._close_slot()  # others wait for what is in it
                if self._over:
                    break
                pulse.rest()
                self._take_in(self._channel.recv())
                continue
            self._read(self._orders.popleft())
        self._send("over")

    def _read(self, order: Order) -> None:
        start, self._waited = time.perf_counter(), 0.0
        read_by = "blocks"

        def note(words: str) -> None:
            nonlocal read_by
            read_by = words

        with parallel.contained(order.patches.slide_id, start) as result:
            self._side = order.patches.geometry.patch_px
            self._given.clear()
            patches = self._located(order)
            with closing(read_job(patches, self._take, self._settings, note)) as parts:
                for part in parts:
                    self._tell(order, part)
                    self._hear()
                    if order.number in self._dropped:
                        break
        for slot, _, full in self._given:
            if full:
                self._send(Closed(slot))  # what was to come into it does not
        seconds = time.perf_counter() - start
        self._send(Ended(order.number, result.failure, read_by, seconds, self._waited))
        pulse.at("between two slides")

    def _located(self, order: Order) -> store.Patches:
        patches = order.patches
        found = order.finder.find(patches.slide_id, [patches.slide_path], patches.slide_fingerprint)
        self._send(Found(order.number, found))
        return replace(patches, slide_path=found)

    def _take(self, most: int) -> NDArray[np.uint8] | None:
        """Give room for patches in the slot, or in the next."""
        each = self._side**2 * 3
        if self._slot is not None and self._used + each > self._ring.slot_bytes:
            self._close_slot()
        if self._slot is None:
            self._hear()
            if not self._free:
                if self._given:
                    return None
                start = time.perf_counter()
                pulse.rest()
                while not self._free:
                    self._take_in(self._channel.recv())
                self._waited += time.perf_counter() - start
                pulse.at("going on")
            self._slot, self._used = self._free.popleft(), 0
        first = -(-self._used // each)  # patches of another size may come before
        room = self._ring.patches(self._slot, self._side)[first:]
        if not len(room):
            self._close_slot()
            return self._take(most)
        given = room[: min(most, len(room))]
        self._used = (first + len(given)) * each
        full = len(given) == len(room)
        self._given.append((self._slot, first, full))
        if full:
            self._slot = None
        return given

    def _tell(self, order: Order, part: Part) -> None:
        slot, first, full = self._given.popleft()
        self._send(Filled(order.number, slot, first, self._side, part.rows, part.broken, full))

    def _close_slot(self) -> None:
        if self._slot is not None:
            self._send(Closed(self._slot))
            self._slot = None

    def _send(self, message: FromReader) -> None:
        self._channel.send(message)

    def _hear(self) -> None:
        while self._channel.poll():
            self._take_in(self._channel.recv())

    def _take_in(self, message: Any) -> None:
        if isinstance(message, Order):
            self._orders.append(message)
        elif isinstance(message, Drop):
            self._dropped.add(message.number)
            if any(each.number == message.number for each in self._orders):
                self._orders = deque(each for each in self._orders if each.number != message.number)
                self._send(Ended(message.number, None, "", 0.0, 0.0))
        elif isinstance(message, int):
            self._free.append(message)
        else:
            self._over = True
