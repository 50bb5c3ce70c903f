"""Batches for the encoder that cross from one slide to the next, so that it never waits for a slide to open.

Comes in: slides to read, one after the other. Goes out: full batches, and word of the slides that ended. It
reads through ``blocks`` and computes nothing.
"""

import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_mil import blocks, parallel, store
from wsi_mil.blocks import BrokenPatch
from wsi_mil.errors import FormatError, SlideError
from wsi_mil.parallel import Outcome
from wsi_mil.slide import Slide, open_slide

_LOOK_S = 0.5  # how often an interrupt is looked for while nothing comes
_WAITING = 3  # parts of slides that were read and not yet asked for


@dataclass(eq=False)
class Job:
    """One slide on its way: its patches, the record of its features, and what became of it so far.

    ``count``: how many patches it has; they are loaded when they are first asked for, so that the coords of a
    cohort do not sit in memory together. ``read_wait``, ``compute``, ``write``: seconds. ``failure`` (and the
    ``error`` behind it) is set by whoever meets it; the others then leave the slide. ``read_by``: how its
    pixels are read.
    """

    slide_id: str
    count: int
    load: Callable[[], store.Patches]
    record: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    read_wait: float = 0.0
    compute: float = 0.0
    write: float = 0.0
    read_by: str = "blocks"
    broken: list[BrokenPatch] = field(default_factory=list)
    failure: Outcome | None = None
    error: Exception | None = None

    @classmethod
    def of(cls, patches: store.Patches) -> "Job":
        """Return the job of patches that are in memory."""
        return cls(patches.slide_id, len(patches.coords), lambda: patches)

    @functools.cached_property
    def patches(self) -> store.Patches:
        """Where the slide's patches lie.

        Raises:
            FormatError: their file is damaged, or is another than when the work was planned.
        """
        patches = self.load()
        if self.record and patches.digest != self.record["patches_digest"]:
            raise FormatError(
                f"{self.slide_id}: its patches changed while the run was under way; run `wsi-mil embed` "
                "again when `wsi-mil tile` has ended."
            )
        return patches

    def forget(self) -> None:
        """Let go of the patches: the slide has ended."""
        vars(self).pop("patches", None)


