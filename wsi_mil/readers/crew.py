"""The readers of one feed: who has which job and which slots, and who is there.

Comes in: jobs and slots. Goes out: readers that have something to tell. It is used by one thread.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.reduction import send_handle

from wsi_mil import parallel
from wsi_mil.errors import ConfigError
from wsi_mil.parallel import Child, Guard, Limits
from wsi_mil.readers.job import Job, ReadSettings
from wsi_mil.readers.ring import Ring
from wsi_mil.readers.serve import Drop, Order, Session, ToReader

_PART_S = 5.0  # readers that are told that it is over and do not answer are ended


@dataclass(frozen=True)
class Readers:
    """``count`` readers, ``slots`` of ``slot_patches`` patches with ``patch_px`` pixels a side in their ring.

    ``limits`` says what a job may take.
    """

    count: int
    slots: int
    slot_patches: int
    patch_px: int
    settings: ReadSettings
    limits: Callable[[Job], Limits]


class Reader:
    """One reader. ``jobs``: by number, the one in hand first; ``slots``: those it fills or is about to."""

    def __init__(self, child: Child, guard: Guard, limits: Callable[[Job], Limits]) -> None:
        """Take a child that serves."""
        self.child, self._guard, self._limits = child, guard, limits
        self.jobs: dict[int, Job] = {}
        self.slots: set[int] = set()
        self._dropped: set[int] = set()

    def give_job(self, number: int, job: Job) -> None:
        """Give it a job after those it has."""
        self.tell(Order(number, job.patches, job.finder))
        self.jobs[number] = job
        if len(self.jobs) == 1:
            self._in_hand(job)

    def give_slot(self, slot: int) -> None:
        """Give it a slot to fill."""
        self.slots.add(slot)
        self.tell(slot)

    def job(self, number: int) -> Job:
        """Return a job of its."""
        return self.jobs[number]

    def ended(self, number: int) -> Job:
        """Take a job off it."""
        job = self.jobs.pop(number)
        self._dropped.discard(number)
        if self.jobs:
            self._in_hand(next(iter(self.jobs.values())))
        return job

    def drop_failed(self) -> None:
        """Tell it of jobs that have failed elsewhere."""
        for number, job in self.jobs.items():
            if job.failure is not None and number not in self._dropped:
                self._dropped.add(number)
                self.tell(Drop(number))

    def tell(self, message: ToReader) -> None:
        """Send it something; where it is dead its channel will say so."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.child.channel.send(message)

    def _in_hand(self, job: Job) -> None:
        job.started = time.perf_counter()
        self._guard.watch(self.child, self._limits(job))


class Crew:
    """Up to ``plan.count`` readers, started when there are jobs for them. A context manager: leaving it ends
    those that were not parted with."""

    def __init__(self, plan: Readers, ring: Ring, session: Session, guard: Guard) -> None:
        """Have nobody yet."""
        self._plan, self._ring, self._session, self._guard = plan, ring, session, guard
        self.readers: list[Reader] = []
        self._numbers = itertools.count()

    def __enter__(self) -> "Crew":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the readers."""
        for each in self.readers:
            each.child.kill()
        for each in self.readers:
            self.lose(each)

    @property
    def busy(self) -> list[Reader]:
        """The readers that have jobs."""
        return [each for each in self.readers if each.jobs]

    @property
    def working(self) -> bool:
        """Whether a job is under way."""
        return any(each.jobs for each in self.readers)

    def hire(self, next_job: Callable[[], Job | None], most: int, failed: Callable[[Job], None]) -> None:
        """Give every reader up to ``most`` jobs, first those that have least; start readers that are missing.

        ``failed`` is told of jobs whose patches cannot be loaded.
        """
        while True:
            reader = min(self.readers, key=lambda each: len(each.jobs), default=None)
            fewest = len(reader.jobs) if reader else most
            if fewest and len(self.readers) < self._plan.count:
                reader = None
            elif fewest >= most:
                return
            job = next_job()
            if job is None:
                return
            with parallel.contained(job.slide_id, time.perf_counter()) as result:
                _ = job.patches
            if result.failure is not None:
                job.failure = result.failure
                failed(job)
                continue
            if reader is None:
                reader = self._start()
            reader.give_job(next(self._numbers), job)

    def wait(self, others: Sequence[int], seconds: float) -> Iterator[Reader | int]:
        """Yield readers that have told something or ended, and the files of ``others`` that can be read."""
        channels = {each.child.channel: each for each in self.readers}
        for ready in wait([*channels, *others], timeout=seconds):
            if isinstance(ready, int):
                yield ready
            else:
                yield channels[ready]  # type: ignore[index]

    def lose(self, reader: Reader) -> None:
        """Let go of a reader that is dead."""
        self._guard.forget(reader.child)
        if reader in self.readers:
            self.readers = [each for each in self.readers if each is not reader]
        reader.child.close()

    def part(self) -> None:
        """Tell all readers that it is over, and keep their processes for the next work."""
        for each in self.readers:
            self._guard.forget(each.child)
            each.tell("over")
        deadline = time.monotonic() + _PART_S
        for each in self.readers:
            try:
                while each.child.channel.poll(max(deadline - time.monotonic(), 0)):
                    if each.child.channel.recv() == "over":
                        parallel.give_back(each.child)
                        break
                else:
                    each.child.close()
            except (EOFError, OSError):
                each.child.close()
        self.readers = []

    def _start(self) -> Reader:
        try:
            child = parallel.take()
            child.ask(self._session)
            send_handle(child.channel, self._ring.descriptor, child.process.pid)
        except OSError as error:
            raise ConfigError(
                f"--readers {self._plan.count}: a reader process cannot be started ({error}); use fewer "
                "readers, or raise the limits of open files and processes (ulimit -n, ulimit -u)."
            ) from error
        reader = Reader(child, self._guard, self._plan.limits)
        self.readers.append(reader)
        return reader
