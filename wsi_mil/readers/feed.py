"""Batches for the encoder that cross from one slide to the next, from readers that may die.

Comes in: a source of jobs. Goes out: full batches, and word of the slides that ended. A thread hands out jobs
and slots, and takes what the readers tell; whoever iterates computes meanwhile, and gives each batch back.
"""

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_mil import parallel
from wsi_mil.parallel import Guard
from wsi_mil.readers.crew import Crew, Reader, Readers
from wsi_mil.readers.job import Job
from wsi_mil.readers.ring import Ring
from wsi_mil.readers.serve import Closed, Ended, Filled, Found, Session

_LOOK_S = 0.5  # how often an interrupt is looked for while nothing comes
_TURN_S = 0.25  # how often the thread looks for what nobody tells: readers that were ended, jobs that failed
_QUEUED = 3  # jobs that a reader has: the one in hand, and those it begins without asking
_HELD = 2  # slots that a reader has: the one it fills, and the next


class Source(Protocol):
    """Where jobs come from; asked by one thread."""

    over: bool
    """Whether none will come any more."""

    def take(self) -> Job | None:
        """Return the next job, or None where there is none now."""


@dataclass(frozen=True)
class Batch:
    """Patches of one or more slides: ``pieces`` (n, height, width, 3) uint8, one after the other; ``rows``
    says whose they are, in their order, -1 where a patch is none. They may be read until the batch is given
    back.

    ``ends``: the slides of which nothing comes after this batch. Without pieces only slides end.
    """

    pieces: tuple[NDArray[np.uint8], ...]
    rows: tuple[tuple[Job, NDArray[np.int64]], ...]
    ends: tuple[Job, ...]
    slots: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        """How many patches there are."""
        return sum(len(each) for each in self.pieces)


@dataclass
class _Waiting:
    """Rows that came and are in no batch yet."""

    job: Job
    slot: int
    first: int
    side: int
    rows: NDArray[np.int64]


@dataclass
class _Slot:
    """Of a slot: how many of its parts are not given back, and whether more may come."""

    parts: int = 0
    open: bool = True


@dataclass
class Times:
    """Seconds of all ``readers`` together: ``reading`` slides, and ``waited`` for slots of those."""

    reading: float = 0.0
    waited: float = 0.0
    readers: int = 0
    threads: int = 1
    remote: bool = False