@dataclass(frozen=True)
class Part:
    """Some patches of one slide: ``rows`` (n,) of its coords and ``patches`` (n, height, width, 3) uint8."""

    job: Job
    rows: NDArray[np.int64]
    patches: NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Patches (n, height, width, 3) of one or more slides; ``rows`` says whose, in their order.

    ``ends``: the slides of which nothing comes after this batch. n may be 0: only slides end then.
    """

    patches: NDArray[np.uint8]
    rows: tuple[tuple[Job, NDArray[np.int64]], ...]
    ends: tuple[Job, ...]


@dataclass(frozen=True)
class ReadSettings:
    """How slides are read; see ``EmbedConfig``."""

    batch_size: int = 32
    workers: int = 0
    memory_mib: int = 256
    max_broken: float = 0.01


Reader = Callable[[Job], Generator[Part]]


class Feed:
    """Iterate over it for batches of ``batch_size``, which may be lowered on the way.

    ``jobs`` is asked for the next slide when there is a thread to read it; None among them says that the next
    may take long, and what has been read is handed out. ``readers``: so many slides are open at a time, each
    read ahead by a thread of its own; 0 reads when asked, which is best where the CPU computes as well.
    """

    def __init__(
        self,
        jobs: Iterable[Job | None],
        read: Reader,
        batch_size: int,
        readers: int,
        stop: threading.Event | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Read nothing yet. ``stop`` is set when the iteration ends: ``jobs`` may wait for something else.

        ``check`` is called while nothing comes: what it raises ends the iteration.
        """
        self.batch_size = batch_size
        self._check = check
        self._jobs, self._read, self._readers = iter(jobs), read, readers
        self._stop = stop or threading.Event()

    def __iter__(self) -> Generator[Batch]:
        """Yield batches; the reading threads end with the iteration, however that ends."""
        waiting: list[Part] = []
        ends: list[Job] = []
        events = self._inline() if not self._readers else self._threaded()
        with closing(events):
            for event in events:
                if isinstance(event, Part):
                    if waiting and waiting[0].patches.shape[1:] != event.patches.shape[1:]:
                        yield self._join(waiting, ends)
                    waiting.append(event)
                    while sum(len(each.rows) for each in waiting) >= self.batch_size:
                        yield self._join(waiting, ends)
                elif event is None:
                    if waiting or ends:
                        yield self._join(waiting, ends)
                else:
                    ends.append(event)
                    if not waiting:
                        yield self._join(waiting, ends)
            if waiting or ends:
                yield self._join(waiting, ends)

    def _join(self, waiting: list[Part], ends: list[Job]) -> Batch:
        """Take a batch off ``waiting``; with its last patch the slides in ``ends`` are over."""
        taken: list[Part] = []
        room = self.batch_size
        while waiting and room:
            part = waiting.pop(0)
            if len(part.rows) > room:
                waiting.insert(0, Part(part.job, part.rows[room:], part.patches[room:]))
                part = Part(part.job, part.rows[:room], part.patches[:room])
            room -= len(part.rows)
            taken.append(part)
        over = tuple(each for each in ends if all(part.job is not each for part in waiting))
        ends[:] = [each for each in ends if each not in over]
        if not taken:
            return Batch(np.empty((0, 0, 0, 3), np.uint8), (), over)
        patches = taken[0].patches if len(taken) == 1 else np.concatenate([each.patches for each in taken])
        return Batch(patches, tuple((each.job, each.rows) for each in taken), over)

    def _inline(self) -> Generator["Part | Job | None"]:
        for job in self._jobs:
            if job is None:
                yield None
                continue
            yield from self._one(job)

    def _one(self, job: Job) -> Generator["Part | Job"]:
        """Yield a slide's parts and then the slide, whose ``failure`` says if it could not be read."""
        job.started = time.perf_counter()
        parts = self._read(job)
        with closing(parts):
            while job.failure is None:
                part = None
                with parallel.contained(job.slide_id, job.started) as result:
                    part = next(parts, None)
                job.failure, job.error = job.failure or result.failure, job.error or result.error
                if part is None:
                    break
                yield part
        yield job

    def _threaded(self) -> Generator["Part | Job | None"]:
        events: queue.Queue[Part | Job | BaseException | None] = queue.Queue(_WAITING)
        stop, lock = self._stop, threading.Lock()
        over = StopIteration()

        def put(event: Part | Job | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    events.put(event, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def work() -> None:
            try:
                while not stop.is_set():
                    with lock:
                        job = next(self._jobs, over)
                    if isinstance(job, StopIteration):
                        break
                    if job is None:
                        put(None)
                        continue
                    one = self._one(job)
                    with closing(one):
                        for event in one:
                            put(event)
                            if stop.is_set():
                                return
                put(over)
            except BaseException as error:  # handed to whoever iterates, and raised there
                put(error)

        threads = [threading.Thread(target=work, name="feed", daemon=True) for _ in range(self._readers)]
        for each in threads:
            each.start()
        try:
            running = len(threads)
            while running:
                try:
                    event = events.get(timeout=_LOOK_S)
                except queue.Empty:
                    self._check()
                    continue
                if event is over:
                    running -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event
        finally:
            stop.set()
            for each in threads:
                each.join()


def read_job(settings: ReadSettings, say: Callable[[str], None] | None = None) -> Reader:
    """Return a function that opens a job's slide and reads it."""

    def read(job: Job) -> Generator[Part]:
        patches = job.patches
        check_inside(patches)
        reader, mpp = patches.reader, patches.geometry.mpp_l0
        with open_slide(patches.slide_path, reader, mpp, patches.icc) as slide:  # type: ignore[arg-type]
            if (slide.width_l0, slide.height_l0) != (patches.geometry.width_l0, patches.geometry.height_l0):
                raise _replaced(
                    patches,
                    f"is {slide.width_l0} x {slide.height_l0} pixels and was {patches.geometry.width_l0} x "
                    f"{patches.geometry.height_l0} when it was tiled",
                )
            yield from read_open_slide(slide, job, settings)
        if job.read_by != "blocks" and say:
            say(job.read_by)

    return read


def read_open_slide(slide: Slide, job: Job, settings: ReadSettings) -> Generator[Part]:
    """Yield the patches of a job from its open slide; those that cannot be read become ``job.broken``.

    Raises:
        SlideError: more than ``max_broken`` of the patches cannot be read, or the slide is open with other
            colours than it was tiled with.
    """
    patches = job.patches
    if slide.icc != patches.icc:
        raise SlideError(
            f"{slide.path}: opened with icc {slide.icc!r}, and tiled with {patches.icc!r}: its patches would "
            "have other colours than those that were chosen; open it with icc=patches.icc."
        )
    order = blocks.sweep_order(slide, patches.coords, patches.geometry, settings.memory_mib)

    def note(words: str) -> None:
        job.read_by = words

    batches = blocks.stream(
        slide,
        patches.coords[order],
        patches.geometry,
        batch_size=settings.batch_size,
        workers=settings.workers,
        memory_mib=settings.memory_mib,
        max_broken=settings.max_broken,
        note=note,
    )
    with closing(batches):
        for batch in batches:
            job.broken += [dataclasses.replace(each, index=int(order[each.index])) for each in batch.broken]
            if len(batch.index):
                yield Part(job, order[batch.index], batch.patches)


def check_inside(patches: store.Patches) -> None:
    """Raise FormatError where a patch lies wholly outside of its slide; one across the edge is filled up."""
    plan = patches.geometry
    corner, size = patches.coords, plan.patch_size_l0
    outside = (corner + size <= 0).any(axis=1) | (corner >= (plan.width_l0, plan.height_l0)).any(axis=1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise FormatError(
            f"{patches.slide_id}: {int(outside.sum())} of {len(corner)} patches lie outside of the slide, "
            f"the first is patch {first} at level-0 {corner[first].tolist()}, and the slide is "
            f"{plan.width_l0} x {plan.height_l0} pixels. Tile it again: these coords are another "
            "slide's, or of another level."
        )


def _replaced(patches: store.Patches, what: str) -> SlideError:
    return SlideError(f"{patches.slide_path}: {what}: the file was replaced. Tile it again with --overwrite.")