@dataclass
class Feed:
    """Iterate over it for batches of ``batch_size``, which may be lowered on the way; once.

    ``check`` is called while nothing comes: what it raises ends the iteration. ``say`` is told how slides are
    read that are not read by their blocks.
    """

    source: Source
    readers: Readers
    batch_size: int
    say: Callable[[str], None] = lambda _: None
    check: Callable[[], None] = lambda: None
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        """Make the memory; read nothing yet."""
        plan = self.readers
        self.ring = Ring(plan.slots, plan.slot_patches * plan.patch_px**2 * 3)
        self.times = Times(readers=plan.count, threads=plan.settings.threads)
        self._free = deque(range(plan.slots))
        self._slots: dict[int, _Slot] = {}
        self._waiting: deque[_Waiting] = deque()
        self._ends: list[Job] = []
        self._again: deque[Job] = deque()
        self._back: queue.SimpleQueue[tuple[int, ...]] = queue.SimpleQueue()
        self._out: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._dry = 0.0
        self._wake_out, self._wake_in = os.pipe()

    def __iter__(self) -> Generator[Batch]:
        """Yield batches; the readers end, or are given back, with the iteration."""
        thread = threading.Thread(target=self._work, name="feed", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    event = self._out.get(timeout=_LOOK_S)
                except queue.Empty:
                    self.check()
                    continue
                if event is None:
                    return
                if isinstance(event, BaseException):
                    raise event
                yield event
        finally:
            self._stop.set()
            self._wake()
            thread.join()
            for each in (self._wake_in, self._wake_out):
                os.close(each)
            self.ring.close()

    def release(self, batch: Batch) -> None:
        """Give back the memory of a batch that is read no more."""
        if batch.slots and not self._stop.is_set():
            self._back.put(batch.slots)
            self._wake()

    def _wake(self) -> None:
        os.write(self._wake_in, b".")

    def _work(self) -> None:
        try:
            plan = self.readers
            session = Session(plan.slots, self.ring.slot_bytes, plan.settings)
            with Guard() as guard, Crew(plan, self.ring, session, guard) as crew:
                while not self._stop.is_set():
                    self._hand_out(crew)
                    if self._is_over(crew):
                        self._flush()
                        break
                    if not crew.working and (self._waiting or self._ends):
                        self._flush()  # the next slide may take long
                    self._listen(crew)
                if not self._stop.is_set():
                    crew.part()
            self._out.put(None)
        except BaseException as error:  # raised where it is iterated
            self._out.put(error)

    def _hand_out(self, crew: Crew) -> None:
        """Give jobs to readers that have few, and slots to those that have none to fill."""
        crew.hire(self._next_job, _QUEUED, self._failed)
        for reader in sorted(crew.busy, key=lambda each: len(each.slots)):
            while self._free and len(reader.slots) < _HELD:
                slot = self._free.popleft()
                self._slots[slot] = _Slot()
                reader.give_slot(slot)

    def _failed(self, job: Job) -> None:
        self._ends.append(job)
        if not self._waiting:
            self._join()

    def _next_job(self) -> Job | None:
        if self._again:
            return self._again.popleft()
        if self.source.over or time.monotonic() < self._dry:
            return None
        job = self.source.take()
        if job is None:
            self._dry = time.monotonic() + _TURN_S
        return job

    def _is_over(self, crew: Crew) -> bool:
        return self.source.over and not self._again and not crew.working

    def _listen(self, crew: Crew) -> None:
        for ready in crew.wait([self._wake_out], _TURN_S):
            if isinstance(ready, Reader):
                self._hear(crew, ready)
            else:
                os.read(self._wake_out, 65536)
        with contextlib.suppress(queue.Empty):
            while True:
                for slot in self._back.get_nowait():
                    self._part_over(slot)
        for reader in list(crew.readers):
            if reader.child.ended_for:
                self._lose(crew, reader)
            else:
                reader.drop_failed()

    def _hear(self, crew: Crew, reader: Reader) -> None:
        try:
            while reader.child.channel.poll():
                self._take_in(reader, reader.child.channel.recv())
        except (EOFError, OSError):
            self._lose(crew, reader)

    def _take_in(self, reader: Reader, message: object) -> None:
        if isinstance(message, Filled):
            self._filled(reader, message)
        elif isinstance(message, Found):
            reader.job(message.number).found_at(message.path)
        elif isinstance(message, Closed):
            self._close(reader, message.slot)
        elif isinstance(message, Ended):
            self.times.reading += message.seconds
            self.times.waited += message.waited
            job = reader.ended(message.number)
            self.times.remote |= "://" in str(job.patches.slide_path)
            self._end(job, message)

    def _filled(self, reader: Reader, part: Filled) -> None:
        job = reader.job(part.number)
        rows = _only_new(job, part)
        self._slots[part.slot].parts += 1
        if part.closed:
            self._close(reader, part.slot)
        self._waiting.append(_Waiting(job, part.slot, part.first, part.side, rows))
        while sum(len(each.rows) for each in self._of_one_size()) >= self.batch_size:
            self._join()
        if len({each.side for each in self._waiting}) > 1:
            self._join()

    def _close(self, reader: Reader, slot: int) -> None:
        reader.slots.discard(slot)
        self._slots[slot].open = False
        self._free_if_over(slot)

    def _part_over(self, slot: int) -> None:
        self._slots[slot].parts -= 1
        self._free_if_over(slot)

    def _free_if_over(self, slot: int) -> None:
        if not self._slots[slot].open and not self._slots[slot].parts:
            del self._slots[slot]
            self._free.append(slot)

    def _end(self, job: Job, how: Ended) -> None:
        job.failure = job.failure or how.failure
        if how.read_by not in {"", "blocks"}:
            job.read_by = how.read_by
            self.say(how.read_by)
        self._ends.append(job)
        if not self._waiting:
            self._join()

    def _lose(self, crew: Crew, reader: Reader) -> None:
        """Take leave of a reader that has died: the slide in hand fails, the others are read by another."""
        crew.lose(reader)
        for slot in list(reader.slots):
            self._close(reader, slot)
        jobs = list(reader.jobs.values())
        innocent = reader.child.killed_by_others and jobs and not jobs[0].again
        if innocent:
            jobs[0].again = True  # the system ends processes where memory runs out, and may hit the wrong one
        elif jobs:
            job = jobs.pop(0)
            seconds = time.perf_counter() - job.started
            reason = reader.child.how_it_ended() + (", twice" if job.again else "")
            job.failure = job.failure or parallel.Outcome(
                slide_id=job.slide_id, status="failed", seconds=seconds, reason=reason
            )
            self._ends.append(job)
        self._again.extendleft(reversed(jobs))

    def _of_one_size(self) -> list[_Waiting]:
        return [each for each in self._waiting if each.side == self._waiting[0].side]

    def _flush(self) -> None:
        while self._waiting or self._ends:
            self._join()

    def _join(self) -> None:
        """Hand out a batch of what waits; with its last patch the slides that ended are over."""
        taken: list[_Waiting] = []
        room = self.batch_size
        while self._waiting and room and self._waiting[0].side == (taken or self._waiting)[0].side:
            part = self._waiting.popleft()
            if len(part.rows) > room:
                rest = _Waiting(part.job, part.slot, part.first + room, part.side, part.rows[room:])
                self._waiting.appendleft(rest)
                self._slots[part.slot].parts += 1  # it is two now
                part = _Waiting(part.job, part.slot, part.first, part.side, part.rows[:room])
            room -= len(part.rows)
            taken.append(part)
        over = tuple(each for each in self._ends if all(part.job is not each for part in self._waiting))
        self._ends = [each for each in self._ends if each not in over]
        if taken or over:
            rows = tuple((each.job, each.rows) for each in taken)
            self._out.put(Batch(self._pieces(taken), rows, over, tuple(each.slot for each in taken)))

    def _pieces(self, taken: Sequence[_Waiting]) -> tuple[NDArray[np.uint8], ...]:
        """Return the patches of parts, those that lie side by side as one array."""
        spans: list[tuple[int, int, int]] = []
        for each in taken:
            last = each.first + len(each.rows)
            if spans and spans[-1][0] == each.slot and spans[-1][2] == each.first:
                spans[-1] = each.slot, spans[-1][1], last
            else:
                spans.append((each.slot, each.first, last))
        return tuple(self.ring.patches(slot, taken[0].side)[first:last] for slot, first, last in spans)


def _only_new(job: Job, part: Filled) -> NDArray[np.int64]:
    """Return a part's rows, -1 for those that came before: from a reader that was killed."""
    if job.told is None:
        job.told = np.zeros(job.count, bool)
    rows = part.rows
    if job.again:
        rows = np.where((rows >= 0) & ~job.told[rows], rows, -1)
    job.told[rows[rows >= 0]] = True
    for each in part.broken:
        if not job.told[each.index]:
            job.told[each.index] = True
            job.broken.append(each)
    return rows
